"""Frames by themselves, and with the tables of residues: helices and real proteins."""

import os
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from polyhead.data import read_structure, residues
from polyhead.data.residues import CHI_ATOMS, CHI_MASK, LETTERS
from polyhead.data.torsions import atom14, group_frames, torsion_angles
from polyhead.layers import frames
from tests.conftest import TENSORFLOW

DATA = os.environ.get("POLYHEAD_DATA")
PROTEINS = ["4zey.cif", "2rbg.pdb", "3u8v.cif", "4i6p.cif", "glucagon.pdb"]
ALL = np.arange(20)


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def random_frames(*shape, seed=0):
    rotation = frames.from_quaternion(random_array(*shape, 4, seed=seed))
    return rotation, 5 * random_array(*shape, 3, seed=seed + 1)


def matrices(pair):
    """Frames as matrices (..., 4, 4)."""
    rotation, translation = map(array, pair)
    matrix = np.zeros((*translation.shape[:-1], 4, 4), "float32")
    matrix[..., :3, :3], matrix[..., :3, 3], matrix[..., 3, 3] = rotation, translation, 1
    return matrix


def circle(angles):
    """Sines and cosines (..., 2)."""
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).astype("float32")


def build(sequence, backbone, torsions):
    """Atoms (N, 14, 3) of residues (N,) with the angles ``torsions`` (N, 7)."""
    groups = residues.GROUP_ROTATION[sequence], residues.GROUP_TRANSLATION[sequence]
    placed = frames.torsion_frames(backbone, circle(torsions), groups)
    tables = residues.ATOM14_GROUP, residues.ATOM14_POSITION, residues.ATOM14_MASK
    return array(frames.place_atoms(placed, *(table[sequence] for table in tables)))


def measure(sequence, atoms, mask=None):
    """The angles psi and chi1 to chi4 (N, 7) of ``atoms`` (N, 14, 3); others are 0."""
    mask = residues.ATOM14_MASK[sequence] if mask is None else mask
    angles = np.arctan2(*np.moveaxis(torsion_angles(atoms, mask, sequence).values, -1, 0))
    angles[:, :2] = 0
    return angles


def test_composition_is_the_product_of_matrices():
    first, second = random_frames(4, 5), random_frames(4, 5, seed=2)
    found = matrices(frames.compose(first, second))
    np.testing.assert_allclose(found, matrices(first) @ matrices(second), atol=1e-5)


def test_frames_map_points_and_back():
    pair, points = random_frames(4, 5), random_array(4, 5, 3, seed=4)
    found = frames.apply(pair, points)
    expected = matrices(pair) @ np.concatenate([points, np.ones((4, 5, 1))], -1)[..., None]
    np.testing.assert_allclose(array(found), expected[..., :3, 0], atol=1e-5)
    np.testing.assert_allclose(array(frames.invert_apply(pair, found)), points, atol=1e-5)
    same = frames.apply(frames.identity((4, 5)), points)
    np.testing.assert_array_equal(array(same), points)


def test_quaternions_give_rotations_about_their_axis():
    quaternion = random_array(6, 4)
    rotation = array(frames.from_quaternion(quaternion))
    np.testing.assert_allclose(rotation @ rotation.swapaxes(-1, -2), [np.eye(3)] * 6, atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)
    axis = quaternion[:, 1:] / np.linalg.norm(quaternion[:, 1:], axis=-1, keepdims=True)
    np.testing.assert_allclose((rotation @ axis[..., None])[..., 0], axis, atol=1e-6)
    half = np.arctan2(np.linalg.norm(quaternion[:, 1:], axis=-1), quaternion[:, 0])
    np.testing.assert_allclose(
        np.trace(rotation, axis1=1, axis2=2), 1 + 2 * np.cos(2 * half), atol=1e-5
    )


