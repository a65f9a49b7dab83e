"""Multi-head attention, section 3.2 of Vaswani et al. 2017, and its masks."""

import contextlib
import functools
from typing import Any

import keras
from keras import ops

from .arguments import Tensor
from .attend import attend, attention_weights
from .cache import KeyValueCache
from .dropout import Dropout
from .lora import LowRank
from .parts import Composed
from .positions import rotate
from .projection import Projection, leading_shape, projection

# All masks of the package are boolean, True = may attend, broadcastable to (B, H, T, S).


def padding_mask(tokens: Tensor, pad_id: int) -> Tensor:
    """``tokens`` (B, S) -> mask (B, 1, 1, S): every position may attend to all except padding.

    >>> np.array(padding_mask(np.array([[5, 3, 0]]), pad_id=0))
    array([[[[ True,  True, False]]]])
    """
    return ops.expand_dims(ops.not_equal(tokens, pad_id), (1, 2))


def causal_mask(
    length: int | Tensor,
    source_length: int | Tensor | None = None,
    start: int | Tensor = 0,
    window: int | None = None,
) -> Tensor:
    """Mask (T, S): the query at position ``start + t`` attends to keys up to its own position.

    Args:
        length: T, the number of queries.
        source_length: S, the number of keys. Default: T.
        start: the position of the first query, if the keys are those of a cache.
        window: the number of keys that a query attends to, its own included. Default: all.

    >>> np.array(causal_mask(3, window=2))
    array([[ True, False, False],
           [ True,  True, False],
           [False,  True,  True]])
    """
    query = ops.expand_dims(ops.arange(length) + start, 1)
    key = ops.arange(length if source_length is None else source_length)
    mask = key <= query
    return mask if window is None else ops.logical_and(mask, key > query - window)


def decoder_mask(
    x: Tensor,
    mask: Tensor | None = None,
    cache: KeyValueCache | None = None,
    window: int | None = None,
) -> Tensor:
    """The mask of causal self-attention for ``x`` (B, T, ...); all layers of a stack can share it.

    With a ``cache``, ``x`` follows the positions in the cache, and the keys are the cache's.
    ``mask`` is combined with the causal mask; for ``window`` see `causal_mask`.

    >>> x, first, second = np.ones((1, 2, 64)), MultiHeadAttention(8), MultiHeadAttention(8)
    >>> mask = decoder_mask(x)
    >>> y = second(first(x, mask=mask), mask=mask)
    """
    length = ops.shape(x)[1]
    if cache is None:
        past = causal_mask(length, window=window)
    else:
        past = causal_mask(length, ops.shape(cache.key)[1], cache.index, window)
    return past if mask is None else ops.logical_and(mask, past)


