"""Models: each file is a network; the base classes have the task methods."""

from .alignment import Alignment
from .causal_lm import CausalLM, Generation, Score
from .decoding import Sampling, Search
from .gpt import GPT, GPTConfig
from .image_classifier import ImageClassifier
from .loading import load
from .model import Classification
from .seq2seq import Seq2Seq, Translation
from .text_encoder import TextEncoder
from .transformer import Transformer, TransformerConfig
from .vit import ViT, ViTConfig

__all__ = [
    "GPT",
    "Alignment",
    "CausalLM",
    "Classification",
    "GPTConfig",
    "Generation",
    "ImageClassifier",
    "Sampling",
    "Score",
    "Search",
    "Seq2Seq",
    "TextEncoder",
    "Transformer",
    "TransformerConfig",
    "Translation",
    "ViT",
    "ViTConfig",
    "load",
]
