import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from polyhead.serving.simplify import simplify


def operations(folder, name):
    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    return [
        node.op
        for function in functions
        if name in function.signature.name
        for node in function.node_def
    ]


def write(folder, function, *tracked):
    module = tf.Module()
    module.tracked = tracked
    spec = tf.TensorSpec([None], tf.float32, name="x")
    module.compute = tf.function(function, input_signature=[spec], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.compute})
    before = operations(folder, "compute")
    simplify(folder)
    return before, operations(folder, "compute"), tf.saved_model.load(str(folder))


def test_equal_operations_are_merged_and_unused_ones_removed(tmp_path):
    def compute(x):
        tf.exp(x)  # unused
        return {"y": tf.sin(x + 2.0) * tf.sin(x + 2.0), "z": tf.sin(x + 3.0)}

    before, after, loaded = write(tmp_path, compute)
    assert before.count("Sin") == 3 and before.count("Exp") == 1
    assert after.count("Sin") == 2 and after.count("Const") == 2 and "Exp" not in after
    x = np.float32([0.5, -1.0])
    found = loaded.compute(x)
    np.testing.assert_allclose(found["y"], np.sin(x + 2) ** 2, rtol=1e-6)
    np.testing.assert_allclose(found["z"], np.sin(x + 3), rtol=1e-6)


def test_operations_with_a_state_are_kept(tmp_path):
    counter = tf.Variable(0.0)

    def compute(x):
        first = counter.read_value()
        counter.assign_add(1.0)
        second = counter.read_value()
        noise = tf.random.uniform([2]) - tf.random.uniform([2])
        return {"reads": tf.stack([first, second]) + 0 * tf.reduce_sum(x), "noise": noise}

    _, after, loaded = write(tmp_path, compute, counter)
    assert after.count("ReadVariableOp") >= 2 and after.count("RandomUniform") == 2
    found = loaded.compute(np.float32([1.0]))
    assert found["reads"].numpy().tolist() == [0.0, 1.0]
    assert np.all(found["noise"] != 0)


def test_branches_and_loops_return_the_same(tmp_path):
    def compute(x):
        def body(i, total):
            return i + 1, total + tf.reduce_sum(x) * tf.reduce_sum(x)

        _, total = tf.while_loop(lambda i, _: i < 3, body, (0, tf.constant(0.0)))
        return {"y": tf.cond(total > 1, lambda: total + 1 + total + 1, lambda: total)}

    _, _, loaded = write(tmp_path, compute)
    assert loaded.compute(np.float32([1.0, 1.0]))["y"].numpy() == 26
    np.testing.assert_allclose(loaded.compute(np.float32([0.1]))["y"], 0.03, rtol=1e-5)
