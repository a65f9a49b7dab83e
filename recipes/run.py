"""A run: a resumable training folder."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import re
import sys
import warnings
from pathlib import Path
from typing import get_args

from .options import ExportFolder, Format, Last, ModelFolder, RunFolder
from .settings import SAMPLE, SAMPLE_TEXT, VERBS, Optimizer, Schedule, read_settings


class Run:
    """A training run in the folder ``out``, new or resumed.

    Args:
        settings: an instance of a dataclass that extends `RunSettings`.
        out: the folder.
        restart: delete the existing run first.
        say: a function that prints a line.

    Raises:
        FileExistsError, NotADirectoryError: the folder holds something other than a run.
        ValueError: the existing run has other settings, or a setting is out of range.
    """

    def __init__(self, settings, out, restart=False, say=print):
        import keras

        from ..training import from_chief, is_chief, strategy

        self.out = Path(out)
        if settings.data not in (SAMPLE, SAMPLE_TEXT):
            settings = dataclasses.replace(settings, data=str(Path(settings.data).resolve()))
            self._check_kept("the data", settings.data, restart)
        if settings.pretrained is not None and Path(settings.pretrained).exists():
            folder = str(model_folder(settings.pretrained).resolve())
            self._check_kept("the pretrained model", folder, restart)
            settings = dataclasses.replace(settings, pretrained=folder)
        for name in ("accumulate", "interval", "epochs", "updates", "patience"):
            if (value := getattr(settings, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1: {value}")
        for name in ("clip", "minutes", "peak"):
            if (value := getattr(settings, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive: {value}")
        for name in ("warmup", "weight_decay"):
            if (value := getattr(settings, name, None)) is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0: {value}")
        self.restart = restart
        self.say = say
        self.chief = is_chief()
        self.devices = strategy(settings.devices, say)
        self.resumes = bool(from_chief(self.devices, check_run(settings, self.out, restart)))
        self.settings = (
            keep_adapted(settings, read_settings(self.out)) if self.resumes else settings
        )
        keras.utils.set_random_seed(settings.seed)
        keras.config.set_dtype_policy(settings.precision)

    def _check_kept(self, name, path, restart):
        if restart and Path(path).is_relative_to(self.out.resolve()):
            raise ValueError(f"--restart would delete {name} {path}")

    def check_classes(self, names):
        """Checks that the data still have the classes of the best model, if this run resumes."""
        file = self.out / "best" / "config.json"
        if not self.resumes or not file.is_file():
            return
        old = tuple(json.loads(file.read_text("utf-8")).get("class_names") or names)
        if old != tuple(names):
            raise ValueError(
                f"the classes of the data have changed since {self.out} was begun, from "
                f"{', '.join(old):.200} to {', '.join(names):.200}: use the same data, or start "
                "over with --restart"
            )

    def limit(self, per_epoch):
        """The number of batches of the whole run."""
        limit = self.settings.epochs * per_epoch
        return limit if self.settings.updates is None else min(limit, self.settings.updates)

    def optimizer(self, kind, rate, per_epoch, floor=0.0, **options):
        """Builds a Keras optimizer with the run's learning rate, clipping, accumulation and EMA.

        If the settings give no warm-up, it is chosen here and added to the settings.

        Args:
            kind: the class of the optimizer, for the setting "adam". The setting "muon" uses Muon,
                with the ``options`` for parameters that are not matrices.
            rate: a function of the warm-up that returns an `InverseSquareRoot`.
            per_epoch: batches per epoch.
            floor: the last learning rate of a cosine schedule, as a fraction of the peak.
        """
        from ..training import Muon

        updates = self.limit(per_epoch) // self.settings.accumulate
        if not updates:
            raise ValueError(
                f"accumulate must be at most the {self.limit(per_epoch)} batches of the run: "
                f"{self.settings.accumulate}"
            )
        if self.settings.warmup is None:
            warmup = max(1, min(self.settings.longest_warmup, updates // 10))
            self.settings = dataclasses.replace(self.settings, warmup=warmup)
            if warmup < self.settings.longest_warmup:
                self.say(f"warm-up: {warmup} of {updates} updates")
        s = self.settings
        if s.optimizer not in (kinds := get_args(Optimizer)):
            raise ValueError(f"optimizer must be {' or '.join(kinds)}: {s.optimizer!r}")
        if s.optimizer == "muon":
            names = {"beta_1": "adam_beta_1", "beta_2": "adam_beta_2"}
            named = {names.get(name, name): value for name, value in options.items()}
            kind, options = Muon, {"weight_decay": None, **named}
        return kind(
            learning_rate(s, rate(max(s.warmup, 1)), updates, floor),
            global_clipnorm=s.clip,
            gradient_accumulation_steps=s.accumulate if s.accumulate > 1 else None,
            use_ema=s.ema is not None,
            ema_momentum=s.ema or 0.0,
            **options,
        )

    def compile(self, model, loss, per_epoch, peak, kind=None, **options):
        """Compiles a model with AdamW, or ``kind``; biases and norms have no weight decay.

        Args:
            peak: the peak learning rate, if the settings give none.
            options: see `optimizer`.
        """
        import keras

        from ..training import InverseSquareRoot

        with self.devices.scope():
            optimizer = self.optimizer(
                kind or keras.optimizers.AdamW,
                functools.partial(InverseSquareRoot, peak),
                per_epoch,
                weight_decay=self.settings.weight_decay,
                epsilon=1e-8,
                **options,
            )
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
            model.compile(optimizer, loss, remat=self.settings.remat)

    def fit(
        self,
        model,
        batches,
        validation,
        per_epoch,
        monitor,
        callbacks=(),
        mode="max",
        draw=None,
        unit="tokens",
    ):
        """Trains a compiled ``model`` up to the settings' limits; returns the history.

        Args:
            batches: a function of the first update that returns an endless dataset.
            validation: a dataset, or None if a callback adds the scores.
            per_epoch: batches per epoch.
            monitor: the metric that selects the best checkpoint, by ``mode`` "max" or "min".
            callbacks: callbacks that add metrics; they run before the others.
            draw: a function of the history and a path that draws the curves.
            unit: the unit of the sample weights, for progress: "tokens", for example.
        """
        from ..training import Checkpoints, Curves, EvaluateAverages, Progress

        if not model.trainable_weights:
            raise ValueError("no weight is left to train: freeze fewer of them")
        s, say = self.settings, self.say
        interval, limit = s.interval or per_epoch, self.limit(per_epoch)
        say(
            f"{type(model).__name__}, {model.count_params():,} parameters; "
            f"{per_epoch} batches per epoch, a checkpoint every {interval}"
        )
        checkpoints = Checkpoints(
            self.out,
            monitor=monitor,
            mode=mode,
            patience=s.patience,
            updates=limit,
            minutes=s.minutes,
            keep=s.keep,
            per_epoch=per_epoch,
        )
        done = checkpoints.resume(model) if self.resumes else 0
        if self.chief:
            write_run(s, self.out, None if self.resumes else model.tokenizer, self.restart)
        if done:
            epochs = checkpoints.updates / per_epoch
            say(f"resuming after update {checkpoints.updates}, {epochs:.4g} epochs")

        def stop_reason():
            if checkpoints.updates >= s.epochs * per_epoch:
                return f"{s.epochs} epochs done"
            return checkpoints.finished

        if stop_reason():
            say(f"nothing to do: {stop_reason()}")
            return checkpoints.history
        callbacks = list(callbacks)
        progress = Progress(unit, per_epoch, checkpoints.updates, say)
        if s.ema is not None:
            callbacks.insert(0, EvaluateAverages())
        if self.chief:
            callbacks += [progress, Curves(self.out / "logs", unit=unit)]
        try:
            model.fit(
                batches(checkpoints.updates),
                steps_per_epoch=interval,
                initial_epoch=done,
                epochs=done - (checkpoints.updates - limit) // interval,  # rounded up
                validation_data=validation,
                callbacks=[*callbacks, checkpoints],
                shuffle=False,  # the dataset is shuffled already
                verbose=0,
            )
        finally:
            if self.chief:
                progress.on_train_end()  # restores the terminal, also after Ctrl-C
                checkpoints.wait()
            if checkpoints.history and self.chief and draw is not None:
                draw(checkpoints.history, self.out / "curve.png")
        best = checkpoints.history[checkpoints.best_epoch()]
        say(stop_reason())
        say(
            f"best: epoch {best['epoch']}, {monitor} {best[monitor]:.4g}; "
            f"the model is in {self.out / 'best'}"
        )
        return checkpoints.history


def lock_folder(train):
    """Makes a recipe's ``train`` lock the run's folder: other processes cannot write to it.

    With several machines, the chief holds the lock.
    """

    @functools.wraps(train)
    def train_locked(settings, out, restart=False, say=print):
        from ..training import is_chief, locked

        with locked(out) if is_chief() else contextlib.nullcontext():
            return train(settings, out, restart, say)

    return train_locked


def learning_rate(settings, rate, updates, floor=0.0):
    """The learning rate schedule of ``updates``, "sqrt" being that of Vaswani et al. 2017.

    The default peak is that of ``rate``, an `InverseSquareRoot`.
    """
    import keras

    from ..training import InverseSquareRoot, Linear

    if settings.schedule not in (schedules := get_args(Schedule)):
        raise ValueError(f"schedule must be {' or '.join(schedules)}: {settings.schedule!r}")
    if settings.peak is not None:
        rate = InverseSquareRoot(settings.peak, max(settings.warmup, 1))
    if settings.schedule == "sqrt":
        return rate
    if rate.warmup >= updates > 1:
        raise ValueError(
            f"warmup must be shorter than the training run: {rate.warmup}, {updates} updates"
        )
    if settings.schedule == "linear":
        return Linear(rate.peak, rate.warmup, updates)
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, updates - rate.warmup),
        alpha=floor,
        warmup_target=rate.peak,
        warmup_steps=rate.warmup,
    )


def save_average(run, last, evaluate, say=print, finish=None):
    """Saves the mean weights of a run's ``last`` checkpoints as the model ``RUN/average``.

    Then ``evaluate`` scores it and the best model on the validation data.

    Args:
        finish: a function of the model and the settings that adds what training chooses on the
            validation data.
    """
    from ..training import locked, mean_weights
    from ..training.checkpoints import remove
    from ..training.states import assign, by_path

    settings = read_settings(run)  # an error if it is not a run
    folder = Path(run) / "average"
    with locked(run, "average"):  # not the run's own lock: it may be training
        for left in Path(run).glob(".average.*/"):  # left by a killed process
            remove(left)
        model = load(run)
        if getattr(settings, "lora", None) is not None:  # the checkpoints have the adapters
            model.enable_lora(settings.lora)
        weights, updates = mean_weights(run, last, model._merge_lora)
        model = model._without_lora()
        assign(by_path(model.weights), weights, run)
        if finish is not None:
            finish(model, settings)
        model.save_pretrained(folder)
    mean = f"the mean of updates {updates[0]} to {updates[-1]}"
    for model, name in ((folder, mean), (run, "the best model")):
        evaluate(model, split="val", say=lambda line, name=name: say(f"{name}: {line}"))
    say(folder)


def averaging(evaluate, finish=None):
    """Returns the verb `average` of a recipe that scores models by ``evaluate``."""

    def average(run: RunFolder, last: Last = None, say=print):
        """Saves the mean of a run's last checkpoints as ``RUN/average``, and evaluates it."""
        save_average(run, last, evaluate, say, finish)

    return average


