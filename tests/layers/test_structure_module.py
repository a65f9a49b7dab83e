import numpy as np
import pytest
from keras import ops, tree

from polyhead.layers import StructureModule
from tests.conftest import TENSORFLOW
from tests.layers.test_point_attention import array, random_array, random_inputs

MASK = np.arange(9) < np.array([[4], [9]])


def make(num_iterations):
    """A module with random weights, also where they are initially zero."""
    module = StructureModule(
        num_iterations, num_heads=2, head_dim=8, query_points=4, value_points=4, torsion_dim=12,
        dropout=0.0,
    )  # fmt: skip
    s, z, _ = random_inputs()
    module.build(s.shape, z.shape)
    for i, v in enumerate(module.weights):
        v.assign(random_array(*v.shape, seed=i) / 6)
    return module, s, z


def test_training_and_inference_compute_the_same():
    """Training computes the iterations one after the other, inference in a loop."""
    module, s, z = make(4)
    one, other = (module(s, z, MASK, training=training) for training in (True, False))
    assert [len(x) for x in one.values()] == [4] * 4
    tree.assert_same_structure(one, other)
    for a, b in zip(tree.flatten(one), tree.flatten(other), strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-5, atol=1e-5)
    moved = array(one["frames"][3][1]) - array(one["frames"][2][1])
    assert abs(moved).max() > 0.01


def test_torsions_are_sines_and_cosines():
    module, s, z = make(2)
    found = module(s, z, MASK)
    for torsions, unnormalized in zip(found["torsions"], found["unnormalized"], strict=True):
        size = ops.sqrt(ops.sum(ops.square(torsions), -1))
        np.testing.assert_allclose(array(size), 1, rtol=1e-5)
        assert abs(array(unnormalized) - array(torsions)).max() > 0.01


@pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow's graphs")
def test_a_graph_has_the_iteration_once():
    import tensorflow as tf

    def products(num_iterations):
        module, s, z = make(num_iterations)
        function = tf.function(lambda s, z: module(s, z, MASK)["states"][-1], autograph=False)
        graph = function.get_concrete_function(s, z).graph.as_graph_def()
        nodes = [node.op for f in graph.library.function for node in f.node_def]
        return sum(op in ("BatchMatMulV2", "Einsum", "MatMul") for op in nodes)

    assert products(2) == products(6) > 5


@pytest.mark.skipif(not TENSORFLOW, reason="tf.GradientTape")
def test_a_graph_of_unknown_length_computes_the_same_and_its_gradients():
    import tensorflow as tf

    module, s, z = make(3)

    def compute(s, z, mask, training):
        with tf.GradientTape() as tape:
            tape.watch([s, z])
            found = module(s, z, mask, training=training)
            outputs = found["states"][-1], found["frames"][-1][1], found["torsions"][0]
            kept = tf.cast(mask, "float32")
            loss = sum(tf.reduce_sum(x[..., 0] ** 2 * kept) for x in outputs[:2])
        return *outputs, *tape.gradient(loss, [s, z])

    specs = [tf.TensorSpec((None, None, 24)), tf.TensorSpec((None, None, None, 16))]
    specs.append(tf.TensorSpec((None, None), "bool"))
    graph = tf.function(lambda *x: compute(*x, training=False), specs, autograph=False)
    for length in (9, 5):
        inputs = [tf.constant(x) for x in (s[:, :length], z[:, :length, :length], MASK[:, :length])]
        for found, expected in zip(graph(*inputs), compute(*inputs, training=True), strict=True):
            scale = max(abs(array(expected)).max(), 1)
            np.testing.assert_allclose(array(found), array(expected), atol=1e-4 * scale)
