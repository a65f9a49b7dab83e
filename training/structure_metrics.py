"""Scores of predicted protein structures, computed in float64 by NumPy.

Positions are in angstroms, and point i of the prediction corresponds to point i of the truth. Masks
are boolean, True = exists.
"""

import numpy as np
from numpy.typing import ArrayLike

LDDT_BOUNDS = 0.5, 1.0, 2.0, 4.0  # of the errors of distances
GDT_BOUNDS = 1.0, 2.0, 4.0, 8.0  # of the errors of positions
STARTS = 200  # the maximum number of fragments of one size that start a search


def superpose(
    positions: ArrayLike, true_positions: ArrayLike, mask: ArrayLike | None = None
) -> np.ndarray:
    """Rotates and translates ``positions`` (..., 3) onto the true ones, with the least RMSD.

    (Kabsch 1976, 1978.) Without reflections: a mirror image stays one.

    Args:
        positions, true_positions: (..., 3).
        mask: which points are fitted (...). All are moved. Default: all.

    >>> truth = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    >>> turned = truth[:, [1, 2, 0]] + 10
    >>> polyhead.training.superpose(turned, truth).round(3) + 0.0
    array([[0., 0., 0.],
           [1., 0., 0.],
           [0., 2., 0.],
           [0., 0., 3.]])
    """
    x, true, chosen = check_points(positions, true_positions, mask)
    rotation, shift = fit(x[chosen], true[chosen], np.ones(chosen.sum()))
    return x @ rotation + shift


def rmsd(positions: ArrayLike, true_positions: ArrayLike, mask: ArrayLike | None = None) -> float:
    """The root mean square deviation after `superpose`, in angstroms.

    >>> truth = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    >>> round(polyhead.training.rmsd(truth[:, [1, 2, 0]] + 10, truth), 3)
    0.0

    Args:
        positions, true_positions: (..., 3), such as those of CA or of all atoms.
        mask: (...). Default: all exist.
    """
    x, true, chosen = check_points(positions, true_positions, mask)
    x, true = x[chosen], true[chosen]
    return float(np.sqrt(squares(superpose(x, true), true).mean()))


def lddt(
    positions: ArrayLike,
    true_positions: ArrayLike,
    mask: ArrayLike | None = None,
    cutoff: float = 15.0,
) -> float:
    """The local distance difference test (Mariani et al. 2013), from 0 to 100.

    The percentage of the distances between atoms of different residues, those below ``cutoff`` in
    the truth, that the prediction keeps within 0.5, 1, 2 and 4 angstroms; the mean of the four. It
    needs no superposition, and does not notice a mirror image. Names of equivalent atoms, such as
    the oxygens of Asp, must agree.

    >>> truth = np.array([[0, 0, 0], [4, 0, 0], [8, 0, 0]])
    >>> round(polyhead.training.lddt(truth + np.array([[0, 0, 0], [0, 0, 0], [3, 0, 0]]), truth), 1)
    50.0

    Args:
        positions, true_positions: one atom for each residue (N, 3), or A atoms (N, A, 3).
        mask: (N,) or (N, A). Default: all exist.
        cutoff: in angstroms.

    Returns:
        the score; NaN without any such distance.
    """
    kept, counted = distance_scores(positions, true_positions, mask, cutoff)
    return float(100 * kept.sum() / counted.sum()) if counted.any() else float("nan")


def lddt_per_residue(
    positions: ArrayLike,
    true_positions: ArrayLike,
    mask: ArrayLike | None = None,
    cutoff: float = 15.0,
) -> np.ndarray:
    """The `lddt` (N,) of the distances from each residue, from 0 to 100; NaN without any.

    >>> truth = np.array([[0, 0, 0], [4, 0, 0], [8, 0, 0]])
    >>> moved = truth + np.array([[0, 0, 0], [0, 0, 0], [3, 0, 0]])
    >>> polyhead.training.lddt_per_residue(moved, truth)
    array([62.5, 62.5, 25. ])
    """
    kept, counted = distance_scores(positions, true_positions, mask, cutoff)
    with np.errstate(invalid="ignore"):
        return 100 * kept / counted


def tm_score(
    positions: ArrayLike,
    true_positions: ArrayLike,
    mask: ArrayLike | None = None,
    length: int | None = None,
) -> float:
    """The TM-score of CA atoms (Zhang & Skolnick 2004), from 0 to 1.

    The sum of 1 / (1 + (d / d0)^2) over the residues, divided by ``length``, for the superposition
    with the greatest sum, where d0 = 1.24 (length - 15)^(1/3) - 1.8 and at least 0.5. The search
    for it is that of the authors' program TM-score: it starts from fragments of the chain, and
    superposes the residues that are near, until they stay the same. Like theirs, it may miss the
    greatest sum by a little.

    >>> truth = np.cumsum(np.random.default_rng(0).normal(size=(50, 3)), axis=0)
    >>> round(polyhead.training.tm_score(truth + 10, truth), 3)
    1.0

    Args:
        positions, true_positions: (N, 3).
        mask: which residues exist in both (N,). Default: all.
        length: of the true protein, with residues that do not exist in both. Default: their number.
    """
    rounds, count = search(positions, true_positions, mask, length)
    length = length or count
    scores = (1 / (1 + (apart / tm_distance(length) ** 2)) for apart in rounds)
    return float(max(score.sum(axis=-1).max() for score in scores) / length)


