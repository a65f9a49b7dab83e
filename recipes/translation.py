"""Translation with the Transformer: train, evaluate, translate and export.

Multi30k, English to German, lowercased and tokenized, on 2 cores of an AMD EPYC with AVX-512
(2026-11-25): 43.53 BLEU on validation and 42.24 on test2016. The five training runs take 202
minutes, the translations of the training data 22 minutes.

    D="--variant lc.norm.tok --bleu none --keep 10 --patience 99"
    M="--optimizer muon --schedule cosine"
    polyhead train translation --data multi30k $D --vocab-size 10000 --tokens 8192 --buckets 8 \\
        --norm post --dropout 0.3 --peak 0.005 --warmup 2000 --ema 0.999 --epochs 200 \\
        --steps 8000 --interval 201 --out EN-DE
    polyhead train translation --data multi30k $D --source de --target en --vocab-size 6000 $M \\
        --dropout 0.2 --peak 0.003 --warmup 400 --ema 0.999 --epochs 36 --interval 369 --out DE-EN
    polyhead average EN-DE
    polyhead diversify EN-DE/average DE-EN --num-beams 5 --length-penalty 1.4 --out MORE
    polyhead train translation --data MORE $D --vocab-size 10000 $M --dropout 0.3 --peak 0.003 \\
        --warmup 400 --ema 0.999 --steps 12500 --interval 500 --out FIRST
    polyhead average FIRST --last 5
    polyhead train translation --data multi30k $D --pretrained FIRST/average $M --dropout 0.3 \\
        --peak 0.001 --warmup 100 --epochs 9 --out TUNED
    polyhead average TUNED --last 5
    polyhead diversify EN-DE/average DE-EN TUNED/average --num-beams 5 --length-penalty 1.4 \\
        --out MORE
    polyhead train translation --data MORE $D --pretrained TUNED/average $M --dropout 0.3 \\
        --peak 0.0015 --warmup 100 --steps 3000 --interval 200 --out RUN
    polyhead average RUN --num-beams 5 --length-penalty 1
    polyhead evaluate RUN/average --split test --num-beams 5 --length-penalty 1

Raw text, greedy search, on 2 cores of an AMD EPYC with AVX2: 38.92 and 37.70 after 77 minutes.

    polyhead train translation --data multi30k --vocab-size 6000 --tokens 2048 --dropout 0.2 \\
        --minutes 75 --out RUN
    polyhead evaluate RUN --split test
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Unpack

from typer import Argument, Option

from .options import Data, ExportFolder, Format, Last, ModelFolder, RunFolder, Search, Split
from .run import (
    Run,
    check_writable,
    draw_curve,
    load,
    lock_folder,
    read_lines,
    save_average,
    show_progress,
)
from .settings import SAMPLE, RunSettings, choose_split, option, sample_folder, settings_of

VOCAB_SIZE = 8000  # the maximum, if the settings give no size


@dataclass(frozen=True)
class Settings(RunSettings):
    """The settings of a training run of `Transformer`, named like the command's options."""

    task: ClassVar[str] = "translation"
    longest_warmup: ClassVar[int] = 1000

    data: str = option(
        SAMPLE,
        "A folder with train, val and test as in Multi30k (train.en, train.de, plain or .gz) or as "
        "TSV (train.tsv); a TSV file (a tenth is for validation); or 'sample', a small corpus "
        "included in polyhead.",
        metavar="DIR|FILE|sample",
    )
    source: str = option("en", "Language to translate from, as in the file names.")
    target: str = option("de", "Language to translate into.")
    variant: str | None = option(
        None, "Variant of the files, e.g. lc.norm.tok for train.lc.norm.tok.en."
    )
    preset: str = option("tiny", "Size of the model: tiny, base or big.")
    vocab_size: int | None = option(
        None,
        f"Size of the shared vocabulary. Default: {VOCAB_SIZE}, or less for a small corpus.",
        adapts=True,
    )
    norm: str | None = option(
        None, "Position of layer normalization: 'post' (as in the paper) or 'pre'."
    )
    max_length: int = option(
        128, "Maximum number of tokens per sentence; longer pairs are left out."
    )
    tokens: int = option(4096, "Tokens per batch, including padding.")
    buckets: int = option(4, "Number of lengths that batches are padded to; each is compiled once.")
    peak: float | None = option(
        None, "Peak learning rate. Default: the paper's formula; 1e-4 for a pretrained model."
    )
    bpe_dropout: float = option(0.0, "BPE-dropout rate, e.g. 0.1.")
    label_smoothing: float = option(0.1, "Label smoothing (section 5.4 of the paper).")
    consistency: float = option(
        0.0, "R-Drop weight (5 in the paper); doubles the cost of an epoch."
    )
    bleu: Literal["13a", "none"] = option(
        "13a", "sacrebleu's tokenizer: 13a for raw text, none for tokenized text."
    )


