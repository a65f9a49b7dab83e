"""Compares parts and blocks with the modules of transformers and of KerasHub."""

import numpy as np
import pytest
from keras import ops

from polyhead.layers import (
    FeedForward,
    GatedFeedForward,
    MultiHeadAttention,
    RelativeBias,
    RMSNorm,
    Rotary,
    TransformerBlock,
    causal_mask,
)

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
pytest.importorskip("transformers", reason="transformers is not installed: EXTRAS=parity")

B, T, D, H, G = 2, 9, 24, 4, 2


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def array(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else ops.convert_to_numpy(x)


def randomize(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) / 3)
    return module.eval()


def set_linear(ours, theirs):
    """Copies a linear layer of PyTorch, (out, in), to one of ours, whose axes may be split."""
    ours.kernel.assign(array(theirs.weight).T.reshape(ours.kernel.shape))
    assert (ours.bias is None) == (theirs.bias is None)
    if ours.bias is not None:
        ours.bias.assign(array(theirs.bias).reshape(ours.bias.shape))


def set_attention(ours, theirs):
    for mine, name in (("query", "q"), ("key", "k"), ("value", "v"), ("output_projection", "o")):
        set_linear(getattr(ours, mine), getattr(theirs, f"{name}_proj"))
    if ours.query_norm is not None:
        ours.query_norm.gamma.assign(array(theirs.q_norm.weight))
        ours.key_norm.gamma.assign(array(theirs.k_norm.weight))


def set_gated(ours, theirs, names=("gate_proj", "up_proj", "down_proj")):
    for mine, name in zip((ours.gate, ours.expand, ours.contract), names, strict=True):
        set_linear(mine, getattr(theirs, name))


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(rope_type="llama3", rope_theta=1e4, original_max_position_embeddings=16)


