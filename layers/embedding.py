"""Token embeddings, section 3.4 of Vaswani et al. 2017."""

import math
from typing import Any

import keras
from keras import ops

from .arguments import Tensor


@keras.saving.register_keras_serializable("polyhead")
class TokenEmbedding(keras.layers.Layer):
    """Embeds tokens, and computes logits with the same matrix (section 3.4).

    Args:
        vocab_size: V.
        dim: D.
        scale: multiplies embeddings by sqrt(D), as in the paper.
        logits_bias: adds a constant to each token's logit; training does not change it.

    Call with ``tokens`` (B, T); the result is (B, T, D). `logits` maps ``x`` (B, T, D) to
    float32 logits (B, T, V). After ``quantize("int8")`` both use a matrix of 8-bit integers, with
    one scale per row.

    >>> embedding = TokenEmbedding(vocab_size=100, dim=8)
    >>> x = embedding(np.array([[5, 3, 2]]))
    >>> tuple(embedding.logits(x).shape)
    (1, 3, 100)
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        scale: bool = True,
        logits_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.dim = dim
        self.scale = scale
        self.logits_bias = logits_bias

    def build(self, tokens_shape=None):
        if self.logits_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.vocab_size,),
                initializer="zeros",
                autocast=False,  # logits are float32
                trainable=False,
            )
        if self.quantization_mode is not None:
            self._int8_build()
            return
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.vocab_size, self.dim),
            # Embeddings scaled by sqrt(D) have unit variance, as have the logits of a normalized x.
            initializer=keras.initializers.RandomNormal(stddev=self.dim**-0.5),
        )

    def _int8_build(self):
        shape = (self.vocab_size, self.dim)
        self.embeddings = self.add_weight(
            name="embeddings", shape=shape, initializer="zeros", dtype="int8", trainable=False
        )
        self.embeddings_scale = self.add_weight(
            name="embeddings_scale",
            shape=shape[:1],
            initializer="ones",
            dtype="float32",
            autocast=False,  # in 16 bits, a scale has an error of up to 0.4%
            trainable=False,
        )
        self._is_quantized = True

    def quantize(self, mode=None, type_check=True, config=None):
        """Quantizes the matrix; `keras.Model.quantize` calls this method.

        Raises:
            ValueError: ``mode`` is not "int8".
        """
        if mode != "int8":
            raise ValueError(f"TokenEmbedding supports the quantization mode 'int8': {mode!r}")
        values, scale = keras.quantizers.abs_max_quantize(self.embeddings, axis=-1, to_numpy=True)
        del self.embeddings
        self._int8_build()
        self.embeddings.assign(values)
        self.embeddings_scale.assign(ops.cast(ops.reshape(scale, (-1,)), "float32"))
        self.dtype_policy = f"int8_from_{self.dtype_policy.name}"

    def call(self, tokens):
        return self._scale(ops.take(self.embeddings, tokens, axis=0))

    def _int8_call(self, tokens):
        scale = ops.take(self.embeddings_scale, tokens, axis=0)[..., None]
        values = ops.take(self.embeddings, tokens, axis=0)
        return self._scale(ops.cast(values, "float32") / scale)

    def _scale(self, x):
        x = ops.cast(x, self.compute_dtype)
        return x * math.sqrt(self.dim) if self.scale else x

    def logits(self, x: Tensor) -> Tensor:
        """``x`` (B, T, D) -> logits (B, T, V), in float32."""
        logits = ops.cast(self._products(x), "float32")
        return logits + self.bias if self.logits_bias else logits

    def _products(self, x):
        if self.quantization_mode is not None:
            # As in Keras's layers, x is quantized too, with one scale per position.
            values, scale = keras.quantizers.abs_max_quantize(ops.cast(x, "float32"), axis=-1)
            products = ops.matmul(values, ops.transpose(self.embeddings))
            return ops.cast(products, "float32") / (scale * self.embeddings_scale)
        matrix = ops.cast(self.embeddings, self.compute_dtype)
        x = ops.cast(x, self.compute_dtype)
        if x.shape[1] == 1:
            # In decoding, the matrix is the first factor: otherwise XLA transposes it at every
            # step. (In training, that transpose is cheap; transposing the logits is not.)
            return ops.moveaxis(ops.einsum("vd,btd->vbt", matrix, x), 0, -1)
        return ops.matmul(x, ops.transpose(matrix))
