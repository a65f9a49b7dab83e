"""Texts and their summaries, from files; does not import TensorFlow."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any

from ..files import ends_with
from .labelled import SURROGATE, check_lengths, read_columns, split_file
from .parallel import held_out, read_lines

# Names of the columns of a table, and of the fields of a line in JSON.
TEXT = ("text", "source", "document", "article", "dialogue")
SUMMARY = ("summary", "target", "summaries", "highlights", "abstract")


@dataclass(frozen=True)
class Summaries:
    """Texts, and one or several summaries of each.

    >>> summaries = polyhead.data.Summaries(["Ada ran home. It rained."], [["Ada ran."]])
    >>> next(iter(summaries))
    ('Ada ran home. It rained.', ['Ada ran.'])
    """

    texts: list[str]
    summaries: list[list[str]]

    def __post_init__(self):
        check_lengths(texts=self.texts, summaries=self.summaries)

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return zip(self.texts, self.summaries, strict=True)


def read_summaries(path: str | PathLike[str], split: str | None = "train") -> Summaries:
    r"""Reads texts and their summaries from a file of JSON lines or a table, or a folder of them.

    A line of JSON is an object with a text ("text", "source", "document", "article" or "dialogue")
    and its summary ("summary", "target", "summaries", "highlights" or "abstract"). A list of
    strings as text is a list of sentences; as summary, a list of several summaries. A CSV or TSV
    file has the columns text and summary.

    A folder has the files ``train``, ``val`` (or ``dev``) and ``test``, ending in ``.jsonl``,
    ``.tsv`` or ``.csv``; for files without ``val`` see `read_labelled_texts`.

    >>> line = b'{"text": "Ada ran home. It rained.", "summary": "Ada ran."}\n'
    >>> polyhead.training.write_file("train.jsonl", line)
    >>> polyhead.data.read_summaries("train.jsonl", None).summaries
    [['Ada ran.']]

    Args:
        split: "train", "val" or "test"; None reads all of a file.

    Raises:
        FileNotFoundError: the file or the split does not exist.
        ValueError: a line is invalid; the message names the file and the line.
    """
    file, part = split_file(path, split, (".jsonl", ".tsv", ".csv"))
    if ends_with(file.name, (".tsv", ".csv")):
        columns = read_columns(file, None, text=TEXT, summary=SUMMARY)
        rows = [(row["text"], [row["summary"]]) for _, row in columns]
    else:
        rows = [
            read_line(file, number, line)
            for number, line in enumerate(read_lines(file), 1)
            if line.strip()
        ]
    texts, summaries = zip(*held_out(file, rows, part), strict=True)
    return Summaries(list(texts), list(summaries))


def read_line(file, number, line):
    """Reads a line of JSON: a text and its summaries."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}, line {number} is not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{file}, line {number} must be an object: {line[:80]!r}")
    text = read_field(file, number, entry, "a text", TEXT)
    summaries = read_field(file, number, entry, "a summary", SUMMARY)
    return " ".join(text), summaries


def read_field(file, number, entry: dict[str, Any], kind, names):
    """The strings of the first of the fields ``names``, without empty ones."""
    name = next((name for name in names if name in entry), None)
    if name is None:
        raise ValueError(f"{file}, line {number} must have {kind} ({', '.join(names)})")
    found = [entry[name]] if isinstance(entry[name], str) else entry[name]
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{file}, line {number}: {name} must be a string or a list of strings")
    if broken := next(filter(SURROGATE.search, found), None):
        raise ValueError(f"{file}, line {number}: {name} has half a character: {broken!r:.80}")
    found = [text.strip() for text in found if text.strip()]
    if not found:
        raise ValueError(f"{file}, line {number}: {name} is empty")
    return found
