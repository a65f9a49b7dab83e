import keras
import numpy as np
import pytest
from keras import ops

from polyhead.layers import InvariantPointAttention, frames
from tests.conftest import TENSORFLOW

B, N, D, C = 2, 9, 24, 16
SIZES = dict(num_heads=3, head_dim=8, query_points=4, value_points=6)


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def make(**options):
    layer = InvariantPointAttention(**SIZES, **options)
    layer.build((B, N, D), (B, N, N, C))
    for i, v in enumerate(layer.weights):  # including biases, so that wrong ones are found
        v.assign(random_array(*v.shape, seed=i) / 6)
    return layer


def random_inputs(length=N):
    rotation = array(frames.from_quaternion(random_array(B, length, 4, seed=2)))
    s, z = random_array(B, length, D), random_array(B, length, length, C, seed=1)
    return s, z, (rotation, 2 * random_array(B, length, 3, seed=3))


def test_the_output_does_not_change_if_all_frames_move_together():
    layer, (s, z, pair) = make(), random_inputs()
    expected = array(layer(s, z, pair))
    turn = frames.from_quaternion(random_array(B, 1, 4, seed=5))
    for shift in (0, 1, 10):  # in units of 10 angstroms
        moved = frames.compose((turn, shift * random_array(B, 1, 3, seed=6)), pair)
        np.testing.assert_allclose(array(layer(s, z, moved)), expected, atol=1e-5)
    far = pair[0], pair[1] + np.float32([1000, 0, 0])  # the translations are rounded
    np.testing.assert_allclose(array(layer(s, z, far)), expected, atol=1e-3)
    apart = pair[0], 2 * pair[1]
    assert abs(array(layer(s, z, apart)) - expected).max() > 0.01
    mirrored = pair[0] * np.float32([[1], [1], [-1]]), pair[1] * np.float32([1, 1, -1])
    mirrored = mirrored[0] * np.float32([1, 1, -1]), mirrored[1]  # again a rotation
    assert abs(array(layer(s, z, mirrored)) - expected).max() > 0.01


def test_scores_are_those_of_the_differences_of_points():
    layer, (s, z, pair) = make(), random_inputs()
    expanded = pair[0][:, :, None, None], pair[1][:, :, None, None]
    query, key = (
        array(frames.apply(expanded, points(s))) for points in (layer.point_query, layer.point_key)
    )
    squares = ((query[:, :, None] - key[:, None]) ** 2).sum((-1, -2))  # (B, N, N, H)
    weight = np.log1p(np.exp(array(layer.point_weight))) * np.sqrt(2 / (9 * 4))
    scores = np.einsum("bthk,bshk->bhts", array(layer.query(s)), array(layer.key(s))) / 8**0.5
    scores = (
        scores
        + np.moveaxis(array(layer.pair_bias(z)), -1, 1)
        - 0.5 * np.moveaxis(weight * squares, -1, 1)
    )
    found = array(layer._scores(s, z, expanded))
    np.testing.assert_allclose(found, scores / np.sqrt(3), rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing():
    layer, (s, z, (rotation, translation)) = make(), random_inputs()
    short = s[:, :5], z[:, :5, :5], (rotation[:, :5], translation[:, :5])
    expected = array(layer(*short))
    mask = np.tile(np.arange(N) < 5, (B, 1))
    translation[:, 5:] = 1000
    for padded in (z, np.where(mask[:, None, :, None], z, 100)):
        found = array(layer(s, padded, (rotation, translation), mask=mask))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[:, :5], expected, atol=1e-5)
    nothing = layer(s, z, (rotation, translation), mask=mask & False)
    assert np.isfinite(array(nothing)).all()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_only_rounds_the_result(policy):
    inputs = random_inputs()
    expected, found = make()(*inputs), make(dtype=policy)(*inputs)
    assert f"mixed_{keras.backend.standardize_dtype(found.dtype)}" == policy
    np.testing.assert_array_equal(array(found), array(ops.cast(expected, found.dtype)))


def test_the_first_update_is_zero():
    layer = InvariantPointAttention(**SIZES)
    assert not array(layer(*random_inputs())).any()
    np.testing.assert_allclose(array(ops.softplus(layer.point_weight)), 1, atol=1e-6)


