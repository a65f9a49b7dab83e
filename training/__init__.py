"""Training: models, callbacks, checkpoints, losses and optimizers for one or more devices."""

from ..files import write_file
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
    typical_sentences,
)
from .model import Model, build_optimizer, compiled, trace_once
from .muon import Muon
from .schedules import InverseSquareRoot, Linear
from .states import CheckpointError, read_tensors, write_tensors
from .structure_losses import (
    StructureLoss,
    aligned_error_loss,
    aligned_error_targets,
    beta_positions,
    distogram_loss,
    fape,
    lddt_loss,
    lddt_targets,
    rename_ambiguous,
    rename_frames,
    torsion_loss,
)
from .structure_metrics import gdt_ts, lddt, lddt_per_residue, rmsd, superpose, tm_score

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
    "StructureLoss",
    "ValidationBleu",
    "ValidationScores",
    "aligned_error_loss",
    "aligned_error_targets",
    "answer_scores",
    "averaged",
    "beta_positions",
    "bleu",
    "build_optimizer",
    "classification_scores",
    "compiled",
    "correlations",
    "distogram_loss",
    "entities",
    "entity_scores",
    "fape",
    "from_chief",
    "gdt_ts",
    "is_chief",
    "lddt",
    "lddt_loss",
    "lddt_per_residue",
    "lddt_targets",
    "lead",
    "locked",
    "mean_weights",
    "no_answer_threshold",
    "read_tensors",
    "rename_ambiguous",
    "rename_frames",
    "rmsd",
    "rouge",
    "strategy",
    "superpose",
    "tm_score",
    "torsion_loss",
    "trace_once",
    "typical_sentences",
    "write_file",
    "write_tensors",
]
