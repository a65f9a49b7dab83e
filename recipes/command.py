"""The `polyhead` command. Nothing heavy is imported before it is needed: --help is instant."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from .translation import Settings

DEFAULT = Settings()

app = typer.Typer(
    help="Train, evaluate, use and export the transformers of polyhead.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(
    help="Train a model in a folder that the same command continues.", no_args_is_help=True
)
app.add_typer(train_app, name="train")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a saved model's.")]
Beams = Annotated[
    int | None, typer.Option(help="Hypotheses kept; 1 is greedy, the model's own if absent.")
]
Alpha = Annotated[float | None, typer.Option(help="Length penalty of beams: score / tokens^alpha.")]


@app.callback()
def everywhere(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
):
    pass  # `main` takes --debug wherever it stands


@train_app.command("translation")
def train_translation(
    out: Annotated[Path, typer.Option(help="The run's folder. What is there goes on.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|sample",
            help="A folder with train, val and test as in Multi30k (train.en, train.de, plain or "
            ".gz) or as TSV (train.tsv); or 'sample', a small corpus that comes with polyhead.",
        ),
    ] = DEFAULT.data,
    source: Annotated[
        str, typer.Option(help="Language to translate from, as files name it.")
    ] = DEFAULT.source,
    target: Annotated[str, typer.Option(help="Language to translate into.")] = DEFAULT.target,
    variant: Annotated[
        str | None, typer.Option(help="Files' variant, as in train.lc.norm.tok.en.gz.")
    ] = DEFAULT.variant,
    preset: Annotated[
        str, typer.Option(help="Size of the model: tiny, base or big.")
    ] = DEFAULT.preset,
    vocab_size: Annotated[
        int, typer.Option(help="Pieces of the shared vocabulary.")
    ] = DEFAULT.vocab_size,
    norm: Annotated[
        str | None, typer.Option(help="Layer normalisation, 'post' (as the paper) or 'pre'.")
    ] = DEFAULT.norm,
    dropout: Annotated[
        float | None, typer.Option(help="Rate; the preset's by default.")
    ] = DEFAULT.dropout,
    max_length: Annotated[
        int, typer.Option(help="Pieces in a sentence; longer are left out.")
    ] = DEFAULT.max_length,
    tokens: Annotated[
        int, typer.Option(help="Tokens in a batch, padding included.")
    ] = DEFAULT.tokens,
    buckets: Annotated[
        int, typer.Option(help="Lengths of batches, each compiled once.")
    ] = DEFAULT.buckets,
    peak: Annotated[
        float | None, typer.Option(help="Highest learning rate; by the paper's formula if absent.")
    ] = DEFAULT.peak,
    warmup: Annotated[
        int, typer.Option(help="Updates until the learning rate's peak.")
    ] = DEFAULT.warmup,
    schedule: Annotated[
        Literal["sqrt", "cosine"],
        typer.Option(
            help="How the learning rate falls: as 1 / sqrt(update), or by a cosine to 0 after "
            "--epochs or --steps (--minutes and --patience cut it short)."
        ),
    ] = DEFAULT.schedule,
    bpe_dropout: Annotated[
        float,
        typer.Option(help="Cut words into other pieces each epoch: a rate, 0.1 say."),
    ] = DEFAULT.bpe_dropout,
    label_smoothing: Annotated[
        float, typer.Option(help="As in the paper's section 5.4.")
    ] = DEFAULT.label_smoothing,
    consistency: Annotated[
        float,
        typer.Option(
            help="R-Drop: pass each sentence twice and weigh what dropout changed, 5 say. An epoch "
            "takes twice as long."
        ),
    ] = DEFAULT.consistency,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = DEFAULT.clip,
    accumulate: Annotated[
        int, typer.Option(help="Batches whose gradients make one update.")
    ] = DEFAULT.accumulate,
    ema: Annotated[
        float | None,
        typer.Option(help="Keep a moving average of the weights, 0.999 say, and use that."),
    ] = DEFAULT.ema,
    precision: Annotated[
        Literal["float32", "mixed_float16", "mixed_bfloat16"], typer.Option(help="Keras's policy.")
    ] = DEFAULT.precision,
    bleu: Annotated[
        Literal["13a", "none"],
        typer.Option(help="sacrebleu's tokenizer: 13a for raw text, none for tokenized."),
    ] = DEFAULT.bleu,
    seed: Annotated[
        int, typer.Option(help="Of weights, dropout and the order of the data.")
    ] = DEFAULT.seed,
    epochs: Annotated[
        int, typer.Option(help="Stop after so many passes over the data.")
    ] = DEFAULT.epochs,
    steps: Annotated[int | None, typer.Option(help="Stop after so many batches.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so much training.")
    ] = DEFAULT.minutes,
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs of no better BLEU.")
    ] = DEFAULT.patience,
    interval: Annotated[
        int | None,
        typer.Option(help="Batches from one checkpoint to the next; an epoch if absent."),
    ] = DEFAULT.interval,
    keep: Annotated[int, typer.Option(help="How many checkpoints stay.")] = DEFAULT.keep,
    devices: Annotated[
        int | None, typer.Option(help="GPUs, or where there is none logical CPU devices.")
    ] = DEFAULT.devices,
    remat: Annotated[
        bool,
        typer.Option("--remat", help="Compute blocks again, not keep them: less memory."),
    ] = DEFAULT.remat,
    restart: Annotated[bool, typer.Option("--restart", help="Delete what is there first.")] = False,
):
    """Train a translation model, English to German unless said otherwise.

    Stop it with Ctrl-C whenever you like: the same command goes on after its last epoch.
    The best model by validation BLEU is RUN/best; curves are in RUN/curve.png, RUN/history.csv
    and, for TensorBoard, RUN/logs.

    Example: polyhead train translation --data sample --out runs/sample
    """
    from .translation import Settings, train

    options = {**locals(), "updates": steps}
    chosen = {k: options[k] for k in Settings.__dataclass_fields__}
    try:
        train(Settings(**chosen), out, restart)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on after the last epoch", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Another folder of data.")] = None,
    variant: Annotated[str | None, typer.Option(help="Another variant of its files.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    show: Annotated[int, typer.Option(help="How many translations to show.")] = 3,
    beams: Beams = None,
    alpha: Alpha = None,
):
    """Score a run's best model on a split of its data, by sacrebleu."""
    from .translation import evaluate

    score, pairs, translations = evaluate(run, data, split, variant, **given(beams, alpha))
    for i in range(min(show, len(pairs))):
        print(f"source       {pairs.sources[i]}")
        print(f"reference    {pairs.targets[i]}")
        print(f"translation  {translations[i]}\n")
    print(f"BLEU {score.score:.2f} on {len(pairs)} sentences of {split}  ({score.signature})")