def export_model(run: ModelFolder, folder: ExportFolder, format: Format = "tf_saved_model"):
    """Exports a run's best model for TensorFlow Serving, or in another ``format``."""
    print(load(run).export(folder, format=format))


def read_lines(inputs, unit="text"):
    """The inputs of a verb or, if there are none, the lines of standard input."""
    if inputs:
        return inputs
    if sys.stdin is not None and sys.stdin.isatty():
        print(f"one {unit} per line; end with Ctrl-D", file=sys.stderr)
    return [line.rstrip("\n") for line in io.StringIO(read_input())]


def read_input():
    """The text on standard input, without a byte order mark."""
    if sys.stdin is None:
        raise ValueError("standard input is closed: pass the texts as arguments")
    return sys.stdin.read().removeprefix("\ufeff")


def one_line(text):
    """A text with its lines joined by spaces, to be printed as part of a line."""
    return " ".join(text.splitlines())


def escape(text):
    """A text whose backslashes and unprintable characters are written as in Python, such as \\n."""

    def shown(c):
        return c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode()

    return "".join(map(shown, text))


def load(run):
    """Loads the best model of a run, or the model in a folder."""
    from ..zoo import load as load_model

    return load_model(model_folder(run))


def task_of(run, wanted=()):
    """The task of a run; for a model that is not of a run, that of its head or class.

    Of the tasks of a class, it is the first of those that are ``wanted``, if there is one.
    """
    from ..zoo import TextEncoder
    from ..zoo.loading import model_class

    folder = model_folder(run)
    with contextlib.suppress(FileNotFoundError):
        return read_settings(folder).task
    kind = model_class(folder)
    if issubclass(kind, TextEncoder):
        return task_of_encoder(folder, kind)
    if hasattr(kind, "TASKS"):
        if not kind.TASKS:
            raise ValueError(f"the command has nothing for {kind.__name__}: use it in Python")
        return next((task for task in kind.TASKS if task in wanted), kind.TASKS[0])
    return next(task for task, verb in VERBS.items() if hasattr(kind, verb))


