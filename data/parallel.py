"""Parallel text: sentences and their translations, from files."""

import csv
import locale
import re
import warnings
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from ..files import read_data

csv.field_size_limit(2**31 - 1)  # its default refuses fields of more than 131,072 characters

EVERY = 10  # in a file without splits, every tenth example is for validation
# A field as spreadsheets write it, with or without quotes, and a line of such fields.
FIELD = r'(?:"(?:[^"]|"")*"|[^"\t]*)'
LINE = re.compile(rf"{FIELD}(?:\t{FIELD})+")


@dataclass(frozen=True)
class ParallelText:
    """Sentences and their translations: ``targets[i]`` translates ``sources[i]``.

    >>> pairs = polyhead.data.ParallelText(["Ein Hund.", "Eine Katze."], ["A dog.", "A cat."])
    >>> len(pairs)
    2
    """

    sources: list[str]
    targets: list[str]

    def __post_init__(self):
        if len(self.sources) != len(self.targets):
            raise ValueError(
                "sources and targets must have the same length: "
                f"{len(self.sources)} and {len(self.targets)}"
            )

    def __len__(self):
        return len(self.sources)


def read_parallel(source: str | PathLike[str], target: str | PathLike[str]) -> ParallelText:
    r"""Reads two files, plain or .gz, with one sentence per line.

    >>> polyhead.training.write_file("train.de", b"Ein Hund.\n")
    >>> polyhead.training.write_file("train.en", b"A dog.\n")
    >>> polyhead.data.read_parallel("train.de", "train.en")
    ParallelText(sources=['Ein Hund.'], targets=['A dog.'])

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is empty or not UTF-8, or the numbers of lines differ; the message names
            the file and the line.
    """
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise ValueError(
            f"the two files must have the same number of lines: {len(sources)} in {source}, "
            f"{len(targets)} in {target}"
        )
    return ParallelText(sources, targets)


def read_tsv(
    path: str | PathLike[str], source: str = "source", target: str = "target"
) -> ParallelText:
    r"""Reads one file, plain or .gz, of lines ``source TAB target``.

    The first line may be a header with the languages ``source`` and ``target`` ("en", "English") or
    the words "source" and "target"; it selects the columns. Other columns and blank lines are
    ignored. Another first line that may be a header is read as a pair, with a warning. Fields may
    be quoted as in spreadsheets, if every line does so; otherwise quotes are part of the text.

    >>> polyhead.training.write_file("pairs.tsv", b"Ein Hund.\tA dog.\n")
    >>> polyhead.data.read_tsv("pairs.tsv")
    ParallelText(sources=['Ein Hund.'], targets=['A dog.'])

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty or not UTF-8, or a line has fewer than two columns; the
            message names the file and the line.
    """
    rows = read_rows(path)
    named = find_columns(rows[0][1], source, target) if rows else None
    if rows and not named:
        warn_of_header(path, *rows[0], source, target)
    columns = named or (0, 1)
    rows = rows[1:] if named else rows
    for number, row in rows:
        if len(row) <= max(columns):
            line = "\t".join(row)
            raise ValueError(f"{path}, line {number} must be source TAB target: {line[:80]!r}")
    if not rows:
        raise ValueError(f"{path} is empty")
    return ParallelText(*([row[column] for _, row in rows] for column in columns))


def warn_of_header(path, number, row, source, target):
    """Warns if the first line, which does not name both languages, may be a header."""
    wanted = {*map(language_code, (source, target)), "source", "target", "src", "tgt"}
    if wanted & {language_code(name) for name in row if " " not in name.strip()}:
        warnings.warn(
            f"{path}, line {number} is read as a pair of texts: {' '.join(row)[:80]!r}. If it is a "
            f"header, name its columns {source} and {target}",
            stacklevel=4,
        )


def read_rows(path):
    """Lists the number and the fields of each line that is not blank."""
    lines = [(i, line) for i, line in enumerate(read_lines(path), 1) if line.strip()]
    with_quotes = [(i, line) for i, line in lines if '"' in line]
    text = next((i for i, line in with_quotes if not LINE.fullmatch(line)), None)
    doubled = next(
        (
            i
            for i, line in with_quotes
            if LINE.fullmatch(line) and any('""' in x for x in unquote_fields(line))
        ),
        None,
    )
    if text and doubled:
        warnings.warn(
            f"all quotes of {path} are read as text: line {doubled} is quoted as in spreadsheets, "
            f"but line {text} is not",
            stacklevel=4,
        )
    # Otherwise: spreadsheets quote all fields, or those with separators or outer spaces.
    needed = with_quotes and all(
        re.search(r"[\t,;]|^\s|\s$", x) for _, line in with_quotes for x in unquote_fields(line)
    )
    all_quoted = len(with_quotes) == len(lines) and all(
        len(unquote_fields(line)) == sum(map(bool, fields(line))) for _, line in lines
    )
    if text or not (doubled or needed or all_quoted):
        return [(i, line.split("\t")) for i, line in lines]
    rows = []
    for number, line in lines:
        try:
            [row] = csv.reader([line], delimiter="\t", strict=True)
        except csv.Error as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        rows.append((number, row))
    return rows


