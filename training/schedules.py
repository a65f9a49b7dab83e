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


@keras.saving.register_keras_serializable("polyhead")
class Linear(keras.optimizers.schedules.LearningRateSchedule):
    """Increases linearly to ``peak`` at update ``warmup``, then decreases linearly to 0.

    (Devlin et al. 2019, appendix A.2.) The last of ``updates`` has peak / (updates - warmup).

    >>> rate = polyhead.training.Linear(1e-4, warmup=10, updates=110)
    >>> [round(float(rate(step)), 6) for step in (4, 9, 60, 110)]
    [5e-05, 0.0001, 5e-05, 0.0]
    """

    def __init__(self, peak: float, warmup: int, updates: int) -> None:
        if peak <= 0 or not 1 <= warmup < max(updates, 2):
            raise ValueError(
                "peak must be positive, and warmup from 1 to less than updates: "
                f"{peak}, {warmup}, {updates}"
            )
        self.peak = peak
        self.warmup = warmup
        self.updates = updates

    def __call__(self, step):
        update = ops.cast(step, "float32")
        rest = (self.updates - update) / max(self.updates - self.warmup, 1)
        return self.peak * ops.clip(ops.minimum((update + 1) / self.warmup, rest), 0, 1)

    def get_config(self):
        return {"peak": self.peak, "warmup": self.warmup, "updates": self.updates}
