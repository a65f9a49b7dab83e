import numpy as np
import pytest
from keras import ops

from polyhead.layers import (
    EvoformerBlock,
    MSAColumnAttention,
    MSAGlobalColumnAttention,
    MSARowAttention,
    OuterProductMean,
)
from tests.conftest import TENSORFLOW

B, S, N, D, C, H = 2, 5, 7, 16, 12, 4
KINDS = {
    "row": lambda **options: MSARowAttention(H, name="row_attention", **options),
    "column": lambda **options: MSAColumnAttention(H, name="column_attention", **options),
    "global": lambda **options: MSAGlobalColumnAttention(H, name="column_attention", **options),
    "outer": lambda **options: OuterProductMean(C, 3, name="outer_product", **options),
    "block": lambda **options: EvoformerBlock(H, 2, 3, name="block", **options),
    "extra block": lambda **options: EvoformerBlock(H, 2, 3, extra=True, name="block", **options),
}
EVERY = pytest.mark.parametrize("kind", KINDS)
LAYERS = pytest.mark.parametrize("kind", ["row", "column", "global", "outer"])


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


ROWS, PAIRS = random_array(B, S, N, D), random_array(B, N, N, C, seed=1)
# The first example has 3 rows and 5 residues.
EXISTS = np.arange(N) < np.array([[5], [7]])
ROW_EXISTS = np.arange(S) < np.array([[3], [5]])
MASK = ROW_EXISTS[:, :, None] & EXISTS[:, None]


def array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def make(kind, **options):
    """A layer with random weights."""
    layer = KINDS[kind](**options)
    layer.build(*((ROWS.shape, PAIRS.shape) if kind in PAIRED else (ROWS.shape,)))
    for i, v in enumerate(layer.trainable_weights):  # also biases, so that wrong ones are found
        v.assign(random_array(*v.shape, seed=i) / 2)
    return layer


PAIRED = ("row", "block", "extra block")


def run(layer, m=ROWS, z=PAIRS, mask=MASK, exists=EXISTS, **options):
    """The outputs of a layer: of an update, or of an alignment and pairs."""
    if isinstance(layer, EvoformerBlock):
        return list(map(array, layer(m, z, mask, exists, **options)))
    inputs = (m, z) if isinstance(layer, MSARowAttention) else (m,)
    return [array(layer(*inputs, mask=mask))]


def is_pair(kind, i):
    return kind == "outer" or i == 1


@EVERY
def test_what_does_not_exist_changes_nothing(kind):
    layer, m, z = make(kind), ROWS.copy(), PAIRS.copy()
    m[0, 3:], m[0, :, 5:], z[0, 5:], z[0, :, 5:] = 100, -100, 100, -100
    together = run(layer, m, z)
    alone = run(layer, m[:1, :3, :5], z[:1, :5, :5], MASK[:1, :3, :5], EXISTS[:1, :5])
    for i, (found, expected) in enumerate(zip(together, alone, strict=True)):
        assert np.isfinite(found).all()
        found = found[:1, :5, :5] if is_pair(kind, i) else found[:1, :3, :5]
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


@EVERY
def test_the_order_of_rows_does_not_matter_to_pairs(kind):
    layer, order = make(kind), np.array([0, 3, 1, 4, 2])
    usual, moved = run(layer), run(layer, ROWS[:, order], mask=MASK[:, order])
    for i, (found, expected) in enumerate(zip(moved, usual, strict=True)):
        expected = expected if is_pair(kind, i) else expected[:, order]
        mask = EXISTS[:, :, None] & EXISTS[:, None] if is_pair(kind, i) else MASK[:, order]
        np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