@lock_folder
def train(settings, out, restart=False, say=print):
    """Train a translation model, by default from English to German, or fine-tune one.

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
    The best model by validation BLEU is RUN/best; curves are in RUN/curve.png, RUN/history.csv
    and, for TensorBoard, RUN/logs.

    Example: polyhead train translation --data sample --out runs/sample
    """
    import keras

    from ..data import translation_batches
    from ..training import InverseSquareRoot, SmoothedCrossEntropy, ValidationBleu

    run = Run(settings, out, restart, say)
    settings, devices = run.settings, run.devices.num_replicas_in_sync
    if settings.consistency and 8 % devices:  # batches have a multiple of 8 rows, twice
        raise ValueError(f"consistency needs 1, 2, 4 or 8 devices: {devices}")
    train_pairs, val_pairs = (read(settings, split) for split in ("train", "val"))
    say(f"{len(train_pairs):,} pairs of sentences")
    model = begin(settings, run, train_pairs)

    def batches(pairs, **options):
        return translation_batches(
            pairs,
            model.tokenizer,
            settings.tokens,
            settings.max_length,
            settings.buckets,
            seed=settings.seed,
            twice=settings.consistency > 0,
            **options,
        )

    sampled = {"bpe_dropout": settings.bpe_dropout}
    per_epoch = len(batches(train_pairs, **sampled))
    with run.devices.scope():
        rate = functools.partial(InverseSquareRoot.of_width, model.config.dim)
        if settings.pretrained is not None:
            rate = functools.partial(InverseSquareRoot, 1e-4)
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
    """Builds the model to train: a preset, or a pretrained model."""
    from ..data import Subwords
    from ..zoo import Transformer

    overrides = {k: v for k in ("norm", "dropout") if (v := getattr(settings, k)) is not None}
    if settings.pretrained is not None:
        if settings.norm is not None:
            raise ValueError(f"norm cannot be chosen for a pretrained model: {settings.norm!r}")
        with run.devices.scope():
            model = Transformer.from_pretrained(settings.pretrained, **overrides)
        if model.tokenizer is None:
            raise ValueError(f"{settings.pretrained} has no tokenizer")
        if settings.max_length > (longest := model.config.max_length):
            raise ValueError(
                f"max_length must be at most the pretrained model's: {settings.max_length} > "
                f"{longest}"
            )
        return model
    if run.resumes:
        tokenizer = Subwords.load(run.out)
    elif settings.vocab_size is not None:
        tokenizer = Subwords.train(pairs.sources + pairs.targets, settings.vocab_size)
    else:
        tokenizer = Subwords.train(pairs.sources + pairs.targets, VOCAB_SIZE, exact=False)
        if tokenizer.vocab_size < VOCAB_SIZE:
            run.say(f"the text gives a vocabulary of {tokenizer.vocab_size:,} tokens")
    overrides["max_length"] = settings.max_length
    with run.devices.scope():
        return Transformer.preset(settings.preset, tokenizer, **overrides)


