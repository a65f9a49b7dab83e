import math

import numpy as np
import pytest
from keras import ops

from polyhead.layers import PositionalEmbedding, RelativeBias, Rotary
from polyhead.layers.positions import rotate


def array(x):
    return ops.convert_to_numpy(x)


def test_sinusoids_equal_section_3_5():
    x = np.zeros((1, 30, 8), "float32")
    table = array(PositionalEmbedding()(x))[0]
    for position in (0, 1, 29):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert table[position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_positions_can_start_at_an_offset(kind):
    layer = PositionalEmbedding(kind, max_length=10)
    x = np.ones((2, 10, 6), "float32")
    whole = array(layer(x))
    np.testing.assert_allclose(array(layer(x[:, :4], start=6)), whole[:, 6:], atol=1e-6)


def test_learned_positions_are_weights():
    layer = PositionalEmbedding("learned", max_length=5)
    y = array(layer(np.zeros((1, 3, 4), "float32")))
    np.testing.assert_array_equal(y[0], array(layer.embeddings)[:3])


def test_positions_may_be_given():
    layer = PositionalEmbedding("learned", max_length=5)
    y = array(layer(np.zeros((1, 3, 4), "float32"), positions=np.array([[3, 1, 3]])))
    np.testing.assert_array_equal(y[0], array(layer.embeddings)[[3, 1, 3]])


def test_invalid_positions_are_refused():
    with pytest.raises(ValueError, match="kind must be 'sinusoidal' or 'learned': 'rotary'"):
        PositionalEmbedding("rotary")
    with pytest.raises(ValueError, match="learned positions need a max_length"):
        PositionalEmbedding("learned")
    with pytest.raises(ValueError, match="the width must be even: 5"):
        PositionalEmbedding()(np.zeros((1, 2, 5), "float32"))
    with pytest.raises(ValueError, match="at most 3 positions: 4"):
        PositionalEmbedding("learned", max_length=3)(np.zeros((1, 4, 4), "float32"))


def test_rotary_rotates_pairs_of_channels_by_the_position():
    x = np.random.default_rng(0).normal(size=(1, 7, 2, 6)).astype("float32")
    rotated = array(rotate(x, Rotary(6, theta=100.0)(np.arange(7))))
    for position, i in np.ndindex(7, 3):
        turn = np.exp(1j * position * 100 ** (-2 * i / 6))
        expected = (x[0, position, :, i] + 1j * x[0, position, :, i + 3]) * turn
        np.testing.assert_allclose(rotated[0, position, :, i], expected.real, atol=1e-5)
        np.testing.assert_allclose(rotated[0, position, :, i + 3], expected.imag, atol=1e-5)


def test_channels_beyond_the_fraction_are_not_rotated():
    x = np.random.default_rng(0).normal(size=(1, 7, 2, 8)).astype("float32")
    rotated = array(rotate(x, Rotary(8, fraction=0.5)(np.arange(7))))
    np.testing.assert_array_equal(rotated[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(rotated[..., :4], rotate(x[..., :4], Rotary(4)(np.arange(7))))


def test_angles_are_exact_in_half_precision():
    cosine, _ = Rotary(8, dtype="mixed_bfloat16")(np.arange(8190, 8192))
    cosine = array(ops.cast(cosine, "float32"))[:, 0, 0]
    np.testing.assert_allclose(cosine, np.cos([8190, 8191]), atol=4e-3)


def test_long_texts_have_separate_rotations():
    factors = dict(short_factors=(1.0, 1.0), long_factors=(2.0, 4.0))
    rotary = Rotary(4, kind="longrope", factor=2.0, original_length=8, scale=1.0, **factors)
    short, long = (array(rotary(np.arange(length))[1])[1, 0] for length in (8, 9))
    np.testing.assert_allclose(short, np.sin([1, 0.01]), rtol=1e-5)
    np.testing.assert_allclose(long, np.sin([1 / 2, 0.01 / 4]), rtol=1e-5)


def test_missing_rotary_settings_are_named():
    with pytest.raises(ValueError, match="kind must be one of default, linear.*: 'dynamic'"):
        Rotary(8, kind="dynamic")
    with pytest.raises(ValueError, match="kind 'llama3' need original_length, low, high"):
        Rotary(8, kind="llama3", factor=8.0)


def test_distances_share_the_buckets_of_t5():
    """Distances of keys before and after the query share buckets, by the code of section 2.1."""
    layer = RelativeBias(2)
    assert layer.buckets(np.array([0, -1, -7, -8, -12, -128, -500])).tolist() == [
        0, 1, 7, 8, 9, 15, 15,
    ]  # fmt: skip
    assert layer.buckets(np.array([1, 7, 8, 64, 128])).tolist() == [17, 23, 24, 30, 31]
    causal = RelativeBias(2, bidirectional=False)
    assert causal.buckets(np.array([3, 0, -15, -16, -128])).tolist() == [0, 0, 15, 16, 31]


def test_the_bias_of_later_queries_is_the_end_of_the_full_bias():
    layer = RelativeBias(3, bidirectional=False)
    whole = array(layer(np.arange(300), np.arange(300)))
    np.testing.assert_array_equal(
        array(layer(np.arange(290, 300), np.arange(300))), whole[:, :, 290:]
    )
    assert whole.shape == (1, 3, 300, 300)
    np.testing.assert_array_equal(whole[0, :, 5, 3], array(layer.embeddings)[2])
