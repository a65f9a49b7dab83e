"""What the recipes of text encoders share: settings, the model, training and its outputs."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .run import class_of_preset, draw_curve, load
from .settings import (
    SAMPLE,
    SAMPLE_TEXT,
    RunSettings,
    Schedule,
    choose_split,
    option,
    sample_folder,
    settings_of,
)

LENGTH = 128  # tokens of a text, if neither the settings nor the model allow fewer or more


@dataclass(frozen=True)
class EncoderSettings(RunSettings):
    """The settings of a training run of a `TextEncoder`, for all tasks."""

    longest_warmup: ClassVar[int] = 1000

    preset: str = option(
        "bert-tiny",
        "Size of a model that is trained from scratch, with WordPiece learned from the text: "
        "bert-tiny, bert-mini, bert-small, bert-medium, minilm-l6, bert-base ...; of proteins "
        "esm2-t6-8m, esm2-t12-35m ...",
    )
    vocab_size: int = option(8000, "Maximum size of a learned vocabulary.")
    max_length: int | None = option(
        None,
        f"Maximum number of tokens per text, also of a new BERT. Default: {LENGTH}, or fewer by "
        "the model; of proteins those of the model.",
    )
    batch_size: int = option(32, "Texts, or pairs of texts, per batch.")
    buckets: int = option(4, "Number of batch lengths; each is compiled once.")
    peak: float | None = option(
        None, "Peak learning rate. Default: 5e-5; 5e-4 for a model from scratch."
    )
    schedule: Schedule = "linear"
    weight_decay: float = option(0.01, "Weight decay of matrices.")
    layer_decay: float | None = option(
        None, "Factor of the learning rate for each block below the head, e.g. 0.9."
    )
    lora: int | None = option(None, "LoRA rank; trains only the adapters and the head.")
    freeze: str | None = option(None, "Freeze weights whose path matches.", metavar="REGEX")
    epochs: int = 10
    patience: int | None = 3


def read_split(reader, sample, data, split=None, other=None):
    """Reads a split of a run's ``data``, or of ``other`` data; also returns the split's name.

    Args:
        reader: a function of a path and a split, or None for all of a file.
        sample: the name of the sample's folder.
        split: Default: all of another file, else "val".
    """
    (split, name), data = choose_split(split, other), other or data
    folder = sample_folder(sample) if data in (SAMPLE, SAMPLE_TEXT) else Path(data)
    return reader(folder, split), name


def open_run(run, kind, data):
    """The settings and the best model of a run.

    A model that is not of a run has the defaults, but reads as much of a text as it can.
    """
    settings, model = settings_of(run, data=data), load(run)
    return settings or kind(max_length=model.config.max_length), model


def labels_of(model):
    """The names of a model's classes, or their numbers."""
    if model.config.head not in ("classes", "tags"):
        raise ValueError(f"a model with the head {model.config.head!r} has no classes")
    return [model.label(i) for i in range(model.config.num_classes)]


def check_known(kind, found, known, data):
    """Checks that the classes or tags ``found`` in ``data`` are all ``known`` to the model."""
    if unknown := sorted(set(found) - set(known)):
        raise ValueError(f"{data}: the {kind} {unknown[0]!r} is not one of the model's")


