"""Losses of structures: known values, slow loops in float64, invariance, padding and gradients."""

import numpy as np
import pytest
from keras import ops

from polyhead.data import residues as tables
from polyhead.data.residues import ATOM14_MASK, ATOM14_SWAP, CHI_SYMMETRIC, LETTERS
from polyhead.layers import frames
from polyhead.training import structure_losses as losses
from tests.conftest import TENSORFLOW

B, N = 2, 6
RNG = np.random.default_rng(0)
SEQUENCE = np.array([[LETTERS.index(x) for x in letters] for letters in ("DGFEYA", "WYDXKF")])
ATOMS = ATOM14_MASK[SEQUENCE]
PERIODIC = np.concatenate([np.zeros((B, N, 3), "bool"), CHI_SYMMETRIC[SEQUENCE]], axis=-1)
GLYCINE = SEQUENCE == LETTERS.index("G")


@pytest.fixture(autouse=True)
def same_numbers():
    global RNG
    RNG = np.random.default_rng(0)


def array(x):
    return ops.convert_to_numpy(x)


def normal(*shape, scale=1.0):
    return scale * RNG.normal(size=shape).astype("float32")


def chain(*shape):
    """Backbone frames and CA positions of random compact chains (..., 3)."""
    points = normal(*shape, 3, 3) + normal(*shape, 1, 3, scale=8)
    n, ca, c = np.moveaxis(points, -2, 0)
    return tuple(map(array, frames.from_points(n, ca, c))), ca


def moved(pair, points):
    """Frames and points, rotated and moved."""
    motion = frames.from_quaternion(normal(4)), normal(3, scale=20)
    return tuple(map(array, frames.compose(motion, pair))), array(frames.apply(motion, points))


def gradient(function, x):
    if TENSORFLOW:
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return array(tape.gradient(y, x))
    import jax

    return array(jax.grad(function)(x))


def slow_errors(pair, points, true_pair, true_points):
    (r, t), (tr, tt) = ([np.asarray(x, "float64") for x in p] for p in (pair, true_pair))
    found = np.zeros((len(t), len(points)))
    for i in range(len(t)):
        for j in range(len(points)):
            local = r[i].T @ (points[j] - t[i]) - tr[i].T @ (true_points[j] - tt[i])
            found[i, j] = np.sqrt(local @ local)
    return found


# ---- FAPE


@pytest.mark.parametrize("wrong, expected", [(0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0)])
def test_fape_is_the_fraction_of_points_that_are_far_away(wrong, expected):
    pair = tuple(map(array, frames.identity((1, 3))))
    truth = normal(1, 4, 3)
    points = truth + np.float32([0, 12, 5]) * (np.arange(4) < wrong)[:, None]
    some, mask = np.ones((1, 3), "bool"), np.ones((1, 4), "bool")
    found = losses.fape(pair, points, pair, truth, some, mask, epsilon=0.0)
    np.testing.assert_allclose(array(found), [expected], atol=1e-6)
    found = losses.fape(pair, points, pair, truth, some, mask, clamped=False, epsilon=0.0)
    np.testing.assert_allclose(array(found), [1.3 * expected], rtol=1e-5)


def test_fape_equals_loops_and_examples_are_clamped_separately():
    (pair, points), (true_pair, truth) = chain(3, N), chain(3, N)
    some, mask = RNG.random((3, N)) < 0.7, RNG.random((3, N)) < 0.7
    clamped = np.array([True, False, True])
    found = array(losses.fape(pair, points, true_pair, truth, some, mask, clamped))
    for i in range(3):
        one = [(r[i], t[i]) for r, t in (pair, true_pair)]
        errors = np.sqrt(slow_errors(one[0], points[i], one[1], truth[i]) ** 2 + 1e-4)
        errors = np.minimum(errors, 10) if clamped[i] else errors
        assert found[i] == pytest.approx(errors[some[i]][:, mask[i]].mean() / 10, rel=1e-5)
    assert found[1] > 1


