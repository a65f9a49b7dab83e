"""Checkpoints: an interrupted training run resumes, with the results of an uninterrupted one."""

import csv
import inspect
import io
import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from ..files import write_file
from .averages import averages, inner
from .devices import from_chief, is_chief
from .lock import acquire, release
from .model import build_optimizer
from .states import (
    CheckpointError,
    assign,
    by_path,
    random_states,
    read_tensors,
    write_tensors,
)

CHECKPOINTS = "checkpoint-*.safetensors"
WRITER = ThreadPoolExecutor(1)  # shared: a new object waits for the writes of an older one
PLAIN = (bool, int, float, str, type(None))


class Checkpoints(keras.callbacks.Callback):
    """Makes training resumable: saves its complete state after each epoch of `fit`.

    An epoch of `fit` (``steps_per_epoch``) is the checkpoint interval. Pass `fit` an endless
    dataset that begins at ``updates``, such as `translation_batches` with ``start``. A checkpoint,
    ``checkpoint-<updates>.safetensors``, holds weights, optimizer, EMA weights, loss scale, random
    states, the number of updates, the history, and the plain attributes and lists of arrays of the
    other ``callbacks``. (An update is one batch here, even if the optimizer accumulates several.)
    The best model by ``monitor`` is saved with `save_pretrained` to ``best``, with EMA weights if
    the optimizer keeps them. ``history.csv`` has one row per interval. Files are written
    atomically, by a thread while training continues; on several machines only by the chief. Put
    this callback after those whose logs it saves.

    >>> model = polyhead.GPT.preset("char-small", num_layers=1)
    >>> model.compile()
    >>> checkpoints = polyhead.training.Checkpoints("run", monitor="loss", mode="min")
    >>> done = checkpoints.resume(model)  # 0, or the epochs of a run that was interrupted
    >>> x = np.ones([2, 8], "int32")
    >>> history = model.fit(
    ...     x, x, epochs=2, initial_epoch=done, callbacks=[checkpoints], verbose=0
    ... )
    >>> [path.name for path in checkpoints.saved()]
    ['checkpoint-00000001.safetensors', 'checkpoint-00000002.safetensors']

    Args:
        folder: where to write; on several machines, a folder that all of them share.
        monitor: the log that selects the best epoch.
        mode: "max" if larger is better, "min" if smaller is better.
        patience: stop after this many intervals without improvement.
        updates: stop after this many updates in total, even in mid-interval.
        minutes: stop at the end of the interval in which the total training time reaches this.
        keep: the number of checkpoints to keep.
        callbacks: other callbacks of the same `fit` whose state is saved, for example early
            stopping: numbers, strings, booleans and lists of arrays.
        per_epoch: updates per epoch of the data. Default: one interval.

    Raises:
        FloatingPointError: the loss became non-finite; the message names the update and the last
            checkpoint.
        OSError: a checkpoint could not be written; the message names the last complete one.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        monitor: str = "val_bleu",
        mode: Literal["max", "min"] = "max",
        patience: int | None = None,
        updates: int | None = None,
        minutes: float | None = None,
        keep: int = 2,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min': {mode!r}")
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        self.updates_limit = updates
        self.minutes = minutes
        if keep < 1:
            raise ValueError(f"at least 1 checkpoint must be kept: {keep}")
        self.keep = keep
        self.others = list(callbacks)
        self.per_epoch = per_epoch
        self.history: list[dict[str, Any]] = []
        self.updates = 0
        self.seconds = 0.0
        self.waited = 0.0  # seconds that training waited for saving
        self.restored = []
        self.writing = None
        self.locked = False  # by this callback

    def resume(self, model: keras.Model) -> int:
        """Restores the newest checkpoint into a compiled ``model``; returns its epoch, or 0.

        The folder is locked for this process until the following `fit` or the process ends.

        Raises:
            FolderInUseError: another process trains in the folder.
            CheckpointError: the newest checkpoint is corrupt or of another model; the message names
                it and the one before it.
        """
        if is_chief() and self.folder.exists():
            self.locked |= acquire(self.folder)
            WRITER.submit(self.sweep).result()
        saved = self.saved()
        newest = self.newest()
        if (chiefs := int(from_chief(model.distribute_strategy, newest))) != newest:
            raise CheckpointError(
                f"all machines must share {self.folder}: the newest checkpoint here is of update "
                f"{newest}, on the chief of update {chiefs}"
            )
        if not saved:
            return 0
        try:
            tensors, about = read_tensors(saved[-1])
            if (
                not isinstance(about, dict)
                or not {"updates", "history", "callbacks"} <= about.keys()
            ):
                raise CheckpointError(f"{saved[-1]} is not a checkpoint of a training run")
            arrays = {k: tensors.pop(k) for k in list(tensors) if k.startswith("callbacks/")}
            state = training_state(model)
            optimizer = inner(model.optimizer)
            batches = getattr(optimizer, "gradient_accumulation_steps", None)
            counts_batches = keras.config.backend() != "tensorflow" or about.get("counts_batches")
            if batches and not counts_batches:  # written by an older version, which counted updates
                [name] = [name for name, v in state.items() if v is optimizer._iterations]
                if name in tensors:
                    tensors[name] = tensors[name] * batches
            # The optimizer's moments may overflow while the weights stay finite.
            assign(state, tensors, saved[-1], unchecked=("optimizer/",))
        except CheckpointError as error:
            other = f"; delete it to resume from {saved[-2].name}" if len(saved) > 1 else ""
            raise CheckpointError(f"{error}{other}") from error
        self.history = about["history"]
        self.updates = about["updates"]
        self.restored = about["callbacks"]
        for name, array in sorted(arrays.items()):
            _, i, attribute, _ = name.split("/")
            self.restored[int(i)].setdefault(attribute, []).append(array)
        self.seconds = self.history[-1]["seconds"]
        return len(self.history)

    def sweep(self) -> None:
        """Removes temporary files of killed processes; the folder must be locked."""
        for old in (*self.folder.glob(".best.*/old"), *self.folder.glob(".best.old.*")):
            if not (self.folder / "best").exists():
                old.rename(self.folder / "best")
        for left in self.folder.glob(".best.*"):
            remove(left)
        for left in self.folder.glob(".checkpoint-*"):
            left.unlink()

    def saved(self) -> list[Path]:
        """The existing checkpoints, oldest first."""
        return sorted(self.folder.glob(CHECKPOINTS))

    def newest(self) -> int:
        """The number of updates of the newest checkpoint; 0 if there is none."""
        return max(map(updates_of, self.saved()), default=0)

    @property
    def finished(self) -> str | None:
        """The reason why training is finished, or None."""
        if self.updates_limit and self.updates >= self.updates_limit:
            return f"{self.updates} updates done"
        if self.minutes and self.seconds >= 60 * self.minutes:
            return f"{self.seconds / 60:.0f} minutes spent"
        if self.patience and len(self.history) - 1 - self.best_epoch() >= self.patience:
            return f"no better {self.monitor} in {self.patience} epochs"
        return None

    def best_epoch(self) -> int:
        sign = 1 if self.mode == "max" else -1
        scores = [sign * epoch.get(self.monitor, -sign * math.inf) for epoch in self.history]
        scores = [-math.inf if math.isnan(score) else score for score in scores]
        return scores.index(max(scores)) if scores else -1

    def on_train_begin(self, logs=None):
        if is_chief():  # fails now if the folder is not writable
            self.folder.mkdir(parents=True, exist_ok=True)
            self.locked |= acquire(self.folder)
            if (newest := self.newest()) > self.updates:
                raise FileExistsError(
                    f"{self.folder} has checkpoints of a longer training run, up to update "
                    f"{newest}: call resume(model) first, or choose another folder"
                )
            write_table(self.folder / "history.csv", self.history)
        # Here, because callbacks reset their state when training begins.
        for callback, state in zip(self.others, self.restored, strict=False):
            vars(callback).update(state)
        self.restored = []

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.monotonic()
        self.before = self.updates

    def on_train_batch_end(self, batch, logs=None):
        self.updates = self.before + batch + 1
        if self.writing is not None and self.writing.done():
            self.wait()  # now, not after the next interval: it may have failed
        loss = float(logs.get("loss", 0.0))  # a custom step may not log a loss
        if not math.isfinite(loss):
            self.wait()
            saved = self.saved()
            where = f"update {self.updates}"
            if self.per_epoch or self.params["steps"]:
                epoch, batch = divmod(self.updates - 1, self.per_epoch or self.params["steps"])
                where += f" (epoch {epoch + 1}, batch {batch + 1})"
            raise FloatingPointError(
                f"the loss became {loss} at {where}; the last good checkpoint is "
                f"{saved[-1] if saved else 'none, as none was written yet'}"
            )
        if self.updates_limit and self.updates >= self.updates_limit:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        seconds = self.seconds + time.monotonic() - self.began
        self.seconds = from_chief(self.model.distribute_strategy, seconds)
        logs = {name: float(value) for name, value in (logs or {}).items()}
        if self.monitor not in logs:
            raise ValueError(f"monitor is {self.monitor!r}, but the logs are {sorted(logs)}")
        epochs = self.updates / self.per_epoch if self.per_epoch else epoch + 1
        row = {"epoch": f"{epochs:.4g}", "updates": self.updates}
        self.history.append({**row, "seconds": round(self.seconds, 1), **logs})
        if is_chief():
            began = time.monotonic()
            self.wait()
            self.writing = WRITER.submit(self.write, *self.snapshot())
            self.waited += time.monotonic() - began
        if from_chief(self.model.distribute_strategy, float(self.finished is not None)):
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self.wait()
        if self.locked:
            release(self.folder)
            self.locked = False

    def wait(self) -> None:
        """Waits until all pending writes are on disk."""
        writing, self.writing = self.writing, None
        try:
            if writing is not None:
                writing.result()
        except OSError as error:
            saved = self.saved()
            last = f"the last good one is {saved[-1].name}" if saved else "there is no earlier one"
            raise OSError(
                error.errno, f"a checkpoint could not be written to {self.folder}: {error}; {last}"
            ) from error

    def snapshot(self) -> tuple[dict | None, dict, dict]:
        """Copies everything that is to be written."""
        state = {name: v.numpy() for name, v in training_state(self.model).items()}
        best = None
        if self.best_epoch() == len(self.history) - 1:
            best = {path: state[f"model/{path}"] for path in by_path(self.model.weights)}
            best |= {v.path: average.numpy() for v, average in averages(self.model.optimizer)}
        about = {
            "updates": self.updates,
            "counts_batches": True,  # the optimizer's iterations, as in Keras
            "history": list(self.history),
            "callbacks": [plain_attributes(callback) for callback in self.others],
        }
        for i, callback in enumerate(self.others):
            for name, arrays in array_attributes(callback).items():
                for j, array in enumerate(arrays):
                    state[f"callbacks/{i}/{name}/{j:06d}"] = array
        return best, state, about

    def write(self, best: dict | None, state: dict, about: dict) -> None:
        for name, value in state.items():
            if name.startswith("model/") and not np.isfinite(value).all():
                raise FloatingPointError(
                    f"{name[6:]} is non-finite after update {about['updates']}; the last good "
                    f"checkpoint is {self.saved()[-1] if self.saved() else 'none'}"
                )
        if best is not None:
            self.model.save_pretrained(self.folder / "best", weights=best)
        path = self.folder / f"checkpoint-{about['updates']:08d}.safetensors"
        write_tensors(path, state, about)
        for old in self.saved()[: -self.keep]:
            old.unlink()
        write_table(self.folder / "history.csv", about["history"])


def mean_weights(
    folder: str | PathLike[str],
    last: int | None = None,
    convert: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict,
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Averages the weights of the ``last`` checkpoints in a folder (Vaswani et al. 2017, 6.1).

    Default: of all that are kept there.

    Args:
        convert: is applied to the ``{path: array}`` of each checkpoint before; it merges adapters,
            for example, whose mean is another model.

    >>> for i in (1, 2):
    ...     tensors = {"model/bias": np.array([i, 2 * i])}
    ...     polyhead.training.write_tensors(f"checkpoint-{i}.safetensors", tensors)
    >>> polyhead.training.mean_weights(".")
    ({'bias': array([1.5, 3. ], dtype=float32)}, [1, 2])

    Returns:
        ``{path: array}``, and the number of updates of each checkpoint.

    Raises:
        ValueError: there are fewer checkpoints.
    """
    saved = sorted(Path(folder).glob(CHECKPOINTS))
    last = len(saved) if last is None else last
    if not 1 <= last <= len(saved):
        raise ValueError(
            f"cannot average the last {last} checkpoints of {folder}: it has {len(saved)}"
        )
    sums = {}
    for path in saved[-last:]:
        weights = {k[6:]: v for k, v in read_tensors(path)[0].items() if k.startswith("model/")}
        weights = convert(weights)
        if sums and sums.keys() != weights.keys():
            raise CheckpointError(f"{path} and {saved[-last]} are of different models")
        for name, value in weights.items():
            sums[name] = sums.get(name, 0) + value.astype("float64")
    means = {name: np.asarray(value / last, "float32") for name, value in sums.items()}
    return means, [updates_of(path) for path in saved[-last:]]


