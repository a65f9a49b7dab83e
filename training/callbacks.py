"""What happens at the end of an epoch: validation by BLEU, and checkpoints that go on."""

import csv
import io
import shutil
import time
from pathlib import Path

import keras

from .metrics import bleu
from .states import (
    CheckpointError,
    assign,
    by_path,
    random_states,
    read_tensors,
    write_file,
    write_tensors,
)


class ValidationBleu(keras.callbacks.Callback):
    """Adds ``val_bleu`` to each epoch's logs: the BLEU of ``model.translate(sources)``."""

    def __init__(self, sources, references, tokenize="13a", batch_size=64):
        super().__init__()
        self.sources = sources
        self.references = references
        self.tokenize = tokenize
        self.batch_size = batch_size

    def on_epoch_end(self, epoch, logs=None):
        translations = self.model.translate(self.sources, batch_size=self.batch_size)
        logs["val_bleu"] = round(bleu(translations, self.references, self.tokenize).score, 2)


class Checkpoints(keras.callbacks.Callback):
    """Makes a training one that goes on: saves its whole state after each epoch of `fit`.

    A checkpoint holds weights, optimizer, random states, the number of updates and the history,
    in ``checkpoint-<updates>.safetensors``. The best model by ``monitor`` is saved with
    `save_pretrained` to ``best``. ``history.csv`` has a row an epoch. All appear complete or
    not at all. List it after the callbacks whose logs it keeps.

    Args:
        folder: where to write.
        monitor: the log that says which epoch is best, the larger the better.
        patience: stop when so many epochs brought nothing better.
        updates: stop after so many updates in all, though an epoch be unfinished.
        minutes: stop at the end of the epoch in which so much time was spent in all.
        keep: how many checkpoints stay.
    """

    def __init__(
        self, folder, monitor="val_bleu", patience=None, updates=None, minutes=None, keep=2
    ):
        super().__init__()
        self.folder = Path(folder)
        self.monitor = monitor
        self.patience = patience
        self.updates_limit = updates
        self.minutes = minutes
        self.keep = keep
        self.history = []
        self.updates = 0
        self.seconds = 0.0

    def resume(self, model):
        """Puts the newest checkpoint's state into a compiled ``model``; returns its epoch, or 0.

        Raises:
            CheckpointError: the newest is broken or another model's; the message names it, and
                the one before it.
        """
        self.sweep()
        saved = self.saved()
        if not saved:
            return 0
        try:
            tensors, about = read_tensors(saved[-1])
            assign(training_state(model), tensors, saved[-1])
        except CheckpointError as error:
            other = f"; {saved[-2].name} is the one before it" if len(saved) > 1 else ""
            raise CheckpointError(f"{error}{other}") from error
        self.history = about["history"]
        self.updates = about["updates"]
        self.seconds = self.history[-1]["seconds"]
        return len(self.history)

    def sweep(self):
        """Removes what a killed process left half written."""
        for old in self.folder.glob(".best.old.*"):
            if not (self.folder / "best").exists():
                old.rename(self.folder / "best")
        for left in self.folder.glob(".best.*"):
            shutil.rmtree(left)
        for left in self.folder.glob(".checkpoint-*"):
            left.unlink()

    def saved(self):
        """The checkpoints there are, oldest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"))

    @property
    def finished(self):
        """Why there is nothing more to do, or None."""
        if self.updates_limit and self.updates >= self.updates_limit:
            return f"{self.updates} updates done"
        if self.minutes and self.seconds >= 60 * self.minutes:
            return f"{self.seconds / 60:.0f} minutes spent"
        if self.patience and len(self.history) - 1 - self.best_epoch() >= self.patience:
            return f"no better {self.monitor} in {self.patience} epochs"
        return None

    def best_epoch(self):
        scores = [epoch.get(self.monitor, float("-inf")) for epoch in self.history]
        return scores.index(max(scores)) if scores else -1

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.updates += 1
        if self.updates == self.updates_limit:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        self.seconds += time.monotonic() - self.began
        logs = {name: float(value) for name, value in (logs or {}).items()}
        self.history.append(
            {"epoch": epoch + 1, "updates": self.updates, "seconds": round(self.seconds, 1), **logs}
        )
        if self.best_epoch() == len(self.history) - 1:
            self.model.save_pretrained(self.folder / "best")
        state = {name: v.numpy() for name, v in training_state(self.model).items()}
        write_tensors(
            self.folder / f"checkpoint-{self.updates:08d}.safetensors",
            state,
            {"updates": self.updates, "history": self.history},
        )
        for old in self.saved()[: -self.keep]:
            old.unlink()
        write_table(self.folder / "history.csv", self.history)
        if self.finished:
            self.model.stop_training = True


def training_state(model):
    """``{name: variable}`` of all that a training changes."""
    model.build_optimizer()
    # Seed generators and optimizers are numbered by the process that made them: their paths are
    # no names.
    return {
        **{f"model/{path}": v for path, v in by_path(model.weights).items()},
        **{
            f"optimizer/{i}/{v.path.split('/')[-1]}": v
            for i, v in enumerate(model.optimizer.variables)
        },
        **{f"random/{i}": v for i, v in enumerate(random_states(model))},
    }


def write_table(path, rows):
    """Rows, dicts with the same or growing columns, as CSV; complete or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, table.getvalue().encode())
