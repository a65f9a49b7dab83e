"""Muon (Jordan et al. 2024), for the matrices of a Transformer."""

import math
import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("polyhead")
class Muon(keras.optimizers.Muon):
    """Keras's Muon, extended to attention kernels of three axes.

    The update of a matrix is its orthogonalized momentum, scaled to the size of AdamW's update (Liu
    et al. 2025, arXiv 2502.16982, section 2.2), so one learning rate works for both. AdamW updates
    vectors, embeddings and the weights that ``exclude_layers`` matches, by default the first and
    the last kernel of a ViT.

    A kernel of shape (D, H, K) or (H, K, D) becomes a matrix by joining neighbouring axes, such
    that it is closest to a square, since D is about H K. AdamW also updates LoRA adapters.

    >>> optimizer = polyhead.training.Muon(2e-3, weight_decay=0.1)  # for model.compile

    Args:
        learning_rate, weight_decay: for AdamW's weights too; None disables the decay.
        exclude_layers: regular expressions, searched in the paths of weights.
        adam_weight_decay: the decay of AdamW's weights. Default: ``weight_decay``.
        kwargs: other arguments of Keras's Muon.

    Raises:
        TypeError: ``exclude_layers`` is not a list.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        weight_decay: float | None = 0.004,
        exclude_layers: Sequence[str] = ("(^|/)patches/", "(^|/)head/"),
        adam_weight_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(exclude_layers, str):
            raise TypeError(f"exclude_layers must be a list of expressions: {exclude_layers!r}")
        super().__init__(
            learning_rate,
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay if adam_weight_decay is None else adam_weight_decay,
            exclude_layers=list(exclude_layers or ()),
            **kwargs,
        )

    def _should_use_adamw(self, variable):
        excluded = ["bias$", "_lora/", *self.exclude_layers]
        excluded += ["embeddings?$"] if self.exclude_embeddings else []
        return len(variable.shape) < 2 or any(re.search(e, variable.path) for e in excluded)

    def _muon_update_step(self, gradient, variable, lr, m):
        super()._muon_update_step(gradient, variable, ops.cast(lr, gradient.dtype), m)

    def zeropower_via_newtonschulz5(self, x, steps):
        made = super().zeropower_via_newtonschulz5(ops.reshape(x, matrix(x.shape)), steps)
        return ops.reshape(made, x.shape)

    def lr_adjust(self, x):
        if self.rms_rate is None:
            return x
        return x * (math.sqrt(max(matrix(x.shape))) * self.rms_rate)


def matrix(shape):
    """Joins the axes of a kernel into rows and columns, as close to a square as possible."""
    cuts = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return min(cuts, key=max)
