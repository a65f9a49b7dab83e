"""The position-wise feed-forward network, section 3.3 of Vaswani et al. 2017."""

import keras
from keras import ops


def gelu_tanh(x):
    """GELU by tanh (Hendrycks & Gimpel 2016, section 2), as GPT-2 computes it."""
    return keras.activations.gelu(x, approximate=True)


@keras.saving.register_keras_serializable("polyhead")
class FeedForward(keras.layers.Layer):
    """FFN(x) = activation(x W_1 + b_1) W_2 + b_2, the same at every position (equation 2).

    Args:
        hidden_dim: width between the two maps.
        activation: "relu" in the paper; any name that Keras knows, or "gelu_tanh".

    Call with ``x`` (B, T, D); the result is (B, T, D).
    """

    def __init__(self, hidden_dim, activation="relu", **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.activation = activation

    def build(self, x_shape):
        width = x_shape[-1]
        dtype = self.dtype_policy
        activation = gelu_tanh if self.activation == "gelu_tanh" else self.activation
        self.expand = keras.layers.Dense(
            self.hidden_dim, activation=activation, dtype=dtype, name="expand"
        )
        self.contract = keras.layers.Dense(width, dtype=dtype, name="contract")
        self.expand.build(x_shape)
        self.contract.build((*x_shape[:-1], self.hidden_dim))

    def call(self, x):
        # Of rank 2 `Dense` is one product; else, where shapes are unknown, twenty operations.
        positions = ops.reshape(x, (-1, x.shape[-1]))
        return ops.reshape(self.contract(self.expand(positions)), ops.shape(x))
