import numpy as np
from keras import ops

from polyhead.layers import RMSNorm


def array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def test_rms_norm_scales_the_root_mean_square_to_gamma():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1)
    for offset in (0.0, 1.0):
        layer = RMSNorm(0.1, offset)
        np.testing.assert_allclose(array(layer(x)), expected, rtol=1e-5)
        layer.gamma.assign([0.0, 1.0, 2.0, 3.0, 4.0])
        factor = np.arange(5) + offset
        np.testing.assert_allclose(array(layer(x)), expected * factor, rtol=1e-5)


def test_rounding_comes_before_gamma_in_llama_and_after_it_in_gemma():
    """x / rms = 1.0033 rounds to 1 in bfloat16, and 1.0033 * 1.5 to 1.5078."""
    x, gamma = [[1.0, 0.9934]], 1.5
    exact = x[0][0] / np.sqrt(np.mean(np.square(x)))
    for offset, expected in ((0.0, 1.5), (1.0, 1.5078125)):
        layer = RMSNorm(0.0, offset, dtype="mixed_bfloat16")
        layer.build((1, 2))
        layer.gamma.assign([gamma - offset] * 2)
        assert 1.0027 < exact < 1.0038
        assert array(layer(ops.convert_to_tensor(x, "float32")))[0, 0] == expected
