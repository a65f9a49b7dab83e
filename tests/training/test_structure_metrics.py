"""Scores of structures: known values, slow loops, and the program TM-align."""

import os
from pathlib import Path

import numpy as np
import pytest

from polyhead.training import gdt_ts, lddt, lddt_per_residue, rmsd, superpose, tm_score
from polyhead.training.structure_metrics import tm_distance

DATA = os.environ.get("POLYHEAD_DATA")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers():
    global RNG
    RNG = np.random.default_rng(0)


def rotation():
    matrix = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    return matrix * np.linalg.det(matrix)


def chain(count):
    """CA atoms of a random chain that turns little, so that it is not too compact."""
    return np.cumsum(RNG.normal(size=(count, 3)) + [1, 0, 0], axis=0) * 2


# ---- superposition


def test_superposition_undoes_a_motion():
    truth = chain(30)
    moved = truth @ rotation() + 1000
    np.testing.assert_allclose(superpose(moved, truth), truth, atol=1e-9)
    assert rmsd(moved, truth) < 1e-9
    atoms = truth.reshape(10, 3, 3)
    np.testing.assert_allclose(superpose(moved.reshape(10, 3, 3), atoms), atoms, atol=1e-9)


def test_superposition_is_the_best_rotation():
    truth = chain(30)
    points = (truth + RNG.normal(size=truth.shape)) @ rotation()
    best = rmsd(points, truth)
    moved = superpose(points, truth)
    assert best == pytest.approx(np.sqrt(((moved - truth) ** 2).sum(-1).mean()))
    for _ in range(50):
        axis = 0.05 * RNG.normal(size=3)
        turn = np.eye(3) + np.cross(np.eye(3), axis)
        turn = np.linalg.svd(turn)[0] @ np.linalg.svd(turn)[2]
        other = (moved - truth.mean(0)) @ turn + truth.mean(0)
        assert np.sqrt(((other - truth) ** 2).sum(-1).mean()) >= best


def test_a_mirror_image_is_not_superposed():
    truth = chain(30)
    assert rmsd(truth * [1, 1, -1], truth) > 1
    # A flat structure is its own mirror image.
    flat = truth * [1, 1, 0]
    assert rmsd(-flat @ rotation(), flat) < 1e-6


def test_masked_points_change_nothing_and_are_moved():
    truth, mask = chain(30), RNG.random(30) < 0.7
    points = truth + RNG.normal(size=truth.shape)
    other, other_truth = points.copy(), truth.copy()
    other[~mask], other_truth[~mask] = 99, np.nan
    for score in (rmsd, lddt, tm_score, gdt_ts):
        assert score(other, other_truth, mask) == score(points, truth, mask)
        assert score(points, truth, mask) != score(points, truth)
        assert score(points[mask], truth[mask]) == pytest.approx(score(points, truth, mask))
    turned = superpose(truth @ rotation(), truth, mask)
    np.testing.assert_allclose(turned, truth, atol=1e-9)


def test_superposition_equals_gemmi():
    gemmi = pytest.importorskip("gemmi")
    truth = chain(30)
    points = truth + RNG.normal(size=truth.shape)
    found = gemmi.superpose_positions(*([gemmi.Position(*p) for p in x] for x in (truth, points)))
    assert rmsd(points, truth) == pytest.approx(found.rmsd, abs=1e-6)


# ---- lDDT


def test_lddt_equals_loops():
    truth = RNG.normal(size=(12, 3, 3)) * 7
    points = truth + RNG.normal(size=truth.shape)
    mask = RNG.random((12, 3)) < 0.8
    each = [[] for _ in range(12)]
    for i, a in np.argwhere(mask):
        for j, b in np.argwhere(mask):
            true = np.linalg.norm(truth[i, a] - truth[j, b])
            if i != j and true < 15:
                wrong = abs(np.linalg.norm(points[i, a] - points[j, b]) - true)
                each[i].append(np.mean([wrong < bound for bound in (0.5, 1, 2, 4)]))
    np.testing.assert_allclose(
        lddt_per_residue(points, truth, mask), [100 * np.mean(x) for x in each]
    )
    assert lddt(points, truth, mask) == pytest.approx(100 * np.mean(sum(each, [])))


@pytest.mark.parametrize(
    "error, expected", [(0.0, 100), (0.4, 100), (0.6, 75), (1.5, 50), (3.0, 25), (5.0, 0)]
)
def test_lddt_of_one_wrong_distance(error, expected):
    truth = np.array([[0, 0, 0], [6, 0, 0], [0, 0, 40]])
    points = truth + np.array([[0, 0, 0], [error, 0, 0], [7, 7, 7]])  # the third is too far away
    assert lddt(points, truth) == expected
    np.testing.assert_array_equal(lddt_per_residue(points, truth), [expected, expected, np.nan])
    assert lddt(points, truth, cutoff=60) < 100
    assert np.isnan(lddt(points[:1], truth[:1]))


