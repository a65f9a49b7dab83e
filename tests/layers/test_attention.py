import keras
import numpy as np
import pytest
from keras import ops

from polyhead.layers import (
    KeyValueCache,
    MultiHeadAttention,
    RMSNorm,
    Rotary,
    causal_mask,
    decoder_mask,
    padding_mask,
)

B, T, S, D, H = 2, 5, 7, 16, 4
QKV = ("query", "key", "value")


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def attention(**options):
    layer = MultiHeadAttention(H, **options)
    layer.build((B, T, D), (B, S, D))
    for i, v in enumerate(layer.weights):  # including biases, so that wrong ones are found
        v.assign(random_array(*v.shape, seed=i) / 4)
    return layer


def array(x):
    return ops.convert_to_numpy(x)


def kerass(layer):
    """Keras's attention with the same weights."""
    peer = keras.layers.MultiHeadAttention(H, D // H)
    peer.build((B, T, D), (B, S, D))
    peer.set_weights(layer.get_weights())
    return peer


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_equals_keras(causal):
    layer, x = attention(causal=causal), random_array(B, T, D)
    expected = kerass(layer)(x, x, use_causal_mask=causal)
    np.testing.assert_allclose(array(layer(x)), array(expected), atol=1e-5)


def test_cross_attention_with_padding_equals_keras():
    layer, x, memory = attention(), random_array(B, T, D), random_array(B, S, D, seed=1)
    mask = np.arange(S)[None] < np.array([[4], [7]])
    ours = layer(x, memory, mask=mask[:, None, None])
    expected = kerass(layer)(x, memory, attention_mask=np.repeat(mask[:, None], T, 1))
    np.testing.assert_allclose(array(ours), array(expected), atol=1e-5)


def test_attention_equals_pytorch():
    torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
    layer, x, memory = attention(), random_array(B, T, D), random_array(B, S, D, seed=1)
    peer = torch.nn.MultiheadAttention(D, H, batch_first=True)
    wq, bq, wk, bk, wv, bv, wo, bo = (torch.tensor(w) for w in layer.get_weights())
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([w.reshape(D, D).T for w in (wq, wk, wv)]))
        peer.in_proj_bias.copy_(torch.cat([b.reshape(D) for b in (bq, bk, bv)]))
        peer.out_proj.weight.copy_(wo.reshape(D, D).T)
        peer.out_proj.bias.copy_(bo)
        padding = torch.arange(S)[None] >= torch.tensor([[4], [7]])
        m = torch.tensor(memory)
        expected, weights = peer(
            torch.tensor(x), m, m, key_padding_mask=padding, average_attn_weights=False
        )
    mask = ~padding.numpy()[:, None, None]
    np.testing.assert_allclose(array(layer(x, memory, mask=mask)), expected.numpy(), atol=1e-5)
    ours = layer.attention_weights(x, memory, mask=mask)
    np.testing.assert_allclose(array(ours), weights.numpy(), atol=1e-5)


def test_attention_weights_are_a_distribution_over_unmasked_positions():
    layer, x, memory = attention(), random_array(B, T, D), random_array(B, S, D, seed=1)
    mask = (np.arange(S) < 4)[None, None, None]
    weights = array(layer.attention_weights(x, memory, mask=mask))
    assert weights.shape == (B, H, T, S)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert weights[..., 4:].max() == 0


def test_the_output_is_the_weights_applied_to_the_values():
    layer, x = attention(), random_array(B, T, D)
    heads = np.einsum("bhts,bshk->bthk", array(layer.attention_weights(x)), array(layer.value(x)))
    kernel, bias = (array(w) for w in layer.output_projection.weights)
    expected = np.einsum("bthk,hkd->btd", heads, kernel) + bias
    np.testing.assert_allclose(array(layer(x)), expected, atol=1e-5)


def test_a_bias_is_added_to_the_scores():
    layer, x = attention(), random_array(B, T, D)
    bias = random_array(1, H, T, T, seed=2)
    plain, biased = (array(layer.attention_weights(x, bias=b)) for b in (None, bias))
    expected = plain * np.exp(bias)
    np.testing.assert_allclose(biased, expected / expected.sum(-1, keepdims=True), atol=1e-5)


