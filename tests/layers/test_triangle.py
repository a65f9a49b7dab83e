import numpy as np
import pytest
from keras import ops

from polyhead.layers import TriangleAttention, TriangleMultiplication
from tests.conftest import TENSORFLOW

B, N, C, H = 2, 7, 16, 4
DIRECTIONS = pytest.mark.parametrize("first", [True, False])
LAYERS = pytest.mark.parametrize("kind", ["multiplication", "attention", "attention in chunks"])


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def make(kind, first, **options):
    """A layer with random weights: outgoing or starting if ``first``."""
    if kind == "multiplication":
        layer = TriangleMultiplication(first, **options)
    else:
        layer = TriangleAttention(H, first, chunk=3 if "chunks" in kind else None, **options)
    layer.build((B, N, N, C))
    for i, v in enumerate(layer.weights):  # including biases, so that wrong ones are found
        v.assign(random_array(*v.shape, seed=i) / 2)
    return layer


def each(layer, z):
    """Applies a projection of pairs (P, C) or of rows to ``z`` (B, N, N, C)."""
    if layer.input_spec.ndim == 2:
        return ops.reshape(layer(ops.reshape(z, (-1, C))), z.shape)
    return layer(z)


@LAYERS
@DIRECTIONS
def test_updates_are_those_of_the_triangles(kind, first):
    """Element by element, as the algorithms are written."""
    layer, z = make(kind, first), random_array(B, N, N, C)
    norm = array(layer.norm(z))
    found = array(layer(z))
    for i, j in ((0, 0), (2, 5), (6, 1)):
        if kind == "multiplication":
            left, right = (
                array(ops.sigmoid(each(gate, norm)) * each(values, norm))
                for gate, values in ((layer.left_gate, layer.left), (layer.right_gate, layer.right))
            )
            sides = (left[:, i], right[:, j]) if first else (left[:, :, i], right[:, :, j])
            y = layer.output_projection(layer.product_norm((sides[0] * sides[1]).sum(1)))
            expected = ops.sigmoid(layer.gate(norm[:, i, j])) * y
        else:
            norm_ij = norm if first else norm.swapaxes(1, 2)
            a, b = (i, j) if first else (j, i)
            query, key, value, gate = (
                array(f(norm_ij)) for f in (layer.query, layer.key, layer.value, layer.gate)
            )
            scores = np.einsum("bhk,bshk->bhs", query[:, a, b], key[:, a]) / (C // H) ** 0.5
            weights = array(ops.softmax(scores + array(layer.pair_bias(norm_ij))[:, :, b]))
            heads = np.einsum("bhs,bshk->bhk", weights, value[:, a]) / (1 + np.exp(-gate[:, a, b]))
            expected = layer.output_projection(heads[:, None, None])[:, 0, 0]
        np.testing.assert_allclose(found[:, i, j], array(expected), atol=1e-5, rtol=1e-5)


@LAYERS
@DIRECTIONS
def test_padding_changes_nothing(kind, first):
    layer, z = make(kind, first), random_array(B, N, N, C)
    mask = np.arange(N) < 5
    expected = array(layer(z[:, :5, :5]))
    changed = z.copy()
    changed[:, 5:], changed[:, :, 5:] = 100, -100
    pairs = np.broadcast_to(mask[:, None] & mask, (B, N, N))
    for inputs, given in ((z, np.tile(mask, (B, 1))), (z, pairs), (changed, pairs)):
        found = array(layer(inputs, mask=given))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[:, :5, :5], expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 6, 7, 100])
@DIRECTIONS
def test_chunks_change_nothing(chunk, first):
    layer, z = make("attention", first), random_array(B, N, N, C)
    mask = np.arange(N) < np.array([[4], [7]])
    expected = array(layer(z)), array(layer(z, mask=mask))
    layer.chunk = chunk
    np.testing.assert_allclose(array(layer(z)), expected[0], atol=1e-6)
    np.testing.assert_allclose(array(layer(z, mask=mask)), expected[1], atol=1e-6)


def test_the_bias_is_shared_and_the_scores_of_a_chunk_are_few(monkeypatch):
    from polyhead.layers import axial

    shapes = []

    def softmax(scores, mask):
        shapes.append(tuple(scores.shape))
        return ops.softmax(scores)

    monkeypatch.setattr(axial, "masked_softmax", softmax)
    make("attention in chunks", True)(random_array(B, N, N, C))
    assert shapes and set(shapes) == {(B, 3, H, N, N)}


@LAYERS
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_finite(kind, policy):
    """The sums of the product exceed the largest float16, 65504."""
    full, half = make(kind, True), make(kind, True, dtype=policy)
    z = random_array(1, 64, 64, C)
    if kind == "multiplication":
        for layer in (full, half):
            for part in (layer.left, layer.right):
                part.kernel.assign(part.kernel * 1000)
    expected, found = array(full(z)), array(half(z))
    assert np.isfinite(found).all()
    assert abs(found - expected).mean() < 0.05 * abs(expected).mean()