@app.command()
def average(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    last: Annotated[int, typer.Option(help="How many checkpoints; see train's --keep.")] = 10,
    beams: Beams = None,
    alpha: Alpha = None,
):
    """Average a run's last checkpoints into the model RUN/average, and score it on validation.

    The weights themselves are averaged, not the moving averages of --ema, which RUN/best holds.
    RUN/average may stand where RUN does: for evaluate, predict and export.
    """
    from .translation import average

    print(average(run, last, **given(beams, alpha)))


@app.command()
def predict(
    run: Run,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT ...", help="Sentences to translate.")
    ] = None,
    beams: Beams = None,
    alpha: Alpha = None,
    best: Annotated[
        int | None, typer.Option(help="So many translations of each, with their scores.")
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw what the translation of the text attends to."),
    ] = None,
):
    """Translate sentences, or the lines of standard input."""
    from .translation import load, shown

    if not texts:
        if sys.stdin.isatty():
            print("one sentence a line; end with Ctrl-D", file=sys.stderr)
        texts = [line.rstrip("\n") for line in sys.stdin]
    if attention is not None:
        if len(texts) != 1:
            raise ValueError(f"--attention draws one text: {len(texts)} were given")
        if not attention.resolve().parent.is_dir():
            raise FileNotFoundError(f"no folder {attention.resolve().parent}")
    model, search = load(run), given(beams, alpha)
    found = model.translate(texts, scores=True, best=best, progress=shown, **search)
    for translations in found:
        for text, score in translations if best else [translations]:
            print(f"{score:.4f}\t{text}" if best else text)
    if attention is not None:
        [translations] = found
        model.attention(texts[0], (translations[0] if best else translations).text).draw(attention)


def given(beams, alpha):
    """The settings of the search that were given."""
    return {k: v for k, v in (("beams", beams), ("alpha", alpha)) if v is not None}


@app.command()
def export(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="EXPORT", help="The model's base folder.")],
    beams: Beams = None,
    alpha: Alpha = None,
):
    """Write a SavedModel for TensorFlow Serving that takes sentences and gives sentences.

    It becomes EXPORT/1, or the next free number, with the server's configuration beside it.
    """
    from .translation import load

    print(load(run).export(folder, **given(beams, alpha)))


@app.command()
def download(
    name: Annotated[Literal["multi30k"], typer.Argument(help="English-German image captions.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put the files.")],
):
    """Fetch a data set, checked by its checksums, for `train --data DIR`."""
    from ..data.download import download_multi30k

    download_multi30k(folder)


def main():
    """Runs the command; an error is one line, and the exit status says what it was."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if debug := "--debug" in sys.argv:
        sys.argv.remove("--debug")
    try:
        app()
    except Exception as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(1)
