"""Losses."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("polyhead")
class SmoothedCrossEntropy(keras.losses.Loss):
    """Cross-entropy with label smoothing (Szegedy et al. 2016; Vaswani et al. 2017, section 5.4).

    -(1 - smoothing) log p(label) - smoothing / V * sum_v log p(v), in nats per token, averaged
    over the tokens by their weights: padding weighs nothing. Computed from the logits without
    making (B, T, V) targets.

    Args:
        smoothing: between 0 and 1; 0.1 in the paper.

    Call with ``labels`` (B, T), ``logits`` (B, T, V) and ``sample_weight`` (B, T).
    """

    def __init__(self, smoothing=0.1, name="smoothed_cross_entropy", **kwargs):
        kwargs.setdefault("reduction", "mean_with_sample_weight")
        super().__init__(name=name, **kwargs)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1): {smoothing}")
        self.smoothing = smoothing

    def call(self, labels, logits):
        labels = ops.cast(labels, "int32")  # Keras made floats of them
        normalizer = ops.logsumexp(logits, axis=-1)
        chosen = ops.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        loss = normalizer - (1 - self.smoothing) * chosen
        if self.smoothing:
            loss = loss - self.smoothing * ops.mean(logits, axis=-1)
        return loss

    def get_config(self):
        return {**super().get_config(), "smoothing": self.smoothing}
