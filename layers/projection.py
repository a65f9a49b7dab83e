"""A linear projection written as an einsum."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("polyhead")
class Projection(keras.layers.EinsumDense):
    """An `EinsumDense` that supports quantization and a LoRA adapter.

    ``adapter`` is a `LowRank`, or None. Saving writes the kernel with the adapter merged into it,
    as Keras does for its own LoRA.
    """

    adapter = None

    @property
    def is_whole(self):
        """Whether ``kernel``, ``bias`` and the adapter determine the output.

        False for a quantized layer, and after Keras's own `enable_lora`.
        """
        return self.quantization_mode is None and not self.lora_enabled

    def call(self, inputs, training=None):
        y = super().call(inputs, training=training)
        return y if self.adapter is None else y + self.adapter(inputs)

    def quantize(self, mode=None, type_check=True, config=None):
        self.merge()
        # Keras refuses subclasses, which might compute something else. This one does not.
        super().quantize(mode, type_check=False, config=config)

    def merge(self):
        """Adds the adapter to the kernel and removes it."""
        adapter = self.adapter
        if adapter is None:
            return
        self._kernel.assign_add(adapter.product(adapter.down, adapter.up))
        self._tracker.unlock()
        del self.adapter
        self._tracker.untrack(adapter)
        self._tracker.lock()

    def save_own_variables(self, store):
        own = {}
        super().save_own_variables(own)
        if self.adapter is not None:
            own["0"] = own["0"] + self.adapter.product(self.adapter.down, self.adapter.up)
        for name, value in own.items():
            store[name] = value


def projection(equation, fan_in, fan_out, kernel_initializer=None, **kwargs):
    """A `Projection` with Glorot uniform initialization (Glorot & Bengio 2010, equation 16).

    ``fan_in`` and ``fan_out`` are arguments because Keras computes them from the last two axes of
    the kernel, as for a convolution, which is wrong for a kernel (D, H, K).
    """
    limit = math.sqrt(6 / (fan_in + fan_out))
    if kernel_initializer is None:
        kernel_initializer = keras.initializers.RandomUniform(-limit, limit)
    return Projection(equation, kernel_initializer=kernel_initializer, **kwargs)


def leading_shape(x):
    """The shape of ``x`` without its last axis, for `ops.reshape`; -1 for a single unknown size.

    (In a graph, `ops.shape` adds four operations per unknown size.)
    """
    shape = tuple(x.shape)[:-1]
    if shape.count(None) > 1:
        return ops.shape(x)[:-1]
    return tuple(-1 if size is None else size for size in shape)
