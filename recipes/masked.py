"""Masked language models: train on plain text, evaluate, fill masks and export.

polyhead train masked --data book.txt --preset bert-mini --out RUN
polyhead fill-mask RUN "I am [MASK] hungry."

polyhead train masked --data proteins.fasta --preset esm2-t6-8m --out RUN
polyhead fill-mask RUN "MKTAY<mask>AKQR"
"""

import functools
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from typer import Argument, Option

from .encoding import (
    LENGTH,
    EncoderSettings,
    begin,
    compile_encoder,
    cross_entropy,
    max_length,
)
from .generation import documents, say_sizes
from .options import Data, ModelFolder, Split
from .run import (
    Run,
    averaging,
    class_of_preset,
    draw_curve,
    escape,
    export_model,
    load,
    lock_folder,
    read_lines,
    show_progress,
)
from .settings import SAMPLE, choose_split, option, plain_text, settings_of


@dataclass(frozen=True)
class Settings(EncoderSettings):
    """The settings of a training run of a masked language model, named like the options."""

    task: ClassVar[str] = "masked"
    longest_warmup: ClassVar[int] = 10000

    data: str = plain_text(
        "a FASTA file (.fasta, .fa, .faa) or a folder of them, with --preset esm2-t6-8m; "
    )
    max_length: int | None = option(
        None,
        "Tokens per row, filled with text or a part of a protein. Default: 128, or fewer by the "
        "model.",
    )
    batch_size: int = option(32, "Rows per batch.")
    buckets: int = option(1, "Not used: all rows have one length.", hidden=True)
    rate: float = option(0.15, "Fraction of the tokens that are predicted.")
    whole_words: bool = option(False, "Mask all tokens of a word or none.")


@lock_folder
def train(settings, out, restart=False, say=print):
    """Train a masked language model on text, or continue with a published one.

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
    The best model by validation loss is RUN/best; curves are in RUN/curve.png, RUN/history.csv
    and, for TensorBoard, RUN/logs.

    Example: polyhead train masked --data book.txt --preset bert-mini --out RUN
    """
    from ..data import masked_batches
    from ..data.masking import document_tokens
    from ..training import SmoothedCrossEntropy
    from ..zoo import ESM

    run = Run(settings, out, restart, say)
    settings = run.settings
    if is_fasta(settings.data) and settings.pretrained is None:
        class_of_preset(settings.preset, (ESM,), "for proteins, ESM has")
    texts = {split: read(settings.data, split) for split in ("train", "val")}
    say_sizes(texts, say)
    with run.devices.scope():
        model = begin(settings, run, texts, "tokens")
    streams = {
        split: document_tokens(texts[split], model.tokenizer, settings.whole_words)
        for split in texts
    }
    batches = functools.partial(mask, masked_batches, model, settings, settings.data)
    per_epoch = len(batches(streams["train"]))
    compile_encoder(run, model, SmoothedCrossEntropy(0.0), per_epoch)
    return run.fit(
        model,
        lambda update: batches(streams["train"], start=update),
        batches(streams["val"], shuffle=False),
        per_epoch,
        "val_loss",
        mode="min",
        draw=draw_curve,
    )


def read(data, split):
    """The documents of a split: those of plain text, or the sequences of proteins."""
    from ..data import read_proteins

    if not is_fasta(data):
        return documents(data, split)
    return [protein.sequence for protein in read_proteins(data, split)]


def is_fasta(data):
    from ..data.proteins import has_proteins

    return data != SAMPLE and has_proteins(data)


def mask(masked_batches, model, settings, data, stream, **options):
    return masked_batches(
        stream,
        model.tokenizer,
        max_length(settings, model, LENGTH),
        settings.batch_size,
        settings.rate,
        settings.whole_words,
        pack=not is_fasta(data),
        seed=settings.seed,
        **options,
    )


def evaluate(run: ModelFolder, data: Data = None, split: Split = None, say=print):
    """Evaluates a run's best model on a split of its data, "val" by default.

    Returns:
        a dict: ``loss`` in nats per masked token, ``perplexity``, ``accuracy``, ``tokens``.
    """
    import numpy as np

    from ..data import masked_batches
    from ..data.masking import document_tokens

    settings, model = settings_of(run, Settings, data), load(run)
    split, name = choose_split(split, data)
    texts = read(data or settings.data, split)
    stream = document_tokens(texts, model.tokenizer, settings.whole_words)
    batches = mask(masked_batches, model, settings, data or settings.data, stream, shuffle=False)
    compute = model._compiled(("outputs", model.xla), model, "evaluation", model.xla)
    loss = hits = count = 0.0
    for inputs, labels, weight in show_progress("evaluating")(batches):
        logits = np.asarray(compute(inputs), "float64")
        labels, chosen = labels.numpy(), weight.numpy() > 0
        logits, labels = logits[chosen], labels[chosen]
        if len(labels):
            loss += cross_entropy(logits, labels) * len(labels)
        hits += (logits.argmax(-1) == labels).sum()
        count += chosen.sum()
    if not count:
        raise ValueError(f"{name} has too little text: no token is masked")
    score = {
        "loss": float(loss / count),
        "perplexity": math.exp(loss / count),
        "accuracy": float(hits / count),
        "tokens": int(count),
    }
    say(
        f"loss {score['loss']:.4f}, perplexity {score['perplexity']:.2f}, accuracy "
        f"{score['accuracy']:.2%}; {score['tokens']:,} masked tokens of {name}"
    )
    return score


average = averaging(evaluate)
export = export_model


def fill_mask(
    run: ModelFolder,
    inputs: Annotated[
        list[str] | None,
        Argument(
            metavar="TEXT ...", help="Texts with a mask, [MASK] or <mask>. Default: standard input."
        ),
    ] = None,
    top: Annotated[int, Option(help="Number of tokens per mask.")] = 5,
):
    """Predict masked tokens: prints a line per token.

    A line has the text's number, the mask's number, the token and its probability.
    """
    texts = list(read_lines(inputs))
    for i, found in enumerate(load(run).fill_mask(texts, top=top)):
        masks = [found] if isinstance(found[0][0], str) else found
        for j, tokens in enumerate(masks):
            for token, probability in tokens:
                print(f"{i}\t{j}\t{escape(token)}\t{probability:.4f}")
