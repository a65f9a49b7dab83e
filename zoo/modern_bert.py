"""ModernBERT (Warner et al. 2024): rotary positions, windows, gated feed-forward networks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from ..layers import (
    Dropout,
    GatedFeedForward,
    MultiHeadAttention,
    Rotary,
    TokenEmbedding,
    TransformerBlock,
    padding_mask,
)
from .heads import HeadConfig, head_shapes
from .model import check_activation, check_real
from .text_encoder import TextEncoder


@dataclass(frozen=True)
class ModernBERTConfig(HeadConfig):
    """Configuration of a `ModernBERT`; the defaults are those of ModernBERT-base, without a head.

    The fields of the head are those of `HeadConfig`.

    >>> polyhead.ModernBERT.count_parameters(polyhead.ModernBERTConfig())
    149014272
    """

    vocab_size: int = 50368
    max_length: int = 8192  # of a text, in tokens including special ones
    num_layers: int = 22
    dim: int = 768
    intermediate_dim: int = 1152
    num_heads: int = 12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation: str = "gelu"
    epsilon: float = 1e-5
    pad_id: int = 50283
    global_every: int = 3  # every third block, the first included, attends to all tokens
    window: int = 128  # of the other blocks: half of it on either side
    theta: float = 160_000.0  # of rotary positions, where attention is global
    local_theta: float = 10_000.0
    head_activation: str = "gelu"
    head_bias: bool = False
    head_pooling: str = "token"  # or "mean": of the heads "classes" and "score"

    def __post_init__(self):
        super().__post_init__()
        check_activation(self.head_activation)
        if self.head_pooling not in ("token", "mean"):
            raise ValueError(f"head_pooling must be 'token' or 'mean': {self.head_pooling!r}")
        for name in ("theta", "local_theta"):
            check_real(self, name, lambda theta: 1 < theta < 1e12, "above 1 and below 1e12")
        if self.dim // self.num_heads % 2:
            raise ValueError(
                f"rotary positions need heads of an even size: {self.dim} / {self.num_heads}"
            )

    def is_global(self, block: int) -> bool:
        return block % self.global_every == 0


PRESETS = {
    # Warner et al. 2024 (arXiv 2412.13663), table 4.
    "base": ModernBERTConfig(),
    "large": ModernBERTConfig(num_layers=28, dim=1024, intermediate_dim=2624, num_heads=16),
}


@keras.saving.register_keras_serializable("polyhead")
class ModernBERT(TextEncoder):
    """Encoder with pre-norm, rotary positions and local attention (Warner et al. 2024, section 2).

    Tokens (B, T) -> what the head gives, in float32; see `TextEncoder`. There are no types, and no
    biases but those of the heads. The first block does not normalize the input of its attention,
    which the embeddings do already.

    Args:
        config: a `ModernBERTConfig`.
        tokenizer: `polyhead.data.BytePairs`; only needed for strings.
        initialize: False skips the initialization, when weights are about to be loaded.

    Raises:
        ValueError: tokenizer and configuration have different vocabularies.

    >>> config = polyhead.ModernBERTConfig(
    ...     vocab_size=20, pad_id=0, num_layers=2, dim=16, intermediate_dim=24, num_heads=2
    ... )
    >>> polyhead.ModernBERT(config)(np.ones([2, 5], "int32")).shape.as_list()
    [2, 16]
    """

    Config = ModernBERTConfig
    PRESETS = PRESETS
    FAMILIES = {"modernbert": ".published.modern_bert"}

    def __init__(
        self,
        config: ModernBERTConfig,
        tokenizer: Any = None,
        initialize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, tokenizer, **kwargs)
        c, dtype = config, self.dtype_policy
        scale = dict(epsilon=c.epsilon, center=False)
        norm = keras.layers.LayerNormalization(**scale)
        self.tokens = TokenEmbedding(c.vocab_size, c.dim, scale=False, dtype=dtype, name="tokens")
        self.embeddings_norm, self.norm = (
            keras.layers.LayerNormalization(**scale, dtype=dtype, name=name)
            for name in ("embeddings_norm", "norm")
        )
        self.dropout = Dropout(c.dropout, dtype=dtype, name="dropout")
        self.rotary, self.local_rotary = (
            Rotary(c.dim // c.num_heads, theta, dtype=dtype, name=name)
            for name, theta in (("rotary", c.theta), ("local_rotary", c.local_theta))
        )
        parts = dict(
            attention=MultiHeadAttention(c.num_heads, use_bias=False, dropout=c.attention_dropout),
            feed_forward=GatedFeedForward(c.intermediate_dim, c.activation),
            norm=norm,
            dropout=c.dropout,
        )
        self.blocks = [
            TransformerBlock(
                **parts,
                attention_norm=None if i else keras.layers.Identity(),
                dtype=dtype,
                name=f"block_{i}",
            )
            for i in range(c.num_layers)
        ]
        self.build_head(c.head_activation, norm, use_bias=c.head_bias, pooling=c.head_pooling)
        self.build_layers()
        if initialize:
            self.initialize()

    @classmethod
    def shapes(cls, config: ModernBERTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        c, split = config, (config.num_heads, config.dim // config.num_heads)
        shapes = {
            "attention_norm/gamma": (c.dim,),
            **{f"attention/{part}/kernel": (c.dim, *split) for part in ("query", "key", "value")},
            "attention/output/kernel": (*split, c.dim),
            "feed_forward_norm/gamma": (c.dim,),
            **{f"feed_forward/{p}/kernel": (c.dim, c.intermediate_dim) for p in ("gate", "expand")},
            "feed_forward/contract/kernel": (c.intermediate_dim, c.dim),
        }
        yield "tokens/embeddings", (c.vocab_size, c.dim)
        yield "embeddings_norm/gamma", (c.dim,)
        for i in reversed(range(c.num_layers)):
            for name, shape in shapes.items():
                if i or name != "attention_norm/gamma":
                    yield f"block_{i}/{name}", shape
        yield "norm/gamma", (c.dim,)
        if c.head is not None:
            yield from head_shapes(c, ("kernel", "bias")[: 1 + c.head_bias], ("gamma",)).items()

    def features(self, tokens: Any, types: Any = None) -> Any:
        c, positions = self.config, ops.arange(ops.shape(tokens)[1])
        mask = padding_mask(tokens, c.pad_id)
        near = ops.abs(positions[:, None] - positions) <= c.window // 2
        everywhere = dict(mask=mask, rotary=self.rotary(positions))
        nearby = dict(mask=ops.logical_and(mask, near), rotary=self.local_rotary(positions))
        x = self.dropout(self.embeddings_norm(self.tokens(tokens)))
        for i, block in enumerate(self.blocks):
            x = block(x, **(everywhere if c.is_global(i) else nearby))
        return self.norm(x)
