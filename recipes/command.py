"""The `polyhead` command. Nothing heavy is imported before it is needed: --help is instant."""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import classification, generation, translation

TRANSLATION, GENERATION = translation.Settings(), generation.Settings()
CLASSIFICATION = classification.Settings()

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

# Options that several commands have.
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a saved model's.")]
Beams = Annotated[
    int | None, typer.Option(help="Hypotheses kept; 1 is greedy, the model's own if absent.")
]
Alpha = Annotated[float | None, typer.Option(help="Length penalty of beams: score / tokens^alpha.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="The most tokens of a continuation.")]
Temperature = Annotated[float | None, typer.Option(help="What logits are divided by; 0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Draw from so many likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest with this probability.")]
MinP = Annotated[float | None, typer.Option(help="Draw from tokens with this share of the best's.")]
Penalty = Annotated[float | None, typer.Option(help="Divide logits of tokens that came before.")]

Pretrained = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|NAME",
        help="Begin with the weights and the tokenizer of this model or run, not with a preset.",
    ),
]
Out = Annotated[Path, typer.Option(help="The run's folder. What is there goes on.")]
Dropout = Annotated[float | None, typer.Option(help="Rate; the preset's by default.")]
Warmup = Annotated[int | None, typer.Option(help="Updates until the learning rate's peak.")]
Schedule = Annotated[
    Literal["sqrt", "cosine"],
    typer.Option(
        help="How the learning rate falls: as 1 / sqrt(update), or by a cosine that ends after "
        "--epochs or --steps (--minutes and --patience cut it short)."
    ),
]
Clip = Annotated[float, typer.Option(help="Largest norm of the gradient.")]
Accumulate = Annotated[int, typer.Option(help="Batches whose gradients make one update.")]
Ema = Annotated[
    float | None,
    typer.Option(help="Keep a moving average of the weights, 0.999 say, and use that."),
]
Optimizer = Annotated[
    Literal["adam", "muon"],
    typer.Option(
        help="muon: what is added to a matrix is made orthogonal first. From nothing it often "
        "learns more of the same batches; a step takes a little longer."
    ),
]
Precision = Annotated[
    Literal["float32", "mixed_float16", "mixed_bfloat16"], typer.Option(help="Keras's policy.")
]
Seed = Annotated[int, typer.Option(help="Of weights, dropout and the order of the data.")]
Epochs = Annotated[int, typer.Option(help="Stop after so many passes over the data.")]
Steps = Annotated[int | None, typer.Option(help="Stop after so many batches.")]
Minutes = Annotated[float | None, typer.Option(help="Stop after so much training.")]
Patience = Annotated[int | None, typer.Option(help="Stop after so many checkpoints none better.")]
Interval = Annotated[
    int | None,
    typer.Option(help="Batches from one checkpoint to the next; an epoch if absent."),
]
Keep = Annotated[int, typer.Option(help="How many checkpoints stay.")]
Devices = Annotated[
    int | None, typer.Option(help="GPUs, or where there is none logical CPU devices.")
]
Remat = Annotated[
    bool, typer.Option("--remat", help="Compute blocks again, not keep them: less memory.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Delete what is there first.")]


@app.callback()
def everywhere(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
):
    pass  # `main` takes --debug wherever it stands


