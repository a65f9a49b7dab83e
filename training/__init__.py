"""Training: models, callbacks, checkpoints, losses and optimizers for one or more devices."""

from .averages import EvaluateAverages, averaged
from .callbacks import Curves, Progress, ValidationBleu, ValidationScores
from .checkpoints import Checkpoints, mean_weights
from .devices import from_chief, is_chief, strategy
from .layerwise import LayerwiseAdamW
from .lock import FolderInUseError, locked
from .losses import (
    BinaryCrossEntropy,
    CosineRegression,
    InBatchNegatives,
    SmoothedCrossEntropy,
    SpanCrossEntropy,
)
from .metrics import (
    Entity,
    Rouge,
    answer_scores,
    bleu,
    classification_scores,
    correlations,
    entities,
    entity_scores,
    lead,
    no_answer_threshold,
    rouge,
)
from .model import Model, build_optimizer, compiled
from .muon import Muon
from .schedules import InverseSquareRoot, Linear
from .states import CheckpointError, read_tensors, write_file, write_tensors

__all__ = [
    "BinaryCrossEntropy",
    "CheckpointError",
    "Checkpoints",
    "CosineRegression",
    "Curves",
    "Entity",
    "EvaluateAverages",
    "FolderInUseError",
    "InBatchNegatives",
    "InverseSquareRoot",
    "LayerwiseAdamW",
    "Linear",
    "Model",
    "Muon",
    "Progress",
    "Rouge",
    "SmoothedCrossEntropy",
    "SpanCrossEntropy",
    "ValidationBleu",
    "ValidationScores",
    "answer_scores",
    "averaged",
    "bleu",
    "build_optimizer",
    "classification_scores",
    "compiled",
    "correlations",
    "entities",
    "entity_scores",
    "from_chief",
    "is_chief",
    "lead",
    "locked",
    "mean_weights",
    "no_answer_threshold",
    "read_tensors",
    "rouge",
    "strategy",
    "write_file",
    "write_tensors",
]
