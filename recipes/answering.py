"""Answers to questions as spans of a context: train, evaluate, answer and export.

Half of SQuAD 2.0's development set from MiniLM:

    polyhead train answering --data squad2-half --pretrained MINILM --out RUN
    polyhead evaluate RUN --split test
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from typer import Argument, Option

from .encoding import EncoderSettings, begin, cross_entropy, fit, max_length, outputs, read_split
from .options import Data, ExportFolder, Format, Last, ModelFolder, RunFolder, Split
from .run import Run, load, lock_folder, save_average, show_progress
from .settings import SAMPLE, option, read_settings

LENGTH = 384  # tokens of a question and a window, as in Devlin et al.'s code
ALWAYS = 1e9  # a threshold with which an answer is always given


@dataclass(frozen=True)
class Settings(EncoderSettings):
    """The settings of a training run of a question answerer, named like the command's options."""

    task: ClassVar[str] = "answering"
    longest_warmup: ClassVar[int] = 1000

    data: str = option(
        SAMPLE,
        "A JSON file in the format of SQuAD 1.1 or 2.0 (the questions on a tenth of the contexts "
        "are for validation); a folder with train.json, val.json and test.json; or 'sample', "
        "paragraphs included in polyhead.",
        metavar="FILE|DIR|sample",
    )
    max_length: int | None = option(
        None,
        "Maximum number of tokens of a question and a window of its context. Default: "
        f"{LENGTH}, or fewer by the model.",
    )
    overlap: int = option(128, "Number of tokens that consecutive windows share.")
    longest: int = option(30, "Maximum number of tokens of an answer, in evaluation.")
    batch_size: int = 16
    epochs: int = 4


@lock_folder
def train(settings, out, restart=False, say=print):
    """Train a text encoder to find answers in a context, or fine-tune a published one.

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
    The best model by F1 on validation is RUN/best, with the threshold of "no answer" that is best
    there; curves are in RUN/curve.png, RUN/history.csv and, for TensorBoard, RUN/logs.

    Example: polyhead train answering --data squad --pretrained MINILM --out RUN
    """
    from ..data import question_batches
    from ..training import SpanCrossEntropy
    from ..training.checkpoints import WRITER

    run = Run(settings, out, restart, say)
    settings = run.settings
    questions, val = (read(settings.data, split)[0] for split in ("train", "val"))
    none = sum(not q.answers for q in questions)
    say(f"{len(questions):,} questions, {none:,} of them without an answer")
    with run.devices.scope():
        texts = [text for q in questions for text in (q.question, q.context)]
        model = begin(settings, run, texts, "spans")
    length = max_length(settings, model, LENGTH)

    def batches(**options):
        return question_batches(
            questions,
            model.tokenizer,
            settings.batch_size,
            length,
            settings.overlap,
            settings.buckets,
            seed=settings.seed,
            **options,
        )

    def score_and_set(model):
        found = score(model, val, length, settings)
        WRITER.submit(lambda: None).result()  # the best model may still be being written
        model.config = dataclasses.replace(model.config, no_answer=found["threshold"])
        return found

    return fit(
        run,
        model,
        batches,
        SpanCrossEntropy(),
        score_and_set,
        "f1",
        label="F1 on validation",
        unit="windows",
    )


def read(data, split=None, other=None):
    """Reads a split of a run's data, or of other data; also returns the split's name."""
    from ..data import read_questions

    return read_split(read_questions, "questions", data, split, other)


def score(model, questions, length, settings, threshold=None, progress=False):
    """The loss of a model per window, and the scores of its answers.

    Args:
        threshold: see ``config.no_answer``. Default: that with the best F1 on these questions.
    """
    from ..training import answer_scores, no_answer_threshold

    loss, texts, differences = answers(model, questions, length, settings, progress)
    right = [[answer.text for answer in q.answers] for q in questions]
    if threshold is None and all(right):
        threshold = ALWAYS  # SQuAD 1.1
    elif threshold is None:
        threshold = no_answer_threshold(texts, differences, right)
    given = [t if d <= threshold else "" for t, d in zip(texts, differences, strict=True)]
    scores = {k: x for k, x in answer_scores(given, right).items() if x is not None}
    return {"loss": loss, **scores, "threshold": threshold}


