"""Transformer layers, written in `keras.ops`."""

from .attend import attend, attention_weights
from .attention import MultiHeadAttention, causal_mask, decoder_mask, padding_mask
from .block import TransformerBlock
from .cache import KeyValueCache
from .dropout import Dropout
from .embedding import TokenEmbedding
from .feed_forward import FeedForward, GatedFeedForward
from .norm import RMSNorm
from .patches import ClassToken, GridPositions, PatchEmbedding
from .positions import PositionalEmbedding, RelativeBias, Rotary
from .residual import Residual

__all__ = [
    "ClassToken",
    "Dropout",
    "FeedForward",
    "GatedFeedForward",
    "GridPositions",
    "KeyValueCache",
    "MultiHeadAttention",
    "PatchEmbedding",
    "PositionalEmbedding",
    "RMSNorm",
    "RelativeBias",
    "Residual",
    "Rotary",
    "TokenEmbedding",
    "TransformerBlock",
    "attend",
    "attention_weights",
    "causal_mask",
    "decoder_mask",
    "padding_mask",
]
