import keras
import numpy as np
import pytest

from polyhead.layers import Dropout


def drop(layer, shape=(64, 1000)):
    return keras.ops.convert_to_numpy(layer(keras.ops.ones(shape), training=True))


def test_dropout_keeps_the_mean():
    for rate in (0.1, 0.3, 0.9):
        kept = drop(Dropout(rate, seed=1))
        assert set(np.unique(kept)) <= {np.float32(0), np.float32(1) / np.float32(1 - rate)}
        deviation = np.sqrt(rate * (1 - rate) / kept.size)
        assert abs((kept == 0).mean() - rate) < 4 * deviation
        rows, columns = (kept == 0).mean(1), (kept == 0).mean(0)
        assert np.std(rows) < 1.5 * np.sqrt(rate * (1 - rate) / 1000)
        assert np.std(columns) < 1.5 * np.sqrt(rate * (1 - rate) / 64)


def test_masks_are_practically_independent():
    masks = []
    for seed in (1, 2, 3):
        layer = Dropout(0.5, seed=seed)
        masks += [drop(layer).ravel() > 0 for _ in range(3)]
    masks += [np.roll(masks[0], shift) for shift in (1, 2, 1000)]
    correlation = np.corrcoef(masks) - np.eye(len(masks))
    assert np.abs(correlation).max() < 5 / np.sqrt(masks[0].size)


def test_the_seed_determines_the_mask():
    layer, again = Dropout(0.5, seed=1), Dropout(0.5, seed=1)
    first = drop(layer)
    np.testing.assert_array_equal(drop(again), first)
    assert (drop(layer) != first).mean() > 0.4


def test_unsupported_arguments_are_refused():
    for options in (dict(rate=1.0), dict(rate=-0.1)):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)|Invalid value"):
            Dropout(**options)
    layer = Dropout.from_config(Dropout(0.25, seed=3).get_config())
    assert (layer.rate, layer.seed) == (0.25, 3)


def test_nothing_is_dropped_outside_training():
    x = keras.ops.ones((2, 3))
    np.testing.assert_array_equal(Dropout(0.5)(x, training=False), x)
    np.testing.assert_array_equal(Dropout(0.0)(x, training=True), x)
