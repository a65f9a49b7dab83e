import keras
import numpy as np
import pytest
import tensorflow as tf

from polyhead.training import SmoothedCrossEntropy, strategy
from tests.conftest import small

B, T, V = 8, 6, 40


def batch(seed=0, lengths=None):
    """Uneven padding; the first half holds far fewer tokens than the second."""
    random = np.random.default_rng(seed)
    lengths = np.array([2, 1, 2, 1, 6, 5, 6, 6]) if lengths is None else np.array(lengths)
    labels = random.integers(3, V, (len(lengths), T)).astype("int32")
    weight = (np.arange(T) < lengths[:, None]).astype("float32")
    labels = (labels * weight).astype("int32")
    target = np.concatenate([np.ones((len(lengths), 1), "int32"), labels[:, :-1]], 1)
    return {"source": labels[:, ::-1].copy(), "target": target}, labels, weight


def trained(devices, optimizer, batches, jit_compile=True, **model):
    keras.utils.set_random_seed(5)
    with strategy(devices).scope():
        network = small(**{"num_layers": 1, **model})
        network.compile(optimizer(), SmoothedCrossEntropy(0.1), jit_compile=jit_compile)

    def generate():
        yield from batches

    x, y, w = batches[0]
    spec = ({k: tf.TensorSpec([None, T], v.dtype) for k, v in x.items()},) + tuple(
        tf.TensorSpec([None, T], v.dtype) for v in (y, w)
    )
    data = tf.data.Dataset.from_generator(generate, output_signature=spec)
    data = data.apply(tf.data.experimental.assert_cardinality(len(batches)))
    history = network.fit(data, shuffle=False, verbose=0)
    return network, history.history["loss"][0]


def sgd():
    return keras.optimizers.SGD(0.1, global_clipnorm=0.1)


def largest_difference(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs)


def test_the_step_is_that_of_plain_keras_on_one_device():
    batches = [batch(i) for i in range(3)]
    ours, loss = trained(1, sgd, batches)
    keras.utils.set_random_seed(5)
    network = small(num_layers=1)
    network.compile(sgd(), SmoothedCrossEntropy(0.1), jit_compile=False)
    for x, y, w in batches:
        with tf.GradientTape() as tape:
            value = network.loss(y, network(x), w)
        gradients = tape.gradient(value, network.trainable_weights)
        norm = tf.linalg.global_norm(gradients)
        for v, g in zip(network.trainable_weights, gradients, strict=True):
            v.assign_sub(0.1 * tf.convert_to_tensor(g) * tf.minimum(1.0, 0.1 / norm))
    assert largest_difference(ours, network) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [sgd, lambda: keras.optimizers.Adam(1e-3)])
def test_two_devices_train_as_one(optimizer):
    # Clipped, unevenly padded, the first replica of the last batch without any token.
    batches = [batch(i) for i in range(4)] + [batch(4, [0, 0, 0, 0, 5, 3, 6, 1])]
    one, loss_of_one = trained(1, optimizer, batches)
    two, loss_of_two = trained(2, optimizer, batches)
    assert loss_of_two == pytest.approx(loss_of_one, rel=1e-5)
    assert largest_difference(one, two) < 1e-5


@pytest.mark.slow
def test_an_overflow_on_one_device_skips_the_step_on_both():
    keras.config.set_dtype_policy("mixed_float16")
    network, _ = trained(2, lambda: keras.optimizers.Adam(1e-3), [batch()])
    before, scale = network.get_weights(), network.optimizer.dynamic_scale.value
    scaled = float(tf.convert_to_tensor(scale))
    x, y, w = batch()
    w[-1, 0] = np.inf  # the last row is the second device's
    network.fit(tf.data.Dataset.from_tensors((x, y, w)), shuffle=False, verbose=0)
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(tf.convert_to_tensor(scale)) == scaled / 2


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_it_overfits_one_batch(policy):
    keras.config.set_dtype_policy(policy)
    network, _ = trained(1, lambda: keras.optimizers.Adam(3e-3), [batch()] * 2)
    data = tf.data.Dataset.from_tensors(batch()).repeat(60)
    history = network.fit(data, shuffle=False, verbose=0, epochs=2)
    logits = keras.ops.convert_to_numpy(network(batch()[0]))
    _, labels, weight = batch()
    assert ((logits.argmax(-1) == labels) | (weight == 0)).all(), history.history


def test_the_step_does_not_depend_on_the_loss_scale():
    def step(scale):
        network, _ = trained(1, lambda: keras.optimizers.SGD(0.1), [batch()])
        network.optimizer.dynamic_scale.assign(scale)
        network.train_on_batch(*batch(1))
        return network

    keras.config.set_dtype_policy("mixed_float16")
    assert largest_difference(step(2.0**15), step(2.0**10)) < 1e-3


def test_evaluation_weighs_tokens_not_batches():
    network = small()
    network.compile(jit_compile=False)
    x, y, w = batch()
    data = tf.data.Dataset.from_tensor_slices((x, y, w))
    whole, parts = (network.evaluate(data.batch(n), verbose=0) for n in (8, 3))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_the_optimizer_does_not_reduce_twice():
    # Keras's `_all_reduce_sum_gradients` is overridden: it must exist, and be ours.
    assert hasattr(keras.optimizers.Optimizer, "_all_reduce_sum_gradients")
    network = small()
    network.compile()
    pairs = [("gradient", "variable")]
    assert network.optimizer._all_reduce_sum_gradients(iter(pairs)) == pairs


def test_a_built_model_is_not_built_from_data():
    # Keras's `_maybe_symbolic_build` is overridden: it must exist.
    assert hasattr(keras.Model, "_maybe_symbolic_build")
    network = small()
    network.compile()
    network._maybe_symbolic_build(iterator=None)


def test_a_number_of_devices_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="devices must be 1 or more"):
        strategy(0)
    with pytest.raises(RuntimeError, match="before TensorFlow is used; there are 2"):
        strategy(3)
