import numpy as np
from keras import ops

from polyhead.layers import attend, attention_weights

B, T, S, H, G, K = 2, 5, 7, 6, 2, 4


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


QUERY, KEY, VALUE = (
    random_array(B, T, H, K),
    random_array(B, S, G, K, seed=1),
    random_array(B, S, G, K, seed=2),
)


def test_consecutive_heads_share_keys_and_values():
    mask, bias = random_array(B, H, T, S, seed=3) > -1, random_array(1, H, T, S, seed=4)
    key, value = (np.repeat(x, H // G, axis=2) for x in (KEY, VALUE))
    for options in (dict(), dict(mask=mask), dict(mask=mask[:, :1], bias=bias, softcap=2.0)):
        expected = attend(QUERY, key, value, **options)
        found = attend(QUERY, KEY, VALUE, **options)
        np.testing.assert_allclose(array(found), array(expected), atol=1e-6)


def test_attention_equals_a_manual_computation():
    weights = np.zeros((B, H, T, S))
    for b, h, t in np.ndindex(B, H, T):
        scores = KEY[b, :, h // 3] @ QUERY[b, t, h] * 0.3
        e = np.exp(5 * np.tanh(scores / 5))
        weights[b, h, t] = e / e.sum()
    found = attention_weights(QUERY, KEY, scale=0.3, softcap=5.0)
    np.testing.assert_allclose(array(found), weights, atol=1e-6)
    expected = np.einsum("bhts,bshk->bthk", weights, np.repeat(VALUE, H // G, axis=2))
    found = attend(QUERY, KEY, VALUE, scale=0.3, softcap=5.0)
    np.testing.assert_allclose(array(found), expected, atol=1e-6)


def test_dropout_is_applied_to_the_weights():
    found = attend(QUERY, KEY, VALUE, dropout=ops.zeros_like)
    assert not array(found).any()
