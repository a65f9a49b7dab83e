"""Ready models, a file each."""

from ..serving import quiet  # noqa: F401  (before Keras and TensorFlow)
from .generation import Search
from .gpt import GPT, GPTConfig
from .sampling import Sampling
from .transformer import Transformer, TransformerConfig
from .vit import ViT, ViTConfig

__all__ = [
    "GPT",
    "GPTConfig",
    "Sampling",
    "Search",
    "Transformer",
    "TransformerConfig",
    "ViT",
    "ViTConfig",
]
