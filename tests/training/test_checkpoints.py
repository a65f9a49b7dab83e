import math
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from polyhead.training import (
    CheckpointError,
    Checkpoints,
    EvaluateAverages,
    Muon,
    read_tensors,
    strategy,
    write_tensors,
)
from tests.conftest import small
from tests.training.test_replicas import batch


def fit(folder, epochs, seed=1, callbacks=(), **options):
    """Trains a small model, resumed from ``folder``; returns model and callback."""
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
        callbacks=[*callbacks, Score(), checkpoints],
        verbose=0,
        shuffle=False,
    )
    return model, checkpoints


@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_a_resumed_training_run_equals_an_uninterrupted_one_exactly(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    whole, _ = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    parts, checkpoints = fit(tmp_path / "parts", 4, seed=99)  # the complete state is restored
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [h["updates"] for h in checkpoints.history] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    "devices, kind",
    [
        pytest.param(1, keras.optimizers.Adam, marks=pytest.mark.slow),
        pytest.param(2, keras.optimizers.Adam, marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param(2, Muon, marks=pytest.mark.slow),
    ],
)
def test_resuming_is_exact_with_accumulation_ema_weights_and_callbacks(tmp_path, devices, kind):
    def run(folder, epochs, seed=1):
        keras.utils.set_random_seed(seed)
        with strategy(devices).scope():
            model = small(dropout=0.2, num_layers=1)
            optimizer = kind(1e-3, use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=2)
            model.compile(optimizer, jit_compile=False)
        stopping = keras.callbacks.EarlyStopping(
            "loss", patience=2, min_delta=10.0, restore_best_weights=True
        )
        averages = EvaluateAverages()
        checkpoints = Checkpoints(folder, monitor="val_loss", callbacks=[stopping])
        done = checkpoints.resume(model)
        data = tf.data.Dataset.from_tensors(batch()).repeat()
        validation = data.take(1)
        history = model.fit(
            data,
            steps_per_epoch=3,  # so that a checkpoint falls between two batches of an update
            initial_epoch=done,
            epochs=epochs,
            validation_data=validation,
            callbacks=[averages, stopping, checkpoints],
            verbose=0,
            shuffle=False,
        ).history
        tensors, about = read_tensors(checkpoints.saved()[-1])
        return model, tensors, about, history

    whole, tensors, about, history = run(tmp_path / "whole", 5)
    run(tmp_path / "parts", 1)
    parts, again, about_parts, _ = run(tmp_path / "parts", 5, seed=99)
    assert about_parts["updates"] == about["updates"] == 9  # early stopping continued its count
    assert {h["val_loss"] for h in about["history"]} == {
        h["val_loss"] for h in about_parts["history"]
    }
    assert set(tensors) == set(again)
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)  # early stopping's best weights, from before the stop
    assert "callbacks/0/best_weights/000000" in tensors
    # The best model has the EMA weights that were validated.
    best = type(whole).from_pretrained(tmp_path / "whole" / "best")
    best.compile(jit_compile=False)
    found = best.evaluate(tf.data.Dataset.from_tensors(batch()), verbose=0)
    assert found == pytest.approx(max(history["val_loss"]), rel=1e-6)


def test_older_checkpoints_that_counted_updates_are_resumed(tmp_path):
    def resumed():
        model = small(num_layers=1)
        model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), jit_compile=False)
        checkpoints = Checkpoints(tmp_path, monitor="loss", mode="min")
        checkpoints.resume(model)
        return model, model.optimizer, checkpoints

    model, optimizer, checkpoints = resumed()
    data = tf.data.Dataset.from_tensors(batch()).repeat(3)  # one batch remains
    model.fit(data, callbacks=[checkpoints], verbose=0)
    assert optimizer.iterations.numpy() == 1 and optimizer._iterations.numpy() == 2
    path = checkpoints.saved()[-1]
    tensors, about = read_tensors(path)
    assert about.pop("counts_batches") and tensors["optimizer/0/iteration"] == 2
    write_tensors(path, {**tensors, "optimizer/0/iteration": np.array(1)}, about)
    assert resumed()[1]._iterations.numpy() == 2


def test_a_non_finite_loss_stops_training_and_names_the_update(tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs):
            if self.model.optimizer.iterations == 4:
                self.model.trainable_weights[0].assign(
                    np.full_like(self.model.trainable_weights[0], np.nan)
                )

    keras.utils.set_random_seed(1)
    model = small(num_layers=1)
    model.compile(jit_compile=False)
    data = tf.data.Dataset.from_tensors(batch()).repeat()
    with pytest.raises(FloatingPointError) as error:
        model.fit(
            data,
            steps_per_epoch=3,
            epochs=4,
            callbacks=[Poison(), Checkpoints(tmp_path, monitor="loss")],
            verbose=0,
            shuffle=False,
        )
    assert str(error.value) == (
        "the loss became nan at update 5 (epoch 2, batch 2); the last good checkpoint is "
        f"{tmp_path / 'checkpoint-00000003.safetensors'}"
    )


