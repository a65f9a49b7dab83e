import itertools

import keras
import numpy as np
import pytest
from keras import ops

from polyhead.layers import (
    Dropout,
    EvoformerBlock,
    FeedForward,
    FoldingBlock,
    GatedFeedForward,
    KeyValueCache,
    MultiHeadAttention,
    RelativeBias,
    RMSNorm,
    Rotary,
    TransformerBlock,
)
from tests.conftest import TENSORFLOW

B, T, S, D, H = 2, 5, 7, 16, 4
KINDS = list(itertools.product([False, True], [False, True], ["pre", "post"]))


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def block(causal, cross, order, **options):
    layer = TransformerBlock(H, 24, causal=causal, cross=cross, order=order, **options)
    layer.build((B, T, D))
    return layer, dict(memory=random_array(B, S, D, seed=1)) if cross else {}


@pytest.mark.parametrize("causal, cross, order", KINDS)
def test_a_block_is_rebuilt_from_its_configuration(causal, cross, order):
    layer, memory = block(causal, cross, order)
    again = TransformerBlock.from_config(layer.get_config())
    again.build((B, T, D))
    again.set_weights(layer.get_weights())
    x = random_array(B, T, D)
    np.testing.assert_array_equal(array(again(x, **memory)), array(layer(x, **memory)))


@pytest.mark.parametrize("causal, cross, order", KINDS)
def test_a_causal_block_does_not_see_the_future(causal, cross, order):
    layer, memory = block(causal, cross, order)
    x = random_array(B, T, D)
    changed = x.copy()
    changed[:, 3] += 1
    past = [array(layer(v, **memory))[:, :3] for v in (x, changed)]
    assert np.array_equal(*past) == causal


