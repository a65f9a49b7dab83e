"""Transformer layers, written in `keras.ops`."""

from .attention import MultiHeadAttention, causal_mask, padding_mask
from .block import TransformerBlock
from .cache import KeyValueCache
from .dropout import Dropout
from .embedding import PositionalEmbedding, TokenEmbedding
from .feed_forward import FeedForward
from .patches import ClassToken, GridPositions, PatchEmbedding

__all__ = [
    "ClassToken",
    "Dropout",
    "FeedForward",
    "GridPositions",
    "KeyValueCache",
    "MultiHeadAttention",
    "PatchEmbedding",
    "PositionalEmbedding",
    "TokenEmbedding",
    "TransformerBlock",
    "causal_mask",
    "padding_mask",
]
