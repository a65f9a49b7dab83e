import keras
import numpy as np
import pytest
import tensorflow as tf

from polyhead.data.images import LabelledImages, image_batches
from polyhead.training import Model, strategy
from polyhead.training.class_weights import apply_class_weights
from tests.training.test_replicas import largest_difference, sgd

WEIGHTS = {0: 0.25, 2: 3.0}
CLASSES = np.array([0, 1, 2, 2, 0, 1, 2, 0], "int32")
EACH = np.array([0.25, 1, 3, 3, 0.25, 1, 3, 0.25], "float32")
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3)).astype("uint8")


def test_labels_can_be_indices_one_hot_mixed_or_tokens():
    def weights(y, w=None):
        return np.asarray(apply_class_weights(WEIGHTS, None, y, w)[2])

    one_hot = np.eye(3, dtype="float32")[CLASSES]
    for y in (CLASSES, CLASSES[:, None], one_hot, one_hot.astype("int32"), CLASSES.astype("f4")):
        np.testing.assert_allclose(weights(y), EACH)
        np.testing.assert_allclose(weights(y, np.full(8, 0.5, "float32")), EACH / 2)
    np.testing.assert_allclose(weights(np.array([[0.5, 0.5, 0], [0, 0.25, 0.75]])), [0.625, 2.5])
    tokens = np.array([[0, 2, 5], [-1, 1, 0]], "int32")
    found = weights(tokens, np.array([[1, 1, 1], [0, 1, 2]], "float32"))
    np.testing.assert_allclose(found, [[0.25, 3, 1], [0, 1, 0.5]])
    np.testing.assert_allclose(weights(np.array([True, False])), [1, 0.25])
    each = weights(np.eye(3, dtype="float32")[[[0, 2], [1, 1]]], np.array([1, 10], "float32"))
    np.testing.assert_allclose(each, [[0.25, 3], [10, 10]])  # a weight per example


def test_tokens_without_sample_weights_are_not_taken_for_probabilities():
    for labels in ([[0, 2, 2], [1, 1, 0]], [[7, 9]]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="class_weight needs class ind"):
            apply_class_weights(WEIGHTS, None, np.array(labels), None)


def linear(devices=1):
    keras.utils.set_random_seed(5)
    with strategy(devices).scope():
        x = keras.Input([4, 4, 3])
        y = keras.layers.Rescaling(1 / 255)(x)
        model = Model(x, keras.layers.Dense(3)(keras.layers.Flatten()(y)))
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )
        model.compile(sgd(global_clipnorm=None)(), loss, jit_compile=False)
    return model


@pytest.mark.parametrize("devices, mix", [(1, True), (2, False)])
def test_class_weights_apply_to_image_batches(devices, mix):
    images = LabelledImages(PIXELS[:7], CLASSES[:7], ("a", "b", "c"))

    def batches():  # the last one is padded with images of weight 0
        return image_batches(images, (4, 4), 4, mix=mix)

    weigh = tf.constant([0.25, 1.0, 3.0])
    expected, model = linear(), linear(devices)
    expected.fit(batches().map(lambda x, y, w: (x, y, w * tf.linalg.matvec(y, weigh))), verbose=0)
    model.fit(batches(), class_weight=WEIGHTS, verbose=0)
    assert largest_difference(model, expected) < 1e-6


def test_arrays_can_have_class_and_sample_weights():
    one_hot, weight = np.eye(3, dtype="float32")[CLASSES], np.arange(8, dtype="float32")
    expected, model, same = linear(), linear(), linear()
    expected.train_on_batch(PIXELS, one_hot, weight * EACH)
    model.train_on_batch(PIXELS, one_hot, weight, class_weight=WEIGHTS)
    same.fit(PIXELS, one_hot, 8, sample_weight=weight, class_weight=WEIGHTS, verbose=0)
    assert largest_difference(model, expected) == 0
    assert largest_difference(same, expected) < 1e-6  # in another order


@pytest.mark.parametrize("wrong", [{"cat": 1.0}, {-1: 1.0}, {0: float("nan")}, {0: -1.0}, [1, 2]])
def test_invalid_class_weights_are_refused(wrong):
    with pytest.raises(ValueError, match="class_weight must be {class number: weight >= 0}"):
        linear().fit(PIXELS, np.eye(3)[CLASSES], class_weight=wrong, verbose=0)
