"""A run: the folder of a training, which the same command continues."""

import dataclasses
import importlib
import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

SAMPLE = "sample"
TASKS = ("translation", "generation", "classification")
# What a continued run may change; "cosine" depends on where it is to end.
LIMITS = ("epochs", "updates", "minutes", "patience", "keep", "devices", "remat")


@dataclass(frozen=True)
class RunSettings:
    """What every training depends on, as the command's options say it."""

    task: ClassVar[str]

    data: str = SAMPLE
    pretrained: str | None = None
    dropout: float | None = None
    peak: float | None = None
    warmup: int | None = 1000
    schedule: str = "sqrt"
    clip: float = 1.0
    accumulate: int = 1
    ema: float | None = None
    optimizer: str = "adam"
    precision: str = "float32"
    seed: int = 0
    epochs: int = 100
    updates: int | None = None
    minutes: float | None = None
    patience: int | None = 10
    interval: int | None = None
    keep: int = 2
    devices: int | None = None
    remat: bool = False


class Run:
    """A training in the folder ``out``, new or gone on with.

    Args:
        settings: of a dataclass that extends `RunSettings`.
        out: the folder.
        restart: delete what is there first.
        say: prints a line.

    Raises:
        FileExistsError, NotADirectoryError: the folder holds something else.
        ValueError: the run there was begun with other settings, or one is out of its range.
    """

    def __init__(self, settings, out, restart=False, say=print):
        import keras

        from ..training import from_chief, is_chief, strategy

        self.out = Path(out)
        if settings.data != SAMPLE:
            settings = dataclasses.replace(settings, data=str(Path(settings.data).resolve()))
        if settings.pretrained is not None and Path(settings.pretrained).exists():
            folder = model_folder(settings.pretrained).resolve()
            if restart and folder.is_relative_to(self.out.resolve()):
                raise ValueError(f"to start over would delete the pretrained model {folder}")
            settings = dataclasses.replace(settings, pretrained=str(folder))
        for name in ("accumulate", "interval", "epochs", "updates"):
            if (value := getattr(settings, name)) is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more: {value}")
        self.settings = settings
        self.restart = restart
        self.say = say
        self.chief = is_chief()
        self.devices = strategy(settings.devices, say)
        self.goes_on = bool(from_chief(self.devices, check_run(settings, self.out, restart)))
        keras.utils.set_random_seed(settings.seed)
        keras.config.set_dtype_policy(settings.precision)

    def limit(self, per_epoch):
        """How many batches there are to be in all."""
        limit = self.settings.epochs * per_epoch
        return limit if self.settings.updates is None else min(limit, self.settings.updates)

    def optimizer(self, kind, rate, per_epoch, floor=0.0, **options):
        """A Keras optimizer of the class ``kind``, with the run's schedule, clipping and averages.

        ``rate`` is the schedule where no peak is given, and ``floor`` what a cosine ends at, as a
        share of its peak. Where the settings say so it is Muon, with the same ``options`` for what
        is not a matrix.
        """
        from ..training import Muon

        s = self.settings
        if s.optimizer not in ("adam", "muon"):
            raise ValueError(f"optimizer must be adam or muon: {s.optimizer!r}")
        if s.optimizer == "muon":
            names = {"beta_1": "adam_beta_1", "beta_2": "adam_beta_2"}
            named = {names.get(name, name): value for name, value in options.items()}
            kind, options = Muon, {"weight_decay": None, **named}
        return kind(
            learning_rate(s, rate, self.limit(per_epoch) // s.accumulate, floor),
            global_clipnorm=s.clip,
            gradient_accumulation_steps=s.accumulate if s.accumulate > 1 else None,
            use_ema=s.ema is not None,
            ema_momentum=s.ema or 0.0,
            **options,
        )

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
        """Trains a compiled ``model`` till the settings' limits; returns the history.

        Args:
            batches: a function of the update to begin at, which gives an endless dataset.
            validation: a dataset.
            per_epoch: batches of an epoch of the data.
            monitor: the log that says which checkpoint is best, by ``mode`` "max" or "min".
            callbacks: what makes logs, before the others.
            draw: a function of the history and a path, which draws a picture.
            unit: what the weights of a batch count.
        """
        from ..training import Checkpoints, Curves, EvaluateAverages, Progress

        s, say = self.settings, self.say
        interval, limit = s.interval or per_epoch, self.limit(per_epoch)
        say(
            f"{type(model).__name__}, {model.count_params():,} parameters; "
            f"{per_epoch} batches an epoch, a checkpoint every {interval}"
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
        done = checkpoints.resume(model) if self.goes_on else 0
        if self.chief:
            write_run(s, self.out, None if self.goes_on else model.tokenizer, self.restart)
        if done:
            epochs = checkpoints.updates / per_epoch
            say(f"going on after update {checkpoints.updates}, {epochs:.4g} epochs")

        def why():
            if checkpoints.updates >= s.epochs * per_epoch:
                return f"{s.epochs} epochs done"
            return checkpoints.finished

        if why():
            say(f"nothing to do: {why()}")
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
                shuffle=False,  # the dataset does that
                verbose=0,
            )
        finally:
            if self.chief:
                progress.on_train_end()  # gives the terminal back, after Ctrl-C too
                checkpoints.wait()
            if checkpoints.history and self.chief and draw is not None:
                draw(checkpoints.history, self.out / "curve.png")
        best = checkpoints.history[checkpoints.best_epoch()]
        say(why())
        say(
            f"best: epoch {best['epoch']}, {monitor} {best[monitor]:.4g}; "
            f"the model is in {self.out / 'best'}"
        )
        return checkpoints.history


def learning_rate(settings, rate, updates, floor=0.0):
    """The schedule of a training of so many ``updates``: "sqrt", Vaswani's, or "cosine".

    Where the settings give no peak, it is that of ``rate``, an `InverseSquareRoot`; where they give
    no warm-up, a tenth of the updates and at most 500.
    """
    import keras

    from ..training import InverseSquareRoot

    if settings.schedule not in ("sqrt", "cosine"):
        raise ValueError(f"schedule must be sqrt or cosine: {settings.schedule!r}")
    warmup = min(500, updates // 10) if settings.warmup is None else settings.warmup
    if settings.peak is not None:
        rate = InverseSquareRoot(settings.peak, max(warmup, 1))
    if settings.schedule == "sqrt":
        return rate
    if rate.warmup >= updates:
        raise ValueError(
            f"warmup must be shorter than the training: {rate.warmup}, {updates} updates"
        )
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        updates - rate.warmup,
        alpha=floor,
        warmup_target=rate.peak,
        warmup_steps=rate.warmup,
    )


def average(run, last=10):
    """Saves the mean of a run's ``last`` checkpoints as ``RUN/average``.

    Returns its folder, and the updates after which the checkpoints were written.
    """
    from ..training import mean_weights

    weights, updates = mean_weights(run, last)
    folder = Path(run) / "average"
    load(run).save_pretrained(folder, weights=weights)
    return folder, updates


def load(run):
    """The best model of a run, or the model of a folder that `save_pretrained` wrote."""
    from ..zoo import GPT, Transformer, ViT
    from ..zoo.published import read_json

    folder = model_folder(run)
    try:
        config = read_json(folder / "config.json")
        kind = config.get("model", config.get("model_type", "pretrained_cfg" in config and "vit"))
    except (ValueError, OSError):
        kind = None  # the class says what is wrong
    models = {"GPT": GPT, "gpt2": GPT, "ViT": ViT, "vit": ViT}
    return models.get(str(kind), Transformer).from_pretrained(folder)


def model_folder(run):
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"no folder {run}")
    if (run / "config.json").exists():
        return run
    if not (run / "best").is_dir():
        raise FileNotFoundError(
            f"{run} holds neither a model nor a run that got to its first epoch"
        )
    return run / "best"


