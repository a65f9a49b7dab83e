"""The `polyhead` command. Heavy imports happen inside the commands: --help is instant."""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..serving import quiet  # noqa: F401  (before Keras and TensorFlow)
from . import classification, generation, translation

TRANSLATION, GENERATION = translation.Settings(), generation.Settings()
CLASSIFICATION = classification.Settings()

app = typer.Typer(
    help="Train, evaluate, use and export transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(
    help="Train a model in a run folder; the same command resumes it.", no_args_is_help=True
)
app.add_typer(train_app, name="train")

# Options of several commands.
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run or of a saved model.")]
Beams = Annotated[
    int | None, typer.Option(help="Beam width; 1 is greedy. Default: the model's own.")
]
Alpha = Annotated[
    float | None, typer.Option(help="Length penalty of beam search: score / tokens^alpha.")
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Maximum number of new tokens.")]
Temperature = Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Sample from the k most likely tokens.")]
TopP = Annotated[
    float | None,
    typer.Option(help="Nucleus: sample from the smallest set with this total probability."),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Keep tokens with at least this fraction of the top token's probability."),
]
Penalty = Annotated[float | None, typer.Option(help="Repetition penalty; > 1 discourages repeats.")]

Pretrained = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|NAME",
        help="Start from the weights and the tokenizer of this model or run, not from a preset.",
    ),
]
Out = Annotated[Path, typer.Option(help="Run folder; an existing run is resumed.")]
Dropout = Annotated[float | None, typer.Option(help="Dropout rate. Default: the preset's.")]
Warmup = Annotated[
    int | None,
    typer.Option(
        help="Updates until the learning rate's peak. Default: a tenth of all updates, at most "
        f"{TRANSLATION.longest_warmup} (generation {GENERATION.longest_warmup}, classification "
        f"{CLASSIFICATION.longest_warmup})."
    ),
]
Schedule = Annotated[
    Literal["sqrt", "cosine"],
    typer.Option(
        help="Decay of the learning rate: 1 / sqrt(update), or a cosine that ends after --epochs "
        "or --steps (--minutes and --patience cut it short)."
    ),
]
Clip = Annotated[float, typer.Option(help="Maximum global norm of the gradient.")]
Accumulate = Annotated[int, typer.Option(help="Number of batches whose gradients make one update.")]
Ema = Annotated[
    float | None,
    typer.Option(help="Momentum of EMA weights, e.g. 0.999, which are then evaluated and saved."),
]
Optimizer = Annotated[
    Literal["adam", "muon"],
    typer.Option(
        help="muon: orthogonalizes the updates of matrices; often needs fewer steps from scratch, "
        "and a step takes slightly longer."
    ),
]
Precision = Annotated[
    Literal["float32", "mixed_float16", "mixed_bfloat16"],
    typer.Option(help="Keras's dtype policy."),
]
Seed = Annotated[int, typer.Option(help="Random seed (weights, dropout, data order).")]
Epochs = Annotated[int, typer.Option(help="Stop after this many passes over the data.")]
Steps = Annotated[int | None, typer.Option(help="Stop after this many batches.")]
Minutes = Annotated[float | None, typer.Option(help="Stop after this many minutes of training.")]
Patience = Annotated[
    int | None, typer.Option(help="Stop after this many checkpoints without improvement.")
]
Interval = Annotated[
    int | None,
    typer.Option(help="Checkpoint interval in batches. Default: an epoch."),
]
Keep = Annotated[int, typer.Option(help="Number of checkpoints to keep.")]
Devices = Annotated[
    int | None, typer.Option(help="Number of GPUs; without GPUs, of logical CPU devices.")
]
Remat = Annotated[
    bool,
    typer.Option(
        "--remat",
        help="Recompute activations in the backward pass: less memory, more time.",
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="Delete the existing run and start over.")]


def print_version(wanted: bool):
    if wanted:
        from importlib.metadata import version

        print(version("polyhead"))
        raise typer.Exit


@app.callback()
def everywhere(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=print_version, is_eager=True),
    ] = False,
):
    pass  # `main` accepts --debug in any position


