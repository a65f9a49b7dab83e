"""Position-wise feed-forward networks."""

from typing import Any

import keras
from keras import ops

from .dropout import Dropout
from .projection import leading_shape


def gelu_tanh(x):
    """The tanh approximation of GELU (Hendrycks & Gimpel 2016, section 2), as in GPT-2."""
    return keras.activations.gelu(x, approximate=True)


def find_activation(name):
    """The activation that a configuration names: one of Keras, or "gelu_tanh"."""
    return gelu_tanh if name == "gelu_tanh" else name


@keras.saving.register_keras_serializable("polyhead")
class FeedForward(keras.layers.Layer):
    """FFN(x) = activation(x W_1 + b_1) W_2 + b_2 (Vaswani et al. 2017, equation 2).

    Args:
        intermediate_dim: the width of the hidden layer.
        activation: the name of a Keras activation, or "gelu_tanh"; "relu" in the paper.
        use_bias: False omits b_1 and b_2, as in T5.
        dropout: rate of dropout on the hidden layer (T5).

    Call with ``x`` (..., D); the result has the same shape.

    >>> tuple(FeedForward(2048, "gelu")(np.ones((2, 5, 512))).shape)
    (2, 5, 512)
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: str = "relu",
        use_bias: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.use_bias = use_bias
        self.dropout = dropout

    def build(self, x_shape):
        self._build_maps(x_shape, find_activation(self.activation))
        self.contract = self._linear("contract", x_shape[-1], self.intermediate_dim)
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy, name="dropout")

    def _build_maps(self, x_shape, activation):
        self.expand = self._linear("expand", self.intermediate_dim, x_shape[-1], activation)

    def _linear(self, name, width, x_width, activation=None):
        layer = keras.layers.Dense(
            width,
            activation=activation,
            use_bias=self.use_bias,
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build((None, x_width))
        return layer

    def call(self, x, training=False):
        # For rank 2, `Dense` is one product; otherwise, with unknown shapes, twenty operations.
        inner = self._inner(ops.reshape(x, (-1, x.shape[-1])))
        y = self.contract(self.drop(inner, training=training))
        return ops.reshape(y, (*leading_shape(x), x.shape[-1]))

    def _inner(self, x):
        return self.expand(x)


@keras.saving.register_keras_serializable("polyhead")
class GatedFeedForward(FeedForward):
    """FFN(x) = (activation(x W_gate) * x W_expand) W_contract (Shazeer 2020, arXiv 2002.05202).

    Args:
        intermediate_dim: the width of the hidden layer.
        activation: of the gate: "silu" in Llama and Qwen; "gelu_tanh" in Gemma and T5 1.1.
        use_bias: True adds a bias to each of the three projections.
        dropout: rate of dropout on the hidden layer (T5).

    Call with ``x`` (..., D); the result has the same shape.

    >>> tuple(GatedFeedForward(1536, "silu")(np.ones((2, 5, 576))).shape)
    (2, 5, 576)
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: str,
        use_bias: bool = False,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(intermediate_dim, activation, use_bias, dropout, **kwargs)

    def _build_maps(self, x_shape, activation):
        self.gate = self._linear("gate", self.intermediate_dim, x_shape[-1], activation)
        self.expand = self._linear("expand", self.intermediate_dim, x_shape[-1])

    def _inner(self, x):
        return self.gate(x) * self.expand(x)
