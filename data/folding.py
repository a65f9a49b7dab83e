"""Structures of proteins from files, and batches of them for `ESMFold.fit`."""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ..files import ends_with
from .batches import Buckets, check_sizes, fill
from .labelled import SPLITS
from .parallel import held_out
from .residues import LETTERS
from .structure_files import read_structure
from .structures import Structure
from .torsions import atom14, group_frames, torsion_angles

SUFFIXES = (".pdb", ".cif", ".mmcif", ".ent")
PAD = len(LETTERS)  # the residue that fills a row
CLAMPED = 0.9  # fraction of the rows whose backbone errors are limited (Jumper et al., 1.11.5)


def read_structures(path: str | PathLike[str], split: str | None = "train") -> dict[str, Structure]:
    """Reads the structures in the files of a folder, ``{name of the file: structure}``.

    The files are ``*.pdb``, ``*.ent``, ``*.cif`` and ``*.mmcif``, plain or .gz, in the folders
    ``train``, ``val`` (or ``dev``) and ``test``; or in one folder, where every tenth is for
    validation. Of one file, the same structure is for training and validation: a test whether a
    network can learn it.

    >>> structures = polyhead.data.read_structures("globins")  # doctest: +SKIP

    Args:
        split: "train", "val" or "test"; None reads all of a folder without splits.

    Raises:
        FileNotFoundError: the folder or the split does not exist.
        ValueError: a file is invalid, see `read_structure`; the message names it.
    """
    path = Path(path)
    if split not in (None, *SPLITS):
        raise ValueError(f"split must be train, val or test: {split!r}")
    if path.is_file():
        if split == "test":
            raise FileNotFoundError(f"{path} is one file, without a test split")
        return {path.name: read_structure(path)}
    if not path.is_dir():
        raise FileNotFoundError(f"no folder of structures {path}")
    folders = {s: [path / n for n in SPLITS[s] if (path / n).is_dir()] for s in SPLITS}
    if any(folders.values()) or split == "test":
        if split is None:
            raise ValueError(f"{path} has splits: pass split, one of {', '.join(SPLITS)}")
        if not folders[split]:
            raise FileNotFoundError(f"{path} has no split {split!r}: no folder {split}")
        path, part = folders[split][0], None
    else:
        part = split
    files = sorted(x for x in path.iterdir() if is_structure(x.name) and x.is_file())
    return {x.name: read_structure(x) for x in held_out(path, files, part, "structures")}


def is_structure(name):
    return ends_with(name, SUFFIXES) and not name.startswith(".")


class Chain(NamedTuple):
    """One protein of N residues with the targets of its prediction, see `structure_batches`."""

    residues: np.ndarray
    positions: np.ndarray
    atoms: np.ndarray
    atom_mask: np.ndarray
    rotations: np.ndarray
    origins: np.ndarray
    frame_mask: np.ndarray
    torsions: np.ndarray
    torsion_mask: np.ndarray


def chains(structure: Structure) -> list[Chain]:
    """The chains of a structure, each with the mean of its CA atoms at the origin."""
    found = []
    for chain in range(len(structure.chain_names)):
        rows = np.flatnonzero(structure.chain == chain)
        residues, mask = structure.residues[rows], structure.mask[rows]
        centers = structure.positions[rows][mask[:, 1], 1]
        center = centers.mean(0) if len(centers) else 0  # float32 is exact near 0
        points = np.where(mask[..., None], structure.positions[rows] - center, 0)
        atoms, atom_mask = atom14(points, mask, residues)
        rotations, origins, frame_mask = group_frames(points, mask, residues)
        torsions = torsion_angles(points, mask, residues)
        found.append(
            Chain(
                residues=residues,
                positions=places(structure.numbers[rows]),
                atoms=atoms,
                atom_mask=atom_mask,
                rotations=rotations,
                origins=origins,
                frame_mask=frame_mask,
                torsions=torsions.values,
                torsion_mask=torsions.mask,
            )
        )
    return found


def places(numbers: np.ndarray) -> np.ndarray:
    """The places (N,) of residues in their chain, from 0, for the ``numbers`` (N,) in its file.

    They jump where numbers are missing, and rise by 1 where a number is repeated (3, 3A, 3B) or
    falls.

    >>> polyhead.data.folding.places(np.array([7, 8, 8, 9, 20, 2]))
    array([ 0,  1,  2,  3, 14, 15])
    """
    return np.concatenate([[0], np.cumsum(np.maximum(np.diff(numbers), 1))])[: len(numbers)]


