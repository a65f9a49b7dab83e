"""Labelled text from files: classes, tags of words, questions with answers, and pairs of texts."""

import csv
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ..files import ends_with, read_data, read_json
from .parallel import find_file, held_out, read_lines, read_rows

# Names of a split's file, without its suffix, and of the columns in the first line of a table.
SPLITS = {"train": ("train",), "val": ("val", "dev", "valid", "validation"), "test": ("test",)}
TEXT = ("text", "sentence", "text1", "sentence1", "premise", "question1", "review")
SECOND = ("text_pair", "text2", "sentence2", "hypothesis", "question2")
LABEL = ("label", "category", "class", "intent", "sentiment")
SCORE = ("score", "similarity", "label")
IDS = "id", "idx", "index", ""  # columns of no interest; pandas gives its index no name
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character
TAG, NAME = re.compile(r"O|[BI]-\S+"), re.compile(r"(?![A-Z]-)\S+")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts, or pairs of a text and a second one, and the name of the class of each.

    >>> texts = polyhead.data.LabelledTexts(["Where is my card?"], ["card_arrival"])
    >>> len(texts), texts.classes
    (1, ('card_arrival',))
    """

    texts: list[str]
    labels: list[str]
    seconds: list[str] | None = None

    def __post_init__(self):
        check_lengths(texts=self.texts, labels=self.labels, seconds=self.seconds)

    def __len__(self):
        return len(self.texts)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes in order: numbers by value, other names by letters."""
        if wrong := [x for x in self.labels if not isinstance(x, str)]:
            raise TypeError(f"labels must be strings: {wrong[0]!r:.80}")
        return tuple(sorted(set(self.labels), key=lambda x: (len(x) if x.isdigit() else 0, x)))


@dataclass(frozen=True)
class TaggedWords:
    """Sentences as lists of words, and a tag of each word, such as "O", "B-person" or "I-person".

    >>> sentences = polyhead.data.TaggedWords([["Ada", "sleeps"]], [["B-person", "O"]])
    >>> len(sentences), sentences.classes
    (1, ('O', 'B-person', 'I-person'))
    """

    words: list[list[str]]
    tags: list[list[str]]

    def __post_init__(self):
        check_lengths(words=self.words, tags=self.tags)
        for i, (words, tags) in enumerate(zip(self.words, self.tags, strict=True)):
            if len(words) != len(tags):
                raise ValueError(
                    f"each word must have a tag: sentence {i} has {len(words)} words, "
                    f"{len(tags)} tags"
                )

    def __len__(self):
        return len(self.words)

    @property
    def classes(self) -> tuple[str, ...]:
        """ "O", then the beginning and the inside of each type, in the order of names.

        Of tags without "B-" and "I-", their names in order.
        """
        found = {tag for tags in self.tags for tag in tags}
        if not all(map(TAG.fullmatch, found)):
            return tuple(sorted(found))
        types = sorted({tag[2:] for tag in found} - {""})
        return ("O", *(f"{place}-{name}" for name in types for place in "BI"))


class ReferenceAnswer(NamedTuple):
    """A part of a context: ``context[start : start + len(text)] == text``.

    >>> polyhead.data.ReferenceAnswer("Ada", 4).start
    4
    """

    text: str
    start: int


class Question(NamedTuple):
    """A question about a context, and the answers that people gave; none if it has no answer.

    >>> question = polyhead.data.Question("1", "Who sleeps?", "Ada sleeps.", (("Ada", 0),))
    >>> question.answers[0][0]
    'Ada'
    """

    id: str
    question: str
    context: str
    answers: tuple[ReferenceAnswer, ...] = ()


@dataclass(frozen=True)
class TextPairs:
    """Pairs of texts of similar meaning, or any pairs and a number for how similar each is.

    >>> len(polyhead.data.TextPairs(["A dog runs."], ["A dog is running."], scores=[4.5]))
    1
    """

    firsts: list[str]
    seconds: list[str]
    scores: list[float] | None = None

    def __post_init__(self):
        check_lengths(firsts=self.firsts, seconds=self.seconds, scores=self.scores)
        for i, score in enumerate(self.scores or ()):
            if not abs(score) < float("inf"):
                raise ValueError(f"scores must be finite numbers: that of pair {i} is {score}")

    def __len__(self):
        return len(self.firsts)