@pytest.mark.parametrize("cross, order", itertools.product([False, True], ["pre", "post"]))
def test_cached_decoding_equals_the_full_forward(cross, order):
    layer, memory = block(True, cross, order)
    x = random_array(B, T, D)
    projected = {"memory": layer.project(memory["memory"])} if cross else {}
    cache, steps = KeyValueCache.empty(B, T, H, D // H, "float32"), []
    for t in range(T):
        y, cache = layer(x[:, t : t + 1], cache=cache, **projected)
        steps.append(array(y))
    np.testing.assert_allclose(np.concatenate(steps, 1), array(layer(x, **memory)), atol=1e-5)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("decoder", [False, True])
def test_a_block_equals_pytorch(order, decoder):
    torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
    layer, memory = block(decoder, decoder, order)
    kind = torch.nn.TransformerDecoderLayer if decoder else torch.nn.TransformerEncoderLayer
    peer = kind(D, H, 24, dropout=0.0, batch_first=True, norm_first=order == "pre").eval()

    def tensor(v):
        return torch.tensor(array(v))

    def set_attention(theirs, ours):
        parts = (ours.query, ours.key, ours.value)
        theirs.in_proj_weight.copy_(torch.cat([tensor(p.kernel).reshape(D, D).T for p in parts]))
        theirs.in_proj_bias.copy_(torch.cat([tensor(p.bias).reshape(D) for p in parts]))
        theirs.out_proj.weight.copy_(tensor(ours.output_projection.kernel).reshape(D, D).T)
        theirs.out_proj.bias.copy_(tensor(ours.output_projection.bias))

    with torch.no_grad():
        set_attention(peer.self_attn, layer.attention)
        norms = [layer.attention_norm, layer.feed_forward_norm]
        if decoder:
            set_attention(peer.multihead_attn, layer.cross_attention)
            norms.insert(1, layer.cross_attention_norm)
        for i, ours in enumerate(norms, 1):
            getattr(peer, f"norm{i}").weight.copy_(tensor(ours.gamma))
            getattr(peer, f"norm{i}").bias.copy_(tensor(ours.beta))
        for theirs, ours in (
            (peer.linear1, layer.feed_forward.expand),
            (peer.linear2, layer.feed_forward.contract),
        ):
            theirs.weight.copy_(tensor(ours.kernel).T)
            theirs.bias.copy_(tensor(ours.bias))
        x = torch.tensor(random_array(B, T, D))
        if decoder:
            future = torch.nn.Transformer.generate_square_subsequent_mask(T)
            expected = peer(x, torch.tensor(memory["memory"]), tgt_mask=future)
        else:
            expected = peer(x)
    np.testing.assert_allclose(
        array(layer(x.numpy(), **memory)), expected.numpy(), atol=1e-5, rtol=1e-5
    )


def test_dropout_applies_only_in_training_and_differs_between_calls():
    layer, _ = block(False, False, "post", dropout=0.5)
    x = random_array(B, T, D)
    np.testing.assert_array_equal(array(layer(x)), array(layer(x, training=False)))
    first, second = (array(layer(x, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_block_in_half_precision_is_close_to_float32(policy):
    x, memory = random_array(B, T, D), random_array(B, S, D, seed=1)
    full, _ = block(True, True, "post")
    half, _ = block(True, True, "post", dtype=policy)
    half.set_weights(full.get_weights())
    output = half(x, memory=memory)
    assert keras.backend.standardize_dtype(output.dtype) == policy.removeprefix("mixed_")
    np.testing.assert_allclose(
        array(ops.cast(output, "float32")), array(full(x, memory=memory)), atol=0.1
    )


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match="order must be one of pre, post, both: 'sandwich'"):
        TransformerBlock(H, 24, order="sandwich")
    layer, _ = block(True, True, "pre")
    with pytest.raises(ValueError, match="cross=True, but memory is NoneType"):
        layer(random_array(B, T, D))


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_recomputation_gives_equal_gradients(cross, policy):
    def trained(remat):
        keras.utils.set_random_seed(3)
        block = TransformerBlock(
            4, 48, True, cross, order="post", dropout=0.2, remat=remat, dtype=policy
        )
        x, memory = keras.Input([5, 32]), keras.Input([7, 32])
        y = block(x, memory=memory) if cross else block(x)
        model = keras.Model([x, memory] if cross else x, y)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        random = np.random.default_rng(0)
        inputs = [random.normal(size=(4, n, 32)).astype("float32") for n in (5, 7)]
        data = inputs if cross else inputs[0]
        model.fit(data, inputs[0], epochs=3, batch_size=2, shuffle=False, verbose=0)
        return model.get_weights() + [v for v in model.variables if "seed" in v.path]

    for a, b in zip(trained(False), trained(True), strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), rtol=1e-6, atol=1e-6
        )


def test_numbers_are_a_shorthand_for_parts():
    attention = MultiHeadAttention(H, causal=True)
    parts = TransformerBlock(attention=attention, feed_forward=FeedForward(24), name="block")
    parts.build((B, T, D))
    numbers = TransformerBlock(H, 24, causal=True, name="block")
    numbers.build((B, T, D))
    assert [v.path for v in parts.weights] == [v.path for v in numbers.weights]
    assert parts.get_config() == numbers.get_config()
    parts.set_weights(numbers.get_weights())
    x = random_array(B, T, D)
    np.testing.assert_array_equal(array(parts(x)), array(numbers(x)))


def test_parts_are_templates_that_blocks_copy():
    parts = dict(attention=MultiHeadAttention(H), feed_forward=FeedForward(24), norm=RMSNorm(1e-5))
    blocks = [TransformerBlock(**parts, dtype="mixed_bfloat16", name=f"b_{i}") for i in range(2)]
    for layer in blocks:
        layer.build((B, T, D))
    paths = {v.path for layer in blocks for v in layer.weights}
    assert len(paths) == 2 * 14 and not any(part.built for part in parts.values())
    assert {"b_1/attention/query/kernel", "b_1/attention_norm/gamma"} <= paths
    assert blocks[0].attention.query.compute_dtype == "bfloat16"


def test_each_part_is_given_exactly_once():
    attention = MultiHeadAttention(H)
    for options, message in (
        (dict(), "give num_heads or attention: None, None"),
        (dict(num_heads=H, attention=attention), "give num_heads or attention"),
        (dict(num_heads=H), "give intermediate_dim or feed_forward"),
        (dict(attention=attention, intermediate_dim=8, causal=True), "need num_heads"),
        (dict(num_heads=H, intermediate_dim=8, cross=True, cross_attention=attention), "cross=T"),
    ):
        with pytest.raises(ValueError, match=message):
            TransformerBlock(**options)


def test_a_block_with_both_norms_adds_a_normalized_output():
    layer = TransformerBlock(H, 24, norm=RMSNorm(), order="both", name="block")
    layer.build((B, T, D))
    names = {v.path for v in layer.weights if v.name == "gamma"}
    parts = ("attention_norm", "attention_output_norm", "feed_forward_norm")
    assert names == {f"block/{part}/gamma" for part in (*parts, "feed_forward_output_norm")}
    x = random_array(B, T, D)
    first = x + array(layer.attention_output_norm(layer.attention(layer.attention_norm(x))))
    second = layer.feed_forward(layer.feed_forward_norm(first))
    expected = first + array(layer.feed_forward_output_norm(second))
    np.testing.assert_allclose(array(layer(x)), expected, atol=1e-5)


@pytest.mark.slow
def test_recomputation_covers_all_dropouts_and_the_bias():
    def trained(remat):
        keras.utils.set_random_seed(3)
        block = TransformerBlock(
            attention=MultiHeadAttention(4, 2, causal=True, dropout=0.2),
            feed_forward=GatedFeedForward(48, "silu", dropout=0.2),
            dropout=0.2,
            remat=remat,
        )
        x, positions = keras.Input([5, 32]), keras.Input(batch_shape=[5], dtype="int32")
        bias = RelativeBias(4)(positions, positions)
        y = block(x, bias=bias, rotary=Rotary(8)(positions))
        model = keras.Model([x, positions], y)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        data = np.random.default_rng(0).normal(size=(4, 5, 32)).astype("float32")
        for _ in range(2):
            model.train_on_batch([data, np.arange(5)], data)
        seeds = [layer for layer in block._flatten_layers() if isinstance(layer, Dropout)]
        assert sum(layer.rate > 0 for layer in seeds) == 3
        return model.get_weights() + [v for v in model.variables if "seed" in v.path]

    for a, b in zip(trained(False), trained(True), strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["folding", pytest.param("evoformer", marks=pytest.mark.slow)])
def test_blocks_of_pairs_can_be_recomputed(kind, monkeypatch):
    x, options, masks = random_array(2, 4, 16), {}, [np.ones([2, 4], "bool")]
    if kind == "evoformer":
        x, options = random_array(2, 3, 4, 16), dict(pair_dropout=0.2)
        masks = [np.ones([2, 3, 4], "bool"), *masks]
    z, remat, calls = random_array(2, 4, 4, 8, seed=1), keras.remat, []
    monkeypatch.setattr(keras, "remat", lambda f: calls.append(f) or remat(f))

    def trained(remat):
        keras.utils.set_random_seed(3)
        make = FoldingBlock if kind == "folding" else EvoformerBlock
        block = make(2, num_pair_heads=2, dropout=0.2, **options)
        inputs = [keras.Input(v.shape[1:], dtype=v.dtype.name) for v in (x, z, *masks)]
        model = keras.Model(inputs, [2 * y for y in block(*inputs)])
        for i, v in enumerate(block.weights):  # many are zero at first
            v.assign(0.3 * random_array(*v.shape, seed=i))
        block.remat = remat
        model.compile(keras.optimizers.SGD(0.01), ["mse", "mse"], jit_compile=not TENSORFLOW)
        for _ in range(2):
            model.train_on_batch([x, z, *masks], [x, z])
        return model.get_weights() + [v for v in model.variables if "seed" in v.path]

    expected = trained(False)
    assert not calls
    for a, b in zip(expected, trained(True), strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-5, atol=1e-6)
    assert calls


@pytest.mark.slow
def test_recomputation_leaves_the_cache_alone():
    layer, _ = block(True, False, "pre")
    layer.remat = True
    cache = KeyValueCache.empty(B, T, H, D // H, "float32")
    _, cache = layer(random_array(B, 1, D), cache=cache, training=True)
    assert int(cache.index) == 1


def test_the_attention_may_have_another_norm():
    import keras

    layer = TransformerBlock(H, 24, attention_norm=keras.layers.Identity(), name="block")
    x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype("float32")
    y = array(layer(x))
    assert not [v.path for v in layer.weights if "attention_norm" in v.path]
    first = x + array(layer.attention(x))
    second = layer.feed_forward(layer.feed_forward_norm(first))
    np.testing.assert_allclose(y, first + array(second), atol=1e-5)
    again = TransformerBlock.from_config(layer.get_config())
    again.build(x.shape)
    assert len(again.weights) == len(layer.weights)
