"""Keras's losses, each a mean over the weights of the batch on all replicas."""

import contextlib

import keras
import tensorflow as tf
from keras.src.losses.loss import squeeze_or_expand_to_same_rank as same_rank
from keras.src.trainers.compile_utils import CompileLoss

MEANS = ("mean", "sum_over_batch_size", "mean_with_sample_weight")


class GlobalLoss(CompileLoss):
    """What Keras makes of `compile`'s ``loss`` and ``loss_weights``, for any number of replicas.

    Keras lets each replica divide by its own count: of examples, of what a mask leaves of them,
    or of sample weights. Here each loss divides by the count of all replicas, which `over` says.
    As in Keras, a replica's loss is a mean over its examples divided by the number of replicas;
    what it takes to make the global mean of that is one factor for all losses, `share`.
    """

    counts = None

    def build(self, y_true, y_pred):
        super().build(y_true, y_pred)
        self._flat_losses = [
            entry._replace(loss=lambda *args, loss=entry.loss: self.mean(loss, *args))
            for entry in self._flat_losses
        ]
        for metric in self.metrics:  # Keras weighs by a size of batch that it need not know
            metric.update_state = lambda value, sample_weight, metric=metric: type(
                metric
            ).update_state(metric, value, sample_weight=self.counts[0])

    def call(self, y_true, y_pred, sample_weight=None):
        if self.counts is not None:
            return super().call(y_true, y_pred, sample_weight)
        with self.over(rows(y_true)):  # asked by itself
            return super().call(y_true, y_pred, sample_weight)

    @contextlib.contextmanager
    def over(self, examples, totals=None):
        """Within it losses are means over ``totals``, the counts of all replicas one after another.

        The first is that of ``examples``, a scalar; one follows for each loss. Those of this
        replica, which do where there are no totals, are kept in ``counts``.
        """
        self.counts, self.totals = [], totals
        self.grow = tf.math.divide_no_nan(self.counted(examples), examples)
        try:
            yield self.counts
        finally:
            self.counts = None

    def mean(self, loss, y_true, y_pred, sample_weight=None):
        """This replica's part of the global mean of ``loss``, times `grow` / replicas."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        values, mask, weight = weighted(loss, y_true, y_pred, sample_weight)
        if loss.reduction not in MEANS:
            self.counted(self.counts[0])
            return tf.reduce_sum(values) * self.grow / replicas
        if weight is not None and loss.reduction == "mean_with_sample_weight":
            total = self.counted(tf.reduce_sum(weight))
        elif mask is not None:
            per_entry = tf.math.divide_no_nan(size(values), size(mask))
            total = self.counted(tf.reduce_sum(mask)) * per_entry
        else:  # the mean over this replica's examples is what is wanted
            self.counted(self.counts[0])
            return tf.math.divide_no_nan(tf.reduce_sum(values), size(values)) / replicas
        return tf.math.divide_no_nan(tf.reduce_sum(values), total) * self.grow / replicas

    def counted(self, count):
        """Keeps a count of this replica's, and gives that of all."""
        self.counts.append(tf.cast(count, "float32"))
        return self.counts[-1] if self.totals is None else self.totals[len(self.counts) - 1]


def rows(batch):
    """The examples in a structure of tensors, as a float scalar."""
    first = next(tensor for tensor in keras.tree.flatten(batch) if tensor is not None)
    return tf.cast(tf.shape(first)[0], "float32")


def share(examples, total):
    """What a replica's loss is multiplied with, so that the sum over replicas is the global mean.

    Args:
        examples: this replica's, as a float scalar.
        total: those of all replicas.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return tf.math.divide_no_nan(examples * replicas, total)


def weighted(loss, y_true, y_pred, sample_weight):
    """The values of ``loss`` before reduction, weighted; the mask, and weights with the mask.

    As `keras.losses.Loss.__call__` does it; where there is none, mask and weights are None.
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
