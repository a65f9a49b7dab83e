"""Protein sequences in FASTA files."""

import re
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from ..files import ends_with
from .labelled import SPLITS, split_file
from .parallel import find_file, held_out, read_lines
from .tokenizers.residues import Residues, check_letters

SUFFIXES = (".fasta", ".fa", ".faa")
# "A23V": in a graph, where J is no residue; and for errors that name what is wrong.
MUTATION = "([A-IK-Z])([1-9][0-9]{0,7})([A-IK-Z])"
CHANGE = re.compile("([A-Z])([1-9][0-9]*)([A-Z])")


class Protein(NamedTuple):
    """A protein: its name and description, which are its header in a file, and its sequence.

    >>> polyhead.data.Protein("1abc_A", "chain A", "MKV").sequence
    'MKV'
    """

    name: str
    description: str
    sequence: str


def read_proteins(path: str | PathLike[str], split: str | None = "train") -> list[Protein]:
    """Reads the proteins of a FASTA file, plain or compressed (.gz), or of a folder of them.

    A protein is a line ``>name description`` and lines of residues. A folder has the files
    ``train``, ``val`` (or ``dev``) and ``test``, ending in ``.fasta``, ``.fa`` or ``.faa``; for
    files without ``val`` see `read_labelled_texts`. Similar proteins on both sides make validation
    too easy: cluster them first.

    >>> polyhead.training.write_file("two.fasta", b">a first\\nMKT\\nAYI\\n>b\\nGG\\n")
    >>> [(p.name, p.sequence) for p in polyhead.data.read_proteins("two.fasta", None)]
    [('a', 'MKTAYI'), ('b', 'GG')]

    Args:
        split: "train", "val" or "test"; None reads all of a file.

    Raises:
        FileNotFoundError: the file or the split does not exist.
        ValueError: a protein has no header or no sequence, or a letter is not a residue; the
            message names the file and the line.
    """
    file, part = split_file(path, split, SUFFIXES)
    proteins, number = [], 0
    parts = []  # of the last protein's sequence
    for number, line in enumerate(read_lines(file), 1):
        if line.startswith(">"):
            join_sequence(file, number, proteins, parts)
            name, _, description = line[1:].strip().partition(" ")
            proteins.append(Protein(name, description.strip(), ""))
        elif line.strip() and not line.startswith(";"):  # a comment
            if not proteins:
                raise ValueError(f"{file}, line {number}: a sequence needs a header, '>name'")
            try:
                check_letters(line, mask=False)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
            parts.append("".join(line.split()).upper())
    join_sequence(file, number + 1, proteins, parts)
    return held_out(file, proteins, part, "proteins")


def join_sequence(file, number, proteins, parts):
    """Gives the last of the proteins above a line its sequence, the ``parts``; clears them."""
    if proteins and not any(parts):
        raise ValueError(f"{file}, line {number - 1}: {proteins[-1].name!r} has no sequence")
    if proteins:
        proteins[-1] = proteins[-1]._replace(sequence="".join(parts))
    parts.clear()


def has_proteins(path: str | PathLike[str]) -> bool:
    """Whether ``path`` is a FASTA file by its name, or a folder with one of a split.

    >>> polyhead.data.proteins.has_proteins("two.fasta.gz")
    True
    """
    path = Path(path)
    if not path.is_dir():
        return ends_with(path.name, SUFFIXES)
    names = (name for names in SPLITS.values() for name in names)
    return any(find_file(path, f"{name}{end}") for name in names for end in SUFFIXES)


def read_mutations(
    tokenizer: Residues, tokens: tf.Tensor, mutations: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Reads ``mutations`` (B,), such as "A23V", of the sequences ``tokens`` (B, T), in a graph.

    Returns:
        the index of each residue among the tokens, the tokens of the old and the new residue, and
        whether the mutation has this form and the sequence the old residue there, each (B,).
    """
    place = tf.strings.regex_replace(mutations, MUTATION, r"\2")
    valid = tf.strings.regex_full_match(mutations, MUTATION)
    place = tf.strings.to_number(tf.where(valid, place, "0"), tf.int32)
    at = tf.where(place < tf.shape(tokens)[1], place, 0)
    old, new = (
        tokenizer.encode(tf.strings.regex_replace(mutations, MUTATION, part), 3)
        for part in (r"\1", r"\3")
    )
    old, new = (x.to_tensor(0, shape=[None, 3])[:, 1] for x in (old, new))
    return at, old, new, valid & (tf.gather(tokens, at, axis=1, batch_dims=1) == old)


def read_changes(mutation: str, pieces: list[str]) -> list[tuple[str, int, str]]:
    """Reads "A23V:G30D" as a list of (old, place, new), in the order of places.

    Args:
        pieces: the tokens of the sequence; residue 1 is token 1, after ``<cls>``.
    """
    changes = []
    for part in mutation.split(":"):
        if not (found := CHANGE.fullmatch(part)):
            raise ValueError(f"a mutation must have the form A23V or A23V:G30D: {mutation!r:.100}")
        old, place, new = found[1], int(found[2]), found[3]
        if place > len(pieces) - 2:
            raise ValueError(
                f"{mutation}: the sequence has {len(pieces) - 2} residues, not {place}"
            )
        if pieces[place] != old:
            raise ValueError(f"{mutation}: residue {place} of the sequence is {pieces[place]}")
        if new == "J":  # the only letter without a residue
            raise ValueError(f"{mutation}: {new} is not a residue")
        changes.append((old, place, new))
    changes.sort(key=lambda change: change[1])
    if len({place for _, place, _ in changes}) < len(changes):
        raise ValueError(f"{mutation} changes a residue twice")
    return changes
