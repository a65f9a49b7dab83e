"""Multiple sequence alignments of proteins, and their features for AlphaFold."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from .residues import LETTERS

GAP = len(LETTERS)  # after the 20 amino acids and X; then comes a mask, which alignments lack
CLASSES = GAP + 2
# How AlphaFold reads letters for several residues, or for a rare one.
OTHERS = dict(B="D", J="X", O="X", U="C", Z="E")
CODES = {letter: i for i, letter in enumerate(LETTERS)} | {"-": GAP}
CODES |= {letter: CODES[meant] for letter, meant in OTHERS.items()}


def read_a3m(path: str | PathLike[str]) -> list[str]:
    """The rows of the alignment in an A3M file, plain or compressed (.gz), for `AlphaFold.fold`.

    A row is a line ``>name`` and lines of letters; lines that begin with ``#`` are comments.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line before the first name has letters.

    >>> polyhead.training.write_file("query.a3m", b">query\\nMKT\\nAY\\n>other\\nMR-gAY\\n")
    >>> polyhead.data.read_a3m("query.a3m")
    ['MKTAY', 'MR-gAY']
    """
    from .parallel import read_lines  # it imports TensorFlow

    rows = []
    for number, line in enumerate(read_lines(path), 1):
        line = line.strip()
        if line.startswith(">"):
            rows.append([])
        elif line and not line.startswith("#"):
            if not rows:
                raise ValueError(f"{path}, line {number}: a row must follow its name: {line!r:.80}")
            rows[-1].append(line)
    return list(map("".join, rows))


def read_alignment(rows: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The residues (S, N) and deletions (S, N) of the ``rows`` of an alignment, as in A3M files.

    Args:
        rows: S sequences. The first is the query, of N letters; the others have a letter or a gap
            "-" for each of its residues. Lower-case letters are residues that the query lacks; the
            deletions of a residue are their number just before it.

    Returns:
        residues, numbered as `polyhead.data.residues.LETTERS`, 21 for a gap; and deletions.

    Raises:
        ValueError: the query is empty or has gaps, a row has another length, or a character is not
            a residue; the message names the row.

    >>> residues, deletions = polyhead.data.read_alignment(["MKV", "-KgaV"])
    >>> residues
    array([[12, 11, 19],
           [21, 11, 19]], dtype=int32)
    >>> deletions[1]
    array([0, 0, 2], dtype=int32)
    """
    rows = list(rows)
    if not rows or not rows[0]:
        raise ValueError("an alignment must have a first row with residues: the query")
    residues, deletions = [], []
    for i, row in enumerate(rows):
        codes, before, count = [], [], 0
        for letter in row:
            if "a" <= letter <= "z":
                count += 1
                continue
            if letter not in CODES:
                raise ValueError(f"row {i} has {letter!r}, which is not a residue: {row!r:.80}")
            codes.append(CODES[letter])
            before.append(count)
            count = 0
        residues.append(codes)
        deletions.append(before)
        if len(codes) != len(residues[0]):
            raise ValueError(
                f"row {i} must have {len(residues[0])} residues and gaps, as the query: "
                f"{len(codes)} in {row!r:.80}"
            )
    if GAP in residues[0] or len(rows[0]) != len(residues[0]):
        raise ValueError(f"the query must have no gaps and no lower-case letters: {rows[0]!r:.80}")
    return np.array(residues, "int32"), np.array(deletions, "int32")


def alignment_features(rows: Sequence[str], max_msa: int, max_extra: int) -> dict[str, Any]:
    """The inputs of `AlphaFold` for the ``rows`` of an alignment, see `read_alignment`.

    (Jumper et al. 2021, supplement, sections 1.2.6 to 1.2.9, and AlphaFold's code.) The first rows
    are the centers of clusters. Each other row belongs to the center with which it shares most
    residues; then its only effects are the profile of the cluster and the extra alignment. Unlike
    in AlphaFold, nothing is random: no rows are drawn, and none of their residues is masked.

    Args:
        max_msa: the maximum number of clusters.
        max_extra: the maximum number of rows of the extra alignment, which are the next ones.

    Returns:
        a dictionary with ``residues`` (N,) of the query, numbered as
        `polyhead.data.residues.LETTERS`; ``msa`` (S, N, 49), of each center: residue (23, one-hot),
        whether there are deletions, their number, the profile of the cluster (23), and the mean
        number of deletions; and ``extra`` (E, N, 25), the first three of each other row. Numbers of
        deletions are squashed to [0, 1). S and E are the numbers of rows; E may be 0.

    Raises:
        ValueError: see `read_alignment`.

    >>> found = polyhead.data.alignment_features(["MKV", "-KgaV", "MRV"], max_msa=2, max_extra=9)
    >>> found["msa"].shape, found["extra"].shape
    ((2, 3, 49), (1, 3, 25))
    """
    residues, deletions = read_alignment(rows)
    centers, others = residues[:max_msa], residues[max_msa:]
    cluster = nearest(centers, others)
    size = np.bincount(cluster, minlength=len(centers))[:, None] + 1.0
    profile = one_hot(centers)
    for i in range(CLASSES):
        np.add.at(profile[..., i], cluster, (others == i).astype("float32"))
    total = deletions[:max_msa].astype("float32")
    np.add.at(total, cluster, deletions[max_msa:])
    msa = [*describe(centers, deletions[:max_msa]), profile / size[..., None]]
    extra = describe(others[:max_extra], deletions[max_msa : max_msa + max_extra])
    query = [LETTERS.find(letter) for letter in rows[0]]  # here B, J, O, U and Z are X
    return {
        "residues": np.array([len(LETTERS) - 1 if i < 0 else i for i in query], "int32"),
        "msa": np.concatenate([*msa, squash(total / size)[..., None]], axis=-1, dtype="float32"),
        "extra": np.concatenate(extra, axis=-1, dtype="float32"),
    }


def nearest(centers, others):
    """The center of each of the ``others`` (E, N) that has most residues in common, gaps not."""
    common = np.zeros((len(others), len(centers)), "float32")
    for i in range(GAP):
        common += (others == i).astype("float32") @ (centers == i).T.astype("float32")
    return common.argmax(axis=1)


def describe(residues, deletions):
    return one_hot(residues), (deletions > 0)[..., None], squash(deletions)[..., None]


def one_hot(residues):
    return np.eye(CLASSES, dtype="float32")[residues]


def squash(deletions):
    return np.arctan(deletions / 3) * (2 / np.pi)
