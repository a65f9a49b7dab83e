"""Text classification with BERT: train, evaluate, classify and export.

Intents of banking77 from MiniLM:

    polyhead train classification --data banking77 --pretrained MINILM --out RUN
    polyhead evaluate RUN --split test
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from typer import Option

from .encoding import (
    EncoderSettings,
    begin,
    check_known,
    cross_entropy,
    fit,
    labels_of,
    max_length,
    open_run,
    outputs,
    read_split,
)
from .options import Data, ExportFolder, Format, ModelFolder, Split, Texts
from .run import Run, averaging, load, lock_folder, one_line, read_lines, show_progress
from .settings import SAMPLE_TEXT, option

Metric = Literal["accuracy", "macro_f1", "matthews"]


@dataclass(frozen=True)
class Settings(EncoderSettings):
    """The settings of a training run of a text classifier, named like the command's options."""

    task: ClassVar[str] = "text_classification"

    data: str = option(
        SAMPLE_TEXT,
        "A CSV or TSV file with the columns text and label, or text, second text and label (a "
        "tenth is for validation); a folder with train, val and test as such files; or "
        f"'{SAMPLE_TEXT}', messages included in polyhead.",
        metavar="FILE|DIR|sample-text",
    )
    label_smoothing: float = option(0.0, "Label smoothing (Szegedy et al. 2016, section 7).")
    metric: Metric = option("accuracy", "Score that selects the best checkpoint.")


def reads(data):
    """Whether this recipe, and not that of images, reads the data."""
    from ..data.labelled import has_tables

    return data == SAMPLE_TEXT or (data != "" and has_tables(data))


@lock_folder
def train(settings, out, restart=False, say=print):
    """Train a text encoder to classify texts or pairs of texts, or fine-tune a published one.

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
    The best model by validation is RUN/best; curves are in RUN/curve.png, RUN/history.csv and, for
    TensorBoard, RUN/logs.

    Example: polyhead train classification --data reviews.csv --pretrained MINILM --out RUN
    """
    from ..data import classification_batches
    from ..training import SmoothedCrossEntropy

    run = Run(settings, out, restart, say)
    settings = run.settings
    texts, val = (read(settings.data, split)[0] for split in ("train", "val"))
    say(f"{len(texts):,} texts of {len(texts.classes)} classes")
    if len(texts.classes) < 2:
        raise ValueError(f"{settings.data}: texts must have at least 2 classes: {texts.classes}")
    check_known("class", val.classes, texts.classes, settings.data)
    if (texts.seconds is None) != (val.seconds is None):
        raise ValueError(
            f"{settings.data}: train and val must both have pairs of texts, or neither"
        )
    with run.devices.scope():
        pairs = texts.seconds is not None
        words = {
            split: x.texts + (x.seconds or []) for split, x in (("train", texts), ("val", val))
        }
        model = begin(settings, run, words, "classes", texts.classes, pairs=pairs)
    length = max_length(settings, model)

    def batches(**options):
        return classification_batches(
            texts,
            model.tokenizer,
            texts.classes,
            settings.batch_size,
            length,
            settings.buckets,
            seed=settings.seed,
            **options,
        )

    return fit(
        run,
        model,
        batches,
        SmoothedCrossEntropy(settings.label_smoothing),
        lambda model: score(model, val, length),
        settings.metric,
        label=f"{settings.metric} on validation",
    )


def read(data, split=None, other=None):
    """Reads a split of a run's data, or of other data; also returns the split's name."""
    from ..data import read_labelled_texts

    return read_split(read_labelled_texts, "messages", data, split, other)


def score(model, texts, length, progress=False):
    """The scores of a model on labelled texts, and the predicted classes and the right ones."""
    import numpy as np

    from ..data.encoder_batches import class_indices, encode_texts
    from ..training import classification_scores

    names = labels_of(model)
    labels = class_indices(texts.labels, names)
    logits = np.stack(
        outputs(model, *encode_texts(texts, model.tokenizer, length), progress=progress)
    )
    found = logits.argmax(-1)
    return {"loss": cross_entropy(logits, labels), **classification_scores(labels, found)}


def evaluate(
    run: ModelFolder,
    data: Data = None,
    split: Split = None,
    say=print,
):
    """Evaluates a run's best model on a split of its data, "val" by default.

    Returns:
        a dict: ``loss``, ``accuracy``, ``macro_f1``, ``matthews`` and the number of ``texts``.

    Raises:
        ValueError: the texts have other classes.
    """
    settings, model = open_run(run, Settings, data)
    texts, split = read(settings.data, split, data)
    check_known("class", texts.classes, labels_of(model), data or settings.data)
    length = max_length(settings, model)
    found = score(model, texts, length, show_progress("evaluating")) | {"texts": len(texts)}
    say(
        f"accuracy {found['accuracy']:.2%}, macro F1 {found['macro_f1']:.2%}, Matthews correlation "
        f"{found['matthews']:.4f}; {len(texts):,} texts of {split}"
    )
    return found


average = averaging(evaluate)


def classify(
    run: ModelFolder,
    inputs: Texts = None,
    top: Annotated[int, Option(help="Number of classes per input.")] = 1,
):
    """Classify texts: prints a line per class, with the text and the probability.

    The two texts of a pair are separated by a tab.
    """
    model = load(run)
    texts = [tuple(text.split("\t", 1)) if "\t" in text else text for text in read_lines(inputs)]
    found = model.classify(texts, top=top, progress=show_progress("classifying"))
    for text, classes in zip(texts, found, strict=True):
        shown = "\t".join(map(one_line, [text] if isinstance(text, str) else text))
        for label, probability in classes:
            print(f"{shown}\t{label}\t{probability:.4f}")


def export(
    run: ModelFolder,
    folder: ExportFolder,
    format: Format = "tf_saved_model",
    top: Annotated[int | None, Option(help="Number of classes per input. Default: 5.")] = None,
):
    """Exports a run's best model for TensorFlow Serving, or in another ``format``."""
    print(load(run).export(folder, format=format, top=top))
