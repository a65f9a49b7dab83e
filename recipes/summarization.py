"""Summarization with T5 or BART: train, evaluate, summarize and export.

polyhead train summarization --data reports --pretrained google/flan-t5-small --out RUN
polyhead evaluate RUN --split test --num-beams 4
polyhead summarize RUN "$(cat report.txt)"
"""

import functools
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Unpack

from typer import Option

from .encoding import read_split
from .options import (
    Data,
    ExportFolder,
    Format,
    Last,
    Lengths,
    ModelFolder,
    RunFolder,
    Split,
    Texts,
)
from .run import (
    Run,
    class_of_preset,
    draw_curve,
    load,
    lock_folder,
    read_lines,
    save_average,
    show_progress,
)
from .settings import SAMPLE, RunSettings, Schedule, option, settings_of

Metric = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


class RunLengths(Lengths, total=False):
    """The same settings, for the data of a run."""

    max_new_tokens: Annotated[
        int, Option(help="Maximum number of new tokens. Default: the run's --max-target-length.")
    ]


@dataclass(frozen=True)
class EncoderDecoderSettings(RunSettings):
    """The settings of a training run of T5 or BART, for all tasks."""

    preset: str = option(
        "bart-tiny",
        "Size of a model that is trained from scratch: bart-tiny, t5-tiny, t5-small ...",
    )
    vocab_size: int = option(8000, "Maximum size of a learned vocabulary.")
    peak: float | None = option(
        None, "Peak learning rate. Default: 1e-4; 7e-4 for a model from scratch."
    )
    schedule: Schedule = "linear"
    weight_decay: float = option(0.01, "Weight decay of matrices.")
    lora: int | None = option(None, "LoRA rank; trains only the adapters.")
    epochs: int = 10
    patience: int | None = 3


@dataclass(frozen=True)
class Settings(EncoderDecoderSettings):
    """The settings of a training run of summarization, named like the command's options."""

    task: ClassVar[str] = "summarization"
    longest_warmup: ClassVar[int] = 1000

    data: str = option(
        SAMPLE,
        "A file of JSON lines, or a table (.tsv, .csv), with the fields text and summary (a tenth "
        "is for validation); a folder with train, val and test as such files; or 'sample', reports "
        "included in polyhead.",
        metavar="FILE|DIR|sample",
    )
    prefix: str | None = option(
        None,
        "Added to each text. Default: T5's own, 'summarize: '; none for BART and from scratch.",
    )
    max_length: int | None = option(
        None, "Maximum number of tokens of a text; the rest is left out. Default: the model's."
    )
    max_target_length: int = option(128, "Maximum number of tokens of a summary.")
    tokens: int = option(4096, "Tokens of texts per batch, including padding.")
    buckets: int = option(4, "Number of lengths that batches are padded to; each is compiled once.")
    label_smoothing: float = option(0.1, "Label smoothing (Szegedy et al. 2016, section 7).")
    sentences: int | None = option(
        None,
        "For a stage before the summaries: in their place are this number of sentences of each "
        "text, those that are most like its others; each is an example. (evaluate still compares "
        "with the summaries.)",
    )
    metric: Metric = option("rougeL", "Score that selects the best checkpoint.")


@lock_folder
def train(settings, out, restart=False, say=print):
    """Train a T5 or a BART to summarize texts, or fine-tune a published one.

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
    The best model by ROUGE on validation, with greedy search, is RUN/best; curves are in
    RUN/curve.png, RUN/history.csv and, for TensorBoard, RUN/logs.

    Example: polyhead train summarization --data reports.jsonl --out RUN
    """
    from ..data import summary_batches
    from ..training import SmoothedCrossEntropy, ValidationScores
    from ..zoo import BART

    run = Run(settings, out, restart, say)
    settings = run.settings
    texts, val = (read(settings.data, split)[0] for split in ("train", "val"))
    words = texts.texts + [x for several in texts.summaries for x in several]
    if settings.sentences is not None:
        texts = with_sentences(texts, settings, "train")
        val = with_sentences(val, settings, "val")
    count = sum(map(len, texts.summaries))
    kind = "summaries" if settings.sentences is None else "sentences to write"
    say(f"{len(texts):,} texts with {count:,} {kind}")
    with run.devices.scope():
        model = begin(settings, run, words)
    longest, positions = settings.max_target_length, model.config.max_length
    if isinstance(model, BART) and longest > positions:
        raise ValueError(
            f"max_target_length must be at most BART's max_length: {longest} > {positions}"
        )

    def batches(texts, **options):
        return summary_batches(
            texts,
            model.tokenizer,
            settings.tokens,
            model.config.max_length,
            settings.max_target_length,
            settings.buckets,
            getattr(model.config, "prefix", ""),
            seed=settings.seed,
            **options,
        )

    per_epoch = len(batches(texts))
    compile_model(run, model, SmoothedCrossEntropy(settings.label_smoothing), per_epoch)

    def scores(model):
        found = score(model, val, num_beams=1, max_new_tokens=settings.max_target_length)
        return {name: round(x, 2) for name, x in found._asdict().items() if name != "signature"}

    metric = settings.metric
    return run.fit(
        model,
        lambda update: batches(texts, start=update),
        batches(val, shuffle=False),
        per_epoch,
        f"val_{metric}",
        [ValidationScores(scores)],
        draw=lambda history, path: draw_curve(
            history, path, f"val_{metric}", f"{metric} on validation"
        ),
    )