def begin(settings, run, texts, head=None, class_names=None, length=LENGTH, pairs=False):
    """Builds the model to train: a preset, or a pretrained one with another head.

    Args:
        texts: ``{split: strings}``. A new vocabulary is learned from those of "train".
        head, class_names: of the new model.
        length: the default of ``settings.max_length``. A new BERT takes no longer texts, as it
            would not learn their positions.
    """
    from ..zoo import BERT, ESM, ModernBERT, TextEncoder
    from ..zoo import load as load_model

    if class_names is not None:
        run.check_classes(class_names)
    new = {"head": head} | ({} if class_names is None else {"class_names": tuple(class_names)})
    overrides = {}
    if settings.dropout is not None:
        overrides = dict(dropout=settings.dropout, attention_dropout=settings.dropout)
    if settings.pretrained is not None:
        model = load_model(settings.pretrained, **overrides)
        if not isinstance(model, TextEncoder):
            raise ValueError(f"{settings.pretrained} is a {type(model).__name__}, not an encoder")
        if model.tokenizer is None:
            raise ValueError(f"{settings.pretrained} has no tokenizer")
        model = model.adapt(**new)
    else:
        kind = class_of_preset(settings.preset, (BERT, ModernBERT, ESM), "text encoders have")
        if run.resumes:
            tokenizer = kind.load_tokenizer(run.out, None)
        else:
            tokenizer = kind.learn_tokenizer(texts["train"], settings.vocab_size)
        if class_names is not None:
            new["num_classes"] = len(class_names)
        if kind is BERT:
            longest = kind.PRESETS[settings.preset].max_length
            overrides["max_length"] = min(settings.max_length or length, longest)
        model = kind.preset(settings.preset, tokenizer, **new, **overrides)
    if max_length(settings, model) > model.config.max_length:
        raise ValueError(
            f"max_length must be at most the model's: {settings.max_length} > "
            f"{model.config.max_length}"
        )
    if pairs:
        model.need_pairs("training on pairs")
    if isinstance(model, ESM):  # now, not after an epoch
        check_sequences(settings.data, texts)
    if settings.freeze:
        model.freeze(settings.freeze)
    if settings.lora is not None:
        model.enable_lora(settings.lora)
    return model


def check_sequences(data, texts):
    """Checks that the strings ``{split: strings}`` of ``data`` are proteins."""
    from ..data.tokenizers.residues import check_letters

    for split in texts:
        for text in texts[split]:
            try:
                check_letters("".join(text.split()))
            except ValueError as error:
                raise ValueError(f"{data}, {split}: {error}") from None


def max_length(settings, model, default=None):
    """The maximum number of tokens per text; of a protein, by default the model's."""
    from ..zoo import ESM

    if settings.max_length is not None:
        return settings.max_length
    if default is None:
        default = model.config.max_length if isinstance(model, ESM) else LENGTH
    return min(default, model.config.max_length)


def compile_encoder(run, model, loss, per_epoch):
    """Compiles a model with the run's optimizer: AdamW, or one with smaller rates below."""
    from ..training import LayerwiseAdamW

    s, kind = run.settings, None
    if s.layer_decay is not None:
        if s.optimizer != "adam":
            raise ValueError(f"layer_decay needs the optimizer adam: {s.optimizer}")
        blocks = model.config.num_layers
        kind = functools.partial(LayerwiseAdamW, num_blocks=blocks, decay=s.layer_decay)
    run.compile(model, loss, per_epoch, 5e-4 if s.pretrained is None else 5e-5, kind)


def fit(run, model, batches, loss, score, monitor, label, unit="texts"):
    """Compiles and trains a model; returns the history.

    Args:
        batches: a function of ``start`` that returns the training data.
        loss: a Keras loss.
        score: a function of the model that returns its scores on validation.
        monitor: the score that selects the best checkpoint.
        label: the name of ``monitor`` in the picture.
        unit: see `Run.fit`.
    """
    from ..training import ValidationScores

    per_epoch = len(batches())
    compile_encoder(run, model, loss, per_epoch)
    return run.fit(
        model,
        lambda update: batches(start=update),
        None,
        per_epoch,
        f"val_{monitor}",
        [ValidationScores(score)],
        draw=lambda history, path: draw_curve(history, path, f"val_{monitor}", label),
        unit=unit,
    )


def outputs(model, tokens, types=None, batch_size=64, progress=False):
    """The model's outputs for each of the ragged ``tokens`` (B, None), a list of arrays.

    Those of a model with the head "tags" have a row per token.
    """
    from ..data.tokenizers.ragged import unpack

    rows = [{"tokens": row} for row in unpack(tokens)]
    if types is not None:
        pairs = zip(rows, unpack(types), strict=True)
        rows = [{**row, "types": kinds} for row, kinds in pairs]
    found = model._run("evaluation", model, rows, batch_size, progress)
    if model.config.head != "tags":
        return found
    return [x[: len(row["tokens"])] for x, row in zip(found, rows, strict=True)]


def cross_entropy(logits, labels):
    """The mean cross-entropy in nats of ``labels`` (N,) under ``logits`` (N, C)."""
    import numpy as np

    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logits, np.asarray(labels)[:, None], -1)[:, 0]
    return float((np.log(np.exp(logits).sum(-1)) - chosen).mean())
