"""Generation: text in, a trained GPT, its perplexity, its continuations, its export.

Shakespeare by characters, on 2 cores of an AMD EPYC with AVX-512 (2026-11-25): a validation loss
of 1.766 after 63 seconds; nanoGPT's at these sizes is 1.88.

    polyhead train generation --data tinyshakespeare/input.txt --preset char-small --steps 2000 \\
        --interval 250 --peak 4e-3 --out RUN
    polyhead evaluate RUN
"""

import functools
import importlib.resources
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .run import SAMPLE, Run, RunSettings, draw_curve, exclusive, load, read_settings, shown


@dataclass(frozen=True)
class Settings(RunSettings):
    """The settings of a training run of `GPT`, named like the command's options."""

    task: ClassVar[str] = "generation"
    longest_warmup: ClassVar[int] = 100

    preset: str = "char-small"
    vocab_size: int = 8000
    length: int | None = None
    batch_size: int = 12
    peak: float | None = 1e-3
    schedule: str = "cosine"
    weight_decay: float = 0.1
    lora: int | None = None
    freeze: str | None = None
    epochs: int = 10


@exclusive
def train(settings, out, restart=False, say=print):
    """Trains in the folder ``out``; an interrupted run of the same settings is resumed."""
    import keras

    from ..data import text_batches, token_stream
    from ..training import InverseSquareRoot, SmoothedCrossEntropy

    run = Run(settings, out, restart, say)
    settings = run.settings
    texts = {split: documents(settings.data, split) for split in ("train", "val")}
    size = {split: sum(len(text.encode()) for text in texts[split]) for split in texts}
    say(f"{size['train']:,} bytes of text, {size['val']:,} for validation")
    with run.devices.scope():
        model = begin(settings, run, texts["train"])
    length = settings.length or model.config.max_length
    streams = {split: token_stream(texts[split], model.tokenizer) for split in texts}

    def batches(split, **options):
        return text_batches(
            streams[split],
            model.tokenizer,
            length,
            settings.batch_size,
            seed=settings.seed,
            **options,
        )

    per_epoch = len(batches("train"))
    with run.devices.scope():
        optimizer = run.optimizer(
            keras.optimizers.AdamW,
            functools.partial(InverseSquareRoot, settings.peak or 1e-3),
            per_epoch,
            floor=0.1,
            weight_decay=settings.weight_decay,
            beta_1=0.9,
            beta_2=0.99,
            epsilon=1e-8,
        )
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        model.compile(optimizer, SmoothedCrossEntropy(0.0), remat=settings.remat)
    return run.fit(
        model,
        lambda update: batches("train", start=update),
        batches("val", shuffle=False),
        per_epoch,
        "val_loss",
        mode="min",
        draw=draw_curve,
    )


def begin(settings, run, texts):
    """The model before training: a preset or published weights."""
    from ..data import BytePairs, Characters
    from ..zoo import GPT

    overrides = {}
    if settings.dropout is not None:
        overrides = dict(dropout=settings.dropout, attention_dropout=settings.dropout)
    if settings.pretrained is not None:
        model = GPT.from_pretrained(settings.pretrained, **overrides)
        if model.tokenizer is None:
            raise ValueError(f"{settings.pretrained} has no tokenizer")
    else:
        if settings.preset not in GPT.PRESETS:
            raise ValueError(f"GPT has presets {', '.join(GPT.PRESETS)}: {settings.preset!r}")
        kind = Characters if settings.preset.startswith("char") else BytePairs
        if run.resumes:
            tokenizer = kind.load(run.out)
        else:
            tokenizer = kind.train(texts, settings.vocab_size)
        overrides |= {"max_length": settings.length} if settings.length else {}
        model = GPT.preset(settings.preset, tokenizer, **overrides)
    if settings.freeze:
        model.freeze(settings.freeze)
    if settings.lora:
        model.enable_lora(settings.lora)
    return model


def documents(data, split):
    """The texts of a split of a run's data."""
    from ..data import read_text

    if data == SAMPLE:
        folder = importlib.resources.files("polyhead.data") / "samples" / "translation"
        return read_text(folder, split, suffix=".en")
    return read_text(Path(data), split)


def evaluate(run, data=None, split="val", batch_size=8):
    """How well a run's best model predicts a split of its data.

    Returns:
        a dict: ``loss`` in nats a token, ``perplexity``, ``bits_per_byte``, ``tokens``, ``bytes``.
    """
    from ..data import text_batches, token_stream

    texts = documents(data or read_settings(run).data, split)
    model = load(run)
    stream = token_stream(texts, model.tokenizer)
    batches = text_batches(
        stream, model.tokenizer, model.config.max_length, batch_size, shuffle=False
    )
    model.compile()
    total = 0.0
    for tokens, labels, weight in shown("evaluating")(batches):
        total += float(model.test_on_batch(tokens, labels, weight)) * float(weight.numpy().sum())
    count = sum(len(text.encode()) for text in texts)
    return {
        "loss": total / len(stream),
        "perplexity": math.exp(total / len(stream)),
        "bits_per_byte": total / math.log(2) / count,
        "tokens": len(stream),
        "bytes": count,
    }
