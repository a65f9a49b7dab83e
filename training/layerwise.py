"""AdamW with smaller learning rates for lower blocks."""

import re
from typing import Any

import keras

BLOCK = re.compile(r"(?:.*/)?block_(\d+)/")


@keras.saving.register_keras_serializable("polyhead")
class LayerwiseAdamW(keras.optimizers.AdamW):
    """AdamW whose learning rate is multiplied by ``decay`` for each block below the head.

    (Clark et al. 2020, arXiv 2003.10555, appendix B.) With N blocks, the rate of the weights
    of ``block_i`` is multiplied by decay^(N - i), that of the head and of the norm before it by 1,
    and that of all other weights, the embeddings, by decay^(N + 1). So is their weight decay.

    >>> optimizer = polyhead.training.LayerwiseAdamW(1e-4, num_blocks=6, decay=0.8)

    Args:
        num_blocks: N.
        decay: in (0, 1].
        kwargs: other arguments of Keras's AdamW.

    Raises:
        ValueError: ``decay`` is out of range; or, when the optimizer is built, the model has more
            than ``num_blocks`` blocks.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-4,
        num_blocks: int = 0,
        decay: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1]: {decay}")
        self.num_blocks = num_blocks
        self.decay = decay

    def factor(self, path: str) -> float:
        """The factor of the learning rate for the weight of this path.

        >>> optimizer = polyhead.training.LayerwiseAdamW(num_blocks=6, decay=0.5)
        >>> [optimizer.factor(p) for p in ("head/output/kernel", "block_5/a", "block_4/a")]
        [1.0, 0.5, 0.25]
        """
        if re.match(r"(.*/)?head/|norm/", path):
            return 1.0
        block = BLOCK.match(path)
        below = self.num_blocks - int(block[1]) if block else self.num_blocks + 1
        return self.decay**below

    def build(self, variables):
        super().build(variables)
        last = max((int(b[1]) for v in variables if (b := BLOCK.match(v.path))), default=-1)
        if last >= self.num_blocks:
            raise ValueError(f"num_blocks must be above that of block_{last}: {self.num_blocks}")
        self._factors = [self.factor(v.path) for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        # On TensorFlow it is TensorFlow's variable, which has no path.
        factor = self._factors[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * factor)

    def _apply_weight_decay(self, variables):
        given = self.weight_decay
        if given is None:
            return
        try:
            for v in variables:
                self.weight_decay = given * self._factors[self._get_variable_index(v)]
                super()._apply_weight_decay([v])
        finally:
            self.weight_decay = given

    def get_config(self):
        own = {"num_blocks": self.num_blocks, "decay": self.decay}
        return {**super().get_config(), **own}
