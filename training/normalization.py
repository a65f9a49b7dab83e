"""Batch normalization over all replicas."""

import contextlib
from functools import partial

import keras
import tensorflow as tf

from .devices import sum_over_replicas


def synchronized_layers(model):
    """The trainable layers that normalize by the batch of all replicas."""
    return [layer for layer in batch_normalizations(model) if layer.synchronized]


def unsynchronized_layers(model):
    """The trainable layers that normalize by their replica's part of the batch."""
    return [layer for layer in batch_normalizations(model) if not layer.synchronized]


def batch_normalizations(model):
    layers = model._flatten_layers()
    return [x for x in layers if isinstance(x, keras.layers.BatchNormalization) and x.trainable]


@contextlib.contextmanager
def synchronizing(layers):
    """A context in which ``layers`` use `moments`: Keras does not synchronize masked inputs."""
    for layer in layers:
        layer._moments = partial(moments, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer._moments


def moments(layer, inputs, mask):
    """The mean and variance of all replicas' ``inputs`` where ``mask`` is true."""
    weight = tf.ones_like(inputs)
    if mask is not None:
        weight *= tf.cast(mask, inputs.dtype)[..., None]

    def mean(values):
        sums = [tf.reduce_sum(x, layer._reduction_axes) for x in (values * weight, weight)]
        total, count = sum_over_replicas(sums)
        return tf.math.divide_no_nan(total, count)

    mean_here = mean(inputs)
    shape = [1] * inputs.shape.rank
    shape[layer.axis] = -1
    return mean_here, mean(tf.square(inputs - tf.reshape(mean_here, shape)))