@train_app.command("translation")
def train_translation(
    out: Out,
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|sample",
            help="A folder with train, val and test as in Multi30k (train.en, train.de, plain or "
            ".gz) or as TSV (train.tsv); or 'sample', a small corpus that comes with polyhead.",
        ),
    ] = TRANSLATION.data,
    source: Annotated[
        str, typer.Option(help="Language to translate from, as files name it.")
    ] = TRANSLATION.source,
    target: Annotated[str, typer.Option(help="Language to translate into.")] = TRANSLATION.target,
    variant: Annotated[
        str | None, typer.Option(help="Files' variant, as in train.lc.norm.tok.en.gz.")
    ] = TRANSLATION.variant,
    preset: Annotated[
        str, typer.Option(help="Size of the model: tiny, base or big.")
    ] = TRANSLATION.preset,
    pretrained: Pretrained = TRANSLATION.pretrained,
    vocab_size: Annotated[
        int, typer.Option(help="Pieces of the shared vocabulary.")
    ] = TRANSLATION.vocab_size,
    norm: Annotated[
        str | None, typer.Option(help="Layer normalisation, 'post' (as the paper) or 'pre'.")
    ] = TRANSLATION.norm,
    dropout: Dropout = TRANSLATION.dropout,
    max_length: Annotated[
        int, typer.Option(help="Pieces in a sentence; longer are left out.")
    ] = TRANSLATION.max_length,
    tokens: Annotated[
        int, typer.Option(help="Tokens in a batch, padding included.")
    ] = TRANSLATION.tokens,
    buckets: Annotated[
        int, typer.Option(help="Lengths of batches, each compiled once.")
    ] = TRANSLATION.buckets,
    peak: Annotated[
        float | None,
        typer.Option(
            help="Highest learning rate; if absent by the paper's formula, for a pretrained model "
            "1e-4."
        ),
    ] = TRANSLATION.peak,
    warmup: Warmup = TRANSLATION.warmup,
    schedule: Schedule = TRANSLATION.schedule,
    bpe_dropout: Annotated[
        float,
        typer.Option(help="Cut words into other pieces each epoch: a rate, 0.1 say."),
    ] = TRANSLATION.bpe_dropout,
    label_smoothing: Annotated[
        float, typer.Option(help="As in the paper's section 5.4.")
    ] = TRANSLATION.label_smoothing,
    consistency: Annotated[
        float,
        typer.Option(
            help="R-Drop: pass each sentence twice and weigh what dropout changed, 5 say. An epoch "
            "takes twice as long."
        ),
    ] = TRANSLATION.consistency,
    clip: Clip = TRANSLATION.clip,
    accumulate: Accumulate = TRANSLATION.accumulate,
    ema: Ema = TRANSLATION.ema,
    optimizer: Optimizer = TRANSLATION.optimizer,
    precision: Precision = TRANSLATION.precision,
    bleu: Annotated[
        Literal["13a", "none"],
        typer.Option(help="sacrebleu's tokenizer: 13a for raw text, none for tokenized."),
    ] = TRANSLATION.bleu,
    seed: Seed = TRANSLATION.seed,
    epochs: Epochs = TRANSLATION.epochs,
    steps: Steps = None,
    minutes: Minutes = TRANSLATION.minutes,
    patience: Patience = TRANSLATION.patience,
    interval: Interval = TRANSLATION.interval,
    keep: Keep = TRANSLATION.keep,
    devices: Devices = TRANSLATION.devices,
    remat: Remat = TRANSLATION.remat,
    restart: Restart = False,
):
    """Train a translation model, English to German unless said otherwise; or fine-tune one.

    Stop it with Ctrl-C whenever you like: the same command goes on after its last epoch.
    The best model by validation BLEU is RUN/best; curves are in RUN/curve.png, RUN/history.csv
    and, for TensorBoard, RUN/logs.

    Example: polyhead train translation --data sample --out runs/sample
    """
    train(translation, locals())


@train_app.command("generation")
def train_generation(
    out: Out,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|DIR|sample",
            help="A text file, of which the last tenth is for validation; a folder with train.txt "
            "and val.txt, or of documents *.txt; or 'sample', text that comes with polyhead.",
        ),
    ] = GENERATION.data,
    preset: Annotated[
        str,
        typer.Option(
            help="Size of the model: char-small or char, whose tokens are characters; gpt2, "
            "gpt2-medium, gpt2-large or gpt2-xl, with byte pairs learned from the text."
        ),
    ] = GENERATION.preset,
    pretrained: Pretrained = GENERATION.pretrained,
    vocab_size: Annotated[
        int, typer.Option(help="The most tokens of a vocabulary that is learned.")
    ] = GENERATION.vocab_size,
    length: Annotated[
        int | None, typer.Option(help="Tokens in a row; the context of the model by default.")
    ] = GENERATION.length,
    batch_size: Annotated[int, typer.Option(help="Rows in a batch.")] = GENERATION.batch_size,
    dropout: Dropout = GENERATION.dropout,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = GENERATION.peak,
    warmup: Warmup = GENERATION.warmup,
    schedule: Schedule = GENERATION.schedule,
    weight_decay: Annotated[
        float, typer.Option(help="Of matrices, by AdamW.")
    ] = GENERATION.weight_decay,
    lora: Annotated[
        int | None, typer.Option(help="Train low-rank changes of this rank alone.")
    ] = GENERATION.lora,
    freeze: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Leave weights as they are whose names match."),
    ] = GENERATION.freeze,
    clip: Clip = GENERATION.clip,
    accumulate: Accumulate = GENERATION.accumulate,
    ema: Ema = GENERATION.ema,
    optimizer: Optimizer = GENERATION.optimizer,
    precision: Precision = GENERATION.precision,
    seed: Seed = GENERATION.seed,
    epochs: Epochs = GENERATION.epochs,
    steps: Steps = None,
    minutes: Minutes = GENERATION.minutes,
    patience: Patience = GENERATION.patience,
    interval: Interval = GENERATION.interval,
    keep: Keep = GENERATION.keep,
    devices: Devices = GENERATION.devices,
    remat: Remat = GENERATION.remat,
    restart: Restart = False,
):
    """Train a GPT on text, or fine-tune a published one.

    Stop it with Ctrl-C whenever you like: the same command goes on after its last checkpoint.
    The best model by validation loss is RUN/best; curves are in RUN/curve.png, RUN/history.csv
    and, for TensorBoard, RUN/logs.

    Example: polyhead train generation --data book.txt --preset char-small --out runs/book
    """
    train(generation, locals())


