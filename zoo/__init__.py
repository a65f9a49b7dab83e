"""Models: each file is a network; the base classes have the task methods."""

from .alignment import Alignment
from .alphafold import AlphaFold, AlphaFoldConfig
from .bart import BART, BARTConfig
from .bert import BERT, BERTConfig
from .causal_lm import CausalLM, Score
from .classes import Classification
from .decoding import Sampling, Search
from .esm import ESM, ESMConfig
from .esmfold import ESMFold, ESMFoldConfig
from .gpt import GPT, GPTConfig
from .image_classifier import ImageClassifier
from .loading import load
from .model import Generation
from .modern_bert import ModernBERT, ModernBERTConfig
from .seq2seq import Seq2Seq, Summary, Translation
from .t5 import T5, T5Config
from .text_encoder import Answer, Match, Span, TextEncoder
from .transformer import Transformer, TransformerConfig
from .vit import ViT, ViTConfig

__all__ = [
    "BART",
    "BERT",
    "ESM",
    "GPT",
    "T5",
    "Alignment",
    "AlphaFold",
    "AlphaFoldConfig",
    "Answer",
    "BARTConfig",
    "BERTConfig",
    "CausalLM",
    "Classification",
    "ESMConfig",
    "ESMFold",
    "ESMFoldConfig",
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
    "Summary",
    "T5Config",
    "TextEncoder",
    "Transformer",
    "TransformerConfig",
    "Translation",
    "ViT",
    "ViTConfig",
    "load",
]
