"""Keras's losses as weighted means over the batch of all replicas."""

import contextlib

import keras
import tensorflow as tf
from keras.src.losses.loss import squeeze_or_expand_to_same_rank as same_rank
from keras.src.trainers.compile_utils import CompileLoss

MEANS = ("mean", "sum_over_batch_size", "mean_with_sample_weight")


class GlobalLoss(CompileLoss):
    """Keras's `CompileLoss`, for any number of replicas.

    In Keras each replica divides by its own count: of examples, of unmasked values, or of sample
    weights. Here each loss divides by the count of all replicas, set by `over`. As in Keras, a
    replica's loss is a mean over its examples divided by the number of replicas; one factor for all
    losses, `share`, converts it to a part of the global mean.
    """

    counts = None

    def build(self, y_true, y_pred):
        super().build(y_true, y_pred)
        self._flat_losses = [
            entry._replace(loss=lambda *args, loss=entry.loss: self.mean(loss, *args))
            for entry in self._flat_losses
        ]
        for metric in self.metrics:  # Keras weights by a batch size that it may not know
            metric.update_state = lambda value, sample_weight, metric=metric: type(
                metric
            ).update_state(metric, value, sample_weight=self.counts[0])

    def call(self, y_true, y_pred, sample_weight=None):
        if self.counts is not None:
            return super().call(y_true, y_pred, sample_weight)
        with self.over(rows(y_true)):  # called on its own
            return super().call(y_true, y_pred, sample_weight)

    @contextlib.contextmanager
    def over(self, examples, totals=None):
        """A context in which losses are means over ``totals``, the counts of all replicas.

        The first count is that of ``examples``, a scalar; one follows for each loss. ``counts``
        collects those of this replica, which are used if ``totals`` is None.
        """
        self.counts, self.totals = [], totals
        self.grow = tf.math.divide_no_nan(self.add_count(examples), examples)
        try:
            yield self.counts
        finally:
            self.counts = None

    def mean(self, loss, y_true, y_pred, sample_weight=None):
        """Computes this replica's part of the global mean of ``loss``, times `grow` / replicas."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        values, mask, weight = weighted_values(loss, y_true, y_pred, sample_weight)
        if loss.reduction not in MEANS:
            self.add_count(self.counts[0])
            return tf.reduce_sum(values) * self.grow / replicas
        if weight is not None and loss.reduction == "mean_with_sample_weight":
            total = self.add_count(tf.reduce_sum(weight))
        elif mask is not None:
            per_entry = tf.math.divide_no_nan(size(values), size(mask))
            total = self.add_count(tf.reduce_sum(mask)) * per_entry
        else:  # a mean over this replica's examples
            self.add_count(self.counts[0])
            return tf.math.divide_no_nan(tf.reduce_sum(values), size(values)) / replicas
        return tf.math.divide_no_nan(tf.reduce_sum(values), total) * self.grow / replicas

    def add_count(self, count):
        """Stores a count of this replica; returns that of all replicas."""
        self.counts.append(tf.cast(count, "float32"))
        return self.counts[-1] if self.totals is None else self.totals[len(self.counts) - 1]


def rows(batch):
    """The number of examples in a structure of tensors, a float scalar."""
    first = next(tensor for tensor in keras.tree.flatten(batch) if tensor is not None)
    return tf.cast(tf.shape(first)[0], "float32")


def share(examples, total):
    """The factor for a replica's loss that makes the sum over replicas the global mean.

    Args:
        examples: the number of this replica's examples, a float scalar.
        total: the number of all replicas' examples.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return tf.math.divide_no_nan(examples * replicas, total)


def weighted_values(loss, y_true, y_pred, sample_weight):
    """Returns the weighted values of ``loss`` before reduction, the mask, and the masked weights.

    Follows `keras.losses.Loss.__call__`; mask and weights may be None.
    """
    masks = [getattr(y_pred, "_keras_mask", None)]
    y_true, y_pred = keras.tree.map_structure(
        lambda x: keras.ops.convert_to_tensor(x, dtype=loss.dtype), (y_true, y_pred)
    )
    values = loss.call(y_true, y_pred)
    masks.append(getattr(values, "_keras_mask", None))
    values = tf.cast(values, loss.dtype)
    masks = [tf.cast(mask, values.dtype) for mask in masks if mask is not None]
    mask = weight = masks[0] * masks[1] if len(masks) == 2 else (masks[0] if masks else None)
    if sample_weight is not None:
        sample_weight = tf.cast(sample_weight, values.dtype)
        if mask is None:
            weight = sample_weight
        else:
            weight, sample_weight = same_rank(mask, sample_weight)
            weight = weight * sample_weight
    if weight is not None:
        values, weight = same_rank(values, weight)
        values = values * weight
    return values, mask, weight


def size(x):
    return tf.cast(tf.size(x), x.dtype)