def test_frames_of_points_hold_them_where_they_belong():
    points = random_array(3, 6, 3)
    pair = frames.from_points(*points)
    plane, origin, axis = (array(frames.invert_apply(pair, x)) for x in points)
    np.testing.assert_allclose(plane[:, 2], 0, atol=1e-6)
    assert (plane[:, 1] > 0).all() and (axis[:, 0] > 0).all()
    np.testing.assert_allclose(origin, 0, atol=1e-6)
    np.testing.assert_allclose(axis[:, 1:], 0, atol=1e-6)
    rotation, translation = frames.from_points(*np.zeros((3, 2, 3), "float32"))
    assert not array(rotation).any() and not array(translation).any()


def test_built_residues_have_the_given_torsions():
    """All residues, with random angles and frames: wrong signs, orders and groups are found."""
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, (20, 7))
    backbone = random_frames(20)
    atoms = build(ALL, backbone, angles)
    wrong = measure(ALL, atoms) - angles
    wrong = np.angle(np.exp(1j * wrong))[:, 2:] * np.concatenate(
        [np.ones((20, 1)), CHI_MASK[:20]], 1
    )
    assert abs(wrong).max() < 0.02  # ideal positions are rounded
    n, ca, c = np.moveaxis(atoms[:, :3], 1, 0)
    for found, expected in zip(frames.from_points(n, ca, c), backbone, strict=True):
        np.testing.assert_allclose(array(found), array(expected), atol=1e-3)
    groups = residues.GROUP_ROTATION[ALL], residues.GROUP_TRANSLATION[ALL]
    placed = frames.torsion_frames(backbone, circle(angles), groups)
    rotation, origin, known = group_frames(atoms, residues.ATOM14_MASK[:20], ALL)
    np.testing.assert_array_equal(known, residues.GROUP_MASK[:20])
    np.testing.assert_allclose(rotation[known], array(placed[0])[known], atol=0.02)
    np.testing.assert_allclose(origin[known], array(placed[1])[known], atol=0.02)
    for i, k in np.argwhere(CHI_MASK):
        bonds = np.diff(atoms[i, CHI_ATOMS[i, k]], axis=0)
        assert (abs(np.linalg.norm(bonds, axis=-1) - 1.52) < 0.33).all()  # angstroms


def test_a_symmetric_torsion_plus_pi_exchanges_names():
    angles = np.random.default_rng(1).uniform(-np.pi, np.pi, (20, 7))
    turned = angles.copy()
    turned[:, 3:] += np.pi * residues.CHI_SYMMETRIC[:20]
    first, second = (build(ALL, frames.identity((20,)), x) for x in (angles, turned))
    swapped = np.take_along_axis(second, residues.ATOM14_SWAP[:20, :, None], axis=1)
    np.testing.assert_allclose(swapped, first, atol=0.05)
    assert abs(first - second).max() > 1
    found, swapped = (torsion_angles(x, residues.ATOM14_MASK[:20], ALL) for x in (first, swapped))
    np.testing.assert_allclose(swapped.values, found.values, atol=0.05)
    turned = torsion_angles(second, residues.ATOM14_MASK[:20], ALL)
    np.testing.assert_allclose(turned.values, found.alternatives, atol=1e-3)


def test_missing_atoms_are_at_zero_and_the_virtual_beta_is_near_the_real_one():
    sequence = np.arange(21)
    atoms = build(sequence, random_frames(21), np.zeros((21, 7)))
    assert not atoms[~residues.ATOM14_MASK].any() and np.isfinite(atoms).all()
    beta = array(frames.virtual_beta(*np.moveaxis(atoms[:, :3], 1, 0)))
    wrong = np.linalg.norm(beta - atoms[:, 4], axis=-1)
    others = [LETTERS.index(x) for x in LETTERS if x not in "GPX"]
    assert wrong[others].max() < 0.1 and wrong[LETTERS.index("P")] < 0.3