@pytest.mark.parametrize("kind", ["row", "column", "outer"])
def test_chunks_change_nothing(kind, chunk):
    layer = make(kind)
    (expected,) = run(layer)
    layer.chunk = chunk
    np.testing.assert_allclose(run(layer)[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["block", "extra block"])
def test_a_block_sets_the_chunks_of_its_parts(kind):
    layer = make(kind, chunk=3)
    parts = [layer.row_attention, layer.outer_product, layer.attend_starting, layer.attend_ending]
    parts += [layer.column_attention] if kind == "block" else []
    assert {part.chunk for part in parts} == {3}
    layer.chunk = None
    assert {part.chunk for part in parts} == {None}


@LAYERS
def test_the_first_update_is_zero(kind):
    layer = KINDS[kind]()
    assert not run(layer)[0].any()


def test_the_outer_product_mean_is_that_of_its_definition():
    layer = make("outer")
    x = array(layer.norm(ROWS))
    left, right = array(layer.left(x)), array(layer.right(x))
    kernel, bias = array(layer.output_projection.kernel), array(layer.output_projection.bias)
    for i, j in ((0, 0), (2, 4), (6, 1)):
        total, count = 0, 0
        for s in range(S):
            if MASK[1, s, i] and MASK[1, s, j]:
                total, count = total + np.outer(left[1, s, i], right[1, s, j]), count + 1
        expected = (np.einsum("cd,cdz->z", total, kernel) + bias) / (count + 1e-3)
        np.testing.assert_allclose(run(layer)[0][1, i, j], expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_sums_of_many_rows_do_not_overflow(policy):
    """A sum of 3000 products exceeds the largest float16, 65504."""
    m = np.full((1, 3000, 3, D), [3.0, -3.0] * (D // 2), "float32")
    layer = make("outer", dtype=policy)
    layer.left.kernel.assign(3 * np.ones_like(layer.left.kernel))
    layer.norm.beta.assign(np.ones(D))
    assert np.isfinite(array(layer(m))).all()


@EVERY
@pytest.mark.skipif(not TENSORFLOW, reason="tf.function")
@pytest.mark.slow
def test_gradients_in_a_graph_of_unknown_sizes_are_finite(kind):
    import tensorflow as tf

    layer = make(kind, **({} if kind == "global" else {"chunk": 3}))

    def compute(m, z, mask, exists):
        with tf.GradientTape() as tape:
            tape.watch([m, z])
            if isinstance(layer, EvoformerBlock):
                _, y = layer(m, z, mask, exists, training=True)
            else:
                y = layer(*((m, z) if kind == "row" else (m,)), mask=mask)
            loss = tf.reduce_sum(tf.square(y))
        return y, *tape.gradient(loss, [m, *([z] if kind in PAIRED else [])])

    rows, pairs = (None, None, None, D), (None, None, None, C)
    signature = [tf.TensorSpec(rows), tf.TensorSpec(pairs), tf.TensorSpec(rows[:3], "bool")]
    graph = tf.function(compute, [*signature, tf.TensorSpec((None, None), "bool")])
    for n in (N, 4):
        inputs = ROWS[:, :, :n], PAIRS[:, :n, :n], MASK[:, :, :n], EXISTS[:, :n]
        inputs = list(map(tf.constant, inputs))
        for found, expected in zip(graph(*inputs), compute(*inputs), strict=True):
            assert np.isfinite(array(found)).all()
            np.testing.assert_allclose(array(found), array(expected), atol=1e-3, rtol=1e-3)


def test_heads_that_do_not_divide_the_width_are_refused():
    for kind in (MSARowAttention, MSAColumnAttention, MSAGlobalColumnAttention):
        shapes = [ROWS.shape, PAIRS.shape][: 1 + (kind is MSARowAttention)]
        with pytest.raises(ValueError, match="num_heads must divide the width: 16 / 3"):
            kind(3).build(*shapes)
        layer = kind(3, head_dim=5)
        layer.build(*shapes)
        assert layer.query.kernel.shape == (D, 3, 5)


def reference(kind):
    """AlphaFold's function of an alignment, pairs and masks, transformed by Haiku."""
    import haiku
    from alphafold.model import config, modules

    model = config.model_config("model_3").model
    c, settings = model.embeddings_and_evoformer.evoformer, model.global_config
    settings.bfloat16, settings.deterministic, settings.zero_init = False, True, False
    for part in (c.msa_row_attention_with_pair_bias, c.msa_column_attention):
        part.num_head = H
    for way in ("starting", "ending"):
        c[f"triangle_attention_{way}_node"].num_head = 2
    for way in ("outgoing", "incoming"):
        product = c[f"triangle_multiplication_{way}"]
        product.num_intermediate_channel, product.fuse_projection_weights = C, False
    c.outer_product_mean.num_outer_channel = 3
    row, column = c.msa_row_attention_with_pair_bias, c.msa_column_attention

    def compute(m, z, mask, exists):
        if kind == "row":
            return modules.MSARowAttentionWithPairBias(row, settings)(m, mask, z)
        if kind == "column":
            return modules.MSAColumnAttention(column, settings)(m, mask)
        if kind == "global":
            return modules.MSAColumnGlobalAttention(column, settings)(m, mask)
        if kind == "outer":
            layer = modules.OuterProductMean(c.outer_product_mean, settings, C)
            return layer(m, mask, is_training=False)
        pairs = exists[:, None] * exists[None]
        block = modules.EvoformerIteration(c, settings, kind == "extra block", name="block")
        inputs = {"msa": m, "pair": z}, {"msa": mask, "pair": pairs}
        return block(*inputs, is_training=False)

    return haiku.transform(compute)


@EVERY
@pytest.mark.slow
def test_updates_equal_those_of_alphafold(kind):
    jax = pytest.importorskip("jax", reason="jax is not installed: EXTRAS=parity")
    pytest.importorskip("alphafold", reason="AlphaFold is not installed: EXTRAS=parity")
    from polyhead.zoo.published import alphafold, table

    theirs, layer = reference(kind), make(kind)
    numbers = [x.astype("float32") for x in (MASK, EXISTS)]
    inputs = [(ROWS[i], PAIRS[i], numbers[0][i], numbers[1][i]) for i in range(B)]
    shapes = jax.eval_shape(theirs.init, jax.random.PRNGKey(0), *inputs[0])
    params, named = {}, {}
    for i, (scope, arrays) in enumerate(shapes.items()):
        params[scope] = {}
        for k, (name, x) in enumerate(arrays.items()):
            params[scope][name] = random_array(*x.shape, seed=100 * i + k) / 3
            named[f"{scope.removeprefix('block/')}//{name}"] = params[scope][name]
    rows = alphafold.block(extra=kind in ("global", "extra block"))
    ours = {v.path.removeprefix("block/"): v for v in layer.trainable_weights}
    entries, missing = table.match(rows, [(p, v.shape) for p, v in ours.items()], {}, named)
    assert not missing and {entry.name for entry in entries} == set(named)
    for entry in entries:
        for path, values in table.read(entry, named[entry.name]):
            ours[path].assign(values)
    found = run(layer)
    for i, given in enumerate(inputs):
        expected = jax.jit(theirs.apply)(params, jax.random.PRNGKey(0), *given)
        expected = [expected[k] for k in ("msa", "pair")] if "block" in kind else [expected]
        for k, (x, y) in enumerate(zip(found, expected, strict=True)):
            pairs = EXISTS[i][:, None] & EXISTS[i]
            exists = pairs if is_pair(kind, k) else MASK[i]
            np.testing.assert_allclose(x[i][exists], np.asarray(y)[exists], atol=1e-5, rtol=1e-5)
