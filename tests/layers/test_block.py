import itertools

import keras
import numpy as np
import pytest
from keras import ops

from polyhead.layers import KeyValueCache, TransformerBlock

B, T, S, D, H = 2, 5, 7, 16, 4
KINDS = list(itertools.product([False, True], [False, True], ["pre", "post"]))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def block(causal, cross, norm, **options):
    layer = TransformerBlock(H, 24, causal=causal, cross=cross, norm=norm, **options)
    layer.build((B, T, D))
    return layer, dict(memory=draw(B, S, D, seed=1)) if cross else {}


@pytest.mark.parametrize("causal, cross, norm", KINDS)
def test_configuration_rebuilds_the_block(causal, cross, norm):
    layer, memory = block(causal, cross, norm)
    again = TransformerBlock.from_config(layer.get_config())
    again.build((B, T, D))
    again.set_weights(layer.get_weights())
    x = draw(B, T, D)
    np.testing.assert_array_equal(array(again(x, **memory)), array(layer(x, **memory)))


@pytest.mark.parametrize("causal, cross, norm", KINDS)
def test_the_future_is_seen_only_without_causal(causal, cross, norm):
    layer, memory = block(causal, cross, norm)
    x = draw(B, T, D)
    changed = x.copy()
    changed[:, 3] += 1
    past = [array(layer(v, **memory))[:, :3] for v in (x, changed)]
    assert np.array_equal(*past) == causal


@pytest.mark.parametrize("cross, norm", itertools.product([False, True], ["pre", "post"]))
def test_cached_decoding_equals_the_full_forward(cross, norm):
    layer, memory = block(True, cross, norm)
    x = draw(B, T, D)
    projected = {"memory": layer.project(memory["memory"])} if cross else {}
    cache, steps = KeyValueCache.empty(B, T, H, D // H, "float32"), []
    for t in range(T):
        y, cache = layer(x[:, t : t + 1], cache=cache, **projected)
        steps.append(array(y))
    np.testing.assert_allclose(np.concatenate(steps, 1), array(layer(x, **memory)), atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("decoder", [False, True])
def test_the_block_is_that_of_pytorch(norm, decoder):
    torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
    layer, memory = block(decoder, decoder, norm)
    kind = torch.nn.TransformerDecoderLayer if decoder else torch.nn.TransformerEncoderLayer
    peer = kind(D, H, 24, dropout=0.0, batch_first=True, norm_first=norm == "pre").eval()

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
        x = torch.tensor(draw(B, T, D))
        if decoder:
            future = torch.nn.Transformer.generate_square_subsequent_mask(T)
            expected = peer(x, torch.tensor(memory["memory"]), tgt_mask=future)
        else:
            expected = peer(x)
    np.testing.assert_allclose(
        array(layer(x.numpy(), **memory)), expected.numpy(), atol=1e-5, rtol=1e-5
    )


def test_dropout_is_for_training_only_and_differs_from_call_to_call():
    layer, _ = block(False, False, "post", dropout=0.5)
    x = draw(B, T, D)
    np.testing.assert_array_equal(array(layer(x)), array(layer(x, training=False)))
    first, second = (array(layer(x, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_block_in_half_precision_is_near_float32(policy):
    x, memory = draw(B, T, D), draw(B, S, D, seed=1)
    full, _ = block(True, True, "post")
    half, _ = block(True, True, "post", dtype=policy)
    half.set_weights(full.get_weights())
    output = half(x, memory=memory)
    assert keras.backend.standardize_dtype(output.dtype) == policy.removeprefix("mixed_")
    np.testing.assert_allclose(
        array(ops.cast(output, "float32")), array(full(x, memory=memory)), atol=0.1
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="norm must be 'pre' or 'post': 'both'"):
        TransformerBlock(H, 24, norm="both")
    layer, _ = block(True, True, "pre")
    with pytest.raises(ValueError, match="cross=True, but memory is NoneType"):
        layer(draw(B, T, D))


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_what_is_computed_again_gives_the_same_gradients(cross, policy):
    def trained(remat):
        keras.utils.set_random_seed(3)
        block = TransformerBlock(
            4, 48, causal=True, cross=cross, dropout=0.2, remat=remat, dtype=policy
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