@pytest.mark.skipif(not TENSORFLOW, reason="tf.function")
def test_residues_are_built_in_a_graph_of_unknown_length():
    import tensorflow as tf

    @tf.function(
        input_signature=[tf.TensorSpec((None, None), "int32"), tf.TensorSpec((None, None, 7, 2))]
    )
    def graph(sequence, torsions):
        tables = residues.GROUP_ROTATION, residues.GROUP_TRANSLATION
        groups = tuple(ops.take(table, sequence, axis=0) for table in tables)
        backbone = frames.identity(ops.shape(sequence))
        placed = frames.torsion_frames(backbone, torsions, groups)
        tables = residues.ATOM14_GROUP, residues.ATOM14_POSITION, residues.ATOM14_MASK
        return frames.place_atoms(placed, *(ops.take(t, sequence, axis=0) for t in tables))

    sequence, angles = np.arange(20, dtype="int32").reshape(2, 10), random_array(2, 10, 7)
    expected = build(sequence, frames.identity((2, 10)), angles)
    np.testing.assert_allclose(array(graph(sequence, circle(angles))), expected, atol=1e-5)


def turn(angle, axis):
    """The rotation by ``angle`` about the x axis (0) or the z axis (2)."""
    quaternion = np.zeros(4, "float32")
    quaternion[[0, 1 + axis]] = np.cos(angle / 2), np.sin(angle / 2)
    return frames.from_quaternion(quaternion)


def extend(pair, torsion, cosine, length):
    """The frame of the next atom of a chain: its bond is on x, and the atom before it at y > 0."""
    zero, bend = np.zeros(3, "float32"), np.pi - np.arccos(cosine)
    pair = frames.compose(pair, (turn(torsion, 0), zero))
    pair = frames.compose(pair, (turn(bend, 2), zero))
    return frames.compose(pair, (np.eye(3, dtype="float32"), np.float32([length, 0, 0])))


@pytest.mark.parametrize(
    "phi, psi, rise, per_turn",
    [(-57.8, -47.0, 1.54, 3.64), (-49, -26, 1.99, 2.99), (-120, 115, 3.29, 2.02)],
    ids=["alpha helix", "3-10 helix", "strand"],
)
def test_angles_give_a_helix(phi, psi, rise, per_turn):
    """Known geometry: bond lengths and angles are those of AlphaFold's constants."""
    phi, psi, count = np.deg2rad(phi), np.deg2rad(psi), 14
    pair, chain = frames.identity(()), []
    for _ in range(count):
        for torsion, cosine, length in (
            (psi, -0.4473, 1.329), (np.pi, -0.5203, 1.458), (phi, np.cos(np.deg2rad(111)), 1.525),
        ):  # fmt: skip
            pair = extend(pair, torsion, cosine, length)
            chain.append(array(pair[1]))
    n, ca, c = np.moveaxis(np.reshape(chain, (count, 3, 3)), 1, 0)
    bends = np.diff(ca, n=2, axis=0)  # perpendicular to the axis of the helix
    axis = np.cross(bends[5], bends[6])
    axis /= np.linalg.norm(axis)
    first, second = (x / np.linalg.norm(x) for x in bends[5:7])
    assert abs((ca[10] - ca[9]) @ axis) == pytest.approx(rise, abs=0.01)
    assert 2 * np.pi / np.arccos(first @ second) == pytest.approx(per_turn, abs=0.01)
    assert np.linalg.norm(np.diff(ca, axis=0), axis=-1) == pytest.approx(3.80, abs=0.01)

    # The oxygens, which the torsion psi places, are opposite the next N, and bound in the helix.
    angles = np.zeros((count, 7))
    angles[:, 2] = psi
    atoms = build(np.full(count, LETTERS.index("A")), frames.from_points(n, ca, c), angles)
    np.testing.assert_allclose(atoms[:, :3], np.stack([n, ca, c], 1), atol=0.03)
    away = np.linalg.norm(atoms[:-1, 3] - n[1:], axis=-1)
    np.testing.assert_allclose(away, 2.25, atol=0.02)
    if rise == 1.54:  # hydrogen bonds from the oxygen to the fourth next N
        bonds = np.linalg.norm(atoms[:-4, 3] - n[4:], axis=-1)
        assert (bonds > 2.7).all() and (bonds < 3.2).all()


