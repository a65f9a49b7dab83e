"""Callbacks that report on training: validation scores, progress, curves for TensorBoard."""

import time
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import keras

from .averages import averaged, inner, updates
from .metrics import bleu


class ValidationBleu(keras.callbacks.Callback):
    """Adds ``val_bleu`` to each epoch's logs: the BLEU of ``model.translate(sources)``.

    Uses EMA weights if the optimizer keeps them.

    >>> callback = polyhead.training.ValidationBleu(["Ein Hund."], ["A dog."])  # for model.fit
    """

    def __init__(
        self,
        sources: Sequence[str],
        references: Sequence[str],
        tokenize: str = "13a",
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        self.sources = sources
        self.references = references
        self.tokenize = tokenize
        self.batch_size = batch_size

    def on_epoch_end(self, epoch, logs=None):
        with averaged(self.model):
            translations = self.model.translate(self.sources, batch_size=self.batch_size)
        logs["val_bleu"] = round(bleu(translations, self.references, self.tokenize).score, 2)


class ValidationScores(keras.callbacks.Callback):
    """Adds scores of the model on validation data to each epoch's logs, as ``val_<name>``.

    Uses EMA weights if the optimizer keeps them.

    >>> callback = polyhead.training.ValidationScores(lambda model: {"accuracy": 0.5})

    Args:
        score: a function of the model that returns ``{name: number}``.
    """

    def __init__(self, score: Callable[[keras.Model], dict[str, float]]) -> None:
        super().__init__()
        self.score = score

    def on_epoch_end(self, epoch, logs=None):
        with averaged(self.model):
            scores = self.score(self.model)
        logs.update({f"val_{name}": value for name, value in scores.items()})


class Rate:
    """The speed of training in tokens or examples per second.

    For a custom `train_step`, in batches per second.
    """

    def __init__(self, unit):
        self.unit = unit
        self.weight, self.began = 0.0, time.monotonic()

    def add(self, model):
        weight = measured(model).get("weight")
        self.unit = self.unit if weight is not None else "batches"
        self.weight += (1 if weight is None else float(weight)) * model.steps_per_execution

    def __call__(self):
        return self.weight / max(time.monotonic() - self.began, 1e-9)


def measured(model):
    """The last measurements of polyhead's training step; empty for a custom step."""
    return getattr(model, "measured", {})


def learning_rate(model):
    """The learning rate of the next update.

    Keras calls a schedule with the number of batches, polyhead's step with that of updates.
    """
    optimizer = inner(model.optimizer)
    schedule = optimizer._learning_rate
    if measured(model) and isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return schedule(optimizer.iterations)
    return optimizer.learning_rate


class Progress(keras.callbacks.Callback):
    """Shows a progress bar on a terminal, and prints a line per epoch: loss, speed, validation.

    >>> callback = polyhead.training.Progress("images")  # for model.fit(..., verbose=0)

    Args:
        unit: the unit of a batch's weight, "tokens" or "images".
        per_epoch: batches per epoch of the data, if an epoch of `fit` is only a part of it.
        start: the number of batches of a resumed training run.
        say: a function that prints a line.
    """

    def __init__(
        self,
        unit: str = "tokens",
        per_epoch: int | None = None,
        start: int = 0,
        say: Callable[[str], object] = print,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.per_epoch = per_epoch
        self.batches = start
        self.say = say
        self.bar = None

    def on_epoch_begin(self, epoch, logs=None):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.before = self.batches
        self.rate = Rate(self.unit)
        console = Console(stderr=True)
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
        columns += (TimeRemainingColumn(), TextColumn("{task.fields[speed]}"))
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal, transient=True)
        epoch = f"epoch {int(self.epochs()) + 1}"
        self.task = self.bar.add_task(epoch, total=self.params["steps"], speed="")
        self.bar.start()

    def on_train_batch_end(self, batch, logs=None):
        self.rate.add(self.model)
        self.batches = self.before + batch + 1
        self.speed = f"{self.rate():,.0f} {self.rate.unit}/s"
        if not self.bar.disable:
            loss = f"loss {float(logs['loss']):.4f}, " if "loss" in logs else ""
            self.bar.update(self.task, completed=batch + 1, speed=f"{loss}{self.speed}")

    def on_epoch_end(self, epoch, logs=None):
        self.bar.stop()
        values = ", ".join(f"{name} {float(value):.4g}" for name, value in (logs or {}).items())
        seconds = time.monotonic() - self.rate.began
        self.say(f"epoch {self.epochs():.4g}: {values}; {seconds:.0f} s, {self.speed}")

    def on_train_end(self, logs=None):
        if self.bar is not None:
            self.bar.stop()

    def epochs(self) -> float:
        """The number of epochs of the data, with a fraction if `fit` stops within one."""
        return self.batches / (self.per_epoch or self.params["steps"] or self.batches or 1)


class Curves(keras.callbacks.Callback):
    """Writes scalars for TensorBoard.

    At the end of an epoch, `fit`'s logs; every few updates the loss, the learning rate, the speed
    and, with polyhead's training step, the gradient norm.

    >>> callback = polyhead.training.Curves("logs", every=100)  # for model.fit

    Args:
        folder: the folder for TensorBoard's files.
        every: the number of updates between two points.
        unit: the unit of a batch's weight, "tokens" or "images".
    """

    def __init__(self, folder: str | PathLike[str], every: int = 20, unit: str = "tokens") -> None:
        super().__init__()
        self.folder = Path(folder)
        self.every = every
        self.unit = unit

    def on_train_begin(self, logs=None):
        import tensorflow as tf

        self.writer = tf.summary.create_file_writer(str(self.folder))
        self.written = 0
        self.rate = Rate(self.unit)

    def on_train_batch_end(self, batch, logs=None):
        self.rate.add(self.model)
        update = updates(self.model)
        if update % self.every == 0 and update != self.written:
            self.written = update
            found = {**logs, **measured(self.model)}
            points = {name: found[name] for name in ("loss", "gradient_norm") if name in found}
            points["learning_rate"] = keras.ops.convert_to_numpy(learning_rate(self.model))
            points[f"{self.rate.unit}_per_second"] = self.rate()
            self.write(update, points)
            self.rate = Rate(self.unit)

    def on_epoch_end(self, epoch, logs=None):
        update = updates(self.model)
        self.write(update, {f"epoch/{name}": value for name, value in (logs or {}).items()})
        self.writer.flush()
        self.rate = Rate(self.unit)

    def on_train_end(self, logs=None):
        self.writer.close()

    def write(self, update: int, values: dict[str, Any]) -> None:
        import tensorflow as tf

        with self.writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(name, float(value), step=update)
