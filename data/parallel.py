"""Parallel text: sentences and their translations, from files."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ParallelText:
    """``targets[i]`` translates ``sources[i]``."""

    sources: list[str]
    targets: list[str]

    def __post_init__(self):
        if len(self.sources) != len(self.targets):
            raise ValueError(
                f"sources and targets must be as many: {len(self.sources)} and {len(self.targets)}"
            )

    def __len__(self):
        return len(self.sources)


def read_parallel(source, target):
    """Two files, plain or .gz, of a sentence a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file and, where there is one, the line: not UTF-8, empty, or not
            as many lines in both.
    """
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise ValueError(
            f"the two files must have equally many lines: {len(sources)} in {source}, "
            f"{len(targets)} in {target}"
        )
    return ParallelText(sources, targets)


def read_tsv(path):
    """One file, plain or .gz, of lines ``source TAB target``; further columns are ignored."""
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise ValueError(f"{path}, line {number}: a line is source TAB target: {line[:80]!r}")
        pairs.append(columns[:2])
    return ParallelText([s for s, _ in pairs], [t for _, t in pairs])


def read_split(folder, split, source, target, variant=None):
    """A split of a folder in Multi30k's layout, or of one of TSV files.

    Multi30k's is a file a language: ``train.en.gz`` and ``train.de.gz``, or with the variant
    "lc.norm.tok" ``train.lc.norm.tok.en.gz``; plain files will do as well. A folder of TSV
    files has ``train.tsv`` or ``train.tsv.gz``, whose columns are source and target. The split
    "test" is also found as "test_2016_flickr".
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    names = [split, "test_2016_flickr"] if split == "test" else [split]
    for name in names:
        stem = f"{name}.{variant}" if variant else name
        files = [first_of(folder, f"{stem}.{language}") for language in (source, target)]
        if all(files):
            return read_parallel(*files)
        if tsv := first_of(folder, f"{stem}.tsv"):
            return read_tsv(tsv)
    stem = f"{split}.{variant}" if variant else split
    raise FileNotFoundError(
        f"{folder} has no split {split!r}: neither {stem}.{source} and {stem}.{target} "
        f"nor {stem}.tsv, plain or .gz"
    )


def first_of(folder, name):
    """The path of ``name`` or ``name``.gz in a folder, or None."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_lines(path):
    """The lines of a UTF-8 file, plain or .gz."""
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no complete gzip file: {error}") from None
    if not content.strip():
        raise ValueError(f"{path} is empty")
    lines = []
    # Only a newline ends a line: U+2028 and the like, on which `splitlines` cuts, are text.
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8: {error.reason}") from None
    lines[0] = lines[0].removeprefix("\ufeff")
    return lines