def remove(path):
    """Removes a file, a folder or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def updates_of(path):
    """The number in a checkpoint's name."""
    return int(path.stem.split("-")[1])


def training_state(model):
    """``{name: variable}`` of everything that training changes."""
    build_optimizer(model)
    # Paths of seed generators and optimizers contain numbers that depend on the process, so they
    # cannot serve as names.
    return {
        **{f"model/{path}": v for path, v in by_path(model.weights).items()},
        **{
            f"optimizer/{i}/{v.path.split('/')[-1]}": v
            for i, v in enumerate(model.optimizer.variables)
        },
        **{f"random/{i}": v for i, v in enumerate(random_states(model))},
    }


def plain_attributes(callback):
    """The numbers, strings and booleans among a callback's attributes.

    Without constructor arguments: the new callback has those, and Keras's callbacks modify theirs.
    """
    given = inspect.signature(type(callback).__init__).parameters
    scalars = {
        name: np.asarray(value).item() if getattr(value, "shape", None) == () else value
        for name, value in vars(callback).items()
        if name not in given
    }
    return {name: value for name, value in scalars.items() if type(value) in PLAIN}


def array_attributes(callback):
    """The lists of arrays among a callback's attributes: early stopping's best weights."""
    return {
        name: value
        for name, value in vars(callback).items()
        if isinstance(value, list) and value and all(isinstance(x, np.ndarray) for x in value)
    }


def write_table(path, rows):
    """Writes rows, dicts with the same or growing columns, as CSV, atomically."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, table.getvalue().encode())
