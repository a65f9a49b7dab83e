"""Multi-head attention, section 3.2 of Vaswani et al. 2017, and its masks."""

import contextlib

import keras
from keras import ops

from .dropout import Dropout
from .lora import LowRank
from .projection import Projection, projection

# Masks are boolean, True = may attend, broadcastable to (B, H, T, S): here and everywhere.
MASKED = -1e9  # the softmax is in float32, so this neither overflows nor makes a NaN of a full row


def padding_mask(tokens, pad_id):
    """``tokens`` (B, S) -> mask (B, 1, 1, S): every position may attend to all but padding."""
    return ops.expand_dims(ops.not_equal(tokens, pad_id), (1, 2))


def causal_mask(length, source_length=None, start=0):
    """Mask (T, S): the query at position ``start + t`` attends to keys up to there."""
    query = ops.expand_dims(ops.arange(length) + start, 1)
    return ops.arange(length if source_length is None else source_length) <= query


@keras.saving.register_keras_serializable("polyhead")
class MultiHeadAttention(keras.layers.Layer):
    """MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O (Vaswani et al. 2017, section 3.2.2).

    head_i = softmax(Q W_i^Q (K W_i^K)^T / sqrt(K)) V W_i^V

    Args:
        num_heads: H.
        head_dim: K, the size of a head; D / H by default.
        causal: a position attends to itself and to those before it.
        dropout: rate, in training, on the weights that the softmax gives.

    Call with ``x`` (B, T, D) for self-attention, and with ``memory`` (B, S, D) for
    cross-attention; the result is (B, T, D). ``memory`` may also be the pair that
    `project(memory)` gave, so that a decoder computes it once per sequence. ``mask`` is boolean,
    True = may attend, and ``bias`` is added to the scores before the softmax; both are
    broadcastable to (B, H, T, S). With a ``cache`` (see `KeyValueCache`) x holds the T positions
    after those in it, and the result is (output, cache). A query that may attend to nothing
    gets the mean of all values.

    The softmax is computed in float32 whatever the precision.

    Raises:
        ValueError: D does not divide into heads.
    """

    def __init__(self, num_heads, head_dim=None, causal=False, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.causal = causal
        self.dropout = dropout

    def build(self, x_shape, memory_shape=None):
        width = x_shape[-1]
        memory_width = width if memory_shape is None else memory_shape[-1]
        if self.head_dim is None:
            if width % self.num_heads:
                raise ValueError(f"width must divide into heads: {width} / {self.num_heads}")
            self.head_dim = width // self.num_heads
        inner = self.num_heads * self.head_dim

        def heads(name, fan_in):
            layer = projection(
                "btd,dhk->bthk",
                output_shape=(None, self.num_heads, self.head_dim),
                bias_axes="hk",
                fan_in=fan_in,
                fan_out=inner,
                dtype=self.dtype_policy,
                name=name,
            )
            layer.build((None, None, fan_in))
            return layer

        self.query = heads("query", width)
        self.key = heads("key", memory_width)
        self.value = heads("value", memory_width)
        self.output_projection = projection(
            "bthk,hkd->btd",
            output_shape=(None, width),
            bias_axes="d",
            fan_in=inner,
            fan_out=width,
            dtype=self.dtype_policy,
            name="output",
        )
        self.output_projection.build((None, None, self.num_heads, self.head_dim))
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy, name="dropout")

    def initialize_mimetic(self):
        """Begins self-attention as it is found in trained models of images.

        (Trockman & Kolter 2023, arXiv 2305.09828, section 3.) W^Q and W^K are nearly the same,
        so that a position attends to those like it; W^O undoes W^V with its sign turned. The paper
        factorizes I + noise; here noise of half its size is added to an orthogonal matrix, which
        costs less, and 1.5 I is what the paper's W^Q W^K^T is in the directions that a head keeps.

        For a built layer of self-attention, (D, H, K) and (H, K, D). It assigns: under a strategy
        of several machines set the same seed on each.
        """
        width, inner = self.query.kernel.shape[0], self.num_heads * self.head_dim

        def alike(scale):
            noise = keras.random.normal((2, width, inner), 0.0, 0.5 * width**-0.5, "float32")
            return scale**0.5 * (
                keras.initializers.Orthogonal()((width, inner), dtype="float32") + noise
            )

        (query, key), (value, output) = alike(1.5), alike(0.4)
        for layer, kernel in (
            (self.query, query),
            (self.key, key),
            (self.value, value),
            (self.output_projection, -ops.transpose(output)),
        ):
            layer.kernel.assign(ops.reshape(kernel, layer.kernel.shape))

    def enable_lora(self, rank, alpha=None):
        """Adds LoRA adapters to the query and value projections (Hu et al. 2021, section 4.2)."""
        adapted = {name: getattr(self, name) for name in ("query", "value")}
        if any(layer.adapter is not None for layer in adapted.values()):
            raise ValueError("LoRA is enabled already")
        if not all(layer.is_whole for layer in adapted.values()):
            raise ValueError(
                f"{self.path} is quantized or has Keras's LoRA: enable LoRA before quantize, and "
                "only one kind"
            )
        with contextlib.ExitStack() as scopes:
            for part in self.path.split("/"):
                scopes.enter_context(keras.name_scope(part))
            for name, layer in adapted.items():
                width, *heads = layer.kernel.shape
                adapter = LowRank(rank, heads, alpha, dtype=self.dtype_policy, name=f"{name}_lora")
                adapter.build((None, None, width))
                layer._tracker.unlock()  # a built layer takes no more weights
                layer.adapter = adapter
                layer._tracker.lock()

    def call(self, x, memory=None, mask=None, bias=None, cache=None, training=False):
        query, key, value, mask, extended = self._attended(x, memory, mask, cache)
        weights = self._softmax(query, key, mask, bias)
        weights = self.drop(weights, training=training)
        heads = ops.einsum("bhts,bshk->bthk", ops.cast(weights, value.dtype), value)
        output = self.output_projection(heads)
        return output if cache is None else (output, extended)

    def compute_mask(self, *args, **kwargs):
        return None  # masks are arguments here: Keras must not attach them to tensors

    def project(self, memory):
        """``memory`` (B, S, D) -> its keys and values, each (B, S, H, K)."""
        return tuple(self._mapped(memory, "key", "value"))

    def attention_weights(self, x, memory=None, mask=None, bias=None):
        """The softmax of the scores (B, H, T, S), in float32: for pictures."""
        query, key, _, mask, _ = self._attended(x, memory, mask, None)
        return self._softmax(query, key, mask, bias)

    def _mapped(self, x, *names):
        """``x`` (B, T, D) by each of the maps ``names``, (B, T, H, K).

        One product of all kernels gives them, where the kernels are the whole maps. Else, and
        where T is 1 (in decoding joining the kernels costs more), each layer is called.
        """
        maps = [getattr(self, name) for name in names]
        whole = all(type(layer) is Projection and layer.is_whole for layer in maps)
        if len(maps) == 1 or x.shape[1] == 1 or not whole:
            return [layer(x) for layer in maps]
        width, inner = x.shape[-1], self.num_heads * self.head_dim
        kernel = ops.concatenate([ops.reshape(m.kernel, (width, inner)) for m in maps], axis=1)
        bias = ops.concatenate([ops.reshape(m.bias, (inner,)) for m in maps], axis=0)
        together = ops.matmul(ops.reshape(x, (-1, width)), kernel) + bias
        shape = (*ops.shape(x)[:2], len(maps), self.num_heads, self.head_dim)
        mapped = ops.unstack(ops.reshape(together, shape), axis=2)
        return [
            y if layer.adapter is None else y + layer.adapter(x)
            for layer, y in zip(maps, mapped, strict=True)
        ]

    def _attended(self, x, memory, mask, cache):
        """Queries, keys and values, the mask over them, and the cache that holds the latter."""
        if memory is None:
            query, key, value = self._mapped(x, "query", "key", "value")
        else:
            [query] = self._mapped(x, "query")
            key, value = memory if isinstance(memory, tuple) else self.project(memory)
        start = 0
        if cache is not None:
            start = cache.index
            cache = cache.append(key, value)
            key, value = cache.key, cache.value
        if self.causal:
            past = causal_mask(ops.shape(x)[1], ops.shape(key)[1], start)
            mask = past if mask is None else ops.logical_and(mask, past)
        return query, key, value, mask, cache

    def _softmax(self, query, key, mask, bias):
        query = query * (self.head_dim**-0.5)
        scores = ops.cast(ops.einsum("bthk,bshk->bhts", query, key), "float32")
        if bias is not None:
            scores = scores + ops.cast(bias, "float32")
        if mask is not None:
            scores = ops.where(mask, scores, MASKED)
        if scores.shape[-1] == 1:
            return ops.ones_like(scores)  # as the softmax is, which Keras warns of
        return ops.softmax(scores, axis=-1)