def test_a_full_disk_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    from polyhead import files

    fsync, calls = files.os.fsync, []

    def full(fd):
        calls.append(fd)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(files.os, "fsync", full)
    message = "No space left on device: '/.*'; the last good one is checkpoint-"
    with pytest.raises(OSError, match=message):
        fit(tmp_path, 6)
    monkeypatch.undo()
    assert Checkpoints(tmp_path).saved()
    assert not list(tmp_path.glob(".checkpoint*"))
    fit(tmp_path, 6)


def test_a_checkpoint_that_failed_stops_training_at_once(tmp_path, monkeypatch):
    import polyhead.training.checkpoints as module

    def full(path, tensors, about):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_tensors", full)
    updates = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            updates.append(batch)
            module.WRITER.submit(lambda: None).result()  # the writer has failed meanwhile

    with pytest.raises(OSError, match="No space left on device"):
        fit(tmp_path, 2, callbacks=[Watch()])
    assert updates == [0, 1, 2, 0]


def test_an_unwritable_folder_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        fit(tmp_path / "file", 1)


def test_training_continues_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    import polyhead.training.checkpoints as module

    def slow(path, tensors, about):
        time.sleep(1.0)
        write_tensors(path, tensors, about)

    monkeypatch.setattr(module, "write_tensors", slow)
    _, checkpoints = fit(tmp_path, 1)
    assert checkpoints.waited < 0.5
    assert len(checkpoints.saved()) == 1  # `fit` ends after all writes


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    _, checkpoints = fit(tmp_path, 4)
    names = [p.name for p in checkpoints.saved()]
    assert names == ["checkpoint-00000009.safetensors", "checkpoint-00000012.safetensors"]
    assert checkpoints.best_epoch() == 1
    assert (tmp_path / "best" / "model.safetensors").is_file()
    assert (tmp_path / "history.csv").read_text().startswith("epoch,updates,seconds,")


def test_a_score_that_is_not_a_number_is_not_the_best(tmp_path):
    _, checkpoints = fit(tmp_path, 2)
    for mode, best in (("max", 1), ("min", 2)):
        checkpoints.mode = mode
        checkpoints.history[:] = [{"score": x} for x in (math.nan, 0.3, 0.1, math.nan)]
        assert checkpoints.best_epoch() == best


def test_patience_updates_and_minutes_stop_training(tmp_path):
    _, checkpoints = fit(tmp_path / "patience", 6, patience=2)
    assert len(checkpoints.history) == 4 and "no better score in 2" in checkpoints.finished
    _, checkpoints = fit(tmp_path / "updates", 6, updates=4)
    assert checkpoints.updates == 4 and checkpoints.finished == "4 updates done"
    checkpoints = Checkpoints(tmp_path, minutes=2)
    assert checkpoints.finished is None
    checkpoints.seconds = 121.0
    assert checkpoints.finished == "2 minutes spent"


def test_a_corrupt_checkpoint_is_refused_and_the_previous_one_named(tmp_path):
    _, checkpoints = fit(tmp_path, 2)
    last = checkpoints.saved()[-1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="00000006.*delete it .* checkpoint-00000003"):
        fit(tmp_path, 3)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(tmp_path, 1)
    other = small()
    other.compile()
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Checkpoints(tmp_path).resume(other)
    write_tensors(tmp_path / "checkpoint-00000009.safetensors", {"a": np.ones(2)})
    message = "009.safetensors is not a checkpoint of a training run"
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path).resume(other)


def test_a_checkpoint_has_kernels_without_lora_adapters(tmp_path):
    model = small(num_layers=1)
    model.enable_lora(2)
    model.compile(keras.optimizers.Adam(0.1), run_eagerly=True)
    checkpoints = Checkpoints(tmp_path, monitor="loss", mode="min")
    data = tf.data.Dataset.from_tensors(batch()).repeat()
    model.fit(data, steps_per_epoch=2, callbacks=[checkpoints], verbose=0)
    assert (tmp_path / "best").is_dir()  # the adapters are merged there
    tensors, _ = read_tensors(checkpoints.saved()[-1])
    for v in model.weights:
        np.testing.assert_array_equal(tensors[f"model/{v.path}"], v)


def test_a_best_model_that_was_just_being_replaced_is_restored(tmp_path):
    old = tmp_path / ".best.99.abcdefgh" / "old"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    Checkpoints(tmp_path, monitor="val_loss", mode="min").sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "config.json").is_file()
