import math

import keras
import numpy as np
import pytest
from keras import ops

from polyhead.training import InverseSquareRoot, SmoothedCrossEntropy, bleu

LABELS = np.array([[1, 3, 0]])
LOGITS = np.random.default_rng(0).normal(size=(1, 3, 5)).astype("float32")
WEIGHT = np.array([[1.0, 1.0, 0.0]], "float32")


def number(x):
    return float(ops.convert_to_numpy(x))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_equals_keras_on_smoothed_targets(smoothing):
    targets = keras.utils.to_categorical(LABELS, 5) * (1 - smoothing) + smoothing / 5
    peer = keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none")
    expected = ops.convert_to_numpy(peer(targets, LOGITS))[0, :2].mean()
    ours = SmoothedCrossEntropy(smoothing)(LABELS, LOGITS, sample_weight=WEIGHT)
    assert number(ours) == pytest.approx(expected, rel=1e-5)


def test_padding_has_no_weight():
    loss = SmoothedCrossEntropy()
    changed = LOGITS.copy()
    changed[:, 2] = 100
    assert number(loss(LABELS, LOGITS, WEIGHT)) == number(loss(LABELS, changed, WEIGHT))
    assert number(loss(LABELS, LOGITS, WEIGHT * 0)) == 0


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_that_does_not_exist_gives_nan_also_with_xla(label):
    inputs = keras.Input([3])
    model = keras.Model(inputs, keras.layers.Dense(5)(inputs))
    x, y = np.ones((2, 3), "float32"), np.array([label, 4])
    for compiled in (False, True):
        model.compile("sgd", SmoothedCrossEntropy(), jit_compile=compiled)
        assert math.isnan(model.train_on_batch(x, y))
    assert np.isfinite(ops.convert_to_numpy(model.weights[0])).all()


def test_consistency_adds_the_divergence_of_two_passes():
    logits = np.random.default_rng(1).normal(size=(4, 3, 5)).astype("float32")
    labels, weight = LABELS.repeat(4, 0), WEIGHT.repeat(4, 0)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p, q = p[::2, :2], p[1::2, :2]
    divergence = (p * np.log(p / q) + q * np.log(q / p)).sum(-1).mean()
    plain = number(SmoothedCrossEntropy()(labels, logits, weight))
    consistent = number(SmoothedCrossEntropy(consistency=5)(labels, logits, weight))
    # R-Drop adds 5 / 2 of it to the sum of both passes; the loss is their mean.
    assert consistent - plain == pytest.approx(5 / 4 * divergence, rel=1e-4)
    same = logits[::2].repeat(2, 0)
    assert number(SmoothedCrossEntropy(consistency=5)(labels, same, weight)) == pytest.approx(
        number(SmoothedCrossEntropy()(labels, same, weight))
    )


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\): 1"):
        SmoothedCrossEntropy(1)
    with pytest.raises(ValueError, match="consistency must not be negative: -1"):
        SmoothedCrossEntropy(consistency=-1)


def test_the_schedule_equals_equation_3():
    schedule = InverseSquareRoot.of_width(512, warmup=4000)
    for update in (1, 100, 4000, 16000):
        expected = 512**-0.5 * min(update**-0.5, update * 4000**-1.5)
        assert number(schedule(update - 1)) == pytest.approx(expected, rel=1e-5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert number(again(50)) == number(schedule(50))
    with pytest.raises(ValueError, match="peak and warmup must be positive: 0, 10"):
        InverseSquareRoot(0, 10)


def test_bleu_equals_sacrebleu():
    assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]).score == pytest.approx(100)
    score = bleu(["the cat sat on a mat now"], ["the cat sat on the mat now"])
    # precisions: 6/7 for unigrams, then 4/6, 2/5 and 1/4; no brevity penalty
    expected = 100 * math.exp(np.mean(np.log([6 / 7, 4 / 6, 2 / 5, 1 / 4])))
    assert score.score == pytest.approx(expected)
    assert "tok:13a" in score.signature and "version:" in score.signature
    assert "tok:none" in bleu(["a b c d"], ["a b c d"], "none").signature
    with pytest.raises(ValueError, match="one reference for each hypothesis: 2 for 1"):
        bleu(["a"], ["a", "b"])
