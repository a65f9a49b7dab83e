"""Transformer layers, written in `keras.ops`."""

from .attend import attend, attention_weights
from .attention import MultiHeadAttention, causal_mask, decoder_mask, padding_mask
from .block import TransformerBlock
from .cache import KeyValueCache
from .dropout import Dropout
from .embedding import TokenEmbedding
from .evoformer_block import EvoformerBlock
from .feed_forward import FeedForward, GatedFeedForward
from .folding_block import FoldingBlock
from .msa import (
    MSAColumnAttention,
    MSAGlobalColumnAttention,
    MSARowAttention,
    OuterProductMean,
)
from .norm import RMSNorm
from .patches import ClassToken, GridPositions, PatchEmbedding
from .point_attention import InvariantPointAttention
from .positions import PositionalEmbedding, RelativeBias, Rotary
from .residual import Residual
from .structure_module import StructureModule
from .triangle import TriangleAttention, TriangleMultiplication

__all__ = [
    "ClassToken",
    "Dropout",
    "EvoformerBlock",
    "FeedForward",
    "FoldingBlock",
    "GatedFeedForward",
    "GridPositions",
    "InvariantPointAttention",
    "KeyValueCache",
    "MSAColumnAttention",
    "MSAGlobalColumnAttention",
    "MSARowAttention",
    "MultiHeadAttention",
    "OuterProductMean",
    "PatchEmbedding",
    "PositionalEmbedding",
    "RMSNorm",
    "RelativeBias",
    "Residual",
    "StructureModule",
    "Rotary",
    "TokenEmbedding",
    "TransformerBlock",
    "TriangleAttention",
    "TriangleMultiplication",
    "attend",
    "attention_weights",
    "causal_mask",
    "decoder_mask",
    "padding_mask",
]