def answers(model, questions, length, settings, progress=False):
    """The loss; the best span of each question; and the score of "no answer" minus the span's."""
    import tensorflow as tf

    from ..data.encoder_batches import answer_tokens
    from ..data.spans import best_spans, read_contexts, span_places

    texts, differences, losses = [], [], []
    for start in range(0, len(questions), 256):
        some = questions[start : start + 256]
        reading = read_contexts(
            model.tokenizer,
            [q.question for q in some],
            [q.context for q in some],
            length,
            settings.overlap,
        )
        logits = outputs(model, reading.tokens, reading.types, 32, progress)
        labels = answer_tokens(some, reading)
        for row, places in zip(logits, labels, strict=True):
            losses.append(np.mean([cross_entropy(row.T[i : i + 1], [places[i]]) for i in (0, 1)]))
        counts, before = reading.windows.count.numpy(), reading.before.numpy()
        scores = np.zeros((len(logits), counts.max(initial=1), 2), "float32")
        for i, row in enumerate(logits):
            scores[i, : counts[i]] = row[before[i] : before[i] + counts[i]]
        none = np.array([row[0].sum() for row in logits], "float32")
        lengths = reading.starts.row_lengths()
        first, last, probability, of_none = best_spans(
            *map(tf.constant, (scores[..., 0], scores[..., 1], none)),
            reading.windows,
            lengths,
            settings.longest,
            ALWAYS,
            1,
        )
        begins, ends = (
            x.numpy()[:, 0] for x in span_places(first, last, reading.starts, reading.ends)
        )
        texts += [q.context[a:b] for q, a, b in zip(some, begins, ends, strict=True)]
        tiny = np.finfo("float32").tiny
        differences += list(np.log(of_none + tiny) - np.log(probability.numpy()[:, 0] + tiny))
    return float(np.mean(losses)), texts, differences


def evaluate(
    run: RunFolder,
    data: Data = None,
    split: Split = None,
    say=print,
):
    """Evaluates a run's best model on a split of its data, "val" by default.

    Returns:
        a dict: ``loss``, ``exact`` and ``f1``; ``answer_exact`` and ``answer_f1`` on questions that
        have an answer, ``no_answer``, the accuracy on the others; the number of ``questions``.
    """
    settings, model = read_settings(run), load(run)
    questions, split = read(settings.data, split, data)
    length, progress = max_length(settings, model, LENGTH), show_progress("evaluating")
    found = score(model, questions, length, settings, model.config.no_answer, progress)
    found["questions"] = len(questions)
    line = f"exact match {found['exact']:.2%}, F1 {found['f1']:.2%}"
    if "answer_f1" in found and "no_answer" in found:
        line += (
            f"; with an answer {found['answer_exact']:.2%}, {found['answer_f1']:.2%}; without "
            f"{found['no_answer']:.2%}"
        )
    say(f"{line}; {len(questions):,} questions of {split}")
    return found


def average(run: RunFolder, last: Last = 10, say=print):
    """Saves the mean of a run's last checkpoints as the model ``RUN/average``, and evaluates it."""
    save_average(run, last, evaluate, say)


def answer(
    run: ModelFolder,
    question: Annotated[str, Argument(metavar="QUESTION", help="A question.")],
    context: Annotated[
        str, Argument(metavar="CONTEXT", help="A text with the answer, or a file of it.")
    ],
    top: Annotated[int, Option(help="Number of answers.")] = 1,
):
    """Answer a question from a text: prints a line per answer.

    A line has the answer, its start and end (characters) and its probability; the text is empty if
    there is no answer.
    """
    if len(context) < 256 and Path(context).is_file():
        context = Path(context).read_text("utf-8")
    for found in load(run).answer(question, context, top=top):
        print(f"{found.text}\t{found.start}\t{found.end}\t{found.score:.4f}")


def export(run: ModelFolder, folder: ExportFolder, format: Format = "tf_saved_model"):
    """Exports a run's best model for TensorFlow Serving, or in another ``format``."""
    print(load(run).export(folder, format=format))