@train_app.command("translation")
def train_translation(
    out: Out,
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|FILE|sample",
            help="A folder with train, val and test as in Multi30k (train.en, train.de, plain or "
            ".gz) or as TSV (train.tsv); one TSV file, a tenth of which is for validation; or "
            "'sample', a small corpus included in polyhead.",
        ),
    ] = TRANSLATION.data,
    source: Annotated[
        str, typer.Option(help="Language to translate from, as in the file names.")
    ] = TRANSLATION.source,
    target: Annotated[str, typer.Option(help="Language to translate into.")] = TRANSLATION.target,
    variant: Annotated[
        str | None,
        typer.Option(help="Variant of the files, e.g. lc.norm.tok for train.lc.norm.tok.en."),
    ] = TRANSLATION.variant,
    preset: Annotated[
        str, typer.Option(help="Size of the model: tiny, base or big.")
    ] = TRANSLATION.preset,
    pretrained: Pretrained = TRANSLATION.pretrained,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            help="Size of the shared vocabulary. Default: "
            f"{translation.VOCAB_SIZE}, or less for a small text."
        ),
    ] = TRANSLATION.vocab_size,
    norm: Annotated[
        str | None,
        typer.Option(help="Position of layer normalization: 'post' (as in the paper) or 'pre'."),
    ] = TRANSLATION.norm,
    dropout: Dropout = TRANSLATION.dropout,
    max_length: Annotated[
        int, typer.Option(help="Maximum number of tokens per sentence; longer pairs are left out.")
    ] = TRANSLATION.max_length,
    tokens: Annotated[
        int, typer.Option(help="Tokens per batch, including padding.")
    ] = TRANSLATION.tokens,
    buckets: Annotated[
        int, typer.Option(help="Number of batch lengths; each is compiled once.")
    ] = TRANSLATION.buckets,
    peak: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate. Default: the paper's formula; 1e-4 for a pretrained model."
        ),
    ] = TRANSLATION.peak,
    warmup: Warmup = TRANSLATION.warmup,
    schedule: Schedule = TRANSLATION.schedule,
    bpe_dropout: Annotated[
        float,
        typer.Option(help="BPE-dropout rate, e.g. 0.1."),
    ] = TRANSLATION.bpe_dropout,
    label_smoothing: Annotated[
        float, typer.Option(help="Label smoothing (section 5.4 of the paper).")
    ] = TRANSLATION.label_smoothing,
    consistency: Annotated[
        float,
        typer.Option(help="R-Drop weight (5 in the paper); doubles the cost of an epoch."),
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
    """Train a translation model, by default from English to German, or fine-tune one.

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
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
            help="A text file, whose last tenth is for validation; a folder with train.txt and "
            "val.txt, or of documents *.txt; or 'sample', text included in polyhead.",
        ),
    ] = GENERATION.data,
    preset: Annotated[
        str,
        typer.Option(
            help="Size of the model: char-small or char, whose tokens are characters; gpt2, "
            "gpt2-medium, gpt2-large or gpt2-xl, with byte-level BPE learned from the text."
        ),
    ] = GENERATION.preset,
    pretrained: Pretrained = GENERATION.pretrained,
    vocab_size: Annotated[
        int, typer.Option(help="Maximum size of a learned vocabulary.")
    ] = GENERATION.vocab_size,
    length: Annotated[
        int | None, typer.Option(help="Tokens per row. Default: the model's context length.")
    ] = GENERATION.length,
    batch_size: Annotated[int, typer.Option(help="Rows per batch.")] = GENERATION.batch_size,
    dropout: Dropout = GENERATION.dropout,
    peak: Annotated[float, typer.Option(help="Peak learning rate.")] = GENERATION.peak,
    warmup: Warmup = GENERATION.warmup,
    schedule: Schedule = GENERATION.schedule,
    weight_decay: Annotated[
        float, typer.Option(help="Weight decay of matrices (AdamW).")
    ] = GENERATION.weight_decay,
    lora: Annotated[
        int | None, typer.Option(help="LoRA rank; trains only the adapters.")
    ] = GENERATION.lora,
    freeze: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Freeze weights whose path matches."),
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

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
    The best model by validation loss is RUN/best; curves are in RUN/curve.png, RUN/history.csv
    and, for TensorBoard, RUN/logs.

    Example: polyhead train generation --data book.txt --preset char-small --out RUN
    """
    train(generation, locals())


@train_app.command("classification")
def train_classification(
    out: Out,
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|sample",
            help="A folder with a folder per class, or with train, val and test that each have "
            "one; or TFRecords train*, val*, test* (features image, label) with labels.txt; or "
            "'sample', shapes drawn by polyhead. Without val, a tenth of train is kept for it.",
        ),
    ] = CLASSIFICATION.data,
    preset: Annotated[
        str,
        typer.Option(
            help="Size of the model: nano-4 or lite-4 for images of 32 pixels; ti-16, s-16, s-32, "
            "b-16, b-32, l-16, h-14 for 224 pixels (the number is the side of a patch)."
        ),
    ] = CLASSIFICATION.preset,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|NAME",
            help="Start from the weights of this model or run with a new head, not from a preset.",
        ),
    ] = CLASSIFICATION.pretrained,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels. Default: the model's.")
    ] = CLASSIFICATION.image_size,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = CLASSIFICATION.batch_size,
    augment: Annotated[
        Literal["none", "light", "strong"],
        typer.Option(help="light: crops and flips; strong: RandAugment too."),
    ] = CLASSIFICATION.augment,
    mix: Annotated[
        bool, typer.Option("--mix", help="Mix the images of a batch: MixUp and CutMix in turn.")
    ] = CLASSIFICATION.mix,
    broken: Annotated[
        Literal["refuse", "skip"],
        typer.Option(help="Stop at an image that cannot be decoded, or skip it; it is named."),
    ] = CLASSIFICATION.broken,
    dropout: Dropout = CLASSIFICATION.dropout,
    stochastic_depth: Annotated[
        float, typer.Option(help="Stochastic depth: drop rate of the last block.")
    ] = CLASSIFICATION.stochastic_depth,
    label_smoothing: Annotated[
        float, typer.Option(help="Label smoothing (Szegedy et al. 2016, section 7).")
    ] = CLASSIFICATION.label_smoothing,
    peak: Annotated[float, typer.Option(help="Peak learning rate.")] = CLASSIFICATION.peak,
    warmup: Warmup = CLASSIFICATION.warmup,
    schedule: Schedule = CLASSIFICATION.schedule,
    weight_decay: Annotated[
        float, typer.Option(help="Weight decay of matrices (AdamW).")
    ] = CLASSIFICATION.weight_decay,
    freeze: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Freeze weights whose path matches."),
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

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
    The best model by validation accuracy is RUN/best; curves are in RUN/curve.png,
    RUN/history.csv and, for TensorBoard, RUN/logs.

    Example: polyhead train classification --data photos --pretrained google/vit-base-patch16-224
    --out runs/photos
    """
    train(classification, locals())


def train(recipe, options):
    """Trains by a recipe's module, with a command's ``options``."""
    options["updates"] = options["steps"]
    chosen = {field.name: options[field.name] for field in dataclasses.fields(recipe.Settings)}
    with resumable("the last checkpoint"):
        recipe.train(recipe.Settings(**chosen), options["out"], options["restart"])


@contextlib.contextmanager
def resumable(start):
    """Within it Ctrl-C says how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; run the same command to resume from {start}", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[
        str | None, typer.Option(metavar="DIR|FILE", help="Data. Default: the run's.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Translation: variant of the files. Default: the run's.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val or test. Default: test for folders of translations, else val."
        ),
    ] = None,
    show: Annotated[int, typer.Option(help="Translation: number of examples to show.")] = 3,
    beams: Beams = None,
    alpha: Alpha = None,
    confusion: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Images: save the confusion matrix."),
    ] = None,
    broken: Annotated[
        Literal["refuse", "skip"] | None,
        typer.Option(help="Images: stop at one that cannot be decoded, or skip it."),
    ] = None,
):
    """Score a run's best model on a split of its data.

    Translations by sacrebleu's BLEU; text by cross-entropy per token, perplexity and bits per
    byte; images by top-1 and top-5 accuracy.
    """
    from .run import read_settings

    task = read_settings(run).task
    if confusion is not None:
        writable(confusion)
    if task == "classification":
        only("translation", variant=variant, beams=beams, alpha=alpha)
        score = classification.evaluate(run, data, split or "val", broken=broken)
        print(
            f"accuracy {score['accuracy']:.2%}, top-5 {score['top5']:.2%}; "
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
            f"{score['bits_per_byte']:.4f} bits per byte; {score['tokens']:,} tokens, "
            f"{score['bytes']:,} bytes of {split or 'val'}"
        )
        return
    search = given(beams=beams, alpha=alpha)
    score, split, pairs, translations = translation.evaluate(run, data, split, variant, **search)
    for i in range(min(show, len(pairs))):
        print(f"source       {pairs.sources[i]}")
        print(f"reference    {pairs.targets[i]}")
        print(f"translation  {translations[i]}\n")
    print(f"BLEU {score.score:.2f} on {len(pairs)} sentences of {split}  ({score.signature})")