@train_app.command("classification")
def train_classification(
    out: Out,
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|sample",
            help="A folder of folders train, val, test, or of images alone, each with a folder for "
            "every class; or of TFRecords train*, val*, test* (features image, label) and "
            "labels.txt; or 'sample', shapes that polyhead draws. Without val, a tenth of train.",
        ),
    ] = CLASSIFICATION.data,
    preset: Annotated[
        str,
        typer.Option(
            help="Size of the model: nano-4 or lite-4 for images of 32 pixels; ti-16, s-16, s-32, "
            "b-16, b-32, l-16, h-14 for those of 224 (the number is a patch's side)."
        ),
    ] = CLASSIFICATION.preset,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|NAME",
            help="Begin with the weights of this model or run and a new head, not with a preset.",
        ),
    ] = CLASSIFICATION.pretrained,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels; the model's by default.")
    ] = CLASSIFICATION.image_size,
    batch_size: Annotated[int, typer.Option(help="Images in a batch.")] = CLASSIFICATION.batch_size,
    augment: Annotated[
        Literal["none", "light", "strong"],
        typer.Option(help="light: crops and flips; strong: RandAugment too."),
    ] = CLASSIFICATION.augment,
    mix: Annotated[
        bool, typer.Option("--mix", help="Mix the images of a batch: MixUp and CutMix by turns.")
    ] = CLASSIFICATION.mix,
    broken: Annotated[
        Literal["refuse", "skip"],
        typer.Option(help="What becomes of an image that cannot be decoded; it is named."),
    ] = CLASSIFICATION.broken,
    dropout: Dropout = CLASSIFICATION.dropout,
    stochastic_depth: Annotated[
        float, typer.Option(help="Rate at which an image skips the last block's sublayers.")
    ] = CLASSIFICATION.stochastic_depth,
    label_smoothing: Annotated[
        float, typer.Option(help="As Szegedy et al. 2016, section 7.")
    ] = CLASSIFICATION.label_smoothing,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = CLASSIFICATION.peak,
    warmup: Warmup = CLASSIFICATION.warmup,
    schedule: Schedule = CLASSIFICATION.schedule,
    weight_decay: Annotated[
        float, typer.Option(help="Of matrices, by AdamW.")
    ] = CLASSIFICATION.weight_decay,
    freeze: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Leave weights as they are whose names match."),
    ] = CLASSIFICATION.freeze,
    clip: Clip = CLASSIFICATION.clip,
    accumulate: Accumulate = CLASSIFICATION.accumulate,
    ema: Ema = CLASSIFICATION.ema,
    optimizer: Optimizer = CLASSIFICATION.optimizer,
    precision: Precision = CLASSIFICATION.precision,
    seed: Seed = CLASSIFICATION.seed,
    epochs: Epochs = CLASSIFICATION.epochs,
    steps: Steps = None,
    minutes: Minutes = CLASSIFICATION.minutes,
    patience: Patience = CLASSIFICATION.patience,
    interval: Interval = CLASSIFICATION.interval,
    keep: Keep = CLASSIFICATION.keep,
    devices: Devices = CLASSIFICATION.devices,
    remat: Remat = CLASSIFICATION.remat,
    restart: Restart = False,
):
    """Train a ViT to classify images, or fine-tune a published one.

    Stop it with Ctrl-C whenever you like: the same command goes on after its last epoch.
    The best model by accuracy on validation is RUN/best; curves are in RUN/curve.png,
    RUN/history.csv and, for TensorBoard, RUN/logs.

    Example: polyhead train classification --data photos --pretrained google/vit-base-patch16-224
    --out runs/photos
    """
    train(classification, locals())


