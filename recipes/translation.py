"""Translation: parallel text in, a trained Transformer, its BLEU, its translations, its export.

Multi30k, English to German, lowercased and tokenized, on 2 cores of an Intel Xeon with AVX-512
(2026-11-23): 41.14 BLEU on validation and 39.95 on test2016 after 106 minutes of training.

    polyhead train translation --data multi30k --variant lc.norm.tok --bleu none \\
        --vocab-size 6000 --tokens 2048 --dropout 0.3 --ema 0.9995 --keep 10 --patience 40 \\
        --minutes 105 --out RUN
    polyhead average RUN --beams 5 --alpha 1.4
    polyhead evaluate RUN/average --split test --beams 5 --alpha 1.4

Raw text, greedy, on 2 cores of an AMD EPYC with AVX2: 38.92 and 37.70 after 77 minutes.

    polyhead train translation --data multi30k --vocab-size 6000 --tokens 2048 --dropout 0.2 \\
        --minutes 75 --out RUN
    polyhead evaluate RUN --split test
"""

import dataclasses
import importlib.resources
import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

SAMPLE = "sample"
# What a continued run may change; "cosine" depends on where it is to end.
LIMITS = ("epochs", "updates", "minutes", "patience", "keep", "devices", "remat")


@dataclass(frozen=True)
class Settings:
    """All that a training of `Transformer` depends on, as the command's options say it."""

    data: str = SAMPLE
    source: str = "en"
    target: str = "de"
    variant: str | None = None
    preset: str = "tiny"
    vocab_size: int = 8000
    norm: str | None = None
    dropout: float | None = None
    max_length: int = 128
    tokens: int = 4096
    buckets: int = 4
    peak: float | None = None
    warmup: int = 1000
    schedule: str = "sqrt"
    bpe_dropout: float = 0.0
    label_smoothing: float = 0.1
    consistency: float = 0.0
    clip: float = 1.0
    accumulate: int = 1
    ema: float | None = None
    precision: str = "float32"
    bleu: str = "13a"
    seed: int = 0
    epochs: int = 100
    updates: int | None = None
    minutes: float | None = None
    patience: int = 10
    interval: int | None = None
    keep: int = 2
    devices: int | None = None
    remat: bool = False


