import keras
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

from polyhead.training import Curves, InverseSquareRoot, Progress
from tests.conftest import small
from tests.training.test_replicas import TAGS, OwnLoss, OwnStep, batch, cross_entropy, dataset


def fit(callbacks, epochs=2, steps=4):
    keras.utils.set_random_seed(1)
    model = small(num_layers=1)
    model.compile(keras.optimizers.Adam(InverseSquareRoot(1e-3, warmup=10)), jit_compile=False)
    data = tf.data.Dataset.from_tensors(batch()).repeat()
    model.fit(
        data,
        steps_per_epoch=steps,
        epochs=epochs,
        callbacks=callbacks,
        verbose=0,
        shuffle=False,
    )


def written(folder):
    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0}).Reload()
    return {
        tag: {e.step: float(tf.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }


def test_curves_have_learning_rate_gradient_norm_and_speed(tmp_path):
    fit([Curves(tmp_path, every=2)])
    points = written(tmp_path)
    assert set(points) == {
        "loss", "learning_rate", "gradient_norm", "tokens_per_second", "epoch/loss",
    }  # fmt: skip
    assert list(points["gradient_norm"]) == [2, 4, 6, 8] and list(points["epoch/loss"]) == [4, 8]
    assert abs(points["learning_rate"][4] - 5e-4) < 1e-9  # of the next update
    assert all(value > 0 for tag in points for value in points[tag].values())


def test_progress_reports_epochs_of_the_data_loss_and_speed():
    said = []
    fit([Progress("tokens", per_epoch=8, say=said.append)])
    assert [line.split(":")[0] for line in said] == ["epoch 0.5", "epoch 1"]
    assert "loss " in said[0] and said[0].endswith(" tokens/s")


def test_the_learning_rate_follows_updates_not_accumulated_batches(tmp_path):
    model = OwnLoss()
    rate = InverseSquareRoot(1e-3, warmup=10)
    model.compile(keras.optimizers.SGD(rate, gradient_accumulation_steps=2), jit_compile=False)
    model.fit(dataset([(x, y) for x, y, _ in TAGS[:4]]), callbacks=[Curves(tmp_path, 2)], verbose=0)
    assert abs(written(tmp_path)["learning_rate"][2] - 3e-4) < 1e-9


def test_progress_counts_batches_for_a_custom_step(tmp_path):
    model = OwnStep()
    model.compile("sgd", cross_entropy(), jit_compile=False)
    said = []
    callbacks = [Progress("tokens", say=said.append), Curves(tmp_path, every=1)]
    data = dataset([(x, y) for x, y, _ in TAGS[:2]])
    model.fit(data, callbacks=callbacks, verbose=0)
    assert said[0].startswith("epoch 1: own ") and said[0].endswith(" batches/s")
    points = written(tmp_path)
    assert points["batches_per_second"] and "gradient_norm" not in points