def read_labelled_texts(path: str | PathLike[str], split: str | None = "train") -> LabelledTexts:
    r"""Reads texts and their classes from a CSV or TSV file, or from a folder of them.

    A line is ``text,label`` or, for pairs, ``text,second text,label``. The first line may be a
    header, such as "text,label", "sentence1,sentence2,label" or "text,category"; it selects the
    columns, and a warning names those that are not read (but "id", "idx" and "index"). Fields may
    be quoted as spreadsheets do; a CSV file may be separated by semicolons. Blank lines are
    ignored.

    A folder has the files ``train``, ``val`` (or ``dev``) and ``test``, ending in ``.csv`` or
    ``.tsv``, plain or .gz. Without ``val``, and in a single file, every tenth line is for
    validation.

    >>> polyhead.training.write_file("train.csv", b'text,label\n"Oh, good!",1\nBad.,0\n')
    >>> polyhead.data.read_labelled_texts("train.csv", None).texts
    ['Oh, good!', 'Bad.']

    Args:
        split: "train", "val" or "test"; None reads all of a file.

    Raises:
        FileNotFoundError: the file or the split does not exist.
        ValueError: a line is invalid; the message names the file and the line.
    """
    file, part = split_file(path, split, (".csv", ".tsv"))
    rows = read_columns(file, text=TEXT, second=SECOND, label=LABEL, optional="second")
    rows = [row for _, row in held_out(file, rows, part)]
    seconds = [row["second"] for row in rows] if "second" in rows[0] else None
    labels = [row["label"].strip() for row in rows]
    return LabelledTexts([row["text"] for row in rows], labels, seconds)


def read_text_pairs(path: str | PathLike[str], split: str | None = "train") -> TextPairs:
    r"""Reads pairs of texts, with or without a score of their similarity, from CSV or TSV.

    A line is ``text,second text`` or ``text,second text,score``. See `read_labelled_texts`.

    >>> polyhead.training.write_file("pairs.csv", b"A dog runs.,A dog is running.,4.5\n")
    >>> polyhead.data.read_text_pairs("pairs.csv", None).scores
    [4.5]

    Raises:
        FileNotFoundError: the file or the split does not exist.
        ValueError: a line is invalid; the message names the file and the line.
    """
    file, part = split_file(path, split, (".csv", ".tsv"))
    rows = read_columns(file, text=TEXT, second=SECOND, score=SCORE, optional="score")
    for number, row in rows:
        if "score" in row:
            row["score"] = read_number(file, number, row["score"])
    rows = [row for _, row in held_out(file, rows, part)]
    scores = [row["score"] for row in rows] if "score" in rows[0] else None
    return TextPairs([row["text"] for row in rows], [row["second"] for row in rows], scores)


def read_tagged_words(path: str | PathLike[str], split: str | None = "train") -> TaggedWords:
    r"""Reads words and their tags in the format of CoNLL's shared tasks.

    A line is ``word TAB tag``, or columns between spaces, the word first and the tag last; a blank
    line ends a sentence. Tags are "O", "B-name" for the first word of an entity, and "I-name" for
    its other words; or names alone, such as "H", "E" and "C" for the residues of a protein. Lines
    that begin with ``-DOCSTART-`` are ignored. A folder has the files ``train``, ``val`` (or
    ``dev``) and ``test``, ending in ``.conll``, ``.bio``, ``.txt`` or ``.tsv``; for files without
    ``val`` see `read_labelled_texts`.

    >>> polyhead.training.write_file("train.conll", b"Ada\tB-person\nsleeps\tO\n\n")
    >>> polyhead.data.read_tagged_words("train.conll", None)
    TaggedWords(words=[['Ada', 'sleeps']], tags=[['B-person', 'O']])

    Raises:
        FileNotFoundError: the file or the split does not exist.
        ValueError: a line is invalid; the message names the file and the line.
    """
    file, part = split_file(path, split, (".conll", ".bio", ".txt", ".tsv"))
    sentences, tagged, plain = [[]], False, None
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            sentences.append([])
        elif not line.startswith("-DOCSTART-"):
            # A no-break space belongs to a word.
            columns = line.split("\t") if "\t" in line else re.findall("[^ ]+", line)
            word, tag = columns[0], columns[-1]
            is_bio = TAG.fullmatch(tag) is not None
            if len(columns) < 2 or not word.strip() or not (is_bio or NAME.fullmatch(tag)):
                raise ValueError(
                    f"{file}, line {number} must be a word, a tab and a tag, such as O or B-name: "
                    f"{line[:80]!r}"
                )
            sentences[-1].append((word, tag))
            tagged |= is_bio and tag != "O"
            plain = plain or (None if is_bio else (number, line))
    if tagged and plain:  # a mistake in a file of O, B-name and I-name
        raise ValueError(
            f"{file}, line {plain[0]} must have a tag O, B-name or I-name: {plain[1]!r:.90}"
        )
    sentences = held_out(file, [sentence for sentence in sentences if sentence], part)
    words, tags = ([[pair[i] for pair in pairs] for pairs in sentences] for i in (0, 1))
    return TaggedWords(words, tags)


