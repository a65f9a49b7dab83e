import numpy as np
import pytest
from keras import ops

from polyhead.layers import TokenEmbedding


def array(x):
    return ops.convert_to_numpy(x)


def test_embeddings_are_scaled_rows_and_logits_use_the_same_matrix():
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
