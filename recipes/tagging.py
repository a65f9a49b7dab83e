"""Tagging of words, such as the names in a text: train, evaluate, tag and export.

Entities of wnut17 from MiniLM:

    polyhead train tagging --data wnut17 --pretrained MINILM --peak 1e-4 --out RUN
    polyhead evaluate RUN --split test
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal

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
from .options import Data, ModelFolder, Split, Texts
from .run import (
    Run,
    averaging,
    export_model,
    load,
    lock_folder,
    one_line,
    read_lines,
    show_progress,
)
from .settings import SAMPLE, option

Metric = Literal["f1", "accuracy"]  # of entities; of words


@dataclass(frozen=True)
class Settings(EncoderSettings):
    """The settings of a training run of a tagger, named like the command's options."""

    task: ClassVar[str] = "tagging"

    data: str = option(
        SAMPLE,
        "A file of lines 'word TAB tag' with tags O, B-name and I-name, or names alone, and a "
        "blank line after each sentence (a tenth is for validation); a folder with train, val and "
        "test as .conll, .bio, .txt or .tsv; or 'sample', sentences included in polyhead.",
        metavar="FILE|DIR|sample",
    )
    batch_size: int = option(
        32, "Sentences per batch, if they have the mean length; of longer ones fewer."
    )
    metric: Metric = option("f1", "Score that selects the best checkpoint.")


@lock_folder
def train(settings, out, restart=False, say=print):
    """Train a text encoder to tag words, such as names, or fine-tune a published one.

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
    The best model by the metric on validation is RUN/best; curves are in RUN/curve.png,
    RUN/history.csv and, for TensorBoard, RUN/logs.

    Example: polyhead train tagging --data names.conll --pretrained MINILM --out RUN
    """
    from ..data import tagging_batches
    from ..training import SmoothedCrossEntropy

    run = Run(settings, out, restart, say)
    settings = run.settings
    sentences, val = (read(settings.data, split)[0] for split in ("train", "val"))
    classes = sentences.classes
    say(f"{len(sentences):,} sentences, {sum(map(len, sentences.words)):,} words")
    check_known("tag", itertools.chain(*val.tags), classes, settings.data)
    if len(classes) < 2:
        raise ValueError(f"{settings.data}: words must have at least 2 tags: {classes}")
    with run.devices.scope():
        texts = {"train": sentences.words, "val": val.words}
        texts = {split: [" ".join(words) for words in texts[split]] for split in texts}
        model = begin(settings, run, texts, "tags", classes)
    length = max_length(settings, model)

    def batches(**options):
        return tagging_batches(
            sentences,
            model.tokenizer,
            classes,
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
        SmoothedCrossEntropy(0.0),
        lambda model: score(model, val, length),
        settings.metric,
        label=f"{settings.metric} on validation",
        unit="words",
    )


def read(data, split=None, other=None):
    """Reads a split of a run's data, or of other data; also returns the split's name."""
    from ..data import read_tagged_words

    return read_split(read_tagged_words, "names", data, split, other)


def score(model, sentences, length, progress=False):
    """The loss of a model per word, and the scores of the entities it finds.

    Words beyond ``length`` tokens are tagged "O" or, without this class, with the first one.
    """
    import numpy as np

    from ..data.encoder_batches import class_indices, encode_words
    from ..data.tokenizers.ragged import unpack
    from ..training import entity_scores

    names = labels_of(model)
    tokens, words = encode_words(sentences.words, model.tokenizer, length)
    firsts = unpack(words)
    found, logits, labels = [], [], []
    for tags, first, row in zip(
        sentences.tags, firsts, outputs(model, tokens, progress=progress), strict=True
    ):
        chosen = row[first >= 0]
        predicted = np.full(len(tags), names.index("O") if "O" in names else 0)
        predicted[first[first >= 0]] = chosen.argmax(-1)
        found.append([names[i] for i in predicted])
        logits.append(chosen)
        labels.append(class_indices(tags, names)[first[first >= 0]])
    loss = cross_entropy(np.concatenate(logits), np.concatenate(labels))
    return {"loss": loss, **entity_scores(sentences.tags, found)}


def evaluate(run: ModelFolder, data: Data = None, split: Split = None, say=print):
    """Evaluates a run's best model on a split of its data, "val" by default.

    Returns:
        a dict: ``loss``, ``precision``, ``recall`` and ``f1`` of entities, ``accuracy`` of words,
        and the number of ``sentences``.

    Raises:
        ValueError: the data have other tags.
    """
    settings, model = open_run(run, Settings, data)
    sentences, split = read(settings.data, split, data)
    tags = itertools.chain(*sentences.tags)
    check_known("tag", tags, labels_of(model), data or settings.data)
    length, progress = max_length(settings, model), show_progress("evaluating")
    found = score(model, sentences, length, progress) | {"sentences": len(sentences)}
    say(
        f"F1 {found['f1']:.2%}, precision {found['precision']:.2%}, recall {found['recall']:.2%} "
        f"of entities, accuracy {found['accuracy']:.2%} of words; {len(sentences):,} sentences of "
        f"{split}"
    )
    return found


average = averaging(evaluate)
export = export_model


def tag(
    run: ModelFolder,
    inputs: Texts = None,
):
    """Find names and the like in texts: prints a line per span.

    A line has the text's number, the span, its label, start, end (characters) and probability.
    """
    model, texts = load(run), read_lines(inputs)
    for i, spans in enumerate(model.tag(texts, progress=show_progress("tagging"))):
        for span in spans:
            place = f"{span.start}\t{span.end}\t{span.score:.4f}"
            print(f"{i}\t{one_line(span.text)}\t{span.label}\t{place}")
