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

    Call with ``labels`` (B, T), ``logits`` (B, T, V) and ``sample_weight`` (B, T). The loss is NaN
    if a label is not in 0 to V - 1, also where its weight is 0.

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
        chosen = chosen_logits(logits, labels[..., None], -1)[..., 0]
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


@keras.saving.register_keras_serializable("polyhead")
class SpanCrossEntropy(keras.losses.Loss):
    """Cross-entropy of the first and of the last token of an answer, their mean.

    (Devlin et al. 2019, section 4.2.) In nats per example, over all T positions.

    Call with ``labels`` (B, 2), ``logits`` (B, T, 2) and ``sample_weight`` (B,). The loss is NaN
    if a label is not in 0 to T - 1.

    >>> loss = polyhead.training.SpanCrossEntropy()
    >>> round(float(loss(np.array([[1, 2]]), np.zeros([1, 4, 2], "float32"))), 4)  # log 4
    1.3863
    """

    def __init__(self, name: str = "span_cross_entropy", **kwargs: Any) -> None:
        kwargs.setdefault("reduction", "mean_with_sample_weight")
        super().__init__(name=name, **kwargs)

    def call(self, labels, logits):
        labels = ops.cast(labels, "int32")
        chosen = chosen_logits(logits, labels[:, None, :], 1)[:, 0]
        return ops.mean(ops.logsumexp(logits, axis=1) - chosen, axis=-1)


@keras.saving.register_keras_serializable("polyhead")
class BinaryCrossEntropy(keras.losses.Loss):
    """The cross-entropy of two classes, from one logit for each example.

    Call with ``labels`` (B,), from 0 to 1, and ``logits`` (B,). Keras's `BinaryCrossentropy` is a
    mean over the last axis, here the batch: sample weights would have no effect.

    >>> loss = polyhead.training.BinaryCrossEntropy()
    >>> weight = np.array([1.0, 0.0])
    >>> round(float(loss(np.array([1, 0]), np.zeros(2, "float32"), weight)), 4)  # log 2
    0.6931
    """

    def __init__(self, name: str = "binary_cross_entropy", **kwargs: Any) -> None:
        kwargs.setdefault("reduction", "mean_with_sample_weight")
        super().__init__(name=name, **kwargs)

    def call(self, labels, logits):
        labels = ops.cast(ops.reshape(labels, ops.shape(logits)), logits.dtype)
        return ops.binary_crossentropy(labels, logits, from_logits=True)


@keras.saving.register_keras_serializable("polyhead")
class InBatchNegatives(keras.losses.Loss):
    """Ranks the second text of each pair above those of the other pairs of the batch.

    Cross-entropy of the softmax over ``scale`` times the cosine of the first text and each second
    text (Henderson et al. 2017, arXiv 1705.00652, section 4.4, with the cosines and the scale of
    sentence-transformers' MultipleNegativesRankingLoss). Other pairs with the same second text, and
    rows that fill the batch, are not negatives. On several devices, the negatives are those of a
    device's part of the batch.

    Call with ``labels`` (2 B,), ``embeddings`` (2 B, D) and ``sample_weight`` (2 B,), as
    `polyhead.data.pair_batches` returns them: rows 2 i and 2 i + 1 are a pair, and labels number
    the texts, with -1 for rows that fill the batch.

    >>> loss = polyhead.training.InBatchNegatives(scale=1.0)
    >>> embeddings = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], "float32")
    >>> round(float(loss(np.arange(4), embeddings)), 4)  # log 2
    0.6931
    """

    def __init__(
        self, scale: float = 20.0, name: str = "in_batch_negatives", **kwargs: Any
    ) -> None:
        kwargs.setdefault("reduction", "mean_with_sample_weight")
        super().__init__(name=name, **kwargs)
        if scale <= 0:
            raise ValueError(f"scale must be positive: {scale}")
        self.scale = scale

    def call(self, labels, embeddings):
        x = unit(embeddings)
        scores = self.scale * ops.matmul(x[::2], ops.transpose(x[1::2]))
        text = ops.reshape(labels, (-1,))[1::2]
        own = ops.eye(ops.shape(text)[0], dtype="bool")
        negative = ops.logical_and(text[None, :] >= 0, text[None, :] != text[:, None])
        scores = ops.where(ops.logical_or(own, negative), scores, -1e9)
        loss = ops.logsumexp(scores, axis=-1) - ops.diagonal(scores)
        return ops.repeat(loss, 2, axis=0)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable("polyhead")
class CosineRegression(keras.losses.Loss):
    """Squared difference of the cosine of two texts and their similarity.

    (Reimers & Gurevych 2019, arXiv 1908.10084, section 3.)

    Call with ``labels`` (2 B,), ``embeddings`` (2 B, D) and ``sample_weight`` (2 B,), as
    `polyhead.data.pair_batches` returns them: rows 2 i and 2 i + 1 are a pair, and have its
    similarity.

    >>> loss = polyhead.training.CosineRegression()
    >>> float(loss(np.array([0.5, 0.5]), np.array([[1, 0], [1, 0]], "float32")))
    0.25
    """

    def __init__(self, name: str = "cosine_regression", **kwargs: Any) -> None:
        kwargs.setdefault("reduction", "mean_with_sample_weight")
        super().__init__(name=name, **kwargs)

    def call(self, labels, embeddings):
        x = unit(embeddings)
        cosine = ops.sum(x[::2] * x[1::2], axis=-1)
        loss = ops.square(cosine - ops.reshape(labels, (-1,))[::2])
        return ops.repeat(loss, 2, axis=0)


def chosen_logits(logits, labels, axis):
    """The logits at the indices ``labels`` of an axis; NaN where there is none, on all backends."""
    exists = ops.logical_and(labels >= 0, labels < ops.shape(logits)[axis])
    chosen = ops.take_along_axis(logits, ops.where(exists, labels, 0), axis=axis)
    return ops.where(exists, chosen, float("nan"))


def unit(x):
    """Divides vectors (..., D) by their norm; zero vectors stay, with finite gradients."""
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-24))