def task_of_run(run, wanted=()):
    """The task of a run, or of a model that is not of a run, which is evaluated on other data."""
    if (run / "config.json").is_file() and run.name not in ("best", "average"):
        return task_of(run, wanted)
    return read_settings(run).task


TASKS_OF_HEADS = {
    "classes": "text_classification", "score": "text_classification", "tags": "tagging",
    "spans": "answering", "tokens": "masked", None: "embedding",
}  # fmt: skip


def task_of_encoder(folder, kind):
    """The task of the text encoder of the class ``kind`` in a folder, by its head."""
    from ..zoo.published import open_checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same ones come when the model is loaded
        head = open_checkpoint(folder, kind).config({}).head
    return TASKS_OF_HEADS[head]


def model_folder(run):
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"there is no folder {run}")
    if (run / "config.json").exists():
        return run
    if not (run / "best").is_dir():
        raise FileNotFoundError(f"{run} is neither a model nor a run with a first checkpoint")
    return run / "best"


def class_of_preset(preset, kinds, who):
    """The class of ``kinds`` that has the preset; ``who`` begins the message if none has it."""
    for kind in kinds:
        if preset in kind.PRESETS:
            return kind
    known = ", ".join(name for kind in kinds for name in kind.PRESETS)
    raise ValueError(f"{who} presets {known}: {preset!r}")


