"""Losses, schedule and optimizer of text encoders."""

import keras
import numpy as np
import pytest

from polyhead.training import (
    CosineRegression,
    InBatchNegatives,
    LayerwiseAdamW,
    Linear,
    Model,
    SpanCrossEntropy,
    ValidationScores,
)


def test_the_loss_of_spans_is_the_mean_of_two_cross_entropies():
    logits = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32")
    labels = np.array([[0, 0], [1, 4], [2, 3]])
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = [-(log[i, labels[i, 0], 0] + log[i, labels[i, 1], 1]) / 2 for i in range(3)]
    assert float(SpanCrossEntropy()(labels, logits)) == pytest.approx(np.mean(expected), abs=1e-5)
    weighted = SpanCrossEntropy()(labels, logits, np.array([1.0, 0, 0]))
    assert float(weighted) == pytest.approx(expected[0], abs=1e-5)
    assert np.isnan(float(SpanCrossEntropy()(np.array([[1, 5]] * 3), logits)))


def test_negatives_are_the_other_texts_of_the_batch():
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = 20 * unit[::2] @ unit[1::2].T

    def expected(kept):
        losses = []
        for i, columns in kept.items():
            row = scores[i, columns]
            losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - scores[i, i])
        return np.mean(losses)

    loss = InBatchNegatives()
    whole = {i: [0, 1, 2, 3] for i in range(4)}
    assert float(loss(np.arange(8), x)) == pytest.approx(expected(whole), rel=1e-4)
    # Pairs 0 and 2 have the same second text; the last pair fills the batch.
    labels = np.array([0, 1, 2, 3, 4, 1, -1, -1])
    weight = np.array([1, 1, 1, 1, 1, 1, 0, 0])
    kept = {0: [0, 1], 1: [0, 1, 2], 2: [1, 2]}
    assert float(loss(labels, x, weight)) == pytest.approx(expected(kept), rel=1e-4)
    assert InBatchNegatives.from_config(loss.get_config()).scale == 20


def test_cosines_are_regressed():
    x = np.array([[1, 0], [0, 1], [2, 0], [3, 3]], "float32")
    labels = np.array([0.5, 0.5, 1.0, 1.0])
    expected = (0.25 + (1 - 0.5**0.5) ** 2) / 2
    assert float(CosineRegression()(labels, x)) == pytest.approx(expected, abs=1e-6)


def test_the_linear_schedule_ends_at_zero():
    rate = Linear(1.0, warmup=4, updates=12)
    found = [float(rate(step)) for step in (0, 1, 3, 4, 8, 11, 12, 20)]
    assert found == pytest.approx([0.25, 0.5, 1, 1, 0.5, 0.125, 0, 0])
    assert Linear.from_config(rate.get_config()).get_config() == rate.get_config()
    with pytest.raises(ValueError, match="warmup from 1 to less than updates"):
        Linear(1.0, warmup=12, updates=12)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_lower_blocks_have_smaller_rates(decay):
    """SGD-like: the first step of Adam has the size of the learning rate."""
    inputs = keras.Input([3])
    x = inputs
    for name in ("tokens", "block_0", "block_1", "head"):
        x = keras.layers.Dense(3, name=name)(x)
    model = Model(inputs, x)
    optimizer = LayerwiseAdamW(0.01, num_blocks=2, decay=decay, weight_decay=0.0, epsilon=1e-12)
    model.compile(optimizer, "mse", jit_compile=False)
    before = model.get_weights()
    model.train_on_batch(np.ones([4, 3], "float32"), np.full([4, 3], 9.0, "float32"))
    for v, old in zip(model.weights, before, strict=True):
        power = {"tokens": 3, "block_0": 2, "block_1": 1, "head": 0}[v.path.split("/")[0]]
        change = np.abs(v.numpy() - old).max()
        assert change == pytest.approx(0.01 * decay**power, rel=1e-3)
    config = optimizer.get_config()
    assert config["decay"] == decay and LayerwiseAdamW.from_config(config).num_blocks == 2


def test_the_last_norm_has_the_rate_of_the_head():
    optimizer = LayerwiseAdamW(num_blocks=6, decay=0.5)
    paths = {"norm/gamma": 1, "head/kernel": 1, "block_5/norm/gamma": 0.5, "tokens/a": 0.5**7}
    paths |= {"embeddings_norm/gamma": 0.5**7}
    assert {path: optimizer.factor(path) for path in paths} == paths
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2, name="block_3")])
    with pytest.raises(ValueError, match="num_blocks must be above that of block_3: 3"):
        LayerwiseAdamW(num_blocks=3, decay=0.5).build(model.trainable_variables)


def test_weight_decay_has_the_factor_of_the_rate():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2, name="block_0")])
    optimizer = LayerwiseAdamW(0.1, num_blocks=2, decay=0.5, weight_decay=0.4)
    optimizer.build(model.trainable_variables)
    before = model.get_weights()[0]
    optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables])
    np.testing.assert_allclose(model.get_weights()[0], before * (1 - 0.1 * 0.4 * 0.25), rtol=1e-5)
    assert optimizer.weight_decay == 0.4


def test_scores_are_added_to_the_logs():
    inputs = keras.Input([2])
    model = Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", jit_compile=False)
    callback = ValidationScores(lambda found: {"accuracy": 0.5, "same": float(found is model)})
    history = model.fit(np.ones([4, 2]), np.ones([4, 1]), callbacks=[callback], verbose=0)
    assert history.history["val_accuracy"] == [0.5] and history.history["val_same"] == [1.0]
