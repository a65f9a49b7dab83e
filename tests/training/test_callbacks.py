import keras
import numpy as np
import pytest
import tensorflow as tf

from polyhead.training import CheckpointError, Checkpoints
from tests.conftest import small
from tests.training.test_replicas import batch


def fit(folder, epochs, seed=1, **options):
    """A small training that goes on from what is in ``folder``; returns model and callback."""
    keras.utils.set_random_seed(seed)
    model = small(dropout=0.2, num_layers=1)
    model.compile(jit_compile=False)
    checkpoints = Checkpoints(folder, monitor="score", **options)
    done = checkpoints.resume(model)
    data = tf.data.Dataset.from_tensors(batch()).repeat()

    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            logs["score"] = [1, 3, 2, 2, 2, 2][epoch]

    model.fit(
        data,
        steps_per_epoch=3,
        initial_epoch=done,
        epochs=epochs,
        callbacks=[Score(), checkpoints],
        verbose=0,
        shuffle=False,
    )
    return model, checkpoints


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    whole, _ = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    parts, checkpoints = fit(tmp_path / "parts", 4, seed=99)  # all that counts is restored
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [h["updates"] for h in checkpoints.history] == [3, 6, 9, 12]


def test_the_last_are_kept_and_the_best(tmp_path):
    _, checkpoints = fit(tmp_path, 4)
    names = [p.name for p in checkpoints.saved()]
    assert names == ["checkpoint-00000009.safetensors", "checkpoint-00000012.safetensors"]
    assert checkpoints.best_epoch() == 1
    assert (tmp_path / "best" / "model.safetensors").is_file()
    assert (tmp_path / "history.csv").read_text().startswith("epoch,updates,seconds,")


def test_patience_updates_and_minutes_end_a_training(tmp_path):
    _, checkpoints = fit(tmp_path / "patience", 6, patience=2)
    assert len(checkpoints.history) == 4 and "no better score in 2" in checkpoints.finished
    _, checkpoints = fit(tmp_path / "updates", 6, updates=4)
    assert checkpoints.updates == 4 and checkpoints.finished == "4 updates done"
    checkpoints = Checkpoints(tmp_path, minutes=2)
    assert checkpoints.finished is None
    checkpoints.seconds = 121.0
    assert checkpoints.finished == "2 minutes spent"


def test_a_broken_checkpoint_is_refused_and_the_one_before_it_named(tmp_path):
    _, checkpoints = fit(tmp_path, 2)
    last = checkpoints.saved()[-1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="00000006.* checkpoint-00000003.* before it"):
        fit(tmp_path, 3)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(tmp_path, 1)
    other = small()
    other.compile()
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Checkpoints(tmp_path).resume(other)