def show_progress(title):
    from ..zoo.model import progress_bar

    return progress_bar(title)


def check_run(settings, out, restart):
    """Returns whether ``out`` is a run to resume; raises an error if the settings differ."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file, not a folder")
    if not (out / "settings.json").exists():
        from ..data.tokenizers import FILES

        begun = {*FILES, *(f".{name}" for name in FILES), ".settings.json", ".lock"}
        names = {path.name for path in out.iterdir()} if out.exists() else set()
        if {re.sub(r"\.\d+$", "", name) for name in names} - begun:  # killed at the start
            raise FileExistsError(f"{out} holds something other than a run: choose another folder")
        return False
    old = read_settings(out)
    if restart:
        return False
    if old.task != settings.task:
        raise ValueError(f"{out} is a run of {old.task}, not of {settings.task}")
    free = {field.name for field in dataclasses.fields(settings) if field.metadata["limit"]}
    if settings.schedule != "sqrt":  # it depends on its end
        free -= {"epochs", "updates"}
    old, new = dataclasses.asdict(old), dataclasses.asdict(keep_adapted(settings, old))
    changed = [f"{k} {old[k]} -> {new[k]}" for k in new if old[k] != new[k] and k not in free]
    if changed:
        raise ValueError(
            f"{out} was started with other settings ({', '.join(changed)}): "
            "use the same settings, or start over with --restart"
        )
    return True


def keep_adapted(settings, old):
    """Fills adaptive settings that are not given with the values of the ``old`` run."""
    names = [field.name for field in dataclasses.fields(old) if field.metadata["adapts"]]
    kept = {name: getattr(old, name) for name in names if getattr(settings, name) is None}
    return dataclasses.replace(settings, **kept)


def write_run(settings, out, tokenizer, restart):
    """Writes a run's folder; the settings last, because they mark the folder as a run."""
    from ..training import write_file
    from ..training.checkpoints import remove

    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir() if restart else ():
        if path.name != "settings.json" and not path.name.endswith(".lock"):  # still locked
            remove(path)
    if tokenizer is not None:
        tokenizer.save(out)
    content = json.dumps({"task": settings.task, **dataclasses.asdict(settings)}, indent=2) + "\n"
    write_file(out / "settings.json", content.encode())


def check_writable(file):
    """Checks that a file can be written, before what it is to hold is computed."""
    if file is None:
        return
    folder = file.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder {folder} is not writable")


def draw_curve(history, path, score=None, label=None):
    """Plots the losses, and a validation score if there is one, over training time."""
    from matplotlib.figure import Figure

    minutes = [epoch["seconds"] / 60 for epoch in history]
    figure = Figure(figsize=(7, 4), layout="constrained")
    loss = figure.subplots()
    loss.set_xlabel("minutes of training")
    loss.grid(alpha=0.3)
    if score is not None:
        loss.plot(minutes, [epoch[score] for epoch in history], color="tab:blue", marker=".")
        loss.set_ylabel(label, color="tab:blue")
        loss = loss.twinx()
    loss.plot(minutes, [epoch["loss"] for epoch in history], color="tab:orange", label="training")
    if all("val_loss" in epoch for epoch in history):
        loss.plot(minutes, [epoch["val_loss"] for epoch in history], color="tab:orange", ls="--")
    loss.set_ylabel("loss: training (solid), validation (dashed)", color="tab:orange")
    save(figure, path)


def save(figure, path):
    """Saves a figure atomically."""
    from ..training import write_file

    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    write_file(path, picture.getvalue())
