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

import contextlib
import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .run import (
    SAMPLE,
    Run,
    RunSettings,
    draw_curve,
    load,
    model_folder,
    read_settings,
    shown,
)


@dataclass(frozen=True)
class Settings(RunSettings):
    """All that a training of `Transformer` depends on, as the command's options say it."""

    task: ClassVar[str] = "translation"

    source: str = "en"
    target: str = "de"
    variant: str | None = None
    preset: str = "tiny"
    pretrained: str | None = None
    vocab_size: int = 8000
    norm: str | None = None
    max_length: int = 128
    tokens: int = 4096
    buckets: int = 4
    bpe_dropout: float = 0.0
    label_smoothing: float = 0.1
    consistency: float = 0.0
    bleu: str = "13a"


def train(settings, out, restart=False, say=print):
    """Trains in the folder ``out``, from where an interrupted run of the same settings stopped."""
    import keras

    from ..data import read_split, translation_batches
    from ..training import InverseSquareRoot, SmoothedCrossEntropy, ValidationBleu

    run = Run(settings, out, restart, say)
    settings = run.settings
    train_pairs, val_pairs = (
        read_split(
            folder_of(settings.data), split, settings.source, settings.target, settings.variant
        )
        for split in ("train", "val")
    )
    say(f"{len(train_pairs):,} pairs of sentences")
    with run.devices.scope():
        model = begin(settings, run, train_pairs)
    max_length = min(settings.max_length, model.config.max_length)

    def batches(pairs, **options):
        return translation_batches(
            pairs,
            model.tokenizer,
            settings.tokens,
            max_length,
            settings.buckets,
            seed=settings.seed,
            twice=settings.consistency > 0,
            **options,
        )

    sampled = {"bpe_dropout": settings.bpe_dropout}
    per_epoch = len(batches(train_pairs, **sampled))
    with run.devices.scope():
        rate = InverseSquareRoot.of_width(model.config.dim, settings.warmup)
        adam = dict(beta_1=0.9, beta_2=0.98, epsilon=1e-9)
        model.compile(
            run.optimizer(keras.optimizers.Adam, rate, per_epoch, **adam),
            SmoothedCrossEntropy(settings.label_smoothing, settings.consistency),
            remat=settings.remat,
        )
    return run.fit(
        model,
        lambda update: batches(train_pairs, start=update, **sampled),
        batches(val_pairs, shuffle=False),
        per_epoch,
        "val_bleu",
        [ValidationBleu(val_pairs.sources, val_pairs.targets, settings.bleu)],
        draw=lambda history, path: draw_curve(history, path, "val_bleu", "validation BLEU"),
    )


def begin(settings, run, pairs):
    """The model that training begins with: of a preset, or published weights."""
    from ..data import Subwords
    from ..zoo import Transformer

    overrides = {k: v for k in ("norm", "dropout") if (v := getattr(settings, k)) is not None}
    if settings.pretrained is not None:
        if settings.norm is not None:
            raise ValueError(f"norm is the pretrained model's: {settings.norm!r}")
        model = Transformer.from_pretrained(settings.pretrained, **overrides)
        if model.tokenizer is None:
            raise ValueError(f"{settings.pretrained} has no tokenizer")
        return model
    if run.goes_on:
        tokenizer = Subwords.load(run.out)
    else:
        tokenizer = Subwords.train(pairs.sources + pairs.targets, settings.vocab_size)
    return Transformer.preset(
        settings.preset, tokenizer, max_length=settings.max_length, **overrides
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
        pairs.sources, batch_size=batch_size, progress=shown("translating"), **search
    )
    return bleu(translations, pairs.targets, settings.bleu), pairs, translations


def diversify(runs, out, batch_size=64, say=print, **search):
    """Writes the data of ``runs``, and what they make of it, as the folder ``out``.

    Data diversification (Nguyen et al. 2020, arXiv 1911.01986, section 3): to the training pairs
    come their sources with the targets that a run found for them, and their targets with the
    sources that a run of the reverse direction found. Which direction is which, the first run says.
    No pair comes twice, none with an empty side. Validation and test are as they were. What a run
    translated stays in ``out``, so that an interrupted call goes on after it.

    Returns the training pairs, a `ParallelText`.

    Raises:
        FileExistsError: ``out`` holds something else.
        ValueError: a run is of other data or languages than the first.
    """
    from ..data import ParallelText, read_split
    from ..data.parallel import read_lines
    from ..training import bleu, write_file

    out, runs = Path(out), [Path(run).resolve() for run in runs]
    every = [read_settings(run) for run in runs]
    first = every[0]
    for run, s in zip(runs, every, strict=True):
        if s.task != Settings.task:
            raise ValueError(f"{run} is a run of {s.task}, not of {Settings.task}")
        model_folder(run)
        if (s.data, s.variant) != (first.data, first.variant) or (
            {s.source, s.target} != {first.source, first.target}
        ):
            raise ValueError(f"{run} is of other data or languages than {runs[0]}")

    def read(split, s=first):
        return read_split(folder_of(s.data), split, s.source, s.target, s.variant)

    def write(name, lines):
        write_file(out / name, "".join(f"{line}\n" for line in lines).encode())

    splits = {"train": read("train"), "val": read("val")}
    with contextlib.suppress(FileNotFoundError):
        splits["test"] = read("test")
    made_by, file = {"runs": [str(run) for run in runs], **search}, out / "diversified.json"
    if not file.is_file() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something else: choose another folder")
    if file.is_file() and json.loads(file.read_text("utf-8")) != made_by:
        raise FileExistsError(f"{out} is of other runs or searches: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write(file.name, [json.dumps(made_by, indent=2)])
    pairs = [*zip(splits["train"].sources, splits["train"].targets, strict=True)]
    known = set(pairs)
    for number, (run, s) in enumerate(zip(runs, every, strict=True), 1):
        own, name = read("train", s), f"made_{number}.{s.target}"
        if not (out / name).is_file():
            progress = shown(f"translating into {s.target}")
            write(name, load(run).translate(own.sources, batch_size, progress=progress, **search))
        made = read_lines(out / name)
        new = [*zip(own.sources, made, strict=True)]
        if s.source != first.source:
            new = [(target, source) for source, target in new]
        new = [pair for pair in dict.fromkeys(new) if pair not in known and all(pair)]
        known.update(new)
        pairs += new
        score = bleu(made, own.targets, s.bleu).score
        say(f"{len(new):,} new pairs by {run}, of BLEU {score:.2f}")
    splits["train"] = ParallelText(*map(list, zip(*pairs, strict=True)))
    for split, texts in splits.items():
        stem = f"{split}.{first.variant}" if first.variant else split
        write(f"{stem}.{first.source}", texts.sources)
        write(f"{stem}.{first.target}", texts.targets)
    return splits["train"]


def folder_of(data):
    if data == SAMPLE:
        return importlib.resources.files("polyhead.data") / "samples" / "translation"
    return Path(data)