def test_fape_of_the_truth_is_a_thousandth():
    pair, points = chain(B, N)
    mask = np.ones((B, N), "bool")
    np.testing.assert_allclose(
        array(losses.fape(pair, points, *moved(pair, points), mask, mask)), 0.001, rtol=1e-3
    )
    none = array(losses.fape(pair, points, pair, points, mask & False, mask))
    np.testing.assert_array_equal(none, 0)


def test_fape_does_not_change_if_prediction_and_truth_move():
    prediction, truth = chain(B, N), chain(B, N)
    mask = np.ones((B, N), "bool")
    clamped = np.array([True, False])
    expected = array(losses.fape(*prediction, *truth, mask, mask, clamped))
    found = array(losses.fape(*moved(*prediction), *moved(*truth), mask, mask, clamped))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    (pair, points), (true_pair, true_points) = prediction, truth
    errors = slow_errors(
        (pair[0][0], pair[1][0]), points[0], (true_pair[0][0], true_pair[1][0]), true_points[0]
    )
    errors = np.minimum(np.sqrt(errors**2 + 1e-4), 10)
    assert errors.mean() / 10 == pytest.approx(expected[0], rel=1e-5)


def test_fape_of_a_mirror_image_is_twice_the_height_above_the_planes_of_residues():
    points = normal(1, 60, 3, 3) + normal(1, 60, 1, 3, scale=8)
    mask = np.ones((1, 60), "bool")

    def backbone(points):
        n, ca, c = np.moveaxis(points, -2, 0)
        return frames.from_points(n, ca, c), ca

    truth = backbone(points)
    mirrored = moved(*backbone(points * np.float32([1, 1, -1])))
    loss = array(losses.fape(*mirrored, *truth, mask, mask))[0]
    (rotation, translation), ca = (array(x) for x in truth[0]), truth[1]
    apart = ca[:, None] - translation[:, :, None]
    height = np.einsum("bfpx,bfx->bfp", apart, rotation[..., 2])
    expected = np.minimum(np.sqrt(4 * height**2 + 1e-4), 10).mean() / 10
    assert loss == pytest.approx(expected, rel=1e-4) and 0.7 < loss < 1


def test_fape_takes_all_iterations_at_once():
    pair, points = chain(4, B, N)
    true_pair, truth = chain(B, N)
    mask, clamped = np.arange(N) < [[5], [3]], np.array([True, False])
    found = array(losses.fape(pair, points, true_pair, truth, mask, mask, clamped))
    assert found.shape == (4, B)
    for i in range(4):
        one = losses.fape(
            (pair[0][i], pair[1][i]), points[i], true_pair, truth, mask, mask, clamped
        )
        np.testing.assert_allclose(found[i], array(one), rtol=1e-6)


# ---- torsions


def test_torsion_loss_equals_loops():
    angles, truth = RNG.uniform(-np.pi, np.pi, (2, B, N, 7))
    length = RNG.uniform(0.5, 2, (B, N, 7))
    circle = [np.stack([np.sin(x), np.cos(x)], -1).astype("float32") for x in (angles, truth)]
    mask, exists = RNG.random((B, N, 7)) < 0.6, np.arange(N) < [[6], [4]]
    mask &= exists[..., None]
    found = losses.torsion_loss(
        circle[0] * length[..., None].astype("float32"), circle[1], mask, PERIODIC, exists
    )
    for b in range(B):
        errors = []
        for i, t in np.argwhere(mask[b]):
            a, x = circle[0][b, i, t], circle[1][b, i, t]
            error = ((a - x) ** 2).sum()
            errors.append(min(error, ((a + x) ** 2).sum()) if PERIODIC[b, i, t] else error)
        wrong = abs(length[b][exists[b]] - 1).mean()
        assert array(found)[b] == pytest.approx(np.mean(errors) + 0.02 * wrong, rel=1e-5)


# ---- distances