@app.command()
def average(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    last: Annotated[int, typer.Option(help="Number of checkpoints; see train's --keep.")] = 10,
    beams: Beams = None,
    alpha: Alpha = None,
):
    """Average a run's last checkpoints into the model RUN/average, and score it on validation.

    It averages the weights themselves, not the EMA weights of --ema, which are in RUN/best.
    evaluate, predict and export accept RUN/average like RUN.
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
        typer.Argument(metavar="RUN ...", help="Translation runs, in either direction."),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the new data; an interrupted one is resumed.")
    ],
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Data. Default: the first run's.")
    ] = None,
    beams: Beams = None,
    alpha: Alpha = None,
    batch_size: Annotated[int, typer.Option(help="Sentences per batch.")] = 64,
):
    """Augment training data with translations by trained models (Nguyen et al. 2020).

    A forward run adds each source with its translation, a reverse run adds each target with its
    back-translation. The direction of the first run is forward. Then train on the new data with
    the first run's options. Validation and test data stay the same.

    Example: polyhead diversify RUN REVERSE --beams 5 --out MORE
    """
    from .diversify import diversify

    with resumable("the last translations"):
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
            help="Sentences to translate, text to continue, or image files.",
        ),
    ] = None,
    beams: Beams = None,
    alpha: Alpha = None,
    best: Annotated[
        int | None,
        typer.Option(help="Translation: number of translations of each text, with scores."),
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Translation: save the cross-attention map."),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    samples: Annotated[int | None, typer.Option(help="Number of continuations per text.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop at this text, which is left out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed for sampling.")] = None,
    top: Annotated[int | None, typer.Option(help="Images: number of classes per image.")] = None,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Images: save the attention map of one image."),
    ] = None,
):
    """Translate sentences (or lines of standard input), continue text, or classify images."""
    from ..zoo import GPT, ViT
    from .run import load, shown

    sampling = given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    asked = given(
        max_new_tokens=max_new_tokens,
        num_return_sequences=samples,
        stop=stop or None,
        seed=seed,
    )
    search = given(beams=beams, alpha=alpha)
    model = load(run)
    if isinstance(model, ViT):
        only("text", **asked, **sampling, **search, best=best, attention=attention)
        if not texts:
            raise ValueError("pass at least one image file")
        if explain is not None:
            if len(texts) != 1:
                raise ValueError(f"--explain takes one image: {len(texts)} given")
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
            print("one sentence per line; end with Ctrl-D", file=sys.stderr)
        texts = [line.rstrip("\n") for line in sys.stdin]
    if attention is not None:
        if len(texts) != 1:
            raise ValueError(f"--attention takes one text: {len(texts)} given")
        writable(attention)
    progress = shown("translating")
    found = model.translate(texts, best, progress=progress, **search)
    for translations in found:
        for text in translations if best else [translations]:
            print(f"{text.score:.4f}\t{text}" if best else text)
    if attention is not None:
        [translations] = found
        model.attention(texts[0], translations[0] if best else translations).draw(attention)


def writable(file):
    """Raises an error if a picture cannot be written, before it is computed."""
    if not file.resolve().parent.is_dir():
        raise FileNotFoundError(f"no folder {file.resolve().parent}")


def given(**options):
    """The options with a value."""
    return {name: value for name, value in options.items() if value is not None}


def only(task, **options):
    """Raises an error if options of another ``task`` are given."""
    if named := [f"--{name.replace('_', '-')}" for name in given(**options)]:
        raise ValueError(f"{' and '.join(named)}: for {task} only")


@app.command()
def export(
    run: Run,
    folder: Annotated[
        Path, typer.Argument(metavar="EXPORT", help="Base folder of the exported model.")
    ],
    beams: Beams = None,
    alpha: Alpha = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    top: Annotated[int | None, typer.Option(help="Images: number of classes per image.")] = None,
):
    """Write a SavedModel for TensorFlow Serving: text or images in, text or labels out.

    It is EXPORT/1, or the next free number; the server's configuration is in EXPORT.
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
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files.")],
):
    """Download a data set for `train --data DIR` and verify its checksums."""
    from ..data.download import download_multi30k

    download_multi30k(folder)


def main():
    """Runs the command. An error is one line on standard error, and exit status 1."""
    if debug := "--debug" in sys.argv:
        sys.argv.remove("--debug")
    try:
        try:
            app(prog_name="polyhead")
        finally:
            flush()
    except Exception as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(1)


def flush():
    """Flushes standard output. A pipe that its reader has closed, as head does, is no error."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # Python flushes again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "standard output") from None
