"""Losses."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("polyhead")
class SmoothedCrossEntropy(keras.losses.Loss):
    """Cross-entropy with label smoothing (Szegedy et al. 2016; Vaswani et al. 2017, section 5.4).

    -(1 - smoothing) log p(label) - smoothing / V * sum_v log p(v), in nats per token: a weighted
    mean over the tokens, where padding has weight 0. It is computed from the logits, without
    (B, T, V) targets.

    With ``consistency``, rows 2 i and 2 i + 1 are the same example with different dropout (R-Drop,
    Liang et al. 2021, arXiv 2106.14448). Each row adds consistency / 4 * (KL(p||q) + KL(q||p)),
    where p and q are the predicted distributions of the two rows.

    Args:
        smoothing: in [0, 1); 0.1 in the paper.
        consistency: R-Drop's alpha, 5 for translation in the paper; 0 disables it.

    Call with ``labels`` (B, T), ``logits`` (B, T, V) and ``sample_weight`` (B, T).

    >>> loss = polyhead.training.SmoothedCrossEntropy(0.1)
    >>> logits = np.zeros([1, 2, 4], "float32")
    >>> round(float(loss(np.array([[1, 3]]), logits)), 4)  # log 4
    1.3863
    """

    def __init__(
        self,
        smoothing: float = 0.1,
        consistency: float = 0.0,
        name: str = "smoothed_cross_entropy",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("reduction", "mean_with_sample_weight")
        super().__init__(name=name, **kwargs)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1): {smoothing}")
        if consistency < 0:
            raise ValueError(f"consistency must not be negative: {consistency}")
        self.smoothing = smoothing
        self.consistency = consistency

    def call(self, labels, logits):
        labels = ops.cast(labels, "int32")  # Keras converts them to floats
        normalizer = ops.logsumexp(logits, axis=-1)
        chosen = ops.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        loss = normalizer - (1 - self.smoothing) * chosen
        if self.smoothing:
            loss = loss - self.smoothing * ops.mean(logits, axis=-1)
        if self.consistency:
            # sum_v (p - q) (log p - log q), where the normalizers cancel.
            probability = ops.exp(logits - normalizer[..., None])
            difference = (probability[::2] - probability[1::2]) * (logits[::2] - logits[1::2])
            differs = ops.repeat(ops.sum(difference, axis=-1), 2, axis=0)
            loss = loss + self.consistency / 4 * differs
        return loss

    def get_config(self):
        own = {"smoothing": self.smoothing, "consistency": self.consistency}
        return {**super().get_config(), **own}