def test_future_positions_cannot_change_the_past():
    layer, x = attention(causal=True), random_array(B, T, D)
    changed = x.copy()
    changed[:, 3:] += 1
    before, after = array(layer(x)), array(layer(changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before[:, 3:] - after[:, 3:]).max() > 1e-3


def test_padding_changes_nothing():
    layer, x, memory = attention(), random_array(B, T, D), random_array(B, S, D, seed=1)
    mask = (np.arange(S) < 4)[None, None, None]
    np.testing.assert_allclose(
        array(layer(x, memory, mask=mask)), array(layer(x, memory[:, :4])), atol=1e-6
    )


def test_a_fully_masked_query_does_not_give_nan():
    layer, x = attention(), random_array(B, T, D)
    assert np.isfinite(array(layer(x, mask=np.zeros((1, 1, 1, T), bool)))).all()


def test_cached_attention_equals_full_attention_at_each_position():
    layer, x = attention(causal=True), random_array(B, T, D)
    cache = KeyValueCache.empty(B, T + 2, H, D // H, "float32")
    outputs = []
    for t in range(T):
        output, cache = layer(x[:, t : t + 1], cache=cache)
        outputs.append(array(output))
    assert int(cache.index) == T
    np.testing.assert_allclose(np.concatenate(outputs, 1), array(layer(x)), atol=1e-5)


def test_a_full_cache_is_refused():
    layer, x = attention(causal=True), random_array(B, T, D)
    _, cache = layer(x, cache=KeyValueCache.empty(B, T + 1, H, D // H, "float32"))
    message = f"room for {T + 1} positions: {T} are written, and 2 more were given"
    with pytest.raises(ValueError, match=message):
        layer(x[:, :2], cache=cache)


def test_several_positions_can_be_added_to_a_cache_at_once():
    layer, x = attention(causal=True), random_array(B, T, D)
    cache = KeyValueCache.empty(B, T, H, D // H, "float32")
    first, cache = layer(x[:, :3], cache=cache)
    second, _ = layer(x[:, 3:], cache=cache)
    both = np.concatenate([array(first), array(second)], 1)
    np.testing.assert_allclose(both, array(layer(x)), atol=1e-5)


def test_a_memory_can_be_projected_once():
    layer, x, memory = attention(), random_array(B, T, D), random_array(B, S, D, seed=1)
    np.testing.assert_array_equal(array(layer(x, layer.project(memory))), array(layer(x, memory)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_close_to_float32_and_finite_under_masks(policy):
    full, x = attention(causal=True), random_array(B, T, D)
    half = attention(causal=True, dtype=policy)
    output = half(x, mask=np.zeros((1, 1, 1, T), bool))
    assert np.isfinite(array(ops.cast(output, "float32"))).all()
    assert keras.backend.standardize_dtype(half(x).dtype) == policy.removeprefix("mixed_")
    atol = 0.01 if policy == "mixed_float16" else 0.06
    np.testing.assert_allclose(array(ops.cast(half(x), "float32")), array(full(x)), atol=atol)


def test_masks_equal_a_manual_construction():
    assert array(padding_mask(np.array([[5, 3, 0]]), 0)).tolist() == [[[[True, True, False]]]]
    assert array(causal_mask(2, 4, start=1)).tolist() == [
        [True, True, False, False],
        [True, True, True, False],
    ]


def test_a_window_includes_the_query():
    assert array(causal_mask(4, window=2)).astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


def test_layers_can_share_the_mask_of_a_decoder():
    inner, x = attention(causal=True, window=3), random_array(B, T, D)
    outer = attention()
    padding = np.arange(T) >= np.array([[1], [0]])
    cache = KeyValueCache.empty(B, T, H, D // H, "float32")
    _, cache = inner(x[:, :2], cache=cache)
    for x, cache, mask in ((x, None, padding), (x, None, None), (x[:, 2:], cache, padding)):  # noqa: B020
        mask = None if mask is None else mask[:, None, None]
        expected = inner(x, mask=mask, cache=cache)
        found = outer(x, mask=decoder_mask(x, mask, cache, window=3), cache=cache)
        for a, b in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
            np.testing.assert_array_equal(array(a), array(b))


GROUPED = dict(
    num_kv_heads=2, head_dim=6, causal=True, window=3, use_bias=False, gated=True, scale=0.3,
    softcap=4.0,
)  # fmt: skip


def test_cached_decoding_with_grouped_heads_and_rotary_equals_the_full_forward():
    layer, x = attention(**GROUPED, qk_norm=RMSNorm()), random_array(B, T, D)
    rotary = Rotary(6, fraction=0.7)
    cosine, sine = rotary(np.arange(T))
    assert cosine.shape == (T, 1, 2)
    cache, outputs = KeyValueCache.empty(B, T, 2, 6, "float32"), []
    for t in range(T):
        turn = rotary(np.arange(t, t + 1))
        output, cache = layer(x[:, t : t + 1], rotary=turn, cache=cache)
        outputs.append(array(output))
    whole = array(layer(x, rotary=(cosine, sine)))
    np.testing.assert_allclose(np.concatenate(outputs, 1), whole, atol=1e-5)


def test_fused_projections_support_grouped_heads_with_and_without_bias():
    for options in (GROUPED, dict(GROUPED, gated=False), dict(num_kv_heads=1)):
        layer, x = attention(**options), random_array(B, T, D)
        names = [*QKV, *(["gate"] if layer.gated else [])]
        mapped = layer._apply_projections(x, *names, training=True)
        for name, found in zip(names, mapped, strict=True):
            expected = array(getattr(layer, name)(x))
            np.testing.assert_allclose(array(found), expected, atol=1e-5)


def test_biases_exist_where_configured():
    def biased(**options):
        layer = attention(**options)
        return [v.path.split("/")[-2] for v in layer.weights if v.name == "bias"]

    assert biased(output_bias=False) == ["query", "key", "value"]
    assert biased(use_bias=False) == []
    assert biased(use_bias=False, output_bias=True, gated=True) == ["gate", "output"]


def test_rotated_scores_depend_only_on_the_distance():
    layer, x = attention(causal=True), random_array(B, T, D)
    near, far = (array(layer(x, rotary=Rotary(D // H)(np.arange(T) + n))) for n in (0, 1000))
    np.testing.assert_allclose(near, far, atol=1e-4)
    assert np.abs(near - array(layer(x))).max() > 1e-3


def test_invalid_heads_and_windows_are_refused():
    with pytest.raises(ValueError, match="num_kv_heads must divide num_heads: 3 / 4"):
        MultiHeadAttention(4, 3)
    with pytest.raises(ValueError, match="a window needs causal=True: 3"):
        MultiHeadAttention(4, window=3)


def test_a_width_that_num_heads_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="num_heads must divide the width: 16 / 3"):
        MultiHeadAttention(3).build((B, T, D))


def test_initial_projections_preserve_the_variance():
    layer = MultiHeadAttention(4)
    layer.build((None, None, 256))
    limit = np.sqrt(6 / 512)
    for part in (layer.query, layer.output_projection):
        kernel = array(part.kernel)
        assert abs(kernel).max() <= limit and abs(kernel.std() - limit / 3**0.5) < 0.02 * limit


def test_mimetic_attention_initially_attends_to_similar_tokens():
    """W^Q W^K is close to a multiple of I, and W^V W^O to one of -I, for any number of heads."""
    for heads, head_dim in ((4, 16), (4, 8)):
        keras.utils.set_random_seed(0)
        layer = MultiHeadAttention(heads, head_dim=head_dim)
        layer.build((None, None, 64))
        layer.initialize_mimetic()
        query, key, value, output = (
            np.array(part.kernel).reshape(shape)
            for part, shape in (
                (layer.query, (64, -1)), (layer.key, (64, -1)), (layer.value, (64, -1)),
                (layer.output_projection, (-1, 64)),
            )
        )  # fmt: skip
        share = heads * head_dim / 64  # fraction of the directions that the heads have
        for product, expected in ((query @ key.T, 1.5), (value @ output, -0.4)):
            diagonal = np.diag(product)
            assert abs(diagonal.mean() / (expected * share) - 1) < 0.2
            others = product - np.diag(diagonal)
            assert np.abs(others).mean() < 0.2 * abs(diagonal.mean()) / share


def test_a_layer_is_rebuilt_from_its_configuration():
    layer = attention(causal=True)
    again = MultiHeadAttention.from_config(layer.get_config())
    again.build((B, T, D), (B, S, D))
    again.set_weights(layer.get_weights())
    x = random_array(B, T, D)
    np.testing.assert_array_equal(array(again(x)), array(layer(x)))


def one_by_one(layer, x):
    """Computes queries, keys and values by calling each layer."""
    return [array(f(x)) for f in (layer.query, layer.key, layer.value)]


def test_quantized_projections_are_used():
    layer, x = attention(), random_array(B, T, D)
    expected = array(layer(x))
    for projected in (layer.query, layer.output_projection):
        projected.quantize("int8")
    for a, b in zip(
        layer._apply_projections(x, *QKV, training=True), one_by_one(layer, x), strict=True
    ):
        np.testing.assert_allclose(array(a), b, atol=1e-6)
    np.testing.assert_allclose(array(layer(x)), expected, atol=0.05)
    with pytest.raises(ValueError, match="enable LoRA before quantize"):
        layer.enable_lora(2)


def test_keras_lora_on_a_projection_is_used():
    layer, x = attention(), random_array(B, T, D)
    before = array(layer(x))
    layer.key.enable_lora(2)
    layer.key.lora_kernel_b.assign(random_array(*layer.key.lora_kernel_b.shape))
    for a, b in zip(
        layer._apply_projections(x, *QKV, training=True), one_by_one(layer, x), strict=True
    ):
        np.testing.assert_allclose(array(a), b, atol=1e-5)
    assert np.abs(array(layer(x)) - before).max() > 1e-3


def test_projections_and_lora_adapters_are_fused():
    layer, x = attention(), random_array(B, T, D)
    layer.enable_lora(2)
    for projected in (layer.query, layer.value):
        projected.adapter.up.assign(random_array(*projected.adapter.up.shape))
    calls = []
    layer.key.call = lambda x, training=None: calls.append(x) or layer.query(x)
    mapped = layer._apply_projections(x, *QKV, training=True)
    assert not calls  # the kernels are fused
    layer._apply_projections(x, *QKV)
    assert calls  # not in inference
    del layer.key.call
    for a, b in zip(mapped, one_by_one(layer, x), strict=True):
        np.testing.assert_allclose(array(a), b, atol=1e-5)