def evaluate(
    run: ModelFolder,
    data: Data = None,
    split: Split = None,
    variant: Annotated[str | None, Option(help="Variant of the files. Default: the run's.")] = None,
    source: Annotated[
        str | None, Option(help="Language to translate from. Default: the run's.")
    ] = None,
    target: Annotated[
        str | None, Option(help="Language to translate to. Default: the run's.")
    ] = None,
    show: Annotated[int, Option(help="Number of examples to show.")] = 3,
    batch_size=64,
    say=print,
    **search: Unpack[Search],
):
    """Evaluates a run's best model with sacrebleu's BLEU.

    Args:
        split: default: "test". If the run's data is a single file, "val"; if ``data`` is a file,
            all of it.

    Raises:
        ValueError: the model is not of a run, and its languages are not given.

    Returns:
        the BLEU score, the split's name, its pairs, and the translations.
    """
    from ..training import bleu

    settings = settings_of(run, data=data)
    if settings is None and None in (source, target):
        raise ValueError(f"{run} is not a run, which has languages: pass --source and --target")
    settings = settings or Settings()
    languages = {"source": source or settings.source, "target": target or settings.target}
    settings = dataclasses.replace(settings, **languages)
    one_file = data is None and Path(settings.data).is_file()
    split, name = choose_split(split, data, "val" if one_file else "test")
    pairs = read(settings, split, data, variant)
    translations = load(run).translate(
        pairs.sources, batch_size=batch_size, progress=show_progress("translating"), **search
    )
    score = bleu(translations, pairs.targets, settings.bleu)
    for i in range(min(show, len(pairs))):
        say(f"source       {pairs.sources[i]}")
        say(f"reference    {pairs.targets[i]}")
        say(f"translation  {translations[i]}\n")
    say(f"BLEU {score.score:.2f} on {len(pairs)} sentences of {name}  ({score.signature})")
    return score, name, pairs, translations


def average(run: RunFolder, last: Last = None, say=print, **search: Unpack[Search]):
    """Saves the mean of a run's last checkpoints as the model ``RUN/average``, and evaluates it."""
    save_average(run, last, functools.partial(evaluate, show=0, **search), say)


def translate(
    run: ModelFolder,
    inputs: Annotated[
        list[str] | None,
        Argument(metavar="TEXT ...", help="Sentences. Default: the lines of standard input."),
    ] = None,
    num_return_sequences: Annotated[
        int | None, Option(help="Number of translations of each text, with scores.")
    ] = None,
    attention: Annotated[
        Path | None, Option(metavar="FILE.png", help="Save the cross-attention map of one text.")
    ] = None,
    **search: Unpack[Search],
):
    """Translate sentences, or the lines of standard input."""
    check_writable(attention)
    model = load(run)
    inputs = read_lines(inputs, "sentence")
    if attention is not None and len(inputs) != 1:
        raise ValueError(f"--attention takes one text: {len(inputs)} given")
    progress = show_progress("translating")
    scores = num_return_sequences is not None
    count = num_return_sequences if scores else 1
    found = model.translate(inputs, count, progress=progress, **search)
    for translations in found:
        for text in translations:
            print(f"{text.score:.4f}\t{text}" if scores else text)
    if attention is not None:
        model.attention(inputs[0], found[0][0]).draw(attention)


def export(
    run: ModelFolder,
    folder: ExportFolder,
    format: Format = "tf_saved_model",
    **search: Unpack[Search],
):
    """Exports a run's best model for TensorFlow Serving, or in another ``format``."""
    print(load(run).export(folder, format=format, **search))


def read(settings, split, data=None, variant=None):
    """Reads a split of a run's data, or of other ``data``, in the run's languages."""
    from ..data import read_split

    return read_split(
        find_data(data or settings.data),
        split,
        settings.source,
        settings.target,
        variant or settings.variant,
    )


def find_data(data):
    if data == SAMPLE:
        return sample_folder("translation")
    return Path(data)