def test_lddt_does_not_notice_motions_and_mirror_images():
    truth = chain(30)
    assert lddt(truth @ rotation() + 5, truth) == lddt(-truth, truth) == 100


# ---- TM-score and GDT


def test_scores_of_a_hinge_are_those_of_its_longer_half():
    """Where one superposition fits all, it fits none; the search finds the longer half."""
    truth = chain(90)
    points = truth.copy()
    points[:30] = (truth[:30] - truth[30]) @ rotation() + truth[30] + 500
    assert tm_score(points, truth) == pytest.approx(2 / 3, abs=1e-3)
    assert gdt_ts(points, truth) == pytest.approx(100 * 2 / 3)
    single = ((superpose(points, truth) - truth) ** 2).sum(-1)
    assert (1 / (1 + single / tm_distance(90) ** 2)).mean() < 0.2


def test_tm_score_of_a_known_error():
    # All residues but one fit; the fit is theirs, because the last one is far away.
    truth = chain(60)
    points = truth.copy()
    distance = 1.24 * (60 - 15) ** (1 / 3) - 1.8
    points[-1] += [0, 0, 1e5]
    assert tm_score(points, truth) == pytest.approx(59 / 60, abs=1e-6)
    assert tm_score(points[:-1], truth[:-1], length=60) == pytest.approx(59 / 60)
    assert tm_distance(60) == pytest.approx(distance) and tm_distance(10) == 0.5
    assert tm_score(points[:2], truth[:2]) == pytest.approx(1)
    assert tm_score(points[:1], truth[:1]) == gdt_ts(points[:1], truth[:1]) / 100 == 1


def test_gdt_counts_residues_within_four_distances():
    truth = chain(80)
    points = truth.copy()
    # Half are right, so the fit is theirs; the others are off to all sides.
    side = np.tile(np.concatenate([np.eye(3), -np.eye(3)]), (7, 1))[:40]
    points[1::2] += 3 * side
    assert gdt_ts(points, truth) == pytest.approx(75, abs=4)
    assert gdt_ts(truth @ rotation() - 7, truth) == 100


@pytest.mark.skipif(not DATA, reason="POLYHEAD_DATA: the folder of the proteins")
@pytest.mark.parametrize("name", ["2q2k.cif", "4zey.cif", "2rbg.pdb"])
def test_tm_score_equals_tm_align(name):
    gemmi, tmtools = pytest.importorskip("gemmi"), pytest.importorskip("tmtools")
    structure = gemmi.read_structure(str(Path(str(DATA)) / "proteins" / name))
    structure.remove_alternative_conformations()
    residues = structure[0]["A"].get_polymer()
    truth = np.array([r["CA"][0].pos.tolist() for r in residues if r.find_atom("CA", "*")])
    compared = 0
    for noise in (0.1, 0.3, 0.5, 0.7):
        for points in (
            truth + 2 * noise * RNG.normal(size=truth.shape),
            truth + noise * np.cumsum(RNG.normal(size=truth.shape), axis=0),
        ):
            letters = "A" * len(truth)
            found = tmtools.tm_align(points, truth, letters, letters)
            if "-" not in found.seqxA + found.seqyA:  # TM-align compares the same residues
                assert tm_score(points, truth) == pytest.approx(found.tm_norm_chain2, abs=2e-3)
                compared += 1
    assert compared >= 4


def test_bad_points_are_refused():
    with pytest.raises(ValueError, match=r"two arrays \(\.\.\., 3\): \(4, 3\) and \(5, 3\)"):
        rmsd(chain(4), chain(5))
    with pytest.raises(ValueError, match=r"mask must have the shape of the points: \(3,\)"):
        rmsd(chain(4), chain(4), np.ones(3))
    with pytest.raises(ValueError, match="no point exists in both structures"):
        superpose(chain(4), chain(4), np.zeros(4))
    with pytest.raises(ValueError, match="positions must be finite"):
        gdt_ts(chain(4) * np.nan, chain(4))
    with pytest.raises(ValueError, match=r"positions must be \(N, 3\): \(2, 4, 3\)"):
        tm_score(chain(8).reshape(2, 4, 3), chain(8).reshape(2, 4, 3))
    with pytest.raises(ValueError, match=r"positions must be \(N, 3\) or \(N, A, 3\): \(3,\)"):
        lddt(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="length must be at least the number of residues: 3 / 4"):
        tm_score(chain(4), chain(4), length=3)