def test_distogram_bins_are_those_of_the_paper():
    edges = np.linspace(2.3125, 21.6875, 63)
    apart = np.array([0.0, 2.3, 2.4, 7.0, 21.6, 21.7, 99.0], "float32")
    points = np.zeros((1, 7, 3), "float32")
    points[0, :, 0] = apart
    logits = normal(1, 7, 7, 64)
    mask = np.ones((1, 7), "bool")
    mask[0, 3] = False
    found = array(losses.distogram_loss(logits, points, mask))
    probability = np.exp(logits[0].astype("float64"))
    probability /= probability.sum(-1, keepdims=True)
    expected = [
        -np.log(probability[i, j, np.digitize(abs(apart[i] - apart[j]), edges)])
        for i in range(7)
        for j in range(7)
        if mask[0, i] and mask[0, j]
    ]
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)


def test_the_beta_of_glycine_is_its_alpha():
    positions = normal(B, N, 14, 3)
    found, mask = map(array, losses.beta_positions(positions, ATOMS, GLYCINE))
    np.testing.assert_array_equal(found[0, 1], positions[0, 1, 1])
    np.testing.assert_array_equal(found[0, 0], positions[0, 0, 4])
    assert mask.tolist() == [[True] * 6, [True, True, True, False, True, True]]  # X has no atoms


# ---- lDDT


def slow_lddt(points, truth, mask, residue, cutoff=15):
    found = np.full(len(points), np.nan)
    for i in range(len(points)):
        kept = []
        for j in range(len(points)):
            true = np.linalg.norm(truth[i] - truth[j])
            if mask[i] and mask[j] and residue[i] != residue[j] and true < cutoff:
                wrong = abs(np.linalg.norm(points[i] - points[j]) - true)
                kept.append(np.mean([wrong < bound for bound in (0.5, 1, 2, 4)]))
        found[i] = np.mean(kept) if kept else np.nan
    return found


def test_lddt_targets_equal_loops():
    truth = normal(B, 20, 3, scale=7)
    points = truth + normal(B, 20, 3)
    mask, residue = RNG.random((B, 20)) < 0.8, np.arange(20) // 3
    points[0, 0] = truth[0, 0] = 500  # without neighbours
    found, defined = map(array, losses.lddt_targets(points, truth, mask, residue))
    expected = np.array([slow_lddt(points[b], truth[b], mask[b], residue) for b in range(B)])
    np.testing.assert_array_equal(defined, ~np.isnan(expected))
    assert not defined[0, 0] and not found[~defined].any()
    np.testing.assert_allclose(found[defined], expected[defined], rtol=1e-5)
    alone, _ = map(array, losses.lddt_targets(points, truth, mask))
    expected = slow_lddt(points[1], truth[1], mask[1], np.arange(20))
    np.testing.assert_allclose(alone[1], np.nan_to_num(expected), rtol=1e-5)


@pytest.mark.parametrize(
    "error, expected", [(0.4, 1.0), (0.6, 0.75), (1.5, 0.5), (3.0, 0.25), (5.0, 0.0)]
)
def test_lddt_of_one_wrong_distance(error, expected):
    truth = np.float32([[[0, 0, 0], [6, 0, 0], [0, 0, 40]]])
    points = truth + np.float32([[0, 0, 0], [error, 0, 0], [7, 7, 7]])  # the third is too far away
    found, defined = losses.lddt_targets(points, truth, np.ones((1, 3), "bool"))
    np.testing.assert_allclose(array(found), [[expected, expected, 0]])
    assert array(defined).tolist() == [[True, True, False]]


def test_lddt_of_a_mirror_image_is_perfect():
    truth = normal(B, 20, 3, scale=7)
    found, _ = losses.lddt_targets(-truth, truth, np.ones((B, 20), "bool"))
    np.testing.assert_array_equal(array(found), 1)