def with_sentences(texts, settings, split):
    """Texts with their most typical sentences in place of summaries, without too short texts."""
    from ..data import Summaries
    from ..training import typical_sentences

    rows = zip(texts.texts, typical_sentences(texts.texts, settings.sentences), strict=True)
    rows = [(text, sentences) for text, sentences in rows if sentences]
    if not rows:
        raise ValueError(
            f"sentences needs texts of at least three sentences; {split} of {settings.data} has "
            "none"
        )
    return Summaries(*map(list, zip(*rows, strict=True)))


def begin(settings, run, texts, sentinels=False):
    """Builds the model to train: a preset with a new vocabulary, or a pretrained model.

    Args:
        texts: strings from which the vocabulary is learned.
        sentinels: whether it has sentinels.
    """
    from ..data import Subwords
    from ..zoo import BART, T5
    from ..zoo.loading import model_class
    from ..zoo.published.files import find_folder

    kinds, names = (T5, BART), ("dropout", "max_length", "prefix")
    overrides = {name: x for name in names if (x := getattr(settings, name, None)) is not None}
    if settings.pretrained is not None:
        kind = model_class(find_folder(settings.pretrained))
        if kind not in kinds:
            raise ValueError(f"{settings.pretrained} is a {kind.__name__}, neither T5 nor BART")
    else:
        kind = class_of_preset(settings.preset, kinds, f"{settings.task} has")
    if kind is BART and "prefix" in overrides:
        raise ValueError(f"prefix is for T5: {overrides['prefix']!r}")
    if settings.pretrained is not None:
        model = kind.from_pretrained(settings.pretrained, **overrides)
        if model.tokenizer is None:
            raise ValueError(f"{settings.pretrained} has no tokenizer")
    else:
        if run.resumes:
            tokenizer = Subwords.load(run.out)
        else:
            tokenizer = Subwords.train(texts, settings.vocab_size, exact=False, sentinels=sentinels)
        if kind is T5:
            overrides.setdefault("prefix", "")
        model = kind.preset(settings.preset, tokenizer, **overrides)
    if settings.lora is not None:
        model.enable_lora(settings.lora)
    return model


def compile_model(run, model, loss, per_epoch):
    """Compiles a model with the run's optimizer."""
    run.compile(model, loss, per_epoch, 7e-4 if run.settings.pretrained is None else 1e-4)


def read(data, split=None, other=None):
    """Reads a split of a run's data, or of other data; also returns the split's name."""
    from ..data import read_summaries

    return read_split(read_summaries, "reports", data, split, other)


def score(model, texts, progress=False, **search):
    """The ROUGE of a model's summaries, a `Rouge`; a text that is too long is truncated."""
    from ..training import rouge

    found = model.summarize(texts.texts, batch_size=16, progress=progress, pieces=False, **search)
    return rouge(found, texts.summaries)


def evaluate(
    run: ModelFolder,
    data: Data = None,
    split: Split = None,
    show: Annotated[int, Option(help="Number of examples to show.")] = 3,
    references: Annotated[
        Literal["best", "mean"],
        Option(help="Of several references: that with the best ROUGE-1, or the mean of all."),
    ] = "best",
    say=print,
    **search: Unpack[RunLengths],
):
    """Evaluates a run's best model on a split of its data, "val" by default, by ROUGE.

    The scores of two baselines, the first sentence and the first three, are printed below.

    Returns:
        a dict: a `Rouge` for each of ``model``, ``lead-1`` and ``lead-3``, and the ``summaries``.
    """
    from ..training import lead, rouge

    of_run, model = settings_of(run, data=data), load(run)
    settings = of_run or Settings()
    if of_run or model.config.search.max_new_tokens is None:
        search.setdefault("max_new_tokens", settings.max_target_length)
    texts, split = read(settings.data, split, data)
    summaries = model.summarize(
        texts.texts, progress=show_progress("summarizing"), pieces=False, **search
    )
    for i in range(min(show, len(texts))):
        say(f"text       {texts.texts[i]}")
        say(f"reference  {texts.summaries[i][0]}")
        say(f"summary    {summaries[i]}\n")
    rows = {"model": summaries} | {f"lead-{n}": lead(texts.texts, n) for n in (1, 3)}
    found = {name: rouge(row, texts.summaries, combine=references) for name, row in rows.items()}
    for name, (first, second, whole, sentences, signature) in found.items():
        line = f"ROUGE-1 {first:.2f}, -2 {second:.2f}, -L {whole:.2f}, -Lsum {sentences:.2f}"
        about = f"  {len(texts):,} texts of {split}  ({signature})" if name == "model" else ""
        say(f"{name:<8}{line}{about}")
    return {**found, "summaries": summaries}


def average(run: RunFolder, last: Last = None, say=print, **search: Unpack[RunLengths]):
    """Saves the mean of a run's last checkpoints as ``RUN/average``, and evaluates it."""
    save_average(run, last, functools.partial(evaluate, show=0, **search), say)


def summarize(run: ModelFolder, inputs: Texts = None, **search: Unpack[Lengths]):
    """Summarize texts, or the lines of standard input: prints a line per text.

    Long texts are summarized in pieces.
    """
    model, texts = load(run), list(read_lines(inputs))
    for text in model.summarize(texts, progress=show_progress("summarizing"), **search):
        print(" ".join(text.split()))


def export(
    run: ModelFolder,
    folder: ExportFolder,
    format: Format = "tf_saved_model",
    **search: Unpack[Lengths],
):
    """Exports a run's best model for TensorFlow Serving, or in another ``format``."""
    print(load(run).export(folder, format=format, **search))
