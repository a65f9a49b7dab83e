"""Gated self-attention along one axis of a grid, such as an alignment or pairs of residues."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from .attend import masked_softmax
from .parts import built
from .projection import projection

EPSILON = 1e-5  # of all normalizations in AlphaFold 2 and ESMFold
OPEN = dict(kernel_initializer="zeros", bias_initializer="ones")  # of gates: sigmoid(1) = 0.73


class AxialAttention(keras.layers.Layer):
    """Base class of gated self-attention within each row of a grid, with a bias that rows share.

    A subclass calls `build_parts`, applies ``norm`` to its input, and calls `attend`.

    Args:
        num_heads: H.
        head_dim: K, the size of a head. Default: the input's width / H.
        chunk: the maximum number of rows computed at once. Default: all.

    Raises:
        ValueError: H does not divide the width, and there is no ``head_dim``.
    """

    def __init__(
        self, num_heads: int, head_dim: int | None = None, chunk: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.chunk = chunk

    def build_parts(self, width, bias_width=None):
        """Builds the parts for an input of ``width``, and for a bias computed from pairs."""
        heads, dtype = self.num_heads, self.dtype_policy
        size = self.head_dim = head_size(width, heads, self.head_dim)
        inner, rows = heads * size, (None, None, None, width)
        self.norm = norm_layer("norm", width, dtype)

        def to_heads(name, **options):
            shape = None, None, heads, size
            return part(name, "brtc,chk->brthk", rows, shape, (width, inner), dtype, **options)

        self.query, self.key, self.value = map(to_heads, ("query", "key", "value"))
        self.gate = to_heads("gate", bias_axes="hk", **OPEN)
        if bias_width is not None:
            pairs, shape, fans = (*rows[:3], bias_width), (heads, None, None), (bias_width, heads)
            self.pair_bias = part("pair_bias", "btsc,ch->bhts", pairs, shape, fans, dtype)
        self.output_projection = part(
            "output",
            "brthk,hkc->brtc",
            (None, None, None, heads, size),
            (None, None, width),
            (inner, width),
            dtype,
            bias_axes="c",
            kernel_initializer="zeros",
        )

    def bias(self, pairs):
        """The bias (B, 1, H, T, T) of normalized ``pairs`` (B, T, T, C), which all rows share."""
        return ops.cast(self.pair_bias(pairs)[:, None], "float32")

    def attend(self, x, mask=None, bias=None):
        """Attention within the rows of the normalized ``x`` (B, R, T, D), with a mask (B, R, T)."""

        def attend_rows(rows, mask):
            query = self.query(rows) * self.head_dim**-0.5
            scores = ops.einsum("brthk,brshk->brhts", query, self.key(rows))
            scores = ops.cast(scores, "float32")
            scores = scores if bias is None else scores + bias
            weights = masked_softmax(scores, mask if mask is None else mask[:, :, None, None])
            weights = ops.cast(weights, self.compute_dtype)
            heads = ops.einsum("brhts,brshk->brthk", weights, self.value(rows))
            return self.output_projection(ops.sigmoid(self.gate(rows)) * heads)

        return map_chunks(attend_rows, self.chunk, x, mask)

    def compute_mask(self, *args, **kwargs):
        return None


def norm_layer(name, width, dtype):
    """A built normalization of vectors of a ``width``."""
    layer = keras.layers.LayerNormalization(epsilon=EPSILON, dtype=dtype, name=name)
    return built(layer, (None, width))


def head_size(width, heads, size=None):
    """The ``size`` of a head; by default, a head's share of the ``width``."""
    if size is None and width % heads:
        raise ValueError(f"num_heads must divide the width: {width} / {heads}")
    return width // heads if size is None else size


def part(name, equation, x_shape, shape, fans, dtype, **options):
    """A built projection of ``x_shape`` to ``shape``, which is without the batch."""
    fan_in, fan_out = fans
    layer = projection(
        equation,
        output_shape=shape,
        fan_in=fan_in,
        fan_out=fan_out,
        dtype=dtype,
        name=name,
        **options,
    )
    layer.build(x_shape)
    return layer


def map_chunks(function: Callable, chunk: int | None, x: Any, mask: Any = None) -> Any:
    """Applies ``function`` to rows of ``x`` and of ``mask``, both (B, R, ...), or None.

    It computes chunks of equal size, of at most ``chunk`` rows; the last row fills up the last
    chunk. Without ``chunk``, it computes all rows at once.
    """
    if chunk is None or x.shape[1] is not None and x.shape[1] <= chunk:
        return function(x, mask)
    length = ops.shape(x)[1]
    count = -(-length // chunk)
    size = -(-length // count)

    def compute(i):
        rows = ops.minimum(i * size + ops.arange(size), length - 1)
        return function(*(t if t is None else ops.take(t, rows, axis=1) for t in (x, mask)))

    y = ops.swapaxes(ops.map(compute, ops.arange(count)), 0, 1)
    rest = ops.shape(y)[3:]
    y = ops.reshape(y, (-1, count * size, *rest))
    return ops.reshape(y[:, :length], (*ops.shape(x)[:2], *rest))
