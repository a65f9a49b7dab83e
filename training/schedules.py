"""Learning rate schedules."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("polyhead")
class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """Increases linearly to ``peak`` at update ``warmup``, then decays as 1 / sqrt(update).

    The schedule of Vaswani et al. 2017, equation 3, is ``InverseSquareRoot.of_width(dim, warmup)``.

    >>> rate = polyhead.training.InverseSquareRoot.of_width(512, warmup=4000)
    >>> round(float(rate(3999)), 6)  # the peak
    0.000699
    """

    def __init__(self, peak: float, warmup: int = 4000) -> None:
        if peak <= 0 or warmup < 1:
            raise ValueError(f"peak and warmup must be positive: {peak}, {warmup}")
        self.peak = peak
        self.warmup = warmup

    @classmethod
    def of_width(cls, dim: int, warmup: int = 4000) -> "InverseSquareRoot":
        """The schedule dim^-0.5 min(update^-0.5, update warmup^-1.5)."""
        return cls(dim**-0.5 * warmup**-0.5, warmup)

    def __call__(self, step):
        update = ops.cast(step, "float32") + 1.0
        return self.peak * ops.minimum(update / self.warmup, ops.sqrt(self.warmup / update))

    def get_config(self):
        return {"peak": self.peak, "warmup": self.warmup}
