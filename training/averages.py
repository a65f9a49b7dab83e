"""EMA weights: the moving averages (Polyak & Juditsky 1992) that Keras's optimizers keep."""

import contextlib
from collections.abc import Iterator

import keras


def inner(optimizer):
    """The optimizer without the wrapper of loss scaling."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def averages(optimizer):
    """Pairs of a weight and its average, if the optimizer was created with ``use_ema``."""
    optimizer = inner(optimizer)
    if not getattr(optimizer, "use_ema", False) or not optimizer.built:
        return []
    return list(
        zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
    )


def updates(model):
    """The number of updates that the optimizer has made."""
    return int(keras.ops.convert_to_numpy(inner(model.optimizer).iterations))


@contextlib.contextmanager
def counting_updates(optimizer):
    """A context in which Keras's optimizer applies gradients directly and counts updates.

    Keras accumulates gradients and overwrites weights with EMA weights inside a `cond`, which
    replicas cannot do, so our training step does both. With ``gradient_accumulation_steps`` = n,
    Keras counts batches, n per update, and passes that count to schedules; our step counts updates.
    On exit the optimizer's settings are restored, also after an error.
    """
    settings = "gradient_accumulation_steps", "ema_overwrite_frequency"
    before = [getattr(optimizer, name) for name in settings]
    count, batches, rest = optimizer._iterations, before[0] or 1, 0
    if batches > 1:
        rest = count.value % batches
        count.assign(count.value // batches)
    for name in settings:
        setattr(optimizer, name, None)
    try:
        yield
    finally:
        for name, value in zip(settings, before, strict=True):
            setattr(optimizer, name, value)
        if batches > 1:
            count.assign(count.value * batches + rest)


@contextlib.contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """A context in which the model has its EMA weights, if the optimizer keeps them.

    >>> inputs = keras.Input([2])
    >>> model = polyhead.training.Model(inputs, keras.layers.Dense(1)(inputs))
    >>> model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
    >>> with polyhead.training.averaged(model):
    ...     predictions = model(np.ones([3, 2]))
    """
    pairs = averages(model.optimizer)
    weights = [v.numpy() for v, _ in pairs]
    for v, average in pairs:
        v.assign(average.numpy())
    try:
        yield
    finally:
        for (v, _), weight in zip(pairs, weights, strict=True):
            v.assign(weight)


class EvaluateAverages(keras.callbacks.Callback):
    """Makes `fit` validate with EMA weights, then restores the weights exactly.

    (`keras.callbacks.SwapEMAWeights` swaps by adding and subtracting, which rounds.)

    >>> callbacks = [polyhead.training.EvaluateAverages()]  # for model.fit
    """

    def on_test_begin(self, logs=None):
        self.averaged = averaged(self.model)
        self.averaged.__enter__()

    def on_test_end(self, logs=None):
        self.averaged.__exit__(None, None, None)
