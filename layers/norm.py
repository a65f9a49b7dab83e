"""Root mean square normalization."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("polyhead")
class RMSNorm(keras.layers.Layer):
    """x / sqrt(mean(x^2) + epsilon) * gamma (Zhang & Sennrich 2019, arXiv 1910.07467).

    Args:
        epsilon: added to the mean square.
        offset: added to gamma: 0 in T5, Llama and Qwen, 1 in Gemma. As in these models, with 0 the
            quotient is cast to the compute dtype before it is multiplied by gamma, otherwise after.

    Call with ``x`` (..., D); the result has the same shape, in the compute dtype. The mean is
    computed in float32.

    >>> np.array(RMSNorm()(np.array([[3.0, 4.0]])))  # the root mean square is 5 / sqrt(2)
    array([[0.848528..., 1.13137...]], dtype=float32)
    """

    def __init__(self, epsilon: float = 1e-6, offset: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.offset = offset
        self.autocast = False

    def build(self, x_shape):
        self.gamma = self.add_weight(
            name="gamma",
            shape=x_shape[-1:],
            initializer=keras.initializers.Constant(1.0 - self.offset),
            autocast=False,
        )

    def call(self, x):
        x = ops.cast(x, "float32")
        x = x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + self.epsilon)
        if self.offset:
            return ops.cast(x * (self.gamma + self.offset), self.compute_dtype)
        return ops.cast(x, self.compute_dtype) * ops.cast(self.gamma, self.compute_dtype)