def test_one_residue_attends_to_itself():
    assert np.isfinite(array(make()(*random_inputs(1)))).all()


@pytest.mark.skipif(not TENSORFLOW, reason="tf.function")
@pytest.mark.parametrize("xla", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_graph_of_unknown_length_computes_the_same_and_its_gradients(xla):
    import tensorflow as tf

    layer = make()

    def compute(s, z, rotation, translation, mask):
        with tf.GradientTape() as tape:
            tape.watch([s, z, rotation, translation])
            y = layer(s, z, (rotation, translation), mask=mask)
            loss = tf.reduce_sum(tf.square(y * tf.cast(mask, "float32")[..., None]))
        return y, *tape.gradient(loss, [s, z, rotation, translation])

    shapes = ((None, D), (None, None, C), (None, 3, 3), (None, 3))
    signature = [tf.TensorSpec((None, *shape)) for shape in shapes]
    signature.append(tf.TensorSpec((None, None), "bool"))
    graph = tf.function(compute, input_signature=signature, jit_compile=xla)
    for length in (N, 5):
        s, z, pair = random_inputs(length)
        mask = np.arange(length) < np.array([[4], [length]])
        inputs = [tf.constant(x) for x in (s, z, *pair, mask)]
        for found, expected in zip(graph(*inputs), compute(*inputs), strict=True):
            scale = abs(array(expected)).max()
            np.testing.assert_allclose(array(found), array(expected), atol=1e-5 * max(scale, 1))


def test_it_equals_that_of_transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
    pytest.importorskip("transformers", reason="transformers is not installed: EXTRAS=parity")
    from types import SimpleNamespace

    from transformers.models.esm.modeling_esmfold import EsmFoldInvariantPointAttention
    from transformers.models.esm.openfold_utils import Rigid, Rotation

    config = SimpleNamespace(
        sequence_dim=D, pairwise_dim=C, ipa_dim=8, num_heads_ipa=3, num_qk_points=4,
        num_v_points=6, epsilon=1e-8, inf=1e5,
    )  # fmt: skip
    peer = EsmFoldInvariantPointAttention(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in peer.parameters():
            p.copy_(torch.randn_like(p) / 3)
    layer = make()
    weights = {name: p.detach().numpy() for name, p in peer.named_parameters()}
    heads, size, points = 3, 8, 4

    def assign(ours, kernel, bias):
        ours.kernel.assign(kernel)
        ours.bias.assign(bias)

    def split(name, *shape):
        """The kernel (D, ...) and the bias of a linear layer whose outputs are a grid."""
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return kernel.T.reshape(-1, *shape), bias.reshape(shape)

    assign(layer.query, *split("linear_q", heads, size))
    kernel, bias = split("linear_kv", heads, 2 * size)
    assign(layer.key, kernel[..., :size], bias[..., :size])
    assign(layer.value, kernel[..., size:], bias[..., size:])
    kernel, bias = split("linear_q_points", 3, heads, points)
    assign(layer.point_query, np.moveaxis(kernel, 1, -1), np.moveaxis(bias, 0, -1))
    kernel, bias = split("linear_kv_points", 3, heads, points + 6)
    kernel, bias = np.moveaxis(kernel, 1, -1), np.moveaxis(bias, 0, -1)
    assign(layer.point_key, kernel[:, :, :points], bias[:, :points])
    assign(layer.point_value, kernel[:, :, points:], bias[:, points:])
    assign(layer.pair_bias, *split("linear_b", heads))
    layer.point_weight.assign(weights["head_weights"])
    assign(layer.output_projection, *split("linear_out", D))

    s, z, (rotation, translation) = random_inputs()
    rigid = Rigid(Rotation(rot_mats=torch.tensor(rotation)), torch.tensor(translation))
    for mask in (np.ones((B, N), bool), np.arange(N) < np.array([[4], [N]])):
        with torch.no_grad():
            theirs = torch.tensor(mask.astype("float32"))
            expected = peer(torch.tensor(s), torch.tensor(z), rigid, theirs).numpy()
        found = array(layer(s, z, (rotation, translation), mask=mask))
        np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5, rtol=1e-5)
