import math

import numpy as np
import pytest
from keras import ops

from polyhead.layers import FeedForward, PositionalEmbedding, TokenEmbedding


def array(x):
    return ops.convert_to_numpy(x)


def test_sinusoids_are_those_of_section_3_5():
    x = np.zeros((1, 30, 8), "float32")
    table = array(PositionalEmbedding()(x))[0]
    for position in (0, 1, 29):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert table[position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_positions_can_begin_anywhere(kind):
    layer = PositionalEmbedding(kind, max_length=10)
    x = np.ones((2, 10, 6), "float32")
    whole = array(layer(x))
    np.testing.assert_allclose(array(layer(x[:, :4], start=6)), whole[:, 6:], atol=1e-6)


def test_learned_positions_are_weights():
    layer = PositionalEmbedding("learned", max_length=5)
    y = array(layer(np.zeros((1, 3, 4), "float32")))
    np.testing.assert_array_equal(y[0], array(layer.embeddings)[:3])


def test_positions_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="kind must be 'sinusoidal' or 'learned': 'rotary'"):
        PositionalEmbedding("rotary")
    with pytest.raises(ValueError, match="learned positions need a max_length"):
        PositionalEmbedding("learned")
    with pytest.raises(ValueError, match="the width must be even: 5"):
        PositionalEmbedding()(np.zeros((1, 2, 5), "float32"))
    with pytest.raises(ValueError, match="at most 3 positions: 4"):
        PositionalEmbedding("learned", max_length=3)(np.zeros((1, 4, 4), "float32"))


def test_tokens_are_scaled_rows_and_logits_use_the_same_matrix():
    layer = TokenEmbedding(11, 4)
    tokens = np.array([[3, 10, 0]])
    x = layer(tokens)
    matrix = array(layer.embeddings)
    np.testing.assert_allclose(array(x), matrix[tokens] * 2, atol=1e-6)
    np.testing.assert_allclose(array(layer.logits(x)), array(x) @ matrix.T, atol=1e-5)
    assert len(layer.weights) == 1


def test_logits_are_float32_in_half_precision():
    layer = TokenEmbedding(11, 4, dtype="mixed_bfloat16")
    x = layer(np.array([[1, 2]]))
    assert "bfloat16" in str(x.dtype) and "float32" in str(layer.logits(x).dtype)


def test_feed_forward_is_equation_2():
    layer = FeedForward(6)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    y = array(layer(x))
    w1, b1, w2, b2 = layer.get_weights()
    np.testing.assert_allclose(y, np.maximum(x @ w1 + b1, 0) @ w2 + b2, atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_quantized_token_embedding_embeds_and_gives_logits(policy):
    layer = TokenEmbedding(50, 32, logits_bias=True, dtype=policy)
    layer.build()
    layer.bias.assign(np.linspace(-1, 1, 50))
    tokens, x = np.arange(12).reshape(2, 6), np.random.default_rng(0).normal(size=(2, 6, 32))
    embedded, logits = array(layer(tokens)), array(layer.logits(x))
    layer.quantize("int8")
    assert {v.name: v.dtype for v in layer.weights} == {
        "embeddings": "int8", "embeddings_scale": "float32", "bias": "float32",
    }  # fmt: skip
    assert layer(tokens).dtype == layer.compute_dtype
    np.testing.assert_allclose(array(layer(tokens)), embedded, atol=0.02)
    np.testing.assert_allclose(array(layer.logits(x)), logits, atol=0.1)
    np.testing.assert_array_equal(array(layer.logits(x[:, :1])), array(layer.logits(x))[:, :1])
    with pytest.raises(ValueError, match="supports the quantization mode 'int8': 'int4'"):
        other = TokenEmbedding(50, 32)
        other.build()
        other.quantize("int4")
