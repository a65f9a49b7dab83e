"""`fit` of a model that is not compiled."""

import contextlib

import keras
import numpy as np
import pytest

from polyhead.training import Model, SmoothedCrossEntropy
from polyhead.zoo import GPT
from tests.conftest import TENSORFLOW

X = np.random.default_rng(0).integers(0, 66, (8, 9))


def train_losses(compiles=False, strategy=None):
    """Trains for an epoch, and returns the losses."""
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = GPT.preset("char-small", num_layers=1, dim=16, num_heads=2)
        if compiles:
            model.compile()
    history = model.fit(X[:, :-1], X[:, 1:], batch_size=4, shuffle=False, verbose=0)
    return history.history["loss"]


def test_fit_without_compile_uses_the_models_defaults(monkeypatch):
    monkeypatch.setattr(Model, "fit", lambda model, x: (model.compiled, x))
    model = GPT.preset("char-small", num_layers=1, dim=16, num_heads=2)
    assert model.fit(7) == (True, 7)
    assert type(model.optimizer) is keras.optimizers.AdamW
    assert isinstance(model.loss, SmoothedCrossEntropy)


@pytest.mark.slow
def test_fit_without_compile_equals_fit_after_compile():
    assert train_losses() == train_losses(compiles=True)


@pytest.mark.slow
def test_fit_keeps_the_arguments_of_compile():
    model = GPT.preset("char-small", num_layers=1, dim=16, num_heads=2)
    model.compile(keras.optimizers.SGD(0.0))
    before = model.get_weights()
    model.fit(X[:, :-1], X[:, 1:], verbose=0)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not TENSORFLOW, reason="tf.distribute")
def test_fit_without_compile_works_under_a_strategy():
    from polyhead.training import strategy

    replicas = strategy(2, say=lambda line: None)
    assert train_losses(strategy=replicas) == pytest.approx(train_losses(), rel=1e-5)
