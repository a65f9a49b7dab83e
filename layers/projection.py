"""A linear map written as an einsum."""

import math

import keras


def projection(equation, output_shape, bias_axes, fan_in, fan_out, **kwargs):
    """An `EinsumDense` with Glorot's uniform initialisation (Glorot & Bengio 2010, eq. 16).

    Keras reads the fans off the kernel's last two axes, as if it were a convolution's, which
    for a kernel (D, H, K) is not the width of the map: so they are given here.
    """
    limit = math.sqrt(6 / (fan_in + fan_out))
    return keras.layers.EinsumDense(
        equation,
        output_shape=output_shape,
        bias_axes=bias_axes,
        kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
        **kwargs,
    )
