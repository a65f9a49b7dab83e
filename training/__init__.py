"""Training: models, callbacks, checkpoints, losses and optimizers for one or more devices."""

from .averages import EvaluateAverages, averaged
from .callbacks import Curves, Progress, ValidationBleu
from .checkpoints import Checkpoints, mean_weights
from .devices import from_chief, is_chief, strategy
from .lock import FolderInUseError, locked
from .losses import SmoothedCrossEntropy
from .metrics import bleu
from .model import Model, build_optimizer, compiled
from .muon import Muon
from .schedules import InverseSquareRoot
from .states import CheckpointError, read_tensors, write_file, write_tensors

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Curves",
    "EvaluateAverages",
    "FolderInUseError",
    "InverseSquareRoot",
    "Model",
    "Muon",
    "Progress",
    "SmoothedCrossEntropy",
    "ValidationBleu",
    "averaged",
    "bleu",
    "build_optimizer",
    "compiled",
    "from_chief",
    "is_chief",
    "locked",
    "mean_weights",
    "read_tensors",
    "strategy",
    "write_file",
    "write_tensors",
]
