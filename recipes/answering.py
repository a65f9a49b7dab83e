"""Answers to questions as spans of a context: train, evaluate, answer and export.

Half of SQuAD 2.0's development set from MiniLM:

    polyhead train answering --data squad2-half --pretrained MINILM --out RUN
    polyhead evaluate RUN --split test
"""

import dataclasses
import errno
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from typer import Argument, Option

from .encoding import EncoderSettings, begin, fit, max_length, read_split
from .options import Data, ExportFolder, Format, ModelFolder, Split
from .run import (
    Run,
    averaging,
    load,
    lock_folder,
    one_line,
    read_lines,
    show_progress,
)
from .settings import SAMPLE, option, settings_of

LENGTH = 384  # tokens of a question and a window, as in Devlin et al.'s code
ALWAYS = 1e9  # a threshold with which an answer is always given


@dataclass(frozen=True)
class Settings(EncoderSettings):
    """The settings of a training run of a question answerer, named like the command's options."""

    task: ClassVar[str] = "answering"

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
    longest: int = option(30, "Maximum number of tokens of an answer.")
    batch_size: int = 16
    epochs: int = 4


@lock_folder
def train(settings, out, restart=False, say=print):
    """Train a text encoder to find answers in a context, or fine-tune a published one.

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
    The best model by F1 on validation is RUN/best, with the threshold of "no answer" that is best
    there; curves are in RUN/curve.png, RUN/history.csv and, for TensorBoard, RUN/logs.

    Example: polyhead train answering --data questions.json --pretrained MINILM --out RUN
    """
    from ..data import question_batches
    from ..training import SpanCrossEntropy
    from ..training.checkpoints import WRITER

    if settings.longest < 1:
        raise ValueError(f"longest must be a positive integer: {settings.longest}")
    run = Run(settings, out, restart, say)
    settings = run.settings
    questions, val = (read(settings.data, split)[0] for split in ("train", "val"))
    none = sum(not q.answers for q in questions)
    say(f"{len(questions):,} questions, {none:,} of them without an answer")
    with run.devices.scope():
        texts = [text for q in questions for text in (q.question, q.context)]
        model = begin(settings, run, {"train": texts}, "spans", length=LENGTH, pairs=True)
    length = reading(settings, model)["window_length"]

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
        WRITER.submit(lambda: None).result()  # the best model may still be being written
        return choose_threshold(model, settings, val)

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


def reading(settings, model):
    """How contexts are read: arguments of the model's `answer` and `export`."""
    return {
        "window_length": max_length(settings, model, LENGTH),
        "overlap": settings.overlap,
        "max_answer_tokens": settings.longest,
    }


def score(model, questions, settings, threshold=None, progress=False):
    """The scores of a model's answers; see `polyhead.training.answer_scores`.

    Args:
        threshold: see ``config.no_answer``. Default: that with the best F1 on these questions.
    """
    import numpy as np

    from ..training import answer_scores, no_answer_threshold

    found = model.answer(
        [q.question for q in questions],
        [q.context for q in questions],
        no_answer=math.inf,
        progress=progress,
        **reading(settings, model),
    )
    texts = [answer.text for answer in found]
    # Of float32; a probability may be 0.
    scores = np.maximum([(answer.no_answer, answer.score) for answer in found], 1e-38)
    differences = np.log(scores[:, 0]) - np.log(scores[:, 1])
    right = [[answer.text for answer in q.answers] for q in questions]
    if threshold is None and all(right):
        threshold = ALWAYS  # SQuAD 1.1
    elif threshold is None:
        threshold = no_answer_threshold(texts, differences, right)
    given = [t if d <= threshold else "" for t, d in zip(texts, differences, strict=True)]
    scores = {k: x for k, x in answer_scores(given, right).items() if x is not None}
    return {**scores, "threshold": threshold}


def evaluate(
    run: ModelFolder,
    data: Data = None,
    split: Split = None,
    say=print,
):
    """Evaluates a run's best model on a split of its data, "val" by default.

    Returns:
        a dict: ``exact`` and ``f1``; ``answer_exact`` and ``answer_f1`` on questions that
        have an answer, ``no_answer``, the accuracy on the others; the number of ``questions``.
    """
    settings, model = settings_of(run, Settings, data), load(run)
    questions, split = read(settings.data, split, data)
    progress = show_progress("evaluating")
    found = score(model, questions, settings, model.config.no_answer, progress)
    found["questions"] = len(questions)
    line = f"exact match {found['exact']:.2%}, F1 {found['f1']:.2%}"
    if "answer_f1" in found and "no_answer" in found:
        line += (
            f"; with an answer {found['answer_exact']:.2%}, {found['answer_f1']:.2%}; without "
            f"{found['no_answer']:.2%}"
        )
    say(f"{line}; {len(questions):,} questions of {split}")
    return found


def choose_threshold(model, settings, questions=None):
    """Gives a model the threshold of "no answer" that is best on validation; returns its scores."""
    questions = read(settings.data, "val")[0] if questions is None else questions
    found = score(model, questions, settings)
    model.config = dataclasses.replace(model.config, no_answer=found["threshold"])
    return found


average = averaging(evaluate, choose_threshold)


def export(run: ModelFolder, folder: ExportFolder, format: Format = "tf_saved_model"):
    """Exports a run's best model for TensorFlow Serving, or in another ``format``."""
    model = load(run)
    given = reading(settings_of(run, Settings), model) if format == "tf_saved_model" else {}
    print(model.export(folder, format=format, **given))


def answer(
    run: ModelFolder,
    inputs: Annotated[
        list[str] | None,
        Argument(metavar="QUESTION ...", help="Questions. Default: the lines of standard input."),
    ] = None,
    context: Annotated[
        str | None, Option(metavar="TEXT|FILE", help="The text with the answers, or a file of it.")
    ] = None,
    top: Annotated[int, Option(help="Number of answers per question.")] = 1,
):
    """Answer questions from a text: prints a line per answer.

    A line has the answer (its lines joined by spaces), its start and end (characters) and its
    probability; the answer is empty if the text does not have it. Long texts are read in windows
    of the run's --max-length and --overlap; answers have at most --longest tokens.
    """
    if context is None:
        raise ValueError("pass --context, the text with the answers")
    questions, context = list(read_lines(inputs)), read_context(context)
    model, progress = load(run), show_progress("answering")
    given = reading(settings_of(run, Settings), model)
    found = model.answer(questions, context, top=top, progress=progress, **given)
    for answers in found:
        for one in answers:
            print(f"{one_line(one.text)}\t{one.start}\t{one.end}\t{one.score:.4f}")


def read_context(given):
    """The text of a file, if ``given`` is its name; else ``given``.

    Raises:
        FileNotFoundError: it looks like the name of a text file, and there is none.
        IsADirectoryError: it is the name of a folder.
    """
    from ..data.text import read

    try:
        is_file, is_folder = Path(given).is_file(), Path(given).is_dir()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        is_file = is_folder = False
    if is_file:
        return read(given)
    if is_folder and given:
        raise IsADirectoryError(f"--context is a folder: {given}")
    if re.fullmatch(r"[ -~]{1,255}\.(txt|md|html?|csv|tsv|jsonl?)", given, re.IGNORECASE):
        raise FileNotFoundError(f"there is no file {given}")
    return given