def shown(title):
    """A function that goes through batches with a bar on standard error, on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return lambda batches: track(batches, title, console=console, disable=not console.is_terminal)


def check_run(settings, out, restart):
    """Whether there is a run in ``out`` that goes on; raises if it may not, and changes nothing."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; a run is a folder")
    if not (out / "settings.json").exists():
        from ..zoo.pretrained import TOKENIZERS

        begun = {*TOKENIZERS, ".settings.json"}
        names = {path.name for path in out.iterdir()} if out.exists() else set()
        if {re.sub(r"\.\d+$", "", name) for name in names} - begun:  # killed at once
            raise FileExistsError(f"{out} holds something else than a run: choose another folder")
        return False
    old = read_settings(out)
    if restart:
        return False
    if old.task != settings.task:
        raise ValueError(f"{out} is a run of {old.task}, not of {settings.task}")
    free = set(LIMITS) - ({"epochs", "updates"} if settings.schedule == "cosine" else set())
    old, new = dataclasses.asdict(old), dataclasses.asdict(settings)
    changed = [f"{k} {old[k]} -> {new[k]}" for k in new if old[k] != new[k] and k not in free]
    if changed:
        raise ValueError(
            f"{out} was begun with other settings ({', '.join(changed)}): "
            "repeat them, or start over with --restart"
        )
    return True


def write_run(settings, out, tokenizer, restart):
    """The folder of a run: its settings come last, and make it one."""
    from ..training import write_file

    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir() if restart else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "settings.json":  # it says that this is a run, till the end
            path.unlink()
    if tokenizer is not None:
        tokenizer.save(out)
    content = json.dumps({"task": settings.task, **dataclasses.asdict(settings)}, indent=2) + "\n"
    write_file(out / "settings.json", content.encode())


def read_settings(run):
    """The settings of a run, of its task's class.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there is another ``settings.json`` than a run's.
    """
    run = Path(run).resolve()
    if run.name in ("best", "average") and not (run / "settings.json").is_file():
        run = run.parent
    path = run / "settings.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} holds no run: there is no settings.json in it")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        content = json.loads(path.read_text("utf-8"))
        task = content.pop("task", TASKS[0])
        if task not in TASKS:
            raise ValueError(f"no task {task!r}")
        return importlib.import_module(f".{task}", __package__).Settings(**content)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a run's: {error}") from None


def draw_curve(history, path, score=None, label=None):
    """A score on validation, if there is one, and losses against wall time, as a picture."""
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
    loss.plot(minutes, [epoch["val_loss"] for epoch in history], color="tab:orange", ls="--")
    loss.set_ylabel("loss: training (solid), validation (dashed)", color="tab:orange")
    save(figure, path)


def save(figure, path):
    """Writes a picture: it appears complete or not at all."""
    from ..training import write_file

    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    write_file(path, picture.getvalue())
