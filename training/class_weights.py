"""Class weights as sample weights."""

import contextlib
import math

import keras
import tensorflow as tf


def apply_class_weights(class_weight, x, y=None, sample_weight=None):
    """Multiplies the sample weights of a batch ``(x, y, sample_weight)`` by its class weights.

    Args:
        class_weight: ``{class: weight}``; the weight of other classes is 1.
        x: the inputs, returned unchanged.
        y: class indices (B,), (B, 1) or, for tokens, of the shape of ``sample_weight``; or class
            probabilities (B, ..., C), one-hot or mixed, which average the class weights.
        sample_weight: 1 if not given.

    Raises:
        ValueError: a class is not an integer, a weight is negative or non-finite, or ``y`` is not a
            single tensor.
    """
    table = {}
    with contextlib.suppress(AttributeError, TypeError, ValueError, OverflowError):
        table = {int(c): float(weight) for c, weight in class_weight.items()}
    valid = (0 <= c < 2**24 and 0 <= weight < math.inf for c, weight in table.items())
    if not table or not all(valid):
        raise ValueError(f"class_weight must be {{class number: weight >= 0}}: {class_weight!r}")
    if y is None or keras.tree.is_nested(y):
        raise ValueError(f"class_weight needs the labels of one output, a tensor: {type(y)}")
    y = tf.convert_to_tensor(y)
    if y.shape.rank is None:
        raise ValueError("class_weight needs labels of a known rank")
    table = tf.constant([table.get(c, 1.0) for c in range(max(table) + 1)], "float32")

    def weights(classes):
        known = (classes >= 0) & (classes < len(table))
        return tf.where(known, tf.gather(table, tf.where(known, classes, 0)), 1.0)

    own = None if sample_weight is None else tf.cast(sample_weight, "float32")
    each = own is not None and y.dtype.is_integer and own.shape.is_compatible_with(y.shape)
    if each or y.shape.rank == 1 or y.shape[-1] == 1:
        classes = y if each or y.shape.rank == 1 else tf.squeeze(y, -1)
        weight = weights(tf.cast(tf.round(tf.cast(classes, "float32")), "int32"))
    else:
        if y.dtype.is_integer:  # not (B, T) class indices, which are not one-hot
            tf.debugging.assert_equal(
                tf.reduce_sum(y, -1),
                tf.ones([], y.dtype),
                "class_weight needs class indices (B,), class indices with a sample weight for "
                "each, or class probabilities",
            )
        classes = tf.range(tf.shape(y)[-1])
        weight = tf.reduce_sum(tf.cast(y, "float32") * weights(classes), -1)
    if own is None:
        return x, y, weight
    while weight.shape.rank < own.shape.rank:
        weight = weight[..., None]
    while own.shape.rank < weight.shape.rank:
        own = own[..., None]
    return x, y, own * weight
