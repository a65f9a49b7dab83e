"""The training step on TensorFlow: the same mathematics on one device or many, under XLA."""

import keras
import tensorflow as tf

SUM = tf.distribute.ReduceOp.SUM


def compiled(model, function):
    """``function`` of tensors, which calls ``model``, compiled by XLA, once per shape."""
    return tf.function(function, jit_compile=True, autograph=False)


class Model(keras.Model):
    """A `keras.Model` whose `fit` gives the same result on one device and on several.

    Keras lets every replica divide its loss by its own weights, and clips before the gradients
    are summed. Here the loss is a mean over the weights of the global batch, and gradients are
    summed first: so clipping and loss scaling see those of the global batch. Forward and
    backward pass are compiled by XLA per replica (``jit_compile``, on by default), the optimizer
    is not: its variables live on all devices.
    """

    def compile(self, *args, jit_compile="auto", **kwargs):
        super().compile(*args, jit_compile=False, **kwargs)
        self._forward_backward = forward_backward
        if jit_compile and not self.run_eagerly:
            self._forward_backward = tf.function(
                forward_backward, jit_compile=True, autograph=False, reduce_retracing=True
            )
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if optimizer is not None:
            # `train_step` has summed them already.
            optimizer._all_reduce_sum_gradients = lambda gradients_and_variables: list(
                gradients_and_variables
            )

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        context = tf.distribute.get_replica_context()
        weight = self._weight(y, sample_weight)
        total = context.all_reduce(SUM, weight)
        # Keras's loss is this replica's mean, divided by the number of replicas.
        share = tf.math.divide_no_nan(weight * context.num_replicas_in_sync, total)
        # Scaled here, not in the compiled function, which would keep the scale it began with.
        share = self.optimizer.scale_loss(share)
        loss, gradients, y_pred = self._forward_backward(self, x, y, sample_weight, share)
        self._loss_tracker.update_state(loss * context.num_replicas_in_sync, sample_weight=weight)
        gradients = context.all_reduce(SUM, gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=False)
        loss = self.compute_loss(x, y, y_pred, sample_weight, training=False)
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        self._loss_tracker.update_state(
            loss * replicas, sample_weight=self._weight(y, sample_weight)
        )
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _weight(self, y, sample_weight):
        """What this replica's mean was divided by: its weights, or its examples."""
        if getattr(self.loss, "reduction", None) == "mean_with_sample_weight":
            if sample_weight is not None:
                return tf.reduce_sum(tf.cast(sample_weight, "float32"))
        return tf.cast(tf.shape(tf.nest.flatten(y)[0])[0], "float32")

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Under a strategy Keras builds a model from the mean of the replicas' batches, which
        # need not have one shape. Of a model that is built, and has no metrics to build, only the
        # optimizer is left: under a strategy its variables cannot be made while tracing.
        if not (self.built and self._compile_metrics is None):
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        elif self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)


def forward_backward(model, x, y, sample_weight, share):
    """This replica's mean loss, the gradients of ``share`` times that, and the outputs."""
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(x, y, y_pred, sample_weight, training=True)
        shared = loss * share
    gradients = tape.gradient(
        shared, model.trainable_weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    # The outputs are large: hand them on only where a metric reads them.
    y_pred = y_pred if model._compile_metrics is not None else None
    return loss, [tf.convert_to_tensor(g) for g in gradients], y_pred
