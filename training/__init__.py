"""What `model.fit` needs to be right, on one device or many."""

from .callbacks import Checkpoints, ValidationBleu
from .devices import strategy
from .losses import SmoothedCrossEntropy
from .metrics import bleu
from .model import Model, compiled
from .schedules import InverseSquareRoot
from .states import CheckpointError, read_tensors, write_file, write_tensors

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "InverseSquareRoot",
    "Model",
    "SmoothedCrossEntropy",
    "ValidationBleu",
    "bleu",
    "compiled",
    "read_tensors",
    "strategy",
    "write_file",
    "write_tensors",
]
