"""The PDB format 3.3: the text of a `Structure`, and of predictions in TensorFlow's graph."""

from typing import Any

import numpy as np
import tensorflow as tf

from .residues import ATOM37, ATOM37_MASK, ATOM37_TO_ATOM14, LETTERS, NAMES
from .structures import CHAINS, Structure

# What the columns of the format have room for; positions, in angstroms, are between the limits.
MAX_SERIAL, MAX_NUMBER, MIN_NUMBER = 99_999, 9_999, -999
MIN_POSITION, MAX_POSITION = np.float32(-999.9995), np.float32(10_000)
SMALL = np.float32(0.0005)  # smaller positions are written as 0.000, without a sign


def pdb_file(structure: Structure) -> str:
    """The text of `Structure.pdb`.

    >>> from polyhead.data.pdb import pdb_file
    >>> pdb_file(polyhead.data.read_structure("1abc.cif"))  # doctest: +SKIP
    """
    check_room(structure)
    factors, lines, serial = structure.displayed, [], 0
    positions = np.where(abs(structure.positions) < SMALL, 0, structure.positions)
    for k, name in enumerate(structure.chain_names):
        place = None
        for i in np.flatnonzero((structure.chain == k) & structure.mask.any(axis=1)):
            insertion = structure.insertions[i] or " "
            place = f"{NAMES[structure.residues[i]]} {name}{structure.numbers[i]:4d}{insertion}"
            for slot in np.flatnonzero(structure.mask[i]):
                serial, atom = serial + 1, ATOM37[slot]
                x, y, z = positions[i, slot]
                lines.append(
                    f"ATOM  {serial:5d}  {atom:<3} {place}   {x:8.3f}{y:8.3f}{z:8.3f}"
                    f"  1.00{factors[i, slot]:6.2f}{atom[0]:>12}  \n"
                )
        if place:
            serial += 1
            lines.append(f"{f'TER   {serial:5d}      {place}':<80}\n")
    return "".join(lines) + f"{'END':<80}\n"


def check_room(structure):
    """Checks that the columns of the format have room for the structure."""
    mask, names = structure.mask, structure.chain_names
    lines = mask.sum() + len(set(structure.chain[mask.any(axis=1)]))
    positions, factors = structure.positions[mask], structure.displayed[mask]
    low, high = structure.numbers.min(initial=1), structure.numbers.max(initial=1)
    for is_wrong, problem in (
        (len(names) > len(CHAINS), f"{len(names)} chains, more than {len(CHAINS)}"),
        (any(len(x) > 1 for x in names), f"the chain name {max(names, key=len, default='')!r}"),
        (lines > MAX_SERIAL, f"{mask.sum()} atoms"),
        (high > MAX_NUMBER, f"the residue number {high}"),
        (low < MIN_NUMBER, f"the residue number {low}"),
        (
            ((positions <= MIN_POSITION) | (positions >= MAX_POSITION)).any(),
            "positions outside of -999.999 to 9999.999 angstroms",
        ),
        (
            ((factors <= -99.995) | (factors >= 999.995)).any(),
            "B-factors outside of -99.99 to 999.99",
        ),
    ):
        if is_wrong:
            raise ValueError(f"the PDB format has no room for {problem}: save it as .cif")


def pdb_text(residues: Any, mask: Any, positions: Any, plddt: Any) -> tf.Tensor:
    """Writes predicted proteins of one chain as PDB files: `Structure.pdb` for B proteins.

    It only uses operations of core TensorFlow, so that TensorFlow Serving can run it. The text of a
    protein that the format has no room for is empty, and so is that of one with positions or pLDDT
    that are not finite.

    Args:
        residues: (B, N), numbered as `polyhead.data.residues.LETTERS`; others are X, without atoms.
        mask: (B, N), True for residues and False for padding.
        positions: (B, N, 14, 3), float32, in angstroms.
        plddt: (B, N, 37), float32, from 0 to 100.

    Returns:
        the texts (B,).

    >>> from polyhead.data.pdb import pdb_text
    >>> from polyhead.data.residues import ATOM14_POSITION
    >>> residues = np.array([[7, 0]])
    >>> positions, plddt = ATOM14_POSITION[residues], np.full((1, 2, 37), 90.5, "float32")
    >>> text = pdb_text(residues, residues >= 0, positions, plddt)[0].numpy().decode()
    >>> print(text[:80])
    ATOM      1  N   GLY A   1      -0.572   1.337   0.000  1.00 90.50           N
    """
    mask = tf.convert_to_tensor(mask)
    residues = tf.cast(residues, tf.int32)
    unknown = LETTERS.index("X")
    residues = tf.where((residues < 0) | (residues > unknown), unknown, residues)
    batch = tf.shape(residues)[0]
    atoms = tf.where(tf.gather(tf.constant(ATOM37_MASK), residues) & mask[..., None])  # (A, 3)
    row, place, slot = (tf.cast(x, tf.int32) for x in tf.unstack(atoms, axis=1))
    residue = tf.gather_nd(residues, atoms[:, :2])
    number = tf.gather_nd(tf.cumsum(tf.cast(mask, tf.int32), axis=1), atoms[:, :2])
    slot14 = tf.gather_nd(tf.constant(ATOM37_TO_ATOM14), tf.stack([residue, slot], axis=1))
    position = tf.gather_nd(positions, tf.stack([row, place, slot14], axis=1))
    confidence = tf.gather_nd(plddt, atoms)
    # NaN is not within any limits.
    fits = tf.reduce_all((position > MIN_POSITION) & (position < MAX_POSITION), axis=1)
    fits &= (confidence >= 0) & (confidence <= 100)

    count = tf.math.unsorted_segment_sum(tf.ones_like(row), row, batch)
    first = tf.cumsum(count, exclusive=True)
    serial = tf.range(tf.size(row)) - tf.gather(first, row) + 1
    position = tf.where(tf.abs(position) < SMALL, 0.0, position)
    names = tf.gather(tf.constant(NAMES), residue)
    number_text = tf.strings.as_string(number, width=4)
    lines = tf.strings.join(
        [
            "ATOM  ",
            tf.strings.as_string(serial, width=5),
            tf.gather(tf.constant([f"  {name:<3} " for name in ATOM37]), slot),
            names,
            " A",
            number_text,
            "    ",
            tf.strings.reduce_join(tf.strings.as_string(position, 3, width=8), axis=1),
            "  1.00",
            tf.strings.as_string(confidence, 2, width=6),
            tf.gather(tf.constant([f"{name[0]:>12}  \n" for name in ATOM37]), slot),
        ]
    )
    # Row by row, the last atom; after all of them stands one for rows without atoms.
    last = tf.where(count > 0, first + count - 1, tf.size(row))
    end = [
        tf.strings.as_string(count + 1, width=5),
        tf.fill([batch], " " * 6),
        *(tf.gather(tf.concat([x, [""]], axis=0), last) for x in (names, number_text)),
    ]
    end = tf.strings.join(["TER   ", *end[:3], " A", end[3], " " * 54 + "\n"])
    fits = tf.math.unsorted_segment_sum(tf.cast(~fits, tf.int32), row, batch) == 0
    fits &= count < MAX_SERIAL
    fits &= tf.reduce_sum(tf.cast(mask, tf.int32), axis=1) <= MAX_NUMBER
    text = tf.strings.join(
        [
            tf.strings.unsorted_segment_join(lines, row, batch),
            tf.where(count > 0, end, ""),
            f"{'END':<80}\n",
        ]
    )
    return tf.where(fits, text, "")