@keras.saving.register_keras_serializable("polyhead")
class MultiHeadAttention(Composed):
    """MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O (Vaswani et al. 2017, section 3.2.2).

    head_i = softmax(Q W_i^Q (K W_i^K)^T / sqrt(K)) V W_i^V

    Args:
        num_heads: H.
        num_kv_heads: G, the number of heads of keys and values; each serves H / G heads of queries
            (Ainslie et al. 2023, arXiv 2305.13245). Default: H.
        head_dim: K, the size of a head. Default: D / H.
        causal: a position attends only to itself and to earlier ones. (Instead, all layers of a
            stack can share the mask of `decoder_mask`.)
        window: the number of positions that causal attention sees, its own included.
        use_bias: whether the projections to queries, keys and values have a bias.
        output_bias: whether the projection W^O has a bias. Default: ``use_bias``. (Qwen 2 has none
            there.)
        gated: multiplies the heads by the sigmoid of a projection of x, as in AlphaFold 2 and
            ESMFold (Jumper et al. 2021, supplement, algorithm 7).
        qk_norm: a normalization layer, applied to each head's queries and keys (Qwen 3, Gemma 3).
        scale: multiplies the scores. Default: K ** -0.5. (T5 uses 1.)
        softcap: c: a score becomes c tanh(score / c) (Gemma 2).
        dropout: rate of dropout on the attention weights.

    Call with ``x`` (B, T, D) for self-attention, and also with ``memory`` (B, S, D) for
    cross-attention; the result is (B, T, D). ``memory`` may also be the result of
    `project(memory)`, which a decoder computes once per sequence; it and ``mask`` may then have
    B / n rows, each for n consecutive rows of ``x``, such as beams. ``mask`` is boolean, True = may
    attend, and ``bias`` is added to the scores before the softmax; both are broadcastable to
    (B, H, T, S). ``rotary`` is the result of `Rotary`, which rotates queries and keys. With a
    ``cache`` (see `KeyValueCache`), x holds the T positions after those in the cache, and the
    result is (output, cache). A query whose keys are all masked gets the mean of all values.

    The softmax is always computed in float32.

    Raises:
        ValueError: H does not divide D; G does not divide H; a window without ``causal``.

    >>> attention = MultiHeadAttention(num_heads=8, num_kv_heads=2, causal=True)
    >>> tuple(attention(np.ones((2, 5, 64))).shape)
    (2, 5, 64)
    """

    PARTS = {"qk_norm": "query_norm"}

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        window: int | None = None,
        use_bias: bool = True,
        output_bias: bool | None = None,
        gated: bool = False,
        qk_norm: keras.layers.Layer | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.head_dim = head_dim
        self.causal = causal
        self.window = window
        self.use_bias = use_bias
        self.output_bias = use_bias if output_bias is None else output_bias
        self.gated = gated
        self.scale = scale
        self.softcap = softcap
        self.dropout = dropout
        self.query_norm = self._copy_part(qk_norm, "query_norm")
        self.key_norm = self._copy_part(qk_norm, "key_norm")
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads: {num_kv_heads} / {num_heads}")
        if window is not None and not causal:
            raise ValueError(f"a window needs causal=True: {window}")

    def build(self, x_shape, memory_shape=None):
        width = x_shape[-1]
        memory_width = width if memory_shape is None else memory_shape[-1]
        if self.head_dim is None:
            if width % self.num_heads:
                raise ValueError(f"num_heads must divide the width: {width} / {self.num_heads}")
            self.head_dim = width // self.num_heads
        inner = self.num_heads * self.head_dim

        def heads(name, fan_in, count, use_bias=self.use_bias, **options):
            layer = projection(
                "btd,dhk->bthk",
                output_shape=(None, count, self.head_dim),
                bias_axes="hk" if use_bias else None,
                fan_in=fan_in,
                fan_out=count * self.head_dim,
                dtype=self.dtype_policy,
                name=name,
                **options,
            )
            layer.build((None, None, fan_in))
            return layer

        self.query = heads("query", width, self.num_heads)
        self.key = heads("key", memory_width, self.num_kv_heads)
        self.value = heads("value", memory_width, self.num_kv_heads)
        if self.gated:  # initially sigmoid(1) = 0.73 for every position
            constant = dict(kernel_initializer="zeros", bias_initializer="ones")
            self.gate = heads("gate", width, self.num_heads, use_bias=True, **constant)
        self.output_projection = projection(
            "bthk,hkd->btd",
            output_shape=(None, width),
            bias_axes="d" if self.output_bias else None,
            fan_in=inner,
            fan_out=width,
            dtype=self.dtype_policy,
            name="output",
        )
        self.output_projection.build((None, None, self.num_heads, self.head_dim))
        if self.query_norm is not None:
            self.query_norm.build((None, None, self.num_heads, self.head_dim))
            self.key_norm.build((None, None, self.num_kv_heads, self.head_dim))
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy, name="dropout")

    def initialize_mimetic(self) -> None:
        """Mimetic initialization of self-attention on images (Trockman & Kolter 2023, section 3).

        (arXiv 2305.09828.) W^Q and W^K are nearly equal, so a position attends to similar ones;
        W^O is nearly the negative inverse of W^V. The paper factorizes I + noise. Here noise of
        half that size is added to an orthogonal matrix, which costs less; 1.5 I is the paper's
        W^Q W^K^T in the directions that a head keeps.

        The layer must be built, with kernels (D, H, K) and (H, K, D). With several machines, set
        the same seed on each.
        """
        width, inner = self.query.kernel.shape[0], self.num_heads * self.head_dim

        def similar(scale):
            noise = keras.random.normal((2, width, inner), 0.0, 0.5 * width**-0.5, "float32")
            return scale**0.5 * (
                keras.initializers.Orthogonal()((width, inner), dtype="float32") + noise
            )

        (query, key), (value, output) = similar(1.5), similar(0.4)
        for layer, kernel in (
            (self.query, query),
            (self.key, key),
            (self.value, value),
            (self.output_projection, -ops.transpose(output)),
        ):
            layer.kernel.assign(ops.reshape(kernel, layer.kernel.shape))

    def enable_lora(self, rank: int, alpha: float | None = None) -> None:
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

    def call(self, x, memory=None, mask=None, bias=None, rotary=None, cache=None, training=False):
        query, key, value, *gate = self._project_inputs(x, memory, rotary, training)
        mask, known = self._combine_masks(x, mask, cache), isinstance(memory, tuple)
        if cache is not None:
            cache = cache.append(key, value)
            key, value = cache.key, cache.value
        drop = functools.partial(self.drop, training=training)
        if known:  # of rows that share a memory, such as beams, the queries are those of one row
            query = ops.reshape(query, (ops.shape(key)[0], -1, self.num_heads, self.head_dim))
        heads = attend(query, key, value, mask, bias, self.scale, self.softcap, drop, known)
        if known:
            heads = ops.reshape(heads, (*leading_shape(x), self.num_heads, self.head_dim))
        if self.gated:
            heads = heads * ops.sigmoid(gate[0])
        output = self.output_projection(heads)
        return output if cache is None else (output, cache)

    def compute_mask(self, *args, **kwargs):
        return None  # masks are arguments here: Keras must not attach them to tensors

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """``memory`` (B, S, D) -> its keys and values, each (B, G, S, K).

        A decoder computes them once per sequence. The heads come first, so that the products of
        each step have nothing to transpose.
        """
        key, value = self._project_memory(memory)
        return ops.swapaxes(key, 1, 2), ops.swapaxes(value, 1, 2)

    def _project_memory(self, memory, training=False):
        key, value = self._apply_projections(memory, "key", "value", training=training)
        return self._normalize(key, self.key_norm), value

    def attention_weights(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The attention weights (B, H, T, S), in float32, for example for plots."""
        query, key, *_ = self._project_inputs(x, memory, rotary)
        mask, known = self._combine_masks(x, mask), isinstance(memory, tuple)
        return attention_weights(query, key, mask, bias, self.scale, self.softcap, known)

    def _project_inputs(self, x, memory, rotary, training=False):
        """Computes queries, keys, values and, if the layer is gated, the gate."""
        apply = functools.partial(self._apply_projections, training=training)
        gate = ("gate",) if self.gated else ()
        if memory is None:
            query, key, value, *gate = apply(x, "query", "key", "value", *gate)
            key = self._normalize(key, self.key_norm)
        else:
            query, *gate = apply(x, "query", *gate)
            known = isinstance(memory, tuple)
            key, value = memory if known else self._project_memory(memory, training)
        query = self._normalize(query, self.query_norm)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        return query, key, value, *gate

    def _normalize(self, x, norm):
        return x if norm is None else norm(x)

    def _combine_masks(self, x, mask, cache=None):
        return decoder_mask(x, mask, cache, self.window) if self.causal else mask

    def _apply_projections(self, x, *names, training=False):
        """Applies the projections ``names`` to ``x`` (B, T, D): each gives (B, T, H or G, K).

        In training, one product with the joined kernels computes all of them; in inference it costs
        more to join kernels than it saves. Layers that are quantized or have Keras's LoRA are
        always called.
        """
        maps = [getattr(self, name) for name in names]
        whole = all(type(layer) is Projection and layer.is_whole for layer in maps)
        if len(maps) == 1 or not training or not whole:
            return [layer(x) for layer in maps]
        counts = [layer.kernel.shape[1] for layer in maps]
        width, inner = x.shape[-1], sum(counts) * self.head_dim
        kernel = ops.concatenate([layer.kernel for layer in maps], axis=1)
        kernel = ops.reshape(kernel, (width, inner))
        together = ops.matmul(ops.reshape(x, (-1, width)), kernel)
        if any(layer.bias is not None for layer in maps):
            biases = [
                ops.zeros(layer.kernel.shape[1:], together.dtype)
                if layer.bias is None
                else layer.bias
                for layer in maps
            ]
            together = together + ops.reshape(ops.concatenate(biases, axis=0), (inner,))
        together = ops.reshape(together, (*leading_shape(x), sum(counts), self.head_dim))
        ends = [sum(counts[:i]) for i in range(1, len(counts))]
        equal = len(set(counts)) == 1
        mapped = ops.split(together, len(maps) if equal else ends, axis=2)
        return [
            y if layer.adapter is None else y + layer.adapter(x)
            for layer, y in zip(maps, mapped, strict=True)
        ]
