"""Tables of amino acids: their atoms, rigid groups and torsions, read from residues.csv.

Residues are numbered in AlphaFold's order, `LETTERS`. The atoms of a residue are stored in 14 slots
in the order of the file (atom14), or in 37 slots, one for each atom name of any residue (atom37).
The tables have a row for each of the 21 residues; empty slots and the row of X are zero, but each
frame is a rotation.

A residue has eight rigid groups: the backbone, and the groups that the seven torsions rotate, which
are pre-omega, phi, psi and chi1 to chi4 (Jumper et al. 2021, supplement, section 1.8.4). Positions
are in angstroms.

>>> ATOM14[LETTERS.index("S")]
('N', 'CA', 'C', 'O', 'CB', 'OG')
"""

import csv
from pathlib import Path

import numpy as np


def read_rows():
    """The rows of residues.csv as dictionaries, without its comments."""
    lines = Path(__file__).with_suffix(".csv").read_text("utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


# The tokens of ESM-2: the amino acids by frequency, X, B, U, Z, O, and the gaps of alignments.
ESM_LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
ESM_TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *ESM_LETTERS, "<null_1>", "<mask>")

ROWS = read_rows()
LETTERS = "".join(dict.fromkeys(row["letter"] for row in ROWS)) + "X"  # X: any other residue
NAMES = (*dict.fromkeys(row["residue"] for row in ROWS), "UNK")
ATOM14 = tuple(tuple(row["atom"] for row in ROWS if row["residue"] == name) for name in NAMES)
ATOM37 = tuple(
    "N CA C CB O CG CG1 CG2 OG OG1 SG CD CD1 CD2 ND1 ND2 OD1 OD2 SD CE CE1 CE2 CE3 NE NE1 NE2 OE1 "
    "OE2 CH2 NH1 NH2 OH CZ CZ2 CZ3 NZ OXT".split()
)  # no residue of the file has OXT, the second oxygen of a chain's end

# The token of each residue (21,), and the residue of each token (33,), X for others.
TOKEN = np.array([ESM_TOKENS.index(letter) for letter in LETTERS], "int32")
TOKEN_RESIDUE = np.full(len(ESM_TOKENS), LETTERS.index("X"), "int32")
TOKEN_RESIDUE[TOKEN] = np.arange(len(LETTERS))

# The residue and the slots of each row.
RESIDUE = np.array([NAMES.index(row["residue"]) for row in ROWS])
SLOT14 = np.array([ATOM14[i].index(row["atom"]) for i, row in zip(RESIDUE, ROWS, strict=True)])
SLOT37 = np.array([ATOM37.index(row["atom"]) for row in ROWS])


def table(slots, count, values, dtype):
    """An array (21, count, ...) with the value of each row in its residue and slot, 0 elsewhere."""
    values = np.asarray(values, dtype)
    array = np.zeros((len(LETTERS), count, *values.shape[1:]), dtype)
    array[RESIDUE, slots] = values
    return array


# Which slots hold an atom (21, 14) and (21, 37), and the slot of an atom in the other layout.
ATOM14_MASK = table(SLOT14, 14, np.ones(len(ROWS)), "bool")
ATOM37_MASK = table(SLOT37, 37, np.ones(len(ROWS)), "bool")
ATOM14_TO_ATOM37 = table(SLOT14, 14, SLOT37, "int32")
ATOM37_TO_ATOM14 = table(SLOT37, 37, SLOT14, "int32")

# The rigid group of each atom (21, 14), and its position in the frame of the group (21, 14, 3).
ATOM14_GROUP = table(SLOT14, 14, [int(row["group"]) for row in ROWS], "int32")
POSITIONS = [[float(row[axis]) for axis in "xyz"] for row in ROWS]
ATOM14_POSITION = table(SLOT14, 14, POSITIONS, "float32")

# The slot of the atom with which an atom can be exchanged; of most atoms, their own (21, 14).
ATOM14_SWAP = np.tile(np.arange(14, dtype="int32"), (len(LETTERS), 1))
PARTNERS = [row["swap"] or row["atom"] for row in ROWS]
ATOM14_SWAP[RESIDUE, SLOT14] = [
    ATOM14[i].index(name) for i, name in zip(RESIDUE, PARTNERS, strict=True)
]


def find_chis():
    """The atoms of chi1 to chi4 (21, 4, 4), and which of these exist and are symmetric (21, 4).

    The atoms of a chi, as atom14 slots, are the last three of the previous chi and a new one.
    """
    atoms = np.zeros((len(LETTERS), 4, 4), "int32")
    mask, symmetric = (np.zeros((len(LETTERS), 4), "bool") for _ in range(2))
    for i, slot, row in zip(RESIDUE, SLOT14, ROWS, strict=True):
        if row["chi"]:
            chi = int(row["chi"]) - 1
            last = atoms[i, chi - 1, 1:] if chi else [ATOM14[i].index(a) for a in ("N", "CA", "CB")]
            atoms[i, chi] = [*last, slot]
            mask[i, chi] = True
            symmetric[i, chi] = bool(row["swap"])
    return atoms, mask, symmetric


# Adding pi to a symmetric chi only exchanges the names of atoms.
CHI_ATOMS, CHI_MASK, CHI_SYMMETRIC = find_chis()


def ideal_frames():
    """The frames of the groups at torsion 0: rotations (21, 8, 3, 3), translations (21, 8, 3).

    The frames of chi2 to chi4 are relative to that of the previous chi, the others to the backbone.
    The x axis is the axis of the torsion, and the origin is its second atom. The atom that defines
    the torsion has y > 0; for psi, this is the oxygen. Groups that a residue lacks have the
    identity.
    """
    rotation = np.tile(np.eye(3), (len(LETTERS), 8, 1, 1))
    translation = np.zeros((len(LETTERS), 8, 3))
    position = table(SLOT14, 14, POSITIONS, "float64")
    right = np.array([1.0, 0.0, 0.0])
    for i, names in enumerate(ATOM14[:-1]):
        n, ca, c = (position[i, names.index(name)] for name in ("N", "CA", "C"))
        rotation[i, 2], translation[i, 2] = axes(n - ca, right), n
        rotation[i, 3], translation[i, 3] = axes(c - ca, ca - n), c
        for chi in np.flatnonzero(CHI_MASK[i]):
            first, second, third = position[i, CHI_ATOMS[i, chi, :3]]
            if chi:  # the previous frame has its origin in the second atom, and the first at x < 0
                first, second = -right, 0 * right
            rotation[i, 4 + chi] = axes(third - second, first - second)
            translation[i, 4 + chi] = third
    return rotation.astype("float32"), translation.astype("float32")


def axes(x, y):
    """Rotations (..., 3, 3) whose x axis is along ``x``, and ``y`` in their xy plane at y > 0."""
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    y = y - x * (x * y).sum(-1, keepdims=True)
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-1)


GROUP_ROTATION, GROUP_TRANSLATION = ideal_frames()
# Which residues have atoms in each group (21, 8); only hydrogens move with pre-omega and phi.
GROUP_MASK = np.concatenate([ATOM14_MASK[:, :1] & [True, False, False, True], CHI_MASK], axis=1)
