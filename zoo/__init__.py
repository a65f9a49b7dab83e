"""Models: each file is a network; the base classes have the task methods."""

from .alignment import Alignment
from .bert import BERT, BERTConfig
from .causal_lm import CausalLM, Generation, Score
from .classes import Classification
from .decoding import Sampling, Search
from .gpt import GPT, GPTConfig
from .image_classifier import ImageClassifier
from .loading import load
from .modern_bert import ModernBERT, ModernBERTConfig
from .seq2seq import Seq2Seq, Translation
from .text_encoder import Answer, Match, Span, TextEncoder
from .transformer import Transformer, TransformerConfig
from .vit import ViT, ViTConfig

__all__ = [
    "BERT",
    "GPT",
    "Alignment",
    "Answer",
    "BERTConfig",
    "CausalLM",
    "Classification",
    "GPTConfig",
    "Generation",
    "ImageClassifier",
    "Match",
    "ModernBERT",
    "ModernBERTConfig",
    "Sampling",
    "Score",
    "Search",
    "Seq2Seq",
    "Span",
    "TextEncoder",
    "Transformer",
    "TransformerConfig",
    "Translation",
    "ViT",
    "ViTConfig",
    "load",
]