def structure_batches(
    structures: Iterable[Structure] | Mapping[str, Structure],
    batch_size: int = 1,
    crop: int = 256,
    buckets: int = 4,
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
    mask_rate: float = 0.0,
) -> tf.data.Dataset:
    """Batches of ``(inputs, labels, sample_weight)`` for `ESMFold.fit`.

    The inputs are, for rows of N residues,

    - ``residues`` and ``positions`` (B, N), their `places` in the chain;
    - ``atoms`` (B, N, 14, 3) in angstroms, and ``atom_mask`` (B, N, 14);
    - ``rotations`` (B, N, 8, 3, 3), ``origins`` (B, N, 8, 3) and ``frame_mask`` (B, N, 8) of the
      rigid groups; ``torsions`` (B, N, 7, 2) and ``torsion_mask`` (B, N, 7);
    - ``clamped`` (B,), whether errors of the backbone are limited: in 90% of the rows;
    - ``masked`` (B, N), whether the type of a residue is hidden, if there is a ``mask_rate``.

    Labels (B,) are 0: the network computes its losses. Rows that fill the last batch have weight 0.
    Chains of similar length share a batch: there are at most ``buckets`` sizes N, chosen for the
    least padding; see `Buckets`.

    Args:
        structures: each of their chains is an example. `read_structures` gives a dictionary.
        crop: the maximum N; of longer chains each epoch has another part.
        buckets: 1 pads all chains to the same size. A network that XLA compiles is compiled once
            for each size.
        shuffle: a new order each epoch, reproducible from ``seed``. Without it, all epochs have the
            same order, parts and hidden residues.
        start: see `classification_batches`.
        mask_rate: probability that the type of a residue is hidden from the network, drawn again
            in each epoch, so that a network cannot learn few sequences by heart.

    Raises:
        TypeError: something in ``structures`` is not a `Structure`.
        ValueError: there are no structures, a size is not positive, or the rate is not in [0, 1).

    >>> batches = polyhead.data.structure_batches([structure], crop=64)  # doctest: +SKIP
    """
    check_sizes(batch_size=batch_size, crop=crop, buckets=buckets)
    if not 0 <= mask_rate < 1:
        raise ValueError(f"mask_rate must be in [0, 1): {mask_rate}")
    if isinstance(structures, Structure):
        structures = [structures]
    given = list(structures.values() if isinstance(structures, Mapping) else structures)
    if wrong := [x for x in given if not isinstance(x, Structure)]:
        raise TypeError(f"structures must be Structures, not {type(wrong[0]).__name__}")
    examples = [chain for structure in given for chain in chains(structure)]
    if not examples:
        raise ValueError("there are no structures")
    lengths = np.array([len(chain.residues) for chain in examples])
    rounded = -(-lengths // 8) * 8  # a length is not worth a compilation to save few residues
    crop = min(crop, int(rounded.max()))
    plan = Buckets(np.minimum(rounded, crop), None, buckets, batch_size)
    tables = {
        name: tf.constant(np.concatenate([getattr(chain, name) for chain in examples]))
        for name in Chain._fields
    }
    first = tf.constant(np.cumsum(lengths) - lengths, tf.int32)
    lengths = tf.constant(lengths, tf.int32)

    def batch(rows, size, length, number):
        key = tf.stack([tf.cast(seed, tf.int64), number])
        key = tf.random.experimental.stateless_fold_in(key, rows[0])  # no other batch has this row
        keys = [tf.random.experimental.stateless_fold_in(key, i) for i in range(3)]
        width = tf.minimum(length, crop)  # lengths of buckets are rounded up
        real = tf.ensure_shape(fill(tf.ones_like(rows), batch_size), [batch_size])
        rows = tf.ensure_shape(fill(rows, batch_size), [batch_size])
        stop = tf.gather(lengths, rows) * real
        spare = tf.maximum(stop - width, 0)
        shares = tf.random.stateless_uniform([batch_size], keys[0])
        begin = tf.cast(shares * tf.cast(spare + 1, tf.float32), tf.int32)
        begin = tf.minimum(begin, spare)  # float32 may round up
        index = begin[:, None] + tf.range(width)
        exists = index < stop[:, None]
        index = tf.where(exists, tf.gather(first, rows)[:, None] + index, 0)
        found = {}
        for name, table in tables.items():
            part = tf.gather(table, index)
            kept = tf.reshape(exists, [batch_size, width, *[1] * (table.shape.rank - 1)])
            value = PAD if name == "residues" else 0
            found[name] = tf.where(kept, part, tf.cast(value, part.dtype))
        found["clamped"] = tf.random.stateless_uniform([batch_size], keys[1]) < CLAMPED
        if mask_rate:
            shares = tf.random.stateless_uniform([batch_size, width], keys[2])
            found["masked"] = shares < mask_rate
        return found, tf.zeros([batch_size]), tf.cast(real, tf.float32)

    def epoch(number):
        return (tf.cast(number, tf.int64) if shuffle else tf.zeros([], tf.int64),)

    return plan.batches(batch, shuffle, seed, start, sample=epoch)
