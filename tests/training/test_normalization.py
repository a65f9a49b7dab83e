import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from polyhead.training import Model, strategy
from tests.training.test_replicas import sgd

X = np.random.default_rng(0).normal(2, 3, (18, 5)).astype("float32")
X[::2] += 4
MASKED = np.where(np.arange(6) < np.array([6, 5, 4, 1, 1, 2, 3, 1])[:, None], 1, 0)


def normalized(devices, jit_compile, masked=False, **options):
    keras.utils.set_random_seed(1)
    with strategy(devices).scope():
        norm = keras.layers.BatchNormalization(momentum=0.5, **options)
        if masked:
            x = keras.Input([6], dtype="int32")
            y = keras.layers.Embedding(20, 4, mask_zero=True)(x)
        else:
            x = keras.Input([5])
            y = keras.layers.Dense(4)(x)
        model = Model(x, keras.layers.Dense(1)(norm(y)))
        model.compile(sgd(global_clipnorm=None)(), "mse", jit_compile=jit_compile)
    data = (X, X[:, :1])
    if masked:
        tokens = MASKED * np.arange(1, 9)[:, None]
        data = (tokens.astype("int32"), (tokens[..., None] % 3).astype("float32"))
    batches = tf.data.Dataset.from_tensor_slices(data).batch(7)  # 7 are 4 and 3
    model.fit(batches, verbose=0)
    return model, batches


@pytest.mark.parametrize("jit_compile, masked", [(True, False), (False, True)])
def test_synchronized_batch_normalization_is_equal_on_replicas(jit_compile, masked):
    one, batches = normalized(1, jit_compile, masked, synchronized=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two, _ = normalized(2, jit_compile, masked, synchronized=True)
    for a, b in zip(one.weights, two.weights, strict=True):  # including moving statistics
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-6, err_msg=a.path)
    found = [model.evaluate(batches, verbose=0) for model in (one, two)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert "_moments" not in vars(next(x for x in two.layers if "normalization" in x.name))


def test_unsynchronized_batch_normalization_warns_on_replicas():
    with pytest.warns(UserWarning, match="batch_normalization.*synchronized=True"):
        normalized(2, False)
    normalized(1, False)  # does not warn


def test_frozen_batch_normalization_does_not_warn():
    normalized(2, False, trainable=False)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_line_reports_that_xla_is_off(jit_compile, capsys):
    with strategy(2).scope():
        x = keras.Input([5])
        y = keras.layers.BatchNormalization(synchronized=True, name="between")(x)
        model = Model(x, keras.layers.Dense(1)(y))
        model.compile("sgd", "mse", jit_compile=jit_compile)
    model._notice.silent = False
    model.make_train_function()
    said = "XLA is off for the forward and backward pass: replicas exchange moments in ['between']"
    assert capsys.readouterr().err == (f"{said}\n" if jit_compile else "")
