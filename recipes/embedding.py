"""Embeddings of texts, compared by their cosine: train, evaluate, embed and export.

Similarity of stsb from MiniLM:

    polyhead train embedding --data stsb --pretrained MINILM --peak 2e-5 --out RUN
    polyhead evaluate RUN --split test
"""

import dataclasses
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from typer import Option

from .encoding import EncoderSettings, begin, fit, max_length, open_run, outputs, read_split
from .options import Data, ModelFolder, Split, Texts
from .run import (
    Run,
    averaging,
    check_writable,
    export_model,
    load,
    lock_folder,
    read_lines,
    show_progress,
)
from .settings import SAMPLE, option


@dataclass(frozen=True)
class Settings(EncoderSettings):
    """The settings of a training run of embeddings, named like the command's options."""

    task: ClassVar[str] = "embedding"

    data: str = option(
        SAMPLE,
        "A CSV or TSV file with two texts of one meaning per line, or with any two texts and the "
        "score of their similarity (a tenth is for validation); a folder with train, val and test "
        "as such files; or 'sample', sentences included in polyhead.",
        metavar="FILE|DIR|sample",
    )
    max_score: float | None = option(
        None,
        "Score of equal texts, whose cosine is 1. Default: the largest of the training data.",
        adapts=True,
    )
    scale: float = option(
        20.0, "Factor of the cosines in the softmax over the batch, for pairs without scores."
    )


@lock_folder
def train(settings, out, restart=False, say=print):
    """Train embeddings on pairs of texts, or fine-tune those of a published model.

    With scores, the cosine of a pair is regressed to its score; without, the second text of a pair
    is ranked above those of the other pairs in the batch. Stop it with Ctrl-C at any time; the
    same command resumes from the last checkpoint. The best model by validation (Spearman
    correlation with the scores, or retrieval accuracy) is RUN/best; curves are in RUN/curve.png,
    RUN/history.csv and, for TensorBoard, RUN/logs.

    Example: polyhead train embedding --data similar.csv --pretrained MINILM --out RUN
    """
    from ..data import pair_batches
    from ..training import CosineRegression, InBatchNegatives

    run = Run(settings, out, restart, say)
    pairs, val = (read(run.settings.data, split)[0] for split in ("train", "val"))
    say(f"{len(pairs):,} pairs of texts with{'out' * (pairs.scores is None)} scores")
    if (pairs.scores is None) != (val.scores is None):
        raise ValueError(f"{run.settings.data}: either train and val have scores, or neither")
    if val.scores is not None and len({*val.scores}) < 2:
        raise ValueError(f"{run.settings.data}: the scores of val must differ: {val.scores[0]}")
    if pairs.scores is not None and run.settings.max_score is None:
        run.settings = dataclasses.replace(run.settings, max_score=max(pairs.scores))
    if pairs.scores is not None and not 0 < run.settings.max_score < math.inf:
        raise ValueError(f"the largest score must be positive: {run.settings.max_score}")
    settings, devices = run.settings, run.devices.num_replicas_in_sync
    if settings.batch_size % devices:
        raise ValueError(
            f"batch_size must be a multiple of the {devices} devices, which share no pair: "
            f"{settings.batch_size}; {-(-settings.batch_size // devices) * devices} is"
        )
    with run.devices.scope():
        texts = {"train": pairs.firsts + pairs.seconds, "val": val.firsts + val.seconds}
        model = begin(settings, run, texts)
    length = max_length(settings, model)

    def batches(**options):
        return pair_batches(
            pairs,
            model.tokenizer,
            settings.batch_size,
            length,
            settings.buckets,
            seed=settings.seed,
            scale=settings.max_score or 1.0,
            **options,
        )

    scored = pairs.scores is not None
    monitor = "spearman" if scored else "accuracy"
    return fit(
        run,
        model,
        batches,
        CosineRegression() if scored else InBatchNegatives(settings.scale),
        lambda model: score(model, val, length),
        monitor,
        label="Spearman correlation on validation" if scored else "retrieval accuracy",
    )


def read(data, split=None, other=None):
    """Reads a split of a run's data, or of other data; also returns the split's name."""
    from ..data import read_text_pairs

    return read_split(read_text_pairs, "pairs", data, split, other)


def score(model, pairs, length, progress=False):
    """The scores of the cosines of pairs.

    Returns:
        ``spearman`` and ``pearson`` correlation with the pairs' scores; for pairs without scores
        the ``accuracy``: how often the text most similar to the first is the second of its pair,
        among those of all pairs.
    """
    import numpy as np
    import tensorflow as tf

    from ..training import correlations

    tokens = model.tokenizer.encode(pairs.firsts + pairs.seconds, length)
    found = np.stack(outputs(model, tf.cast(tokens, tf.int32), progress=progress))
    found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    first, second = np.split(found, 2)
    if pairs.scores is not None:
        found = correlations((first * second).sum(1), pairs.scores)
        # Undefined if all cosines are equal; NaN could not be compared with other checkpoints.
        return {name: float(np.nan_to_num(value)) for name, value in found.items()}
    hits = 0
    for start in range(0, len(first), 1024):
        nearest = (first[start : start + 1024] @ second.T).argmax(1)
        hits += sum(pairs.seconds[start + i] == pairs.seconds[j] for i, j in enumerate(nearest))
    return {"accuracy": hits / len(pairs)}


def evaluate(run: ModelFolder, data: Data = None, split: Split = None, say=print):
    """Evaluates a run's best model on a split of its data, "val" by default.

    Returns:
        a dict: ``spearman`` and ``pearson``, or ``accuracy``; and the number of ``pairs``.
    """
    settings, model = open_run(run, Settings, data)
    pairs, split = read(settings.data, split, data)
    found = score(model, pairs, max_length(settings, model), show_progress("evaluating"))
    line = f"retrieval accuracy {found.get('accuracy', 0):.2%}"
    if "spearman" in found:
        line = f"Spearman {100 * found['spearman']:.2f}, Pearson {100 * found['pearson']:.2f}"
    say(f"{line}; {len(pairs):,} pairs of {split}")
    return found | {"pairs": len(pairs)}


average = averaging(evaluate)
export = export_model


def embed(
    run: ModelFolder,
    inputs: Texts = None,
    save: Annotated[
        Path | None, Option(metavar="FILE.npy", help="Save the vectors as an array of NumPy.")
    ] = None,
):
    """Embed texts: prints a line of numbers per text."""
    import numpy as np

    from ..training import write_file
    from ..zoo import ESM

    check_writable(save)
    model, texts = load(run), list(read_lines(inputs))
    of_texts = {"pooled": True} if isinstance(model, ESM) else {}  # not of residues
    vectors = model.embed(texts, progress=show_progress("embedding"), **of_texts)
    if save is not None:
        content = io.BytesIO()
        np.save(content, vectors)
        write_file(save, content.getvalue())
        print(f"{vectors.shape[0]} vectors of {vectors.shape[1]} numbers in {save}")
        return
    for vector in vectors:
        print(" ".join(f"{number:.6g}" for number in vector))
