import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from polyhead.training import Model, Progress, compiled, compiling


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(compiling, "PATIENCE", 0.0)


def slow(x):
    time.sleep(0.05)  # while tracing
    return x + 1.0


def test_a_compilation_is_reported_once_per_shape(impatient, capsys):
    function = compiled(None, slow, "generate")
    function(np.ones((2, 3), "float32"))
    said = capsys.readouterr()
    first, last = said.err.splitlines()
    assert first == "compiling generate for (2, 3) ..."
    assert last.startswith("compiled generate for (2, 3): the first call took 0.") and not said.out
    function(np.ones((2, 3), "float32"))
    assert not capsys.readouterr().err
    function(np.ones((2, 4), "float32"))
    assert "generate for (2, 4)" in capsys.readouterr().err


def test_without_xla_a_compilation_is_reported_and_done_once(impatient, capsys):
    traced = []

    def shapes(x):
        traced.append(tuple(x["a"].shape))
        return slow(x["a"])

    function = compiled(None, shapes, "embed", xla=False)
    for shape in ((2, 3), (2, 4), (1, 4)):
        assert function({"a": np.ones(shape, "float32")}).shape == shape
    assert traced == [(None, None)]
    first, last = capsys.readouterr().err.splitlines()
    assert first == "compiling embed ..."
    assert last.startswith("compiled embed: the first call took 0.")


def test_a_quick_compilation_is_not_reported(capsys, monkeypatch):
    monkeypatch.setattr(compiling, "PATIENCE", 60.0)
    compiled(None, lambda x: x + 1.0, "generate")(np.ones(3, "float32"))
    assert not capsys.readouterr().err


def test_nothing_is_reported_without_interactive_logging(impatient, capsys, monkeypatch):
    monkeypatch.setattr(keras.config, "is_interactive_logging_enabled", lambda: False)
    compiled(None, slow, "generate")(np.ones((2, 3), "float32"))
    assert not capsys.readouterr().err


def test_only_the_chief_reports(impatient, capsys, monkeypatch):
    monkeypatch.setattr(compiling, "is_chief", lambda: False)
    compiled(None, slow, "generate")(np.ones((2, 3), "float32"))
    assert not capsys.readouterr().err


def test_a_failed_compilation_is_not_reported_as_completed(impatient, capsys):
    def failing(x):
        time.sleep(0.05)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        compiled(None, failing, "generate")(np.ones((2, 3), "float32"))
    assert capsys.readouterr().err == "compiling generate for (2, 3) ...\n"


def test_the_first_fit_reports_compilation(impatient, capsys):
    x = keras.Input([3])
    model = Model(x, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse", jit_compile=False)
    data = tf.data.Dataset.from_tensors((np.ones((4, 3)), np.ones((4, 1))))

    def said(**options):
        model.fit(data, **options)
        return capsys.readouterr().err

    assert not said(verbose=0)
    model.compile("sgd", "mse", jit_compile=False)
    first = said(verbose=0, callbacks=[Progress(say=lambda line: None)])
    assert "compiling training for (4, 3) ...\ncompiled training for (4, 3): the first" in first
    assert not said(verbose=2)
    model.compile("sgd", "mse", jit_compile=False)
    assert "compiled training" in said(verbose=2)


def test_fit_reports_compilation_for_another_shape(capsys, monkeypatch):
    x = keras.Input([None, 3])
    model = Model(x, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse", jit_compile=True)
    sizes = [2, 3, 3, 2, 4]

    class Slowly(keras.callbacks.Callback):
        """Makes all batches except the last one slow."""

        def on_train_batch_begin(self, batch, logs=None):
            monkeypatch.setattr(compiling, "PATIENCE", 0.0 if batch < 4 else 100.0)

    data = tf.data.Dataset.from_generator(
        lambda: ((np.ones((4, n, 3)), np.ones((4, n, 1))) for n in sizes),
        output_signature=(tf.TensorSpec([4, None, 3]), tf.TensorSpec([4, None, 1])),
    )
    data = data.apply(tf.data.experimental.assert_cardinality(5))
    model.fit(data, verbose=2, callbacks=[Slowly()])
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "compiling training ..."
    first, second = others
    assert first.startswith("compiled training for (4, 2, 3): the first call took ")
    assert second.startswith("training for (4, 3, 3) took ")
    assert second.endswith(" s: XLA may have compiled it")
    assert "shape" not in model.measured