def train(settings, out, restart=False, say=print):
    """Trains in the folder ``out``, from where an interrupted run of the same settings stopped."""
    import keras

    from ..data import Subwords, read_split, translation_batches
    from ..training import (
        Checkpoints,
        Curves,
        EvaluateAverages,
        Progress,
        SmoothedCrossEntropy,
        ValidationBleu,
        from_chief,
        is_chief,
        strategy,
    )
    from ..zoo import Transformer

    out = Path(out)
    if settings.data != SAMPLE:
        settings = dataclasses.replace(settings, data=str(Path(settings.data).resolve()))
    for name in ("accumulate", "interval", "epochs", "updates"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more: {value}")
    chief = is_chief()
    devices = strategy(settings.devices, say)
    goes_on = bool(from_chief(devices, check_run(settings, out, restart)))
    train_pairs, val_pairs = (
        read_split(
            folder_of(settings.data), split, settings.source, settings.target, settings.variant
        )
        for split in ("train", "val")
    )
    say(f"{len(train_pairs):,} pairs of sentences")
    keras.utils.set_random_seed(settings.seed)
    keras.config.set_dtype_policy(settings.precision)
    if goes_on:
        tokenizer = Subwords.load(out)
    else:
        texts = train_pairs.sources + train_pairs.targets
        tokenizer = Subwords.train(texts, settings.vocab_size)

    def batches(pairs, **options):
        return translation_batches(
            pairs,
            tokenizer,
            settings.tokens,
            settings.max_length,
            settings.buckets,
            seed=settings.seed,
            twice=settings.consistency > 0,
            **options,
        )

    sampled = {"bpe_dropout": settings.bpe_dropout}
    per_epoch = len(batches(train_pairs, **sampled))
    interval = settings.interval or per_epoch
    limit = settings.epochs * per_epoch
    if settings.updates is not None:
        limit = min(limit, settings.updates)
    overrides = {"max_length": settings.max_length}
    overrides |= {k: v for k in ("norm", "dropout") if (v := getattr(settings, k)) is not None}
    with devices.scope():
        model = Transformer.preset(settings.preset, tokenizer, **overrides)
        model.compile(
            keras.optimizers.Adam(
                learning_rate(settings, model.config.dim, limit // settings.accumulate),
                beta_1=0.9,
                beta_2=0.98,
                epsilon=1e-9,
                global_clipnorm=settings.clip,
                gradient_accumulation_steps=settings.accumulate
                if settings.accumulate > 1
                else None,
                use_ema=settings.ema is not None,
                ema_momentum=settings.ema or 0.0,
            ),
            SmoothedCrossEntropy(settings.label_smoothing, settings.consistency),
            remat=settings.remat,
        )
    say(
        f"{type(model).__name__} {settings.preset}, {model.count_params():,} parameters; "
        f"{per_epoch} batches an epoch, a checkpoint every {interval}"
    )
    checkpoints = Checkpoints(
        out,
        patience=settings.patience,
        updates=limit,
        minutes=settings.minutes,
        keep=settings.keep,
        per_epoch=per_epoch,
    )
    done = checkpoints.resume(model) if goes_on else 0
    if chief:
        write_run(settings, out, None if goes_on else tokenizer, restart)
    if done:
        epochs = checkpoints.updates / per_epoch
        say(f"going on after update {checkpoints.updates}, {epochs:.4g} epochs")

    def why():
        if checkpoints.updates >= settings.epochs * per_epoch:
            return f"{settings.epochs} epochs done"
        return checkpoints.finished

    if why():
        say(f"nothing to do: {why()}")
        return checkpoints.history
    callbacks = [ValidationBleu(val_pairs.sources, val_pairs.targets, settings.bleu)]
    progress = Progress("tokens", per_epoch, checkpoints.updates, say)
    if settings.ema is not None:
        callbacks.insert(0, EvaluateAverages())
    if chief:
        callbacks += [progress, Curves(out / "logs")]
    try:
        model.fit(
            batches(train_pairs, start=checkpoints.updates, **sampled),
            steps_per_epoch=interval,
            initial_epoch=done,
            epochs=done - (checkpoints.updates - limit) // interval,  # rounded up
            validation_data=batches(val_pairs, shuffle=False),
            callbacks=[*callbacks, checkpoints],
            shuffle=False,  # the dataset does that
            verbose=0,
        )
    finally:
        if chief:
            progress.on_train_end()  # gives the terminal back, after Ctrl-C too
            checkpoints.wait()
        if checkpoints.history and chief:
            draw_curve(checkpoints.history, out / "curve.png")
    best = checkpoints.history[checkpoints.best_epoch()]
    say(why())
    say(
        f"best: epoch {best['epoch']}, validation BLEU {best['val_bleu']:.2f}; "
        f"the model is in {out / 'best'}"
    )
    return checkpoints.history


def learning_rate(settings, dim, updates):
    """The schedule of a training of so many ``updates``: "sqrt", the paper's, or "cosine"."""
    import keras

    from ..training import InverseSquareRoot

    if settings.schedule not in ("sqrt", "cosine"):
        raise ValueError(f"schedule must be sqrt or cosine: {settings.schedule!r}")
    rate = InverseSquareRoot.of_width(dim, settings.warmup)
    if settings.peak is not None:
        rate = InverseSquareRoot(settings.peak, settings.warmup)
    if settings.schedule == "sqrt":
        return rate
    if settings.warmup >= updates:
        raise ValueError(f"warmup must be shorter than the training: {settings.warmup}, {updates}")
    return keras.optimizers.schedules.CosineDecay(
        0.0, updates - rate.warmup, warmup_target=rate.peak, warmup_steps=rate.warmup
    )


def evaluate(run, data=None, split="test", variant=None, batch_size=64, **search):
    """The BLEU of a run's best model on a split, the split, and the translations."""
    from ..data import read_split
    from ..training import bleu

    settings = read_settings(run)
    pairs = read_split(
        folder_of(data or settings.data),
        split,
        settings.source,
        settings.target,
        variant or settings.variant,
    )
    translations = load(run).translate(
        pairs.sources, batch_size=batch_size, progress=shown, **search
    )
    return bleu(translations, pairs.targets, settings.bleu), pairs, translations


def average(run, last=10, say=print, **search):
    """Saves the mean of a run's ``last`` checkpoints as ``RUN/average``; returns its folder.

    And says the validation BLEU of that model, and of the best one.
    """
    from ..training import mean_weights

    weights, updates = mean_weights(run, last)
    folder = Path(run) / "average"
    load(run).save_pretrained(folder, weights=weights)
    mean = f"the mean of updates {updates[0]} to {updates[-1]}"
    for name, model in ((mean, folder), ("the best", run)):
        score, *_ = evaluate(model, split="val", **search)
        say(f"validation BLEU {score.score:.2f}: {name}")
    return folder


def load(run):
    """The best model of a run, or the model of a folder that `save_pretrained` wrote."""
    from ..zoo import Transformer

    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"no folder {run}")
    if not (run / "config.json").is_file() and not (run / "best").is_dir():
        raise FileNotFoundError(
            f"{run} holds neither a model nor a run that got to its first epoch"
        )
    return Transformer.from_pretrained(run if (run / "config.json").is_file() else run / "best")


def shown(batches):
    """Goes through ``batches`` with a bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(batches, "translating", console=console, disable=not console.is_terminal)


def folder_of(data):
    if data == SAMPLE:
        return importlib.resources.files("polyhead.data") / "samples" / "translation"
    return Path(data)


def check_run(settings, out, restart):
    """Whether there is a run in ``out`` that goes on; raises if it may not, and changes nothing."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; a run is a folder")
    if not (out / "settings.json").is_file():
        begun = {"tokenizer.model", ".tokenizer.model", ".settings.json"}  # and killed at once
        names = {path.name for path in out.iterdir()} if out.exists() else set()
        if {re.sub(r"\.\d+$", "", name) for name in names} - begun:
            raise FileExistsError(f"{out} holds something else than a run: choose another folder")
        return False
    old, new = dataclasses.asdict(read_settings(out)), dataclasses.asdict(settings)
    if restart:
        return False
    free = set(LIMITS) - ({"epochs", "updates"} if settings.schedule == "cosine" else set())
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
    from ..zoo.pretrained import SUBWORDS

    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir() if restart else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "settings.json":  # it says that this is a run, till the end
            path.unlink()
    if tokenizer is not None:
        write_file(out / SUBWORDS, tokenizer.model)
    content = json.dumps(dataclasses.asdict(settings), indent=2) + "\n"
    write_file(out / "settings.json", content.encode())


def read_settings(run):
    """The settings of a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there is another ``settings.json`` than a run's.
    """
    run = Path(run).resolve()
    if run.name in ("best", "average") and not (run / "settings.json").is_file():
        run = run.parent
    path = run / "settings.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no run: there is no settings.json in it")
    try:
        return Settings(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a run's: {error}") from None


def draw_curve(history, path):
    """Validation BLEU and training loss against wall time, as a picture."""
    from matplotlib.figure import Figure

    from ..training import write_file

    minutes = [epoch["seconds"] / 60 for epoch in history]
    figure = Figure(figsize=(7, 4), layout="constrained")
    score = figure.subplots()
    score.plot(minutes, [epoch["val_bleu"] for epoch in history], color="tab:blue", marker=".")
    score.set_xlabel("minutes of training")
    score.set_ylabel("validation BLEU", color="tab:blue")
    score.grid(alpha=0.3)
    loss = score.twinx()
    loss.plot(minutes, [epoch["loss"] for epoch in history], color="tab:orange", label="training")
    loss.plot(minutes, [epoch["val_loss"] for epoch in history], color="tab:orange", ls="--")
    loss.set_ylabel("loss: training (solid), validation (dashed)", color="tab:orange")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    write_file(path, picture.getvalue())
