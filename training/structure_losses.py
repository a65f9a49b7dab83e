"""Losses of protein structures (Jumper et al. 2021): functions, and their weighted sum.

Everything is computed in float32. Positions, translations and errors are in angstroms, and frames
are pairs of rotations (..., 3, 3) and translations (..., 3), as in `polyhead.layers.frames`. Masks
are boolean, True = exists. A loss has one value for each example: the mean over what exists, or 0
if nothing does.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from .structure_metrics import LDDT_BOUNDS

DISTANCES = 2.3125, 21.6875, 64  # the inner edges and the number of bins of the distogram
LDDT_BINS = 50
ERRORS = 0.5, 64  # the width and the number of bins of aligned errors
PARTS = ("backbone", "atoms", "torsions", "distances", "lddt", "errors")  # of `StructureLoss`

Frames = tuple[Any, Any]


def fape(
    frames: Frames,
    positions: Any,
    true_frames: Frames,
    true_positions: Any,
    frame_mask: Any,
    position_mask: Any,
    clamped: Any = True,
    clamp: float = 10.0,
    scale: float = 10.0,
    epsilon: float = 1e-4,
) -> Any:
    """The frame aligned point error (Jumper et al. 2021, supplement, algorithm 28).

    The mean over all frames and positions of

        min(sqrt(|x - x*|^2 + epsilon), clamp) / scale

    where x is a predicted position in a predicted frame, and x* the true one in the true frame. So
    moving the prediction or the truth does not change it, but a mirror image is wrong. A perfect
    prediction costs sqrt(epsilon) / scale.

    The backbone's loss is that of N frames and N positions of CA; the loss of all atoms that of 8 N
    frames and 14 N positions. Leading axes are broadcast: predictions with leading axes (I, B) for
    I iterations have losses (I, B).

    Args:
        frames, true_frames: F frames (..., F).
        positions, true_positions: (..., P, 3).
        frame_mask, position_mask: (..., F) and (..., P).
        clamped: boolean, or for each example (B,), whether errors are limited to ``clamp``. The
            backbone's are in 90% of the examples (section 1.11.5).
        clamp, scale: in angstroms.
        epsilon: in square angstroms; it limits the gradient where the prediction is right.

    >>> from polyhead.training import fape
    >>> points = np.random.default_rng(0).normal(size=(1, 5, 3)).astype("float32")
    >>> frames = np.eye(3, dtype="float32") + np.zeros((1, 5, 1, 1), "float32"), points
    >>> mask = np.ones((1, 5), "bool")
    >>> [round(float(x), 4) for x in fape(frames, points, frames, points, mask, mask)]
    [0.001]
    >>> mirrored = points * np.float32([1, 1, -1])
    >>> bool(fape((frames[0], mirrored), mirrored, frames, points, mask, mask) > 0.1)
    True
    """
    errors = frame_errors(frames, positions, true_frames, true_positions, epsilon)
    clamped = ops.expand_dims(ops.convert_to_tensor(clamped, "bool"), (-2, -1))
    errors = ops.where(clamped, ops.minimum(errors, clamp), errors)
    return pair_mean(errors, frame_mask, position_mask) / scale


def torsion_loss(
    unnormalized: Any, true_torsions: Any, mask: Any, periodic: Any, residue_mask: Any
) -> Any:
    """The error of the sines and cosines of torsions.

    (Jumper et al. 2021, supplement, algorithm 27.) The mean over the torsions of |a - a*|^2, where
    a is the predicted pair divided by its length, plus 0.02 times the mean over all seven torsions
    of the residues of the error of this length, which should be 1. Where a torsion is periodic by
    pi, such as chi2 of tyrosine, the nearer of a* and -a* counts.

    Args:
        unnormalized: predicted sines and cosines (..., N, 7, 2), of any length.
        true_torsions: of length 1 (..., N, 7, 2).
        mask, periodic: which torsions exist, and which are periodic by pi, (..., N, 7).
        residue_mask: (..., N).

    >>> from polyhead.training import torsion_loss
    >>> true = np.float32([0, 1]) + np.zeros((1, 5, 7, 2), "float32")
    >>> mask = np.ones((1, 5, 7), "bool")
    >>> loss = torsion_loss(-2 * true, true, mask, periodic=~mask, residue_mask=mask[..., 0])
    >>> [round(float(x), 4) for x in loss]  # |a - a*| is 2, and the length is wrong by 1
    [4.02]
    >>> loss = torsion_loss(-2 * true, true, mask, periodic=mask, residue_mask=mask[..., 0])
    >>> [round(float(x), 4) for x in loss]
    [0.02]
    """
    unnormalized, true_torsions = (as_float(x) for x in (unnormalized, true_torsions))
    # Near 0 the length passes no gradient.
    length = ops.sqrt(ops.maximum(ops.sum(ops.square(unnormalized), axis=-1), 1e-8))
    torsions = unnormalized / length[..., None]
    error, turned = (
        ops.sum(ops.square(torsions - x), axis=-1) for x in (true_torsions, -true_torsions)
    )
    error = ops.where(periodic, ops.minimum(error, turned), error)
    wrong_length = ops.mean(ops.abs(length - 1), axis=-1)
    return masked_mean(error, mask, (-2, -1)) + 0.02 * masked_mean(wrong_length, residue_mask, -1)


def beta_positions(positions: Any, mask: Any, glycine: Any) -> tuple[Any, Any]:
    """The positions (..., N, 3) of CB, and of CA in glycine, and which exist (..., N).

    Args:
        positions, mask: of atoms in the order of `data.residues.ATOM14`, (..., N, 14, 3) and
            (..., N, 14).
        glycine: which residues are glycine (..., N), boolean.

    >>> from polyhead.training import beta_positions
    >>> positions = np.arange(5 * 14 * 3, dtype="float32").reshape(5, 14, 3)
    >>> found, mask = beta_positions(positions, np.ones((5, 14), "bool"), np.arange(5) == 1)
    >>> np.array(found[:2])
    array([[12., 13., 14.],
           [45., 46., 47.]], dtype=float32)
    """
    found = ops.where(glycine[..., None], positions[..., 1, :], positions[..., 4, :])
    return found, ops.where(glycine, mask[..., 1], mask[..., 4])


def distogram_loss(logits: Any, positions: Any, mask: Any) -> Any:
    """The cross-entropy of the distances of residues (Jumper et al. 2021, supplement, 1.9.8).

    In nats per pair of residues. Of the 64 bins, 62 divide 2.3125 to 21.6875 angstroms equally; the
    first and the last hold shorter and longer distances.

    Args:
        logits: (B, N, N, 64).
        positions, mask: of `beta_positions`, (B, N, 3) and (B, N).

    >>> from polyhead.training import distogram_loss
    >>> loss = distogram_loss(np.zeros((1, 5, 5, 64)), np.ones((1, 5, 3)), np.ones((1, 5), "bool"))
    >>> [round(float(x), 4) for x in loss]  # log 64
    [4.1589]
    """
    bins = distance_bins(as_float(positions), *DISTANCES)
    return pair_mean(cross_entropy(logits, bins), mask, mask)


def lddt_targets(
    positions: Any, true_positions: Any, mask: Any, residues: Any = None, cutoff: float = 15.0
) -> tuple[Any, Any]:
    """The local distance difference test of each atom (Mariani et al. 2013), for `lddt_loss`.

    The fraction of an atom's distances to atoms of other residues, those below ``cutoff`` in the
    truth, that the prediction keeps within 0.5, 1, 2 and 4 angstroms; the mean of the four. It
    passes no gradient.

    Args:
        positions, true_positions: of P atoms (..., P, 3): one for each residue, such as CA, or all
            atoms.
        mask: (..., P).
        residues: the number of the residue of each atom (..., P). Default: 0, 1, ...

    Returns:
        the fractions (..., P), and which are defined (..., P): those of atoms that exist, and have
        others nearby.

    >>> from polyhead.training import lddt_targets
    >>> truth = np.float32([[0, 0, 0], [4, 0, 0], [8, 0, 0]])
    >>> shifted = truth + np.float32([[0, 0, 0], [0, 0, 0], [3, 0, 0]])
    >>> fractions, defined = lddt_targets(shifted, truth, np.ones(3, "bool"))
    >>> np.array(fractions)
    array([0.625, 0.625, 0.25 ], dtype=float32)
    """
    predicted, true = (
        ops.sqrt(squared_distances(x, x) + 1e-10)
        for x in (as_float(positions), as_float(true_positions))
    )
    mask = ops.convert_to_tensor(mask, "bool")
    if residues is None:
        residues = ops.arange(ops.shape(mask)[-1])
    counted = ops.logical_and(mask[..., :, None], mask[..., None, :])
    counted = ops.logical_and(counted, residues[..., :, None] != residues[..., None, :])
    counted = ops.cast(ops.logical_and(counted, true < cutoff), "float32")
    wrong = ops.abs(predicted - true)
    kept = sum(ops.cast(wrong < bound, "float32") for bound in LDDT_BOUNDS) / len(LDDT_BOUNDS)
    count = ops.sum(counted, axis=-1)
    fractions = ops.sum(kept * counted, axis=-1) / ops.maximum(count, 1)
    return ops.stop_gradient(fractions), count > 0


def lddt_loss(logits: Any, fractions: Any, mask: Any) -> Any:
    """The cross-entropy of the confidence of atoms (Jumper et al. 2021, supplement, algorithm 29).

    In nats per atom, over 50 bins of equal width.

    Args:
        logits: (B, ..., 50), such as (B, N, 37, 50).
        fractions, mask: of `lddt_targets`, (B, ...).

    >>> from polyhead.training import lddt_loss
    >>> loss = lddt_loss(np.zeros((1, 5, 50)), np.ones((1, 5)), np.ones((1, 5), "bool"))
    >>> [round(float(x), 4) for x in loss]  # log 50
    [3.912]
    """
    bins = ops.cast(as_float(fractions) * LDDT_BINS, "int32")
    errors = cross_entropy(logits, ops.minimum(bins, LDDT_BINS - 1))
    return masked_mean(errors, mask, tuple(range(1, len(errors.shape))))


def aligned_error_targets(
    frames: Frames, positions: Any, true_frames: Frames, true_positions: Any
) -> Any:
    """The errors (..., F, P) of positions in each frame, for `aligned_error_loss`.

    (Jumper et al. 2021, supplement, 1.9.7.) In angstroms. They pass no gradient.

    Args:
        frames, true_frames: (..., F), the backbone's.
        positions, true_positions: (..., P, 3), of CA.

    >>> from polyhead.training import aligned_error_targets
    >>> points = np.zeros((2, 3), "float32")
    >>> frames = np.eye(3, dtype="float32") + np.zeros((2, 1, 1), "float32"), points
    >>> moved = np.float32([[0, 0, 0], [3, 4, 0]])
    >>> np.array(aligned_error_targets(frames, moved, frames, points))
    array([[0., 5.],
           [0., 5.]], dtype=float32)
    """
    return ops.stop_gradient(frame_errors(frames, positions, true_frames, true_positions, 0.0))


def aligned_error_loss(logits: Any, errors: Any, frame_mask: Any, position_mask: Any) -> Any:
    """The cross-entropy of the errors of positions in each frame (Jumper et al. 2021, 1.9.7).

    In nats per pair, over 64 bins of 0.5 angstroms; the last one also holds all larger errors.

    Args:
        logits: (B, F, P, 64).
        errors: of `aligned_error_targets`, (B, F, P).
        frame_mask, position_mask: (B, F) and (B, P).

    >>> from polyhead.training import aligned_error_loss
    >>> mask = np.ones((1, 5), "bool")
    >>> loss = aligned_error_loss(np.zeros((1, 5, 5, 64)), np.ones((1, 5, 5)), mask, mask)
    >>> [round(float(x), 4) for x in loss]  # log 64
    [4.1589]
    """
    # AlphaFold's code has an edge at 0 too, so that its first bin is empty. It decodes the bins as
    # the paper and `ESMFold` do, so its predicted errors are half an angstrom too large.
    width, count = ERRORS
    bins = ops.cast(ops.minimum(as_float(errors) / width, count - 1), "int32")
    return pair_mean(cross_entropy(logits, bins), frame_mask, position_mask)


def rename_ambiguous(
    positions: Any, true_positions: Any, mask: Any, residues: Any, swap: np.ndarray
) -> tuple[Any, Any, Any]:
    """Exchanges the names of equivalent true atoms where this fits the prediction better.

    (Jumper et al. 2021, supplement, algorithm 26.) Two oxygens of Asp and Glu, and two pairs of
    carbons of Phe and Tyr, have arbitrary names. They are exchanged within a residue if this
    decreases the sum of the errors of their distances to all atoms whose names are not arbitrary.

    Args:
        positions, true_positions: of atoms in the order of `data.residues.ATOM14`, (..., N, 14, 3).
        mask: which atoms of the truth exist (..., N, 14).
        residues: (..., N), numbered as the rows of ``swap``; greater numbers have the last row.
        swap: `data.residues.ATOM14_SWAP` (21, 14), the slot of the equivalent atom of each.

    Returns:
        the renamed true positions and their mask, and which residues are renamed (..., N); see
        `rename_frames`.

    >>> from polyhead.training import rename_ambiguous
    >>> from polyhead.data.residues import ATOM14_MASK, ATOM14_SWAP, LETTERS
    >>> residues = np.array([[LETTERS.index(x) for x in "GAYD"]])
    >>> mask = ATOM14_MASK[residues]
    >>> truth = np.random.default_rng(0).normal(size=(1, 4, 14, 3)).astype("float32")
    >>> predicted = np.take_along_axis(truth, ATOM14_SWAP[residues][..., None], axis=2)
    >>> renamed = rename_ambiguous(predicted, truth, mask, residues, ATOM14_SWAP)[2]
    >>> np.array(renamed)
    array([[False, False,  True,  True]])
    """
    positions, true_positions = (
        ops.stop_gradient(as_float(x)) for x in (positions, true_positions)
    )
    mask = ops.convert_to_tensor(mask, "bool")
    table = np.asarray(swap, "int32")
    unchanged = table == np.arange(table.shape[1])
    slots = np.flatnonzero(~unchanged.all(axis=0))  # no other slot has an ambiguous atom
    row = ops.minimum(residues, len(table) - 1)
    named = ops.take(unchanged, row, axis=0)
    partner = ops.take(table, row, axis=0)
    swapped = ops.take_along_axis(true_positions, partner[..., None], axis=-2)
    swapped_mask = ops.take_along_axis(mask, partner, axis=-1)
    # Both atoms of a pair must exist, so that both sums are over the same distances.
    both = ops.logical_and(ops.logical_and(mask, swapped_mask), ops.logical_not(named))
    named = ops.logical_and(mask, named)
    shape = ops.shape(residues)

    def distances(points, others):
        """(..., N, 14, 3) twice -> (..., N, len(slots), 14 N), from the atoms in ``slots``."""
        points = ops.take(points, slots, axis=-2)
        others = ops.reshape(others, (*shape[:-1], 1, -1, 3))
        return ops.sqrt(squared_distances(points, others) + 1e-10)

    predicted = distances(positions, positions)
    named = as_float(ops.reshape(named, (*shape[:-1], 1, 1, -1)))
    counted = as_float(ops.take(both, slots, axis=-1))[..., None] * named
    kept, exchanged = (
        ops.sum(ops.abs(distances(x, true_positions) - predicted) * counted, axis=(-2, -1))
        for x in (true_positions, swapped)
    )
    renamed = exchanged < kept
    return (
        ops.where(renamed[..., None, None], swapped, true_positions),
        ops.where(renamed[..., None], swapped_mask, mask),
        renamed,
    )


def rename_frames(frames: Frames, renamed: Any, periodic: Any) -> Frames:
    """The true frames of the eight rigid groups after `rename_ambiguous`.

    Exchanging the names turns the frame of a periodic torsion by pi about its x axis.

    Args:
        frames: (..., N, 8).
        renamed: which residues are renamed (..., N).
        periodic: which of the torsions are periodic by pi, as for `torsion_loss`, (..., N, 7).

    >>> from polyhead.training import rename_frames
    >>> frames = np.eye(3, dtype="float32") + np.zeros((1, 8, 1, 1), "float32"), np.zeros((1, 8, 3))
    >>> rotation, _ = rename_frames(frames, np.array([True]), np.arange(7)[None] == 4)
    >>> np.array(rotation[0, 5]).diagonal()
    array([ 1., -1., -1.], dtype=float32)
    """
    rotation, translation = frames
    turned = ops.logical_and(renamed[..., None], periodic)
    turned = ops.concatenate([ops.zeros_like(turned[..., :1]), turned], axis=-1)
    half_turn = np.float32([1, -1, -1])  # of the axes, which are columns
    return ops.where(turned[..., None, None], rotation * half_turn, rotation), translation


def as_float(x):
    return ops.cast(x, "float32")


def frame_errors(frames, positions, true_frames, true_positions, epsilon):
    """The distances (..., F, P) of predicted and true positions, each in its own frame."""

    def local(frames, points):
        rotation, translation = (as_float(x) for x in frames)
        points = as_float(points)[..., None, :, :] - translation[..., :, None, :]
        # Products of matrices may be rounded to fewer bits, see `layers.frames`.
        return sum(rotation[..., :, None, i, :] * points[..., i, None] for i in range(3))

    apart = local(frames, positions) - local(true_frames, true_positions)
    return ops.sqrt(ops.sum(ops.square(apart), axis=-1) + epsilon)


def squared_distances(points, others):
    """(..., P, 3) and (..., Q, 3) -> (..., P, Q)."""
    apart = points[..., :, None, :] - others[..., None, :, :]
    return ops.sum(ops.square(apart), axis=-1)


def distance_bins(points, least, most, count):
    """The bins (..., P, P) of the distances of points (..., P, 3).

    Of ``count`` bins, all but the first and the last divide ``least`` to ``most`` equally.
    """
    edges = np.linspace(least, most, count - 1, dtype="float32")
    squares = squared_distances(points, points)
    return ops.sum(ops.cast(squares[..., None] > edges**2, "int32"), axis=-1)


def cross_entropy(logits, bins):
    """The negative log-probability (...) of ``bins`` (...), from logits (..., bins)."""
    logits = as_float(logits)
    chosen = ops.one_hot(bins, logits.shape[-1], dtype="float32")
    return ops.logsumexp(logits, axis=-1) - ops.sum(logits * chosen, axis=-1)


def masked_mean(values, mask, axes):
    mask = as_float(mask)
    return ops.sum(values * mask, axis=axes) / ops.maximum(ops.sum(mask, axis=axes), 1)


def pair_mean(values, row_mask, column_mask):
    """The mean of ``values`` (..., F, P) where both masks (..., F) and (..., P) are True."""
    row_mask, column_mask = as_float(row_mask), as_float(column_mask)
    total = ops.sum(ops.sum(values * column_mask[..., None, :], axis=-1) * row_mask, axis=-1)
    count = ops.sum(row_mask, axis=-1) * ops.sum(column_mask, axis=-1)
    return total / ops.maximum(count, 1)


@keras.saving.register_keras_serializable("polyhead")
class StructureLoss(keras.losses.Loss):
    """The weighted sum of the losses of a structure.

    The losses are those of AlphaFold 2 (Jumper et al. 2021, supplement, section 1.9); the weights
    are ours. In the order of the arguments, AlphaFold 2's are 0.5, 0.5, 0.5, 0.3, 0.01 and 0.1.

    The network computes the losses itself, because they compare many tensors: `ESMFold` returns
    them if its inputs have a true structure.

    Args:
        weights: of `PARTS`: the backbone's FAPE, that of all atoms, torsions, distances, confidence
            of atoms, aligned errors.

    Call with ``labels`` (B,), which are not used, ``losses`` (B, 6) and ``sample_weight`` (B,).

    >>> from polyhead.training import StructureLoss
    >>> round(float(StructureLoss()(np.zeros(2), np.ones((2, 6), "float32"))), 3)
    3.0
    """

    def __init__(
        self,
        weights: Sequence[float] = (1.0, 1.0, 0.5, 0.3, 0.1, 0.1),
        name: str = "structure_loss",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("reduction", "mean_with_sample_weight")
        super().__init__(name=name, **kwargs)
        if len(weights) != len(PARTS):
            raise ValueError(f"there must be {len(PARTS)} weights: {len(weights)}")
        self.weights = tuple(map(float, weights))

    def call(self, labels, losses):
        return ops.sum(losses * np.array(self.weights, "float32"), axis=-1)

    def get_config(self):
        return {**super().get_config(), "weights": self.weights}