def read_questions(path: str | PathLike[str], split: str | None = "train") -> list[Question]:
    """Reads questions on contexts, with the places of their answers, in the format of SQuAD.

    (JSON, Rajpurkar et al. 2016, arXiv 1606.05250; version 2.0, arXiv 1806.03822, has questions
    without an answer.) A folder has the files ``train.json``, ``val.json`` (or ``dev.json``) and
    ``test.json``. Without ``val``, and in a single file, the questions on every tenth context are
    for validation.

    >>> len(polyhead.data.read_questions("squad", "val"))  # doctest: +SKIP
    863

    Raises:
        FileNotFoundError: the file or the split does not exist.
        ValueError: a question is invalid; the message names the file and the question.
    """
    file, part = split_file(path, split, (".json",))
    try:
        articles = read_json(file, read_data)["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        contexts = [
            [read_question(file, entry, paragraph["context"]) for entry in paragraph["qas"]]
            for paragraph in paragraphs
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is not in the format of SQuAD: {error!r}") from None
    contexts = held_out(file, [questions for questions in contexts if questions], part)
    return [question for questions in contexts for question in questions]


def read_question(file, entry, context):
    """Reads one entry of SQuAD's ``qas``."""
    name, found, question = entry["id"], [], entry["question"]
    for field, value in (("question", question), ("context", context)):
        if not isinstance(value, str) or SURROGATE.search(value):
            raise ValueError(f"{file}, question {name}: the {field} must be text: {value!r:.80}")
    for answer in entry.get("answers", ()):
        text, start = answer["text"], answer["answer_start"]
        if not text or start < 0 or context[start : start + len(text)] != text:
            raise ValueError(
                f"{file}, question {name}: the context must have the answer {text[:80]!r} at "
                f"character {start}"
            )
        if (text, start) not in found:
            found.append(ReferenceAnswer(text, start))
    if bool(found) == entry.get("is_impossible", False):
        rule = "is_impossible, but it has answers" if found else "no answer, and not is_impossible"
        raise ValueError(f"{file}, question {name}: {rule}")
    return Question(name, question, context, tuple(found))


def split_file(path, split, suffixes):
    """Finds the file of a split: (file, part), where the part of a file without splits is a split.

    Raises:
        FileNotFoundError: the file or the split does not exist.
    """
    path = Path(path)
    if split not in (None, *SPLITS):
        raise ValueError(f"split must be train, val or test: {split!r}")
    if path.is_file():
        if split == "test":
            raise FileNotFoundError(f"{path} has no split 'test', only train and val")
        return path, split
    if not path.is_dir():
        raise FileNotFoundError(f"no file or folder {path}")

    def find(split):
        found = [f"{name}{suffix}" for name in SPLITS[split] for suffix in suffixes]
        return next(filter(None, (find_file(path, name) for name in found)), None)

    if split is not None and (file := find(split)):
        if split == "train" and not find("val"):
            return file, "train"
        return file, None
    if split == "val" and (file := find("train")):
        return file, "val"
    names = " or ".join(f"{split or 'train'}{suffix}" for suffix in suffixes)
    raise FileNotFoundError(f"{path} has no split {split!r}: no file {names}")


def has_tables(path: str | PathLike[str]) -> bool:
    """Whether ``path`` is a CSV or TSV file by its name, or a folder with one of a split.

    >>> polyhead.training.write_file("train.csv", b"Good.,1")
    >>> polyhead.data.labelled.has_tables(".")
    True
    """
    path = Path(path)
    if not path.is_dir():
        return ends_with(path.name, (".csv", ".tsv"))
    names = (name for names in SPLITS.values() for name in names)
    return any(find_file(path, f"{name}{end}") for name in names for end in (".csv", ".tsv"))


def read_columns(file, optional, **names) -> list[tuple[int, dict[str, Any]]]:
    """Reads rows of a table as (line, {column: field}); no field is empty.

    Args:
        optional: the column that may be missing.
        names: ``column=names in a header``, in the order of columns in a file without a header.
    """
    rows = read_table(file)
    header = [name.strip().lower() for name in rows[0][1]]
    found = {c: next((header.index(x) for x in names[c] if x in header), None) for c in names}
    found = {c: i for c, i in found.items() if i is not None}
    needed = [c for c in names if c != optional]
    if found and not all(c in found for c in needed):
        column = next(c for c in needed if c not in found)
        raise ValueError(
            f"{file}, line {rows[0][0]} names columns, but no {column} "
            f"({', '.join(names[column])}): {', '.join(header)[:80]}"
        )
    if found:
        if twice := [x for i in found.values() if header.count(x := header[i]) > 1]:
            raise ValueError(f"{file}, line {rows[0][0]} names two columns {twice[0]!r}")
        others = [name for i, name in enumerate(header) if i not in found.values()]
        if others := [name for name in others if name not in IDS]:
            used = ", ".join(header[i] for i in found.values())
            warnings.warn(
                f"{file}: the columns {used} are read; {', '.join(others)[:200]} are not",
                stacklevel=3,
            )
        if not (rows := rows[1:]):
            raise ValueError(f"{file} has a header, but no line after it")
    elif len(header) in (len(names), len(needed)):
        found = {c: i for i, c in enumerate(names if len(header) == len(names) else needed)}
        if "label" in found:
            warn_of_header(file, [(number, row[found["label"]].strip()) for number, row in rows])
    else:
        number, row = rows[0]
        raise ValueError(
            f"{file}, line {number} must have the columns {', '.join(needed)} or "
            f"{', '.join(names)}: {len(row)} columns"
        )
    rows = [(number, {c: row[i] for c, i in found.items()}) for number, row in rows]
    for number, row in rows:
        for column, field in row.items():
            if not field.strip():
                raise ValueError(f"{file}, line {number}: the {column} is empty")
    return rows


def warn_of_header(file, labels):
    """Warns if the first of the (line, label) is the only one with a label of its own."""
    counts = Counter(label for _, label in labels)
    number, first = labels[0]
    if counts[first] == 1 < min([n for x, n in counts.items() if x != first], default=0):
        warnings.warn(
            f"{file}, line {number}: only this line has the label {first!r:.80}. If it is a "
            f"header, name its columns {TEXT[0]} and {LABEL[0]}",
            stacklevel=4,
        )


def read_table(file):
    """Reads a CSV or TSV file as (line, fields); all lines have the same number of fields."""
    if ends_with(file.name, ".tsv"):
        return check_even(file, read_rows(file))
    lines, found, errors = read_lines(file), {}, []
    for delimiter in ",;":  # spreadsheets write semicolons in languages with decimal commas
        try:
            found[delimiter] = check_even(file, parse_csv(file, lines, delimiter))
        except ValueError as error:
            errors.append(error)
    wide = [rows for rows in found.values() if len(rows[0][1]) > 1]
    if len(wide) == 2:
        raise ValueError(
            f"{file}: both commas and semicolons may separate its columns: begin it with a line of "
            f"their names, such as {TEXT[0]},{LABEL[0]}"
        )
    if wide:
        return wide[0]
    if errors:
        raise errors[0]
    number = next(iter(found.values()))[0][0]
    raise ValueError(f"{file}, line {number} must have at least two columns")


def parse_csv(file, lines, delimiter):
    """Parses CSV to (line, fields) without blank lines; a quoted field may have several lines."""
    rows, start = [], 1
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                rows.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}, line {start}: {error}") from None
    return rows


def check_even(file, rows):
    """Returns ``rows``; raises an error if they have different numbers of fields, or none."""
    if not rows:
        raise ValueError(f"{file} has no text")
    number, first = rows[0]
    for i, row in rows:
        if len(row) != len(first):
            raise ValueError(
                f"{file}, line {i} must have {len(first)} columns, as line {number} has: {len(row)}"
            )
    return rows


def read_number(file, number, field):
    try:
        value = float(field)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise ValueError(f"{file}, line {number}: the score must be a number: {field[:80]!r}")
    return value


def check_lengths(**columns: Sequence | None):
    """Checks that all columns that are not None have the same length."""
    sizes = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise ValueError(f"there must be one of each: {listed}")