def families():
    """The settings of each family's configuration, and of our attention, norm and block."""
    from transformers.models import gemma2, gemma3, llama, qwen2, qwen3

    gemma = dict(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=9, sliding_window=4)
    gemma |= dict(layer_types=["sliding_attention"])
    ours = dict(scale=1 / 3, window=4, use_bias=False)
    rms, rms1 = RMSNorm(1e-5), RMSNorm(1e-5, offset=1.0)
    return {
        "llama": (
            llama.modeling_llama, "Llama", dict(rope_parameters=LLAMA3),
            dict(use_bias=False), rms, {},
        ),
        "qwen2": (qwen2.modeling_qwen2, "Qwen2", {}, dict(output_bias=False), rms, {}),
        "qwen3": (
            qwen3.modeling_qwen3, "Qwen3", {}, dict(use_bias=False, qk_norm=rms), rms, {},
        ),
        "gemma2": (
            gemma2.modeling_gemma2, "Gemma2", gemma, dict(ours, softcap=50.0), rms1,
            dict(order="both"),
        ),
        "gemma3": (
            gemma3.modeling_gemma3, "Gemma3", gemma, dict(ours, qk_norm=rms1), rms1,
            dict(order="both"),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_a_block_equals_the_decoder_layer_of_transformers(family):
    import transformers

    module, name, settings, attention, norm, options = families()[family]
    kind = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    sizes = dict(
        hidden_size=D, intermediate_size=40, num_attention_heads=H, num_key_value_heads=G,
        head_dim=10, num_hidden_layers=1, rms_norm_eps=1e-5, attn_implementation="eager",
    )  # fmt: skip
    if family == "qwen2":
        sizes.pop("head_dim")
    config = getattr(transformers, kind)(**sizes, **settings)
    peer = randomize(getattr(module, f"{name}DecoderLayer")(config, 0))
    size = D // H if family == "qwen2" else 10

    block = TransformerBlock(
        attention=MultiHeadAttention(H, G, size, causal=True, **attention),
        feed_forward=GatedFeedForward(40, "gelu_tanh" if "gemma" in family else "silu"),
        norm=norm,
        **options,
    )
    block.build((B, T, D))
    set_attention(block.attention, peer.self_attn)
    set_gated(block.feed_forward, peer.mlp)
    block.attention_norm.gamma.assign(array(peer.input_layernorm.weight))
    if "gemma" in family:
        for mine, theirs in (
            (block.attention_output_norm, peer.post_attention_layernorm),
            (block.feed_forward_norm, peer.pre_feedforward_layernorm),
            (block.feed_forward_output_norm, peer.post_feedforward_layernorm),
        ):
            mine.gamma.assign(array(theirs.weight))
    else:
        block.feed_forward_norm.gamma.assign(array(peer.post_attention_layernorm.weight))

    rotary, turn = Rotary(size), getattr(module, f"{name}RotaryEmbedding")(config)
    if family == "llama":
        rotary = Rotary(size, 1e4, "llama3", factor=8.0, original_length=16, low=1.0, high=4.0)
    x, padding = random_array(B, T, D), np.arange(T) >= np.array([[2], [0]])
    positions = np.maximum(np.arange(T) - np.array([[2], [0]]), 0)
    mask = array(causal_mask(T, window=attention.get("window"))) & padding[:, None, None]
    arguments = (torch.tensor(x), torch.tensor(positions))
    turns = turn(*arguments, "sliding_attention") if family == "gemma3" else turn(*arguments)
    added = torch.tensor(np.where(mask, 0, -1e9).astype("float32"))
    with torch.no_grad():
        expected = peer(
            torch.tensor(x), position_embeddings=turns, attention_mask=added,
            position_ids=torch.tensor(positions),
        )  # fmt: skip
    expected = array(expected[0] if isinstance(expected, tuple) else expected)
    found = array(block(x, mask=padding[:, None, None], rotary=rotary(positions)))
    np.testing.assert_allclose(found[1], expected[1], atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(found[0, 2:], expected[0, 2:], atol=2e-5, rtol=1e-5)


SHORT, LONG = [1.0 + i for i in range(8)], [2.0 + 3 * i for i in range(8)]
SCALINGS = {
    "default": (dict(), dict()),
    "linear": (dict(factor=4.0), dict(factor=4.0)),
    "llama3": (
        dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
             original_max_position_embeddings=64),
        dict(factor=8.0, low=1.0, high=4.0, original_length=64),
    ),
    "yarn": (
        dict(factor=4.0, original_max_position_embeddings=64),
        dict(factor=4.0, original_length=64, low=1.0, high=32.0),
    ),
    "longrope": (
        dict(factor=4.0, original_max_position_embeddings=64, short_factor=SHORT, long_factor=LONG),
        dict(factor=4.0, original_length=64, short_factors=SHORT, long_factors=LONG),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotations_equal_transformers(kind, fraction):
    from transformers import LlamaConfig, Phi3Config
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    theirs, ours = SCALINGS[kind]
    size = int(16 / fraction)
    parameters = dict(rope_type=kind, rope_theta=5e5, partial_rotary_factor=fraction, **theirs)
    settings = dict(
        hidden_size=4 * size, num_attention_heads=4, rope_parameters=parameters,
        max_position_embeddings=256, pad_token_id=0,
    )  # fmt: skip
    if kind in ("default", "longrope"):
        config = Phi3Config(**settings, original_max_position_embeddings=64)
        make = Phi3RotaryEmbedding
    else:
        config, make = LlamaConfig(**settings), LlamaRotaryEmbedding
    rotary = Rotary(size, 5e5, kind, fraction=fraction, **ours)
    for length in (64, 200):
        peer = make(config)
        expected = peer(torch.zeros(1), torch.arange(length)[None])
        for mine, theirs in zip(rotary(np.arange(length)), expected, strict=True):
            np.testing.assert_allclose(array(mine)[:, 0], array(theirs)[0, :, :8], atol=2e-5)


@pytest.mark.parametrize("decoder", [False, True])
def test_relative_biases_equal_t5(decoder):
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(d_model=D, d_kv=5, num_heads=H, is_decoder=decoder, dropout_rate=0.0)
    peer = randomize(T5Attention(config, has_relative_attention_bias=True, layer_idx=0))
    bias = RelativeBias(H, bidirectional=not decoder)
    attention = MultiHeadAttention(H, head_dim=5, causal=decoder, use_bias=False, scale=1.0)
    bias.build()
    attention.build((B, T, D))
    bias.embeddings.assign(array(peer.relative_attention_bias.weight))
    for mine, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output_projection", "o")):
        set_linear(getattr(attention, mine), getattr(peer, theirs))
    whole = array(bias(np.arange(400), np.arange(400)))
    np.testing.assert_array_equal(whole, array(peer.compute_bias(400, 400)))
    x = random_array(B, T, D)
    mask = None
    if decoder:
        mask = torch.tensor(np.where(array(causal_mask(T)), 0, -1e9).astype("float32"))
    expected = array(peer(torch.tensor(x), mask=mask)[0])
    found = attention(x, bias=bias(np.arange(T), np.arange(T)))
    np.testing.assert_allclose(array(found), expected, atol=1e-5)


def test_feed_forward_networks_equal_t5():
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense

    x = random_array(B, T, D)
    config = T5Config(d_model=D, d_ff=40, feed_forward_proj="gated-gelu")
    peer, ours = randomize(T5DenseGatedActDense(config)), GatedFeedForward(40, "gelu_tanh")
    ours.build(x.shape)
    set_gated(ours, peer, ("wi_0", "wi_1", "wo"))
    np.testing.assert_allclose(array(ours(x)), array(peer(torch.tensor(x))), atol=1e-5)
    peer = randomize(T5DenseActDense(T5Config(d_model=D, d_ff=40)))
    ours = FeedForward(40, use_bias=False)
    ours.build(x.shape)
    set_linear(ours.expand, peer.wi)
    set_linear(ours.contract, peer.wo)
    np.testing.assert_allclose(array(ours(x)), array(peer(torch.tensor(x))), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_rms_norms_equal_transformers(dtype):
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    torch_dtype = torch.bfloat16 if "bfloat16" in dtype else torch.float32
    x = torch.tensor(random_array(50, 64)).to(torch_dtype)
    for kind, offset in ((LlamaRMSNorm, 0.0), (T5LayerNorm, 0.0), (Gemma2RMSNorm, 1.0)):
        peer = randomize(kind(64, eps=1e-6)).to(torch_dtype)
        ours = RMSNorm(1e-6, offset, dtype=dtype)
        ours.build((None, 64))
        ours.gamma.assign(array(peer.weight.float()))
        found = array(ops.cast(ours(array(x.float())), "float32"))
        expected = array(peer(x).float())
        np.testing.assert_allclose(found, expected, rtol=1e-2 if "bfloat16" in dtype else 1e-5)
        # Sums in another order may round a few numbers differently.
        assert dtype == "float32" or (found != expected).mean() < 0.005


def test_gated_attention_with_a_bias_equals_esmfold():
    from transformers.models.esm.modeling_esmfold import EsmFoldSelfAttention

    peer = randomize(EsmFoldSelfAttention(D, H, D // H, gated=True))
    ours = MultiHeadAttention(H, use_bias=False, output_bias=True, gated=True)
    ours.build((B, T, D))
    fused = array(peer.proj.weight).reshape(H, 3, D // H, D)  # per head: query, key, value
    for i, layer in enumerate((ours.query, ours.key, ours.value)):
        layer.kernel.assign(np.einsum("hkd->dhk", fused[:, i]))
    set_linear(ours.gate, peer.g_proj)
    set_linear(ours.output_projection, peer.o_proj)
    x, bias, mask = (
        random_array(B, T, D),
        random_array(B, T, T, H, seed=1),
        np.arange(T) < np.array([[4], [T]]),
    )
    expected, _ = peer(*(torch.tensor(v) for v in (x, mask, bias)))
    found = ours(x, mask=mask[:, None, None], bias=np.transpose(bias, (0, 3, 1, 2)))
    np.testing.assert_allclose(array(found), array(expected), atol=1e-5)


def test_the_initial_gate_equals_esmfold():
    layer = MultiHeadAttention(H, gated=True)
    layer.build((B, T, D))
    assert not array(layer.gate.kernel).any() and (array(layer.gate.bias) == 1).all()


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("decoder", [False, True])
def test_a_block_equals_keras_hub(order, decoder):
    keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")
    kind = keras_hub.layers.TransformerDecoder if decoder else keras_hub.layers.TransformerEncoder
    peer = kind(40, H, activation="gelu", normalize_first=order == "pre")
    x, memory = random_array(B, T, D), random_array(B, 7, D, seed=1)
    padding = np.arange(7) < np.array([[4], [7]])
    if decoder:
        options = dict(encoder_padding_mask=padding)
        peer.build(x.shape, memory.shape)
    else:
        x, memory, options = memory, None, dict(padding_mask=padding)
        peer.build(x.shape)
    block = TransformerBlock(
        attention=MultiHeadAttention(H, causal=decoder),
        cross_attention=MultiHeadAttention(H) if decoder else None,
        feed_forward=FeedForward(40, "gelu"),
        order=order,
    )
    block.build(x.shape)
    names = ["self_attention_layer", "self_attention_layer_norm", "feedforward_intermediate_dense",
             "feedforward_output_dense", "feedforward_layer_norm"]  # fmt: skip
    ours = [block.attention, block.attention_norm, block.feed_forward.expand,
            block.feed_forward.contract, block.feed_forward_norm]  # fmt: skip
    if decoder:
        names += ["cross_attention_layer", "cross_attention_layer_norm"]
        ours += [block.cross_attention, block.cross_attention_norm]
    for seed, (mine, name) in enumerate(zip(ours, names, strict=True)):
        weights = [random_array(*w.shape, seed=seed) / 3 for w in mine.get_weights()]
        mine.set_weights(weights)
        getattr(peer, f"_{name}").set_weights(weights)
    if decoder:
        expected = peer(x, memory, **options)
        found = block(x, memory=memory, cross_mask=padding[:, None, None])
    else:
        expected = peer(x, **options)
        found = block(x, mask=padding[:, None, None])
    np.testing.assert_allclose(array(found), array(expected), atol=2e-5)