def gdt_ts(positions: ArrayLike, true_positions: ArrayLike, mask: ArrayLike | None = None) -> float:
    """The global distance test, total score, of CA atoms (Zemla 2003), from 0 to 100.

    The mean of the percentages of residues within 1, 2, 4 and 8 angstroms of the truth, each for
    the superposition with the most of them. The search is that of `tm_score`.

    >>> truth = np.cumsum(np.random.default_rng(0).normal(size=(50, 3)), axis=0)
    >>> round(polyhead.training.gdt_ts(truth + 10, truth), 3)
    100.0

    Args:
        positions, true_positions: (N, 3).
        mask: (N,). Default: all exist.
    """
    rounds, count = search(positions, true_positions, mask)
    counts = [[(apart <= x**2).sum(axis=-1).max() for x in GDT_BOUNDS] for apart in rounds]
    return float(100 * np.max(counts, axis=0).mean() / count)


def check_points(positions, true_positions, mask):
    """The points (..., 3) in float64, and their mask (...)."""
    x, true = (np.asarray(points, "float64") for points in (positions, true_positions))
    if x.shape != true.shape or x.shape[-1:] != (3,):
        raise ValueError(f"positions must be two arrays (..., 3): {x.shape} and {true.shape}")
    mask = np.ones(x.shape[:-1], "bool") if mask is None else np.asarray(mask, "bool")
    if mask.shape != x.shape[:-1]:
        raise ValueError(f"the mask must have the shape of the points: {mask.shape} / {x.shape}")
    if not mask.any():
        raise ValueError("no point exists in both structures")
    if not (np.isfinite(x[mask]).all() and np.isfinite(true[mask]).all()):
        raise ValueError("positions must be finite")
    return x, true, mask


def fit(x, true, weights):
    """The rotations (..., 3, 3) and shifts (..., 3) of points ``x`` (P, 3) onto the true ones.

    Rows of points are multiplied by the rotation from the right. There is one for each of the
    weights (..., P).
    """
    weights = weights / weights.sum(axis=-1, keepdims=True)
    middle, true_middle = x.mean(axis=0), true.mean(axis=0)
    x, true = x - middle, true - true_middle  # for precision
    x_mean, true_mean = weights @ x, weights @ true
    products = (x[:, :, None] * true[:, None, :]).reshape(-1, 9)
    covariance = (weights @ products).reshape(*weights.shape[:-1], 3, 3)
    left, _, right = np.linalg.svd(covariance - x_mean[..., :, None] * true_mean[..., None, :])
    left[..., -1] *= np.linalg.det(left @ right)[..., None]  # -1 if a reflection would fit better
    rotation = left @ right
    shift = true_mean + true_middle - ((x_mean + middle)[..., None, :] @ rotation)[..., 0, :]
    return rotation, shift


def squares(x, true):
    """The squared distances (...) of points (..., 3)."""
    return np.square(x - true).sum(axis=-1)


def distance_scores(positions, true_positions, mask, cutoff):
    """The sum of scores, from 0 to 1, of the distances from each residue, and their number (N,)."""
    x, true, mask = check_points(positions, true_positions, mask)
    if x.ndim == 2:
        x, true, mask = x[:, None], true[:, None], mask[:, None]
    if x.ndim != 3:
        raise ValueError(f"positions must be (N, 3) or (N, A, 3): {x.shape}")
    residue = np.nonzero(mask)[0]
    distances, true_distances = (
        np.sqrt(squares(points[:, None], points[None])) for points in (x[mask], true[mask])
    )
    counted = (true_distances < cutoff) & (residue[:, None] != residue)
    wrong = abs(distances - true_distances)
    kept = counted * np.mean([wrong < bound for bound in LDDT_BOUNDS], axis=0)
    return tuple(
        np.bincount(residue, weights=scores.sum(axis=1), minlength=len(x))
        for scores in (kept, counted)
    )


def tm_distance(length):
    return max(1.24 * np.cbrt(length - 15) - 1.8, 0.5)


def search(positions, true_positions, mask, length=None):
    """The squared distances of P points under many superpositions, and P.

    The distances are an iterator of arrays (superpositions, P), one for each round.
    """
    x, true, mask = check_points(positions, true_positions, mask)
    if x.ndim != 2:
        raise ValueError(f"positions must be (N, 3): {x.shape}")
    x, true = x[mask], true[mask]
    count = len(x)
    if length is not None and length < count:
        raise ValueError(f"length must be at least the number of residues: {length} / {count}")
    near = np.clip(tm_distance(length or count), 4.5, 8)  # of the program TM-score
    place, size, weights = np.arange(count), count, []
    while size >= min(4, count):
        starts = np.unique(np.linspace(0, count - size, STARTS).astype(int))[:, None]
        weights.append((starts <= place) & (place < starts + size))
        size //= 2

    def rounds(weights):
        for margin in (-1, *[1] * 20):
            rotation, shift = fit(x, true, weights.astype(float))
            apart = squares(x @ rotation + shift[:, None, :], true)
            yield apart
            third = np.sort(apart, axis=-1)[:, min(2, count - 1), None]
            last, weights = weights, apart <= np.maximum((near + margin) ** 2, third)
            if (weights == last).all():
                return
            weights = np.unique(weights, axis=0)

    return rounds(np.concatenate(weights)), count