def unquote_fields(line):
    """The contents of the quoted fields of a `LINE`."""
    return [field[1:-1] for field in fields(line) if field.startswith('"')]


def fields(line):
    """The fields of a `LINE`, with their quotes."""
    return re.findall(rf"(?:^|\t)({FIELD})", line)


def find_columns(row, source, target):
    """The columns of source and target, if ``row`` names both, or None."""
    names = [language_code(name) for name in row]
    for wanted in (
        (language_code(source), language_code(target)),
        ("source", "target"),
        ("src", "tgt"),
    ):
        if wanted[0] != wanted[1] and set(wanted) <= set(names):
            return tuple(names.index(name) for name in wanted)
    return None


def language_code(name):
    """Maps a language's English name to its code; other words stay as they are."""
    return locale.normalize(name.strip().lower().replace("-", "_")).partition("_")[0]


def read_split(
    folder: str | PathLike[str],
    split: str | None,
    source: str,
    target: str,
    variant: str | None = None,
) -> ParallelText:
    r"""Reads a split of a folder in Multi30k's layout, of a folder of TSV files, or of a TSV file.

    Multi30k has one file per language: ``train.en.gz`` and ``train.de.gz`` or, with the variant
    "lc.norm.tok", ``train.lc.norm.tok.en.gz``; the files may be uncompressed. A folder of TSV files
    has ``train.tsv`` or ``train.tsv.gz`` (see `read_tsv`). The split "test" may also be named
    "test_2016_flickr". In a single TSV file, every tenth pair belongs to the split "val", and the
    others to "train"; None is all of them.

    >>> polyhead.training.write_file("train.de", b"Ein Hund.\n")
    >>> polyhead.training.write_file("train.en", b"A dog.\n")
    >>> polyhead.data.read_split(".", "train", source="de", target="en")
    ParallelText(sources=['Ein Hund.'], targets=['A dog.'])

    Raises:
        FileNotFoundError: the folder, the file or the split does not exist.
        ValueError: a file is invalid; the message names it.
    """
    folder = Path(folder)
    if folder.is_file():
        return read_split_of_file(folder, split, source, target)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    names = [split, "test_2016_flickr"] if split == "test" else [split]
    for name in names:
        stem = f"{name}.{variant}" if variant else name
        files = [find_file(folder, f"{stem}.{language}") for language in (source, target)]
        if all(files):
            return read_parallel(*files)
        if tsv := find_file(folder, f"{stem}.tsv"):
            return read_tsv(tsv, source, target)
    stem = f"{split}.{variant}" if variant else split
    raise FileNotFoundError(
        f"{folder} has no split {split!r}: neither {stem}.{source} and {stem}.{target} "
        f"nor {stem}.tsv, plain or .gz"
    )


def read_split_of_file(path, split, source, target):
    """Reads the split "train" or "val" of one TSV file, or all of it."""
    if split not in ("train", "val", None):
        raise FileNotFoundError(f"{path} has no split {split!r}, only train and val")
    pairs = read_tsv(path, source, target)
    rows = list(zip(pairs.sources, pairs.targets, strict=True))
    rows = held_out(path, rows, split, "pairs")
    return ParallelText(*map(list, zip(*rows, strict=True)))


def held_out(file, examples, part, unit="examples"):
    """The examples of "train" or "val" in a file without splits; every tenth is for validation.

    If ``part`` is None, all of them.
    """
    if part is not None and len(examples) < EVERY:
        raise ValueError(f"{file} must have at least {EVERY} {unit}, for a validation split")
    if not examples:
        raise ValueError(f"{file} has no {unit}")
    if part is None:
        return examples
    return [x for i, x in enumerate(examples) if (i % EVERY == EVERY - 1) == (part == "val")]


def find_file(folder, name):
    """The path of ``name`` or ``name``.gz in a folder, or None."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_lines(path):
    """Reads the lines of a UTF-8 file, plain or .gz."""
    path = Path(path)
    content = read_data(path)
    if not content.strip():
        raise ValueError(f"{path} is empty")
    text = content.rstrip(b"\r\n")
    if b"\r" in text and b"\n" not in text:  # line endings of old Macs
        content = text.replace(b"\r", b"\n")
    lines = []
    # Only a newline ends a line: U+2028 and others, at which `splitlines` splits, are text.
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8: {error.reason}") from None
    lines[0] = lines[0].removeprefix("\ufeff")
    return lines