def test_lddt_loss_is_a_cross_entropy_of_50_bins():
    fractions = np.float32([[[0.0, 0.019, 0.021], [0.625, 0.99, 1.0]]])
    bins, logits = np.array([[[0, 0, 1], [31, 49, 49]]]), normal(1, 2, 3, 50)
    mask = np.array([[[True, True, True], [True, False, True]]])
    found = array(losses.lddt_loss(logits, fractions, mask))
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(probability, bins[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, [-np.log(chosen[mask]).mean()], rtol=1e-5)


# ---- aligned errors


def test_aligned_errors_equal_loops_and_are_decoded_within_half_a_bin():
    from polyhead.zoo.folding import aligned_errors

    (pair, points), (true_pair, truth) = chain(B, N), chain(B, N)
    found = array(losses.aligned_error_targets(pair, points, true_pair, truth))
    for b in range(B):
        one = [(r[b], t[b]) for r, t in (pair, true_pair)]
        expected = slow_errors(one[0], points[b], one[1], truth[b])
        np.testing.assert_allclose(found[b], expected, rtol=1e-4, atol=1e-4)
    errors = np.float32([[0.0, 0.3], [7.7, 31.4]])[None]
    mask = np.ones((1, 2), "bool")
    bins = np.array([[[0, 0], [15, 62]]])
    logits = 50 * np.eye(64, dtype="float32")[bins]
    assert array(losses.aligned_error_loss(logits, errors, mask, mask))[0] < 1e-6
    decoded, _ = aligned_errors(ops.convert_to_tensor(logits), np.ones((1, 2), "float32"))
    assert abs(array(decoded) - errors).max() <= 0.2501
    logits = 50 * np.eye(64, dtype="float32")[np.full((1, 2, 2), 63)]
    assert array(losses.aligned_error_loss(logits, errors + 99, mask, mask))[0] < 1e-6


# ---- ambiguous names


def slow_rename(points, truth, mask, sequence):
    renamed = []
    named = ATOM14_SWAP[sequence] == np.arange(14)
    for i, residue in enumerate(sequence):
        swap, sums = ATOM14_SWAP[residue], [0.0, 0.0]
        for a in np.flatnonzero((swap != np.arange(14)) & mask[i] & mask[i, swap]):
            for j, b in np.argwhere(named & mask):
                predicted = np.linalg.norm(points[i, a] - points[j, b])
                for k, name in enumerate((a, swap[a])):
                    sums[k] += abs(predicted - np.linalg.norm(truth[i, name] - truth[j, b]))
        renamed.append(sums[1] < sums[0])
    return renamed


def test_renaming_equals_loops_and_fits_better():
    truth = normal(B, N, 14, 3, scale=5) * ATOMS[..., None]
    exchanged = RNG.random((B, N, 1, 1)) < 0.5
    points = np.take_along_axis(truth, ATOM14_SWAP[SEQUENCE][..., None], 2)
    points = np.where(exchanged, points, truth) + normal(B, N, 14, 3, scale=3)
    mask = ATOMS & (RNG.random(ATOMS.shape) < 0.9)
    found, found_mask, renamed = map(
        array, losses.rename_ambiguous(points, truth, mask, SEQUENCE, ATOM14_SWAP)
    )
    expected = [slow_rename(points[b], truth[b], mask[b], SEQUENCE[b]) for b in range(B)]
    np.testing.assert_array_equal(renamed, expected)
    assert 0 < renamed.sum() < B * N
    swap = np.where(renamed[..., None], ATOM14_SWAP[SEQUENCE], np.arange(14))
    np.testing.assert_array_equal(found, np.take_along_axis(truth, swap[..., None], 2))
    np.testing.assert_array_equal(found_mask, np.take_along_axis(mask, swap, 2))


def test_renaming_finds_exchanged_names_and_only_these():
    truth = normal(B, N, 14, 3, scale=5) * ATOMS[..., None]
    exchanged = RNG.random((B, N)) < 0.5
    swap = np.where(exchanged[..., None], ATOM14_SWAP[SEQUENCE], np.arange(14))
    points = np.take_along_axis(truth, swap[..., None], 2)
    found, _, renamed = losses.rename_ambiguous(points, truth, ATOMS, SEQUENCE, ATOM14_SWAP)
    ambiguous = (ATOM14_SWAP[SEQUENCE] != np.arange(14)).any(-1)
    np.testing.assert_array_equal(array(renamed), exchanged & ambiguous)
    np.testing.assert_array_equal(array(found), points)


def test_renamed_frames_are_those_of_the_renamed_atoms():
    """Residues built with a symmetric torsion turned by pi are the same with other names."""
    angles = RNG.uniform(-np.pi, np.pi, (B, N, 7))
    pair, _ = chain(B, N)
    groups = tables.GROUP_ROTATION[SEQUENCE], tables.GROUP_TRANSLATION[SEQUENCE]
    atoms = tables.ATOM14_GROUP[SEQUENCE], tables.ATOM14_POSITION[SEQUENCE], ATOMS

    def build(angles):
        circle = np.stack([np.sin(angles), np.cos(angles)], -1).astype("float32")
        placed = frames.torsion_frames(pair, circle, groups)
        return placed, array(frames.place_atoms(placed, *atoms))

    (rotation, translation), truth = build(angles)
    turned, points = build(angles + np.pi * PERIODIC)
    _, _, renamed = losses.rename_ambiguous(points, truth, ATOMS, SEQUENCE, ATOM14_SWAP)
    np.testing.assert_array_equal(array(renamed), PERIODIC.any(-1))
    found = losses.rename_frames((rotation, translation), renamed, PERIODIC)
    exists = tables.GROUP_MASK[SEQUENCE]
    for one, expected in zip(found, turned, strict=True):
        np.testing.assert_allclose(array(one)[exists], array(expected)[exists], atol=1e-4)


# ---- all of them


def all_losses(x):
    """Every loss of a prediction ``x``, a dictionary with the truth beside it."""
    pair, true_pair = (
        (x["rotation"], x["positions"][:, :, 1]),
        (x["true_rotation"], x["true"][:, :, 1]),
    )
    points, truth = pair[1], true_pair[1]
    exists = x["mask"][:, :, 1]
    true, mask, renamed = losses.rename_ambiguous(
        x["positions"], x["true"], x["mask"], x["sequence"], ATOM14_SWAP
    )

    def flat(values, *tail):
        return ops.reshape(values, (B, -1, *tail))

    fractions, defined = losses.lddt_targets(points, truth, exists)
    beta = losses.beta_positions(true, mask, x["sequence"] == LETTERS.index("G"))
    errors = losses.aligned_error_targets(pair, points, true_pair, truth)
    return {
        "backbone": losses.fape(pair, points, true_pair, truth, exists, exists, x["clamped"]),
        "atoms": losses.fape(
            pair, flat(x["positions"], 3), true_pair, flat(true, 3), exists, flat(mask)
        ),
        "torsions": losses.torsion_loss(
            x["torsions"], x["true_torsions"], x["torsion_mask"], x["periodic"], exists
        ),
        "distogram": losses.distogram_loss(x["pairs"], *beta),
        "lddt": losses.lddt_loss(x["singles"], fractions, defined),
        "errors": losses.aligned_error_loss(x["pairs"], errors, exists, exists),
        "renamed": ops.sum(ops.cast(renamed, "float32"), axis=-1),
    }


def example():
    (rotation, _), (true_rotation, _) = chain(B, N)[0], chain(B, N)[0]
    angles = RNG.uniform(-np.pi, np.pi, (B, N, 7))
    mask = ATOMS & (RNG.random(ATOMS.shape) < 0.9)
    mask[:, :, 1] = ATOMS[:, :, 1]
    return {
        "rotation": rotation,
        "positions": normal(B, N, 14, 3, scale=6),
        "true_rotation": true_rotation,
        "true": normal(B, N, 14, 3, scale=6) * mask[..., None],
        "mask": mask,
        "sequence": SEQUENCE,
        "torsions": normal(B, N, 7, 2),
        "true_torsions": np.stack([np.sin(angles), np.cos(angles)], -1).astype("float32"),
        "torsion_mask": np.broadcast_to(ATOMS[..., :1], (B, N, 7)),
        "periodic": PERIODIC,
        "pairs": normal(B, N, N, 64),
        "singles": normal(B, N, 50),
        "clamped": np.array([True, False]),
    }


def test_padding_changes_no_loss():
    given = example()
    expected = all_losses(given)
    padded = {}
    for name, x in given.items():
        width = [(0, 0)] + [(0, 3 if size == N else 0) for size in x.shape[1:]]
        junk = {"bool": False, "float32": 7.0, "int64": 21}[x.dtype.name]
        padded[name] = np.pad(x, width, constant_values=junk)
    for name, found in all_losses(padded).items():
        np.testing.assert_allclose(array(found), array(expected[name]), rtol=1e-5, err_msg=name)


def test_gradients_are_finite_where_the_prediction_is_right_and_at_zero():
    given = example()
    given["rotation"], given["true_rotation"] = given["true_rotation"], given["true_rotation"]

    def total(x):
        return sum(ops.sum(loss) for loss in all_losses(given | x).values())

    for positions in (given["true"], np.zeros_like(given["true"])):
        found = gradient(lambda x: total({"positions": x}), positions)
        assert np.isfinite(found).all()
    for torsions in (given["true_torsions"], np.zeros_like(given["true_torsions"])):
        found = gradient(lambda x: total({"torsions": x}), torsions)
        assert np.isfinite(found).all()
    assert abs(gradient(lambda x: total({"rotation": x}), 0 * given["rotation"])).max() > 0


def test_targets_pass_no_gradient():
    given = example()
    names = "lddt", "errors", "renamed", "distogram"

    def total(x):
        found = all_losses(given | {"positions": x})
        return sum(ops.sum(found[name]) for name in names) + 0 * ops.sum(x)

    assert not gradient(total, given["positions"]).any()


def test_losses_of_half_precision_are_computed_in_float32():
    given = example()
    half = {k: x.astype("float16") if x.dtype == "float32" else x for k, x in given.items()}
    whole = {k: x.astype("float32") if x.dtype == "float16" else x for k, x in half.items()}
    for name, expected in all_losses(whole).items():
        found = all_losses(half)[name]
        assert ops.dtype(found) == "float32"
        np.testing.assert_array_equal(array(found), array(expected), err_msg=name)


def test_compiled_losses_and_gradients_are_equal():
    given = example()
    names = "rotation", "positions", "torsions", "pairs", "singles"
    if not TENSORFLOW:
        import jax

        def total(x):
            return sum(ops.sum(loss) for loss in all_losses(given | x).values())

        x = {name: given[name] for name in names}
        found, expected = jax.jit(jax.grad(total))(x), jax.grad(total)(x)
    else:
        import tensorflow as tf

        def gradients(given):
            with tf.GradientTape() as tape:
                tape.watch([given[name] for name in names])
                total = sum(ops.sum(loss) for loss in all_losses(given).values())
            return dict(zip(names, tape.gradient(total, [given[n] for n in names]), strict=True))

        given = {name: tf.constant(x) for name, x in given.items()}
        expected = gradients(given)
        found = tf.function(gradients, jit_compile=True)(given)
        # Lengths that are unknown when the graph is traced.
        signature = {
            name: tf.TensorSpec(
                [B, *(None if size == N else size for size in x.shape[1:])], x.dtype
            )
            for name, x in given.items()
        }
        open_graph = tf.function(gradients, input_signature=[signature])(given)
        for name in names:
            np.testing.assert_allclose(open_graph[name], expected[name], atol=1e-5)
    for name in names:
        np.testing.assert_allclose(array(found[name]), array(expected[name]), atol=1e-5)