@pytest.mark.skipif(
    DATA is None, reason="POLYHEAD_DATA names no folder with proteins/*.pdb and .cif"
)
@pytest.mark.parametrize("name", PROTEINS)
def test_proteins_are_rebuilt_from_their_frames_and_torsions(name):
    pytest.importorskip("gemmi", reason="gemmi is not installed: EXTRAS=proteins")
    structure = read_structure(Path(DATA) / "proteins" / name, chain="A")
    sequence = structure.residues
    positions, mask = atom14(structure.positions, structure.mask, sequence)
    whole = (mask == residues.ATOM14_MASK[sequence]).all(axis=1)
    mask[~whole, 4:] = False  # without all atoms, a side chain has no torsions
    backbone = frames.from_points(*np.moveaxis(positions[:, :3], 1, 0))
    rebuilt = build(sequence, backbone, measure(sequence, positions, mask))
    squares = ((rebuilt - positions) ** 2).sum(-1)
    assert len(sequence) > 25
    assert np.sqrt(squares[mask].mean()) < 0.30
    assert np.sqrt(squares[:, :4][mask[:, :4]].mean()) < 0.08


@pytest.mark.slow
def test_residues_equal_those_of_transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
    pytest.importorskip("transformers", reason="transformers is not installed: EXTRAS=parity")
    from transformers.models.esm import openfold_utils as theirs
    from transformers.models.esm.openfold_utils import residue_constants as rc

    sequence = np.random.default_rng(0).integers(0, 20, (2, 30))
    quaternion, translation = random_array(2, 30, 4), 9 * random_array(2, 30, 3, seed=1)
    torsions = circle(3 * random_array(2, 30, 7, seed=2))
    unit = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    rigid = theirs.Rigid(theirs.Rotation(quats=torch.tensor(unit)), torch.tensor(translation))
    defaults = torch.tensor(rc.restype_rigid_group_default_frame)
    peer = theirs.torsion_angles_to_frames(
        rigid, torch.tensor(torsions), torch.tensor(sequence), defaults
    )
    expected = theirs.frames_and_literature_positions_to_atom14_pos(
        peer,
        torch.tensor(sequence),
        defaults,
        torch.tensor(rc.restype_atom14_to_rigid_group),
        torch.tensor(rc.restype_atom14_mask),
        torch.tensor(rc.restype_atom14_rigid_group_positions),
    )

    groups = residues.GROUP_ROTATION[sequence], residues.GROUP_TRANSLATION[sequence]
    pair = frames.from_quaternion(quaternion), translation
    placed = frames.torsion_frames(pair, torsions, groups)
    present = defaults.numpy()[sequence][..., 3, 3] == 1
    difference = matrices(placed)[present] - peer.to_tensor_4x4().numpy()[present]
    assert abs(difference).max() < 1e-5
    tables = residues.ATOM14_GROUP, residues.ATOM14_POSITION, residues.ATOM14_MASK
    atoms = array(frames.place_atoms(placed, *(table[sequence] for table in tables)))
    assert abs(atoms - expected.numpy()).max() < 1e-5

    points = random_array(3, 2, 30, 3, seed=3)
    peer = theirs.Rigid.from_3_points(
        *(torch.tensor(x) for x in (2 * points[1] - points[2], points[1], points[0]))
    )
    found = frames.from_points(*points)
    np.testing.assert_allclose(matrices(found), peer.to_tensor_4x4().numpy(), atol=1e-5)
    np.testing.assert_allclose(
        array(frames.invert_apply(found, points[0])),
        peer.invert_apply(torch.tensor(points[0])).numpy(),
        atol=1e-5,
    )
