"""One block of a Transformer: figure 1 of Vaswani et al. 2017, either half."""

import keras

from .attention import MultiHeadAttention
from .dropout import Dropout
from .feed_forward import FeedForward


@keras.saving.register_keras_serializable("polyhead")
class TransformerBlock(keras.layers.Layer):
    """Attention and a feed-forward network, each with a residual and a layer normalisation.

    Args:
        num_heads: H.
        hidden_dim: width inside the feed-forward network.
        causal: its self-attention sees only the past, as in a decoder.
        cross: it also attends to a memory, as the decoder of an encoder-decoder does.
        norm: "post", x = norm(x + dropout(f(x))), as in the paper; or "pre",
            x = x + dropout(f(norm(x))), as in GPT-2 (the stack then ends in a norm of its own).
        activation: of the feed-forward network.
        dropout: rate, on what each sublayer adds to the residual (section 5.4).
        attention_dropout: rate, on the weights of attention.
        stochastic_depth: rate at which an example skips a sublayer (Huang et al. 2016, arXiv
            1603.09382).
        epsilon: of the layer normalisation.
        remat: in training keep the block's input alone, and compute the rest again for the
            backward pass (Chen et al. 2016, arXiv 1604.06174): less memory, more time.

    Call with ``x`` (B, T, D), and where ``cross`` with ``memory`` (B, S, D), or with what
    `project(memory)` made of it once. ``mask`` and ``cross_mask`` are boolean,
    True = may attend, broadcastable to (B, H, T, T) and (B, H, T, S). With a ``cache`` of the
    positions before (see `KeyValueCache`) the result is (output, cache), else output (B, T, D).

    Raises:
        ValueError: an unknown norm; a memory where there is no cross-attention, or none where
            there is.
    """

    def __init__(
        self,
        num_heads,
        hidden_dim,
        causal=False,
        cross=False,
        norm="post",
        activation="relu",
        dropout=0.0,
        attention_dropout=0.0,
        stochastic_depth=0.0,
        epsilon=1e-5,
        remat=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm not in ("pre", "post"):
            raise ValueError(f"norm must be 'pre' or 'post': {norm!r}")
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.causal = causal
        self.cross = cross
        self.norm = norm
        self.activation = activation
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.stochastic_depth = stochastic_depth
        self.epsilon = epsilon
        self.remat = remat

    def build(self, x_shape, memory_shape=None):
        dtype = self.dtype_policy

        def norm(name):
            layer = keras.layers.LayerNormalization(epsilon=self.epsilon, dtype=dtype, name=name)
            layer.build(x_shape)
            return layer

        attention = dict(num_heads=self.num_heads, dropout=self.attention_dropout, dtype=dtype)
        self.attention = MultiHeadAttention(causal=self.causal, name="attention", **attention)
        self.attention.build(x_shape)
        self.attention_norm = norm("attention_norm")
        if self.cross:
            self.cross_attention = MultiHeadAttention(name="cross_attention", **attention)
            self.cross_attention.build(x_shape, memory_shape or x_shape)
            self.cross_attention_norm = norm("cross_attention_norm")
        self.feed_forward = FeedForward(
            self.hidden_dim, self.activation, dtype=dtype, name="feed_forward"
        )
        self.feed_forward.build(x_shape)
        self.feed_forward_norm = norm("feed_forward_norm")
        self.drop = Dropout(self.dropout, dtype=dtype, name="dropout")
        self.skip = Dropout(self.stochastic_depth, (None, 1, 1), dtype=dtype, name="skip")

    def call(self, x, memory=None, mask=None, cross_mask=None, cache=None, training=False):
        if self.cross == (memory is None):
            raise ValueError(f"cross={self.cross}, but memory is {type(memory).__name__}")
        if self.remat and training:
            return self.recomputed(x, memory, mask, cross_mask)
        return self.forward(x, memory, mask, cross_mask, cache, training)

    def recomputed(self, x, memory, mask, cross_mask):
        """`forward`, of which the backward pass keeps the inputs alone, and computes it again.

        As a function of all its variables, so that nothing is assigned the second time and
        dropout drops the same.
        """
        weights = self.weights
        drops = [self.drop, self.skip, self.attention.drop]
        drops += [self.cross_attention.drop] if self.cross else []
        seeds = [drop.seed_generator.state for drop in drops if drop.rate]
        states = [seed.value * 1 for seed in seeds]  # copies: the seeds go on
        inputs = [x] if memory is None else [x, memory]

        def forward(*values):
            inner, weighed = values[: len(inputs)], values[len(inputs) :]
            mapping = [*zip(weights, weighed, strict=True), *zip(seeds, states, strict=True)]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                # The second time Keras knows no more that this is training.
                y = self.forward(*inner, mask=mask, cross_mask=cross_mask, training=True)
                return y, *(scope.get_current_value(seed) for seed in seeds)

        y, *after = keras.remat(forward)(*inputs, *[w.value for w in weights])
        for seed, state in zip(seeds, after, strict=True):
            seed.assign(state)
        return y

    def forward(self, x, memory=None, mask=None, cross_mask=None, cache=None, training=False):
        def attend(x):
            nonlocal cache
            if cache is None:
                return self.attention(x, mask=mask, training=training)
            x, cache = self.attention(x, mask=mask, cache=cache, training=training)
            return x

        x = self.residual(x, self.attention_norm, attend, training)
        if self.cross:
            x = self.residual(
                x,
                self.cross_attention_norm,
                lambda x: self.cross_attention(x, memory, mask=cross_mask, training=training),
                training,
            )
        x = self.residual(x, self.feed_forward_norm, self.feed_forward, training)
        return x if cache is None else (x, cache)

    def cross_attention_weights(self, x, memory, mask=None, cross_mask=None):
        """What each position takes of the memory (B, H, T, S), in float32: for pictures."""
        x = self.residual(x, self.attention_norm, lambda x: self.attention(x, mask=mask))
        query = self.cross_attention_norm(x) if self.norm == "pre" else x
        return self.cross_attention.attention_weights(query, memory, mask=cross_mask)

    def compute_mask(self, *args, **kwargs):
        return None  # masks are arguments here: Keras must not attach them to tensors

    def residual(self, x, norm, f, training=False):
        y = f(norm(x)) if self.norm == "pre" else f(x)
        y = self.skip(self.drop(y, training=training), training=training)
        return x + y if self.norm == "pre" else norm(x + y)

    def project(self, memory):
        """``memory`` (B, S, D) -> the keys and values of the cross-attention, computed once."""
        return self.cross_attention.project(memory)