def train(recipe, options):
    """Trains as a command's ``options`` say, by a recipe's module."""
    options["updates"] = options["steps"]
    chosen = {field.name: options[field.name] for field in dataclasses.fields(recipe.Settings)}
    with going_on("the last epoch"):
        recipe.train(recipe.Settings(**chosen), options["out"], options["restart"])


@contextlib.contextmanager
def going_on(after):
    """Within it Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: the same command goes on after {after}", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Other data.")] = None,
    variant: Annotated[
        str | None, typer.Option(help="Translation: another variant of its files.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val or test; by default test for translation, else val."),
    ] = None,
    show: Annotated[int, typer.Option(help="Translation: how many to show.")] = 3,
    beams: Beams = None,
    alpha: Alpha = None,
    confusion: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Images: draw which classes are taken for which."),
    ] = None,
    broken: Annotated[
        Literal["refuse", "skip"] | None,
        typer.Option(help="Images: what becomes of one that cannot be decoded."),
    ] = None,
):
    """Score a run's best model on a split of its data.

    Translations by sacrebleu's BLEU; text by the loss of a token, its perplexity, and bits a byte;
    images by how many are of the likeliest class, and of the likeliest five.
    """
    from .run import read_settings

    task = read_settings(run).task
    if confusion is not None:
        writable(confusion)
    if task == "classification":
        only("translation", variant=variant, beams=beams, alpha=alpha)
        score = classification.evaluate(run, data, split or "val", broken=broken)
        print(
            f"accuracy {score['accuracy']:.2%}, of the likeliest five {score['top5']:.2%}; "
            f"{score['images']:,} images of {split or 'val'}"
        )
        if confusion is not None:
            classification.draw_confusion(score["confusion"], score["classes"], confusion)
        return
    only("image classification", confusion=confusion, broken=broken)
    if task == "generation":
        only("translation", variant=variant, beams=beams, alpha=alpha)
        score = generation.evaluate(run, data, split or "val")
        print(
            f"loss {score['loss']:.4f}, perplexity {score['perplexity']:.2f}, "
            f"{score['bits_per_byte']:.4f} bits a byte; {score['tokens']:,} tokens, "
            f"{score['bytes']:,} bytes of {split or 'val'}"
        )
        return
    split = split or "test"
    search = given(beams=beams, alpha=alpha)
    score, pairs, translations = translation.evaluate(run, data, split, variant, **search)
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
    from .run import average, read_settings

    task = read_settings(run).task
    if task != "translation":
        only("translation", beams=beams, alpha=alpha)
    folder, updates = average(run, last)
    mean = f"the mean of updates {updates[0]} to {updates[-1]}"
    for name, model in ((mean, folder), ("the best", run)):
        if task == "generation":
            score = f"loss {generation.evaluate(model)['loss']:.4f}"
        elif task == "classification":
            score = f"accuracy {classification.evaluate(model)['accuracy']:.2%}"
        else:
            search = given(beams=beams, alpha=alpha)
            score = f"BLEU {translation.evaluate(model, split='val', **search)[0].score:.2f}"
        print(f"validation {score}: {name}")
    print(folder)


@app.command()
def diversify(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN ...", help="Runs of translation, in either direction."),
    ],
    out: Annotated[Path, typer.Option(help="The new data's folder. What is there goes on.")],
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="The data; the first run's if absent.")
    ] = None,
    beams: Beams = None,
    alpha: Alpha = None,
    batch_size: Annotated[int, typer.Option(help="Sentences that are translated at once.")] = 64,
):
    """Add to training data what trained runs translate of it (Nguyen et al. 2020).

    To the pairs of sentences come their sources with what a run makes of them, and their targets
    with what a run of the reverse direction makes of those; the first run's direction is forward.
    Then train with the options of the first, on the new data; validation and test are the same.

    Example: polyhead diversify runs/en-de runs/de-en --beams 5 --out more
    """
    from .diversify import diversify

    with going_on("the last translations"):
        search = given(beams=beams, alpha=alpha)
        pairs = diversify(runs, out, data, batch_size, **search)
    print(f"{len(pairs):,} pairs of sentences in {out}")


@app.command()
def predict(
    run: Run,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT|IMAGE ...",
            help="Sentences to translate, text to continue, or files of images.",
        ),
    ] = None,
    beams: Beams = None,
    alpha: Alpha = None,
    best: Annotated[
        int | None, typer.Option(help="Translation: so many of each, with their scores.")
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Translation: draw what that of the text attends to."
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    samples: Annotated[int | None, typer.Option(help="So many continuations of a text.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends a continuation, without it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same continuation each time.")] = None,
    top: Annotated[int | None, typer.Option(help="Images: so many classes of each.")] = None,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Images: draw where the model looks in one."),
    ] = None,
):
    """Translate sentences, or the lines of standard input; continue text; or classify images."""
    from ..zoo import GPT, ViT
    from .run import load, shown

    sampling = given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    asked = given(max_new_tokens=max_new_tokens, samples=samples, stop=stop or None, seed=seed)
    search = given(beams=beams, alpha=alpha)
    model = load(run)
    if isinstance(model, ViT):
        only("text", **asked, **sampling, **search, best=best, attention=attention)
        if not texts:
            raise ValueError("name files of images to classify")
        if explain is not None:
            if len(texts) != 1:
                raise ValueError(f"--explain draws one image: {len(texts)} were given")
            writable(explain)
        for start in shown("classifying")(range(0, len(texts), 16)):
            names = texts[start : start + 16]
            found = model.classify(names, top=1 if top is None else top)
            for name, classes in zip(names, found, strict=True):
                for label, probability in classes:
                    print(f"{name}\t{label}\t{probability:.4f}", flush=True)
        if explain is not None:
            classification.draw_rollout(model, texts[0], explain)
        return
    only("images", top=top, explain=explain)
    if isinstance(model, GPT):
        only("translation", best=best, attention=attention)
        for prompt in texts if texts else [sys.stdin.read()]:
            if samples is None and (beams or 1) == 1:
                print(prompt, end="", flush=True)
                for piece in model.stream(prompt, **asked, **sampling, **search):
                    print(piece, end="", flush=True)
                print()
            else:
                made = model.generate([prompt], **asked, **sampling, **search)[0]
                for text in [made] if samples is None else made:
                    print(f"{prompt}{text}")
        return
    only("text generation", **asked, **sampling)
    if not texts:
        if sys.stdin.isatty():
            print("one sentence a line; end with Ctrl-D", file=sys.stderr)
        texts = [line.rstrip("\n") for line in sys.stdin]
    if attention is not None:
        if len(texts) != 1:
            raise ValueError(f"--attention draws one text: {len(texts)} were given")
        writable(attention)
    progress = shown("translating")
    found = model.translate(texts, scores=True, best=best, progress=progress, **search)
    for translations in found:
        for text, score in translations if best else [translations]:
            print(f"{score:.4f}\t{text}" if best else text)
    if attention is not None:
        [translations] = found
        model.attention(texts[0], (translations[0] if best else translations).text).draw(attention)


def writable(file):
    """Raises where a picture could not be written, before it is computed."""
    if not file.resolve().parent.is_dir():
        raise FileNotFoundError(f"no folder {file.resolve().parent}")


def given(**options):
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def only(task, **options):
    """Raises where options were given that are for another ``task``."""
    if named := [f"--{name.replace('_', '-')}" for name in given(**options)]:
        raise ValueError(f"{' and '.join(named)}: for {task} only")


@app.command()
def export(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="EXPORT", help="The model's base folder.")],
    beams: Beams = None,
    alpha: Alpha = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    top: Annotated[int | None, typer.Option(help="Images: so many classes of each.")] = None,
):
    """Write a SavedModel for TensorFlow Serving: text or images in, text or labels out.

    It becomes EXPORT/1, or the next free number, with the server's configuration beside it.
    """
    from ..zoo import GPT, ViT
    from .run import load

    sampling = given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    model = load(run)
    search = given(beams=beams, alpha=alpha)
    if isinstance(model, ViT):
        only("text", **search, **sampling)
    else:
        only("images", top=top)
    if not isinstance(model, GPT):
        only("text generation", **sampling)
    print(model.export(folder, **search, **sampling, **given(top=top)))


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
