"""Span corruption with T5 or BART: pretrain on plain text, evaluate, predict spans and export.

polyhead train denoising --data book.txt --preset t5-tiny --out RUN
polyhead generate RUN "A dog <extra_id_0> on the beach."
polyhead train summarization --data reports.jsonl --pretrained RUN --out TUNED
"""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Unpack

from .generation import documents, read_splits
from .options import Data, Lengths, ModelFolder, Split, Texts
from .run import (
    Run,
    averaging,
    draw_curve,
    export_model,
    load,
    lock_folder,
    read_lines,
    show_progress,
)
from .settings import choose_split, option, plain_text, settings_of
from .summarization import EncoderDecoderSettings, begin, compile_model


@dataclass(frozen=True)
class Settings(EncoderDecoderSettings):
    """The settings of a training run of T5 or BART on plain text, named like the options."""

    task: ClassVar[str] = "denoising"
    longest_warmup: ClassVar[int] = 10000

    data: str = plain_text()
    preset: str = "t5-tiny"
    vocab_size: int = option(
        8000, "Maximum size of a learned vocabulary, with 100 tokens that stand for hidden spans."
    )
    length: int = option(
        128, "Tokens per row, filled with text whose hidden spans are one token each."
    )
    batch_size: int = option(32, "Rows per batch.")
    rate: float = option(0.15, "Fraction of the tokens that are hidden.")
    mean_span: float = option(3.0, "Mean number of tokens of a hidden span.")


@lock_folder
def train(settings, out, restart=False, say=print):
    """Pretrain a T5 or a BART on text, or continue with a published T5.

    It learns to predict hidden spans of the text. Then fine-tune it: train summarization
    --pretrained RUN. Stop it with Ctrl-C at any time; the same command resumes from the last
    checkpoint. The best model by validation loss is RUN/best; curves are in RUN/curve.png,
    RUN/history.csv and, for TensorBoard, RUN/logs.

    Example: polyhead train denoising --data book.txt --preset t5-tiny --out RUN
    """
    from ..data import token_stream
    from ..training import SmoothedCrossEntropy

    run = Run(settings, out, restart, say)
    settings = run.settings
    texts = read_splits(settings.data, say)
    with run.devices.scope():
        model = begin(settings, run, texts["train"], sentinels=True)
    if settings.length > model.config.max_length:
        raise ValueError(
            f"length must be at most the model's: {settings.length} > {model.config.max_length}"
        )
    streams = {split: token_stream(texts[split], model.tokenizer) for split in texts}
    batches = functools.partial(corrupt, settings, model)
    per_epoch = len(batches(streams["train"]))
    compile_model(run, model, SmoothedCrossEntropy(0.0), per_epoch)
    return run.fit(
        model,
        lambda update: batches(streams["train"], start=update),
        batches(streams["val"], shuffle=False),
        per_epoch,
        "val_loss",
        mode="min",
        draw=draw_curve,
    )


def corrupt(settings, model, stream, **options):
    """Batches of the hidden spans of a stream of tokens."""
    from ..data import span_batches

    return span_batches(
        stream,
        model.tokenizer,
        settings.length,
        settings.batch_size,
        settings.rate,
        settings.mean_span,
        seed=settings.seed,
        **options,
    )


def evaluate(run: ModelFolder, data: Data = None, split: Split = None, say=print):
    """Evaluates a run's best model on a split of its data, "val" by default.

    Returns:
        a dict: ``loss`` in nats per target token (a sentinel, a hidden token or an end),
        ``perplexity``, ``accuracy`` and ``tokens``.
    """
    from ..data import token_stream
    from ..training import SmoothedCrossEntropy

    settings, model = settings_of(run, Settings, data), load(run)
    split, name = choose_split(split, data)
    stream = token_stream(documents(data or settings.data, split), model.tokenizer)
    model.compile(loss=SmoothedCrossEntropy(0.0), weighted_metrics=["accuracy"])
    sums, count = dict.fromkeys(("loss", "accuracy"), 0.0), 0.0
    for *batch, weight in show_progress("evaluating")(
        corrupt(settings, model, stream, shuffle=False)
    ):
        found, tokens = model.test_on_batch(*batch, weight, return_dict=True), weight.numpy().sum()
        sums = {name: sums[name] + float(found[name]) * tokens for name in sums}
        count += tokens
    loss, accuracy = (float(x / count) for x in sums.values())
    score = {
        "loss": loss, "perplexity": math.exp(loss), "accuracy": accuracy, "tokens": int(count)
    }  # fmt: skip
    say(
        f"loss {loss:.4f}, perplexity {score['perplexity']:.2f}, accuracy {accuracy:.2%}; "
        f"{score['tokens']:,} target tokens of {name}"
    )
    return score


average = averaging(evaluate)
export = export_model


def generate(run: ModelFolder, inputs: Texts = None, **search: Unpack[Lengths]):
    """Predicts the hidden spans of texts: prints a line per text."""
    model, texts = load(run), list(read_lines(inputs))
    for text in model.generate(texts, progress=show_progress("generating"), **search):
        print(" ".join(text.split()))
