"""One block of a Transformer: figure 1 of Vaswani et al. 2017, either half."""

from typing import Any

import keras

from .arguments import Tensor
from .attention import MultiHeadAttention
from .dropout import Dropout
from .feed_forward import FeedForward
from .parts import Composed
from .remat import recomputed
from .residual import ORDERS, Residual


@keras.saving.register_keras_serializable("polyhead")
class TransformerBlock(Composed):
    """Attention and a feed-forward network, each with a residual connection and a normalization.

    The block copies the layers that it is given, each copy with its own name and the block's dtype
    policy, so the same layers can be given to several blocks.

    Args:
        num_heads: H; shorthand for ``attention=MultiHeadAttention(num_heads)``.
        intermediate_dim: shorthand for ``feed_forward=FeedForward(intermediate_dim)``.
        causal: with ``num_heads``: self-attention sees only the past, as in a decoder.
        cross: with ``num_heads``: the block also attends to a memory, as in the decoder of an
            encoder-decoder.
        order: where the norms are (see `Residual`): "pre", x + f(norm(x)), as in GPT-2 (a stack
            then ends with another norm); "post", norm(x + f(x)), as in the paper; "both",
            x + norm(f(norm(x))), as in Gemma 2.
        dropout: rate, on the output of each sublayer (section 5.4).
        stochastic_depth: rate at which an example skips a sublayer (Huang et al. 2016, arXiv
            1603.09382).
        remat: in training, keep only the block's input, and recompute the rest in the backward
            pass (Chen et al. 2016, arXiv 1604.06174): less memory, more time.
        attention: the self-attention, a `MultiHeadAttention`.
        feed_forward: a `FeedForward` or a `GatedFeedForward`.
        norm: a normalization layer for all places. Default: layer normalization with epsilon 1e-5.
        attention_norm: the normalization of the self-attention. Default: ``norm``. (The first block
            of ModernBERT, whose embeddings are normalized, has `keras.layers.Identity`.)
        cross_attention: the attention to the memory, a `MultiHeadAttention`.

    Call with ``x`` (B, T, D). If the block has cross-attention, also pass ``memory``: (B, S, D), or
    the result of `project(memory)`. ``mask`` and ``cross_mask`` are boolean, True = may attend,
    broadcastable to (B, H, T, T) and (B, H, T, S). ``bias``, ``rotary`` and ``cache`` are passed to
    the self-attention. The result is the output (B, T, D) or, with a cache (see `KeyValueCache`),
    (output, cache).

    Raises:
        ValueError: an unknown order; a part is given twice, or not at all; a memory without
            cross-attention, or cross-attention without a memory.

    >>> from polyhead.layers import GatedFeedForward, RMSNorm, Rotary
    >>> x = np.ones((2, 5, 512))
    >>> y = TransformerBlock(num_heads=8, intermediate_dim=2048)(x)
    >>> llama = TransformerBlock(
    ...     attention=MultiHeadAttention(8, num_kv_heads=2, causal=True, use_bias=False),
    ...     feed_forward=GatedFeedForward(1536, "silu"),
    ...     norm=RMSNorm(1e-5),
    ... )
    >>> y = llama(x, rotary=Rotary(head_dim=64)(np.arange(5)))
    >>> tuple(y.shape)
    (2, 5, 512)
    """

    PARTS = {
        "attention": "attention",
        "feed_forward": "feed_forward",
        "norm": "feed_forward_norm",
        "attention_norm": "attention_norm",
        "cross_attention": "cross_attention",
    }

    def __init__(
        self,
        num_heads: int | None = None,
        intermediate_dim: int | None = None,
        causal: bool = False,
        cross: bool = False,
        order: str = "pre",
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        remat: bool = False,
        attention: keras.layers.Layer | None = None,
        feed_forward: keras.layers.Layer | None = None,
        norm: keras.layers.Layer | None = None,
        attention_norm: keras.layers.Layer | None = None,
        cross_attention: keras.layers.Layer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}: {order!r}")
        if (num_heads is None) == (attention is None):
            raise ValueError(f"give num_heads or attention: {num_heads}, {attention}")
        if (intermediate_dim is None) == (feed_forward is None):
            raise ValueError(
                f"give intermediate_dim or feed_forward: {intermediate_dim}, {feed_forward}"
            )
        if num_heads is None and (causal or cross):
            raise ValueError(
                "causal and cross need num_heads; with attention=, pass MultiHeadAttention(..., "
                "causal=True) and cross_attention="
            )
        if cross and cross_attention is not None:
            raise ValueError("give cross=True or cross_attention")
        self.order = order
        self.dropout = dropout
        self.stochastic_depth = stochastic_depth
        self.remat = remat
        attention = attention or MultiHeadAttention(num_heads, causal=causal)
        cross_attention = MultiHeadAttention(num_heads) if cross else cross_attention
        feed_forward = feed_forward or FeedForward(intermediate_dim)
        norm = norm or keras.layers.LayerNormalization(epsilon=1e-5)
        self.attention, self.attention_norm, self.attention_output_norm = self._copy_parts(
            "attention", attention, attention_norm or norm
        )
        self.cross_attention, self.cross_attention_norm, self.cross_attention_output_norm = (
            self._copy_parts("cross_attention", cross_attention, norm)
        )
        self.feed_forward, self.feed_forward_norm, self.feed_forward_output_norm = self._copy_parts(
            "feed_forward", feed_forward, norm
        )

    def _copy_parts(self, name, sublayer, norm) -> tuple[Any, Any, Any]:
        """Copies a sublayer and its norms; None for those that the block does not have."""
        norm = None if sublayer is None else norm
        output_norm = norm if self.order == "both" else None
        return (
            self._copy_part(sublayer, name),
            self._copy_part(norm, f"{name}_norm"),
            self._copy_part(output_norm, f"{name}_output_norm"),
        )

    def build(self, x_shape, memory_shape=None):
        dtype = self.dtype_policy
        self.attention.build(x_shape)
        if self.cross_attention is not None:
            self.cross_attention.build(x_shape, memory_shape or x_shape)
        self.feed_forward.build(x_shape)
        self.drop = Dropout(self.dropout, dtype=dtype, name="dropout")
        self.skip = Dropout(self.stochastic_depth, (None, 1, 1), dtype=dtype, name="skip")
        common = dict(order=self.order, dropout=(self.drop, self.skip), x_shape=x_shape)
        self.attention_residual = Residual(
            self.attention_norm, self.attention_output_norm, **common
        )
        if self.cross_attention is not None:
            self.cross_attention_residual = Residual(
                self.cross_attention_norm, self.cross_attention_output_norm, **common
            )
        self.feed_forward_residual = Residual(
            self.feed_forward_norm, self.feed_forward_output_norm, **common
        )

    def call(
        self,
        x,
        memory=None,
        mask=None,
        cross_mask=None,
        bias=None,
        rotary=None,
        cache=None,
        training=False,
    ):
        if (self.cross_attention is None) != (memory is None):
            cross = self.cross_attention is not None
            raise ValueError(f"cross={cross}, but memory is {type(memory).__name__}")
        if self.remat and training and cache is None:

            def forward(x, memory, bias):
                return self._forward(x, memory, mask, cross_mask, bias, rotary, training=True)

            return recomputed(self, forward, x, memory, bias)  # those that have gradients
        return self._forward(x, memory, mask, cross_mask, bias, rotary, cache, training)

    def _forward(self, x, memory, mask, cross_mask, bias, rotary, cache=None, training=False):
        residual = self.attention_residual
        y = self.attention(
            residual.before(x), mask=mask, bias=bias, rotary=rotary, cache=cache, training=training
        )
        if cache is not None:
            y, cache = y
        x = residual.after(x, y, training)
        if self.cross_attention is not None:
            residual = self.cross_attention_residual
            y = self.cross_attention(residual.before(x), memory, mask=cross_mask, training=training)
            x = residual.after(x, y, training)
        residual = self.feed_forward_residual
        y = self.feed_forward(residual.before(x), training=training)
        x = residual.after(x, y, training)
        return x if cache is None else (x, cache)

    def cross_attention_weights(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cross_mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """The cross-attention weights (B, H, T, S), in float32, for example for plots."""
        residual = self.attention_residual
        x = residual.after(x, self.attention(residual.before(x), mask=mask, bias=bias))
        query = self.cross_attention_residual.before(x)
        return self.cross_attention.attention_weights(query, memory, mask=cross_mask)

    def compute_mask(self, *args, **kwargs):
        return None  # masks are arguments here: Keras must not attach them to tensors

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """``memory`` (B, S, D) -> the keys and values of the cross-attention, computed once."""
        return self.cross_attention.project(memory)
