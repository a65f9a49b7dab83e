"""Dropout (Srivastava et al. 2014) with cheap random numbers."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("polyhead")
class Dropout(keras.layers.Dropout):
    """Zeroes a fraction ``rate`` of its input in training, and scales the rest by 1 / (1 - rate).

    Like `keras.layers.Dropout`, except that a hash of an element's index and the layer's seed
    decides whether it is dropped. XLA fuses this integer arithmetic into the operations around it;
    Keras's random generator is a separate loop. Axes of size 1 in ``noise_shape`` share one mask:
    (None, 1, 1) drops whole examples of (B, T, D).

    Raises:
        ValueError: ``rate`` is not in [0, 1).

    >>> kept = np.array(Dropout(0.5, seed=0)(np.ones((2, 1000)), training=True))
    >>> np.unique(kept)
    array([0., 2.], dtype=float32)
    """

    def __init__(
        self,
        rate: float,
        noise_shape: tuple[int | None, ...] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1): {rate}")

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        first, second = ops.unstack(ops.cast(self.seed_generator.next(), "uint32"))
        shape = ops.shape(inputs)
        if self.noise_shape is not None:
            shape = [n or size for n, size in zip(self.noise_shape, shape, strict=True)]
        index = ops.reshape(ops.arange(math.prod(shape)), shape)
        kept = random_bits(index, first, second) >= np.uint32(self.rate * 2**32)
        return ops.where(kept, inputs / (1 - self.rate), ops.zeros_like(inputs))


def random_bits(index, first, second):
    """A random uint32 for each ``index``: a hash of the index and two uint32 keys."""
    return mix(ops.bitwise_xor(mix(ops.cast(index, "uint32") + first), second))


def mix(x):
    """A bijective hash of uint32: changing one bit of ``x`` flips about half of the result's bits.

    (lowbias32: C. Wellons, "Prospecting for Hash Functions", 2018.)
    """
    x = xor_shift(x, 16) * np.uint32(0x7FEB352D)
    x = xor_shift(x, 15) * np.uint32(0x846CA68B)
    return xor_shift(x, 16)


def xor_shift(x, bits):
    return ops.bitwise_xor(x, ops.right_shift(x, np.uint32(bits)))