@LAYERS
def test_the_first_update_is_zero(kind):
    layer = TriangleMultiplication(True) if kind == "multiplication" else TriangleAttention(H, True)
    assert not array(layer(random_array(B, N, N, C))).any()
    np.testing.assert_array_equal(array(each(layer.gate, random_array(B, N, N, C))), 1)


def test_quantized_sides_are_close():
    layer, z = make("multiplication", True), random_array(B, N, N, C)
    expected = array(layer(z))
    layer.left.quantize("int8")
    layer.right_gate.quantize("int8")
    wrong = abs(array(layer(z)) - expected)
    assert 0 < wrong.mean() < 0.03 * abs(expected).mean()


@LAYERS
def test_one_residue_is_a_triangle(kind):
    layer = make(kind, True)
    assert np.isfinite(array(layer(random_array(1, 1, 1, C)))).all()


@LAYERS
@pytest.mark.skipif(not TENSORFLOW, reason="tf.function")
@pytest.mark.parametrize("xla", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_graph_of_unknown_length_computes_the_same_and_its_gradients(kind, xla):
    import tensorflow as tf

    layer, z = make(kind, False), tf.constant(random_array(B, N, N, C))
    mask = tf.constant(np.arange(N) < np.array([[4], [7]]))

    def compute(z, mask):
        with tf.GradientTape() as tape:
            tape.watch(z)
            y = layer(z, mask=mask)
            loss = tf.reduce_sum(tf.square(y * tf.cast(mask, "float32")[:, None, :, None]))
        return y, tape.gradient(loss, z)

    signature = [tf.TensorSpec((None, None, None, C)), tf.TensorSpec((None, None), "bool")]
    graph = tf.function(compute, input_signature=signature, jit_compile=xla)
    for length in (N, 4):
        inputs = z[:, :length, :length], mask[:, :length]
        for found, expected in zip(graph(*inputs), compute(*inputs), strict=True):
            np.testing.assert_allclose(array(found), array(expected), atol=1e-5, rtol=1e-4)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="num_heads must divide the width: 16 / 3"):
        TriangleAttention(3, True).build((B, N, N, C))
    assert TriangleAttention(3, True, head_dim=5)(random_array(B, N, N, C)).shape == (B, N, N, C)


def set_linear(ours, theirs):
    ours.kernel.assign(theirs.weight.detach().numpy().T.reshape(ours.kernel.shape))
    if theirs.bias is not None:
        ours.bias.assign(theirs.bias.detach().numpy().reshape(ours.bias.shape))


def set_norm(ours, theirs):
    ours.gamma.assign(theirs.weight.detach().numpy())
    ours.beta.assign(theirs.bias.detach().numpy())


@LAYERS
@DIRECTIONS
def test_updates_equal_those_of_transformers(kind, first):
    torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
    pytest.importorskip("transformers", reason="transformers is not installed: EXTRAS=parity")
    from types import SimpleNamespace

    from transformers.models.esm import modeling_esmfold

    layer, z = make(kind, first), random_array(B, N, N, C)
    if kind == "multiplication":
        config = SimpleNamespace(pairwise_state_dim=C)
        peer = modeling_esmfold.EsmFoldTriangleMultiplicativeUpdate(config, _outgoing=first)
    else:
        peer = modeling_esmfold.EsmFoldTriangleAttention(C, C // H, H, starting=first)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in peer.parameters():
            p.copy_(torch.randn_like(p) / 3)
    if kind == "multiplication":
        set_norm(layer.norm, peer.layer_norm_in)
        set_norm(layer.product_norm, peer.layer_norm_out)
        for ours, theirs in (
            (layer.left, peer.linear_a_p), (layer.left_gate, peer.linear_a_g),
            (layer.right, peer.linear_b_p), (layer.right_gate, peer.linear_b_g),
            (layer.gate, peer.linear_g), (layer.output_projection, peer.linear_z),
        ):  # fmt: skip
            set_linear(ours, theirs)
    else:
        set_norm(layer.norm, peer.layer_norm)
        set_linear(layer.pair_bias, peer.linear)
        for ours, name in (
            (layer.query, "q"), (layer.key, "k"), (layer.value, "v"), (layer.gate, "g"),
            (layer.output_projection, "o"),
        ):  # fmt: skip
            set_linear(ours, getattr(peer.mha, f"linear_{name}"))
    mask = np.arange(N) < np.array([[4], [7]])
    pairs = mask[:, None] & mask[:, :, None]
    for given, valid in ((None, pairs | True), (pairs, pairs)):
        with torch.no_grad():
            theirs = None if given is None else torch.tensor(given.astype("float32"))
            expected = peer(torch.tensor(z), mask=theirs).numpy()
        found = array(layer(z, mask=given))
        np.testing.assert_allclose(found[valid], expected[valid], atol=1e-5, rtol=1e-5)
