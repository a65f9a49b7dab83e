import numpy as np
from keras import ops

from polyhead.layers import FeedForward, GatedFeedForward


def array(x):
    return ops.convert_to_numpy(x)


def test_feed_forward_equals_equation_2():
    layer = FeedForward(6)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    y = array(layer(x))
    w1, b1, w2, b2 = layer.get_weights()
    np.testing.assert_allclose(y, np.maximum(x @ w1 + b1, 0) @ w2 + b2, atol=1e-5)


def test_a_gate_multiplies_the_other_map():
    layer = GatedFeedForward(6, "silu")
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype("float32")
    y = array(layer(x))
    gate, expand, contract = (
        array(part.kernel) for part in (layer.gate, layer.expand, layer.contract)
    )
    gated = x @ gate
    np.testing.assert_allclose(
        y, (gated / (1 + np.exp(-gated)) * (x @ expand)) @ contract, atol=1e-5
    )
    assert len(layer.weights) == 3


def test_dropout_is_between_the_maps():
    for layer in (FeedForward(64, dropout=0.5), GatedFeedForward(64, "relu", dropout=0.5)):
        x = np.ones((2, 3, 8), "float32")
        np.testing.assert_array_equal(array(layer(x)), array(layer(x)))
        first, second = (array(layer(x, training=True)) for _ in range(2))
        assert (first != second).all()
