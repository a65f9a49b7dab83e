"""Torsions and frames of residues with known atoms: the targets of structure prediction.

All functions take N residues: ``residues`` (N,), numbered as `polyhead.data.residues.LETTERS`, and
``positions`` (N, 14, 3) or (N, 37, 3) in angstroms with a boolean ``mask`` of the known atoms,
(N, 14) or (N, 37). Results are NumPy arrays.
"""

from typing import NamedTuple

import numpy as np

from .residues import ATOM14_MASK, ATOM14_TO_ATOM37, CHI_ATOMS, CHI_MASK, CHI_SYMMETRIC, axes

BOND = 2.0  # angstroms; the C of a residue and the N of the next one are 1.33 apart


class Torsions(NamedTuple):
    """The torsions of N residues: pre-omega, phi, psi and chi1 to chi4.

    Attributes:
        values: their sines and cosines (N, 7, 2), float32; 0 where unknown.
        alternatives: ``values``, but with symmetric chis turned by pi (N, 7, 2): only the names of
            atoms differ.
        mask: which are known (N, 7).
    """

    values: np.ndarray
    alternatives: np.ndarray
    mask: np.ndarray


def atom14(
    positions: np.ndarray, mask: np.ndarray, residues: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns atoms (N, 37) or (N, 14) in the slots of atom14; X has none.

    >>> from polyhead.data.torsions import atom14
    >>> positions, mask = atom14(np.ones((3, 37, 3)), np.ones((3, 37), bool), np.array([0, 7, 20]))
    >>> positions.shape, mask.sum(axis=1)
    ((3, 14, 3), array([5, 4, 0]))
    """
    if positions.shape[1] == 37:
        slots = ATOM14_TO_ATOM37[residues]
        positions = np.take_along_axis(positions, slots[..., None], axis=1)
        mask = np.take_along_axis(mask, slots, axis=1)
    mask = mask & ATOM14_MASK[residues]
    return np.where(mask[..., None], positions, 0), mask


def torsion_angles(positions: np.ndarray, mask: np.ndarray, residues: np.ndarray) -> Torsions:
    """Computes the torsions of residues (Jumper et al. 2021, supplement, table 2).

    Psi is measured by the oxygen, which is opposite the next N. Pre-omega and phi need a previous
    residue that is bound to this one: its C is within 2 angstroms of N.

    >>> from polyhead.data.residues import ATOM14_MASK, ATOM14_POSITION
    >>> from polyhead.data.torsions import torsion_angles
    >>> residues = np.array([15, 0])  # serine has one chi, alanine none
    >>> torsions = torsion_angles(ATOM14_POSITION[residues], ATOM14_MASK[residues], residues)
    >>> torsions.mask.astype(int)
    array([[0, 0, 1, 1, 0, 0, 0],
           [0, 0, 1, 0, 0, 0, 0]])
    """
    positions, mask = atom14(positions, mask, residues)
    count = len(residues)
    before = np.maximum(np.arange(count) - 1, 0)
    ends = np.concatenate([positions[before, 1:3], positions[:, :4]], axis=1)
    known = np.concatenate([mask[before, 1:3], mask[:, :4]], axis=1)
    apart = np.linalg.norm(ends[:, 1] - ends[:, 2], axis=-1)
    known[:, :2] &= ((np.arange(count) > 0) & (apart < BOND))[:, None]
    # CA, C of the previous residue; N, CA, C, O.
    slots = np.array([[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]])
    chis = CHI_ATOMS[residues]
    row = np.arange(count)[:, None, None]
    points = np.concatenate([ends[:, slots], positions[row, chis]], axis=1)  # (N, 7, 4, 3)
    known = np.all(np.concatenate([known[:, slots], mask[row, chis]], axis=1), axis=-1)
    known[:, 3:] &= CHI_MASK[residues]
    values = dihedral(*np.moveaxis(points.astype("float64"), 2, 0))
    values[:, 2] *= -1
    known &= np.isfinite(values).all(axis=-1)
    values = np.where(known[..., None], values, 0).astype("float32")
    symmetric = np.pad(CHI_SYMMETRIC[residues], [(0, 0), (3, 0)])
    return Torsions(values, np.where(symmetric[..., None], -values, values), known)


def dihedral(a, b, c, d):
    """The sine and cosine (..., 2) of the torsion of four points (..., 3); NaN if it has none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        axis = (c - b) / np.linalg.norm(c - b, axis=-1, keepdims=True)
        v, w = (x - (x * axis).sum(-1, keepdims=True) * axis for x in (a - b, d - c))
        both = np.stack([(np.cross(axis, v) * w).sum(-1), (v * w).sum(-1)], axis=-1)
        return both / np.linalg.norm(both, axis=-1, keepdims=True)


def group_frames(
    positions: np.ndarray, mask: np.ndarray, residues: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the frames of the eight rigid groups, see `residues.ideal_frames`.

    The first one is the backbone; X has no other. Frames that are not known are the identity.

    Returns:
        rotations (N, 8, 3, 3), origins (N, 8, 3), and which frames are known (N, 8).

    >>> from polyhead.data.residues import ATOM14_MASK, ATOM14_POSITION
    >>> from polyhead.data.torsions import group_frames
    >>> residues = np.array([0])
    >>> frames = group_frames(ATOM14_POSITION[residues], ATOM14_MASK[residues], residues)
    >>> rotation, origin, known = frames
    >>> rotation[0, 0].round(3) + 0
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]], dtype=float32)
    >>> known.astype(int)
    array([[1, 0, 0, 1, 0, 0, 0, 0]])
    """
    count = len(residues)
    backbone, has_backbone = positions[:, :3], mask[:, :3].all(axis=1)
    positions, mask = atom14(positions, mask, residues)
    # A point on each frame's x axis at x < 0 or x > 0, its origin, and a point at y > 0.
    slots = np.zeros((count, 8, 3), int)
    slots[:, 3] = 1, 2, 3
    slots[:, 4:] = CHI_ATOMS[residues][:, :, 1:]
    row = np.arange(count)[:, None, None]
    before, origin, plane = np.moveaxis(positions[row, slots].astype("float64"), 2, 0)
    along = origin - before
    along[:, 0], origin[:, 0], plane[:, 0] = (
        backbone[:, 2] - backbone[:, 1],
        backbone[:, 1],
        backbone[:, 0],
    )
    known = np.all(mask[row, slots], axis=-1)
    known[:, 0], known[:, 1:3] = has_backbone, False
    known[:, 4:] &= CHI_MASK[residues]
    with np.errstate(invalid="ignore", divide="ignore"):
        rotation = axes(along, plane - origin)
    known &= np.isfinite(rotation).all(axis=(-2, -1))
    rotation = np.where(known[..., None, None], rotation, np.eye(3))
    origin = np.where(known[..., None], origin, 0)
    return rotation.astype("float32"), origin.astype("float32"), known
