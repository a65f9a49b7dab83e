"""Checkpoints of Marian (Junczys-Dowmunt et al. 2018) in Hugging Face's format."""

from .format import Format
from .generation import GENERATION, read_generation, write_generation
from .settings import ACTIVATIONS, AGAIN, REQUIRED, read_ends, write_ends
from .table import QKV, dense, norm, sinusoids

SETTINGS = (
    ("d_model", "dim", REQUIRED),
    ("encoder_layers", "num_layers", REQUIRED), ("num_hidden_layers", "num_layers", AGAIN),
    ("encoder_ffn_dim", "intermediate_dim", REQUIRED),
    ("decoder_ffn_dim", "intermediate_dim", AGAIN),
    ("encoder_attention_heads", "num_heads", REQUIRED),
    ("decoder_attention_heads", "num_heads", AGAIN),
    ("max_position_embeddings", "max_length", REQUIRED),
    ("dropout", "dropout", 0.1),
    ("activation_function", "activation", REQUIRED,
     {name: ACTIVATIONS[name] for name in ("relu", "gelu", "swish", "silu", "tanh")}),
    ("scale_embedding", "scale_embeddings", False),
    ("pad_token_id", "pad_id", REQUIRED), ("decoder_start_token_id", "start_id", REQUIRED),
)  # fmt: skip
OLDER = (
    "is_decoder", "add_cross_attention", "add_bias_logits", "add_final_layer_norm",
    "do_blenderbot_90_layernorm", "normalize_before", "normalize_embedding",
)  # fmt: skip
RATES = ("activation_dropout", "attention_dropout", "encoder_layerdrop", "decoder_layerdrop")
SELF, CROSS = ("self_attn", "attention"), ("encoder_attn", "cross_attention")
SHARED, SIDES = "model.shared.weight", ("model.decoder.", "model.encoder.")


def block(theirs, ours, *attentions):
    for name, own in attentions:
        yield from norm(f"{theirs}{name}_layer_norm", f"{ours}{own}_norm")
        yield from dense(f"{theirs}{name}.{{q|k|v}}_proj", "(h k) d", f"{ours}{own}/{QKV}", "d h k")
        yield from dense(f"{theirs}{name}.out_proj", "d (h k)", f"{ours}{own}/output", "h k d")
    yield from norm(f"{theirs}final_layer_norm", f"{ours}feed_forward_norm")
    yield from dense(f"{theirs}fc1", "f d", f"{ours}feed_forward/expand", "d f")
    yield from dense(f"{theirs}fc2", "d f", f"{ours}feed_forward/contract", "f d")


def rows(config, settings):
    separate = config.source_vocab_size is not None
    target, source = (f"{side}embed_tokens.weight" if separate else SHARED for side in SIDES)
    return (
        (target, "v d", "tokens/embeddings", "v d"),
        (source, "v d", "source_tokens/embeddings", "v d"),
        ("final_logits_bias", "1 v", "tokens/bias", "v"),
        *block("model.encoder.layers.{i}.", "encoder_{i}/", SELF),
        *block("model.decoder.layers.{i}.", "decoder_{i}/", SELF, CROSS),
    )


def copies(config):
    found = {f"{side}embed_positions.weight": sinusoids(config.dim) for side in SIDES}
    if config.source_vocab_size is not None:
        return found | {"lm_head.weight": f"{SIDES[0]}embed_tokens.weight"}
    names = ("lm_head.weight", *(f"{side}embed_tokens.weight" for side in SIDES))
    return found | dict.fromkeys(names, SHARED)


def read(s, g, fields):
    for name in RATES:
        s.rate(name, 0)
    s.must("extra_pos_embeddings", fields["pad_id"] + 1)
    g.must("pad_token_id", fields["pad_id"])
    shared, ends = s.flag("share_encoder_decoder_embeddings", True), read_ends(s)
    layers, size = s.get("decoder_layers"), s.get("vocab_size")
    if shared:
        s.must("decoder_vocab_size", size)
    sizes = {"vocab_size": s.get("decoder_vocab_size", size), "source_vocab_size": size}
    sizes |= {"source_vocab_size": None} if shared else {}
    sizes["decoder_layers"] = None if layers == fields["num_layers"] else layers
    search = read_generation(s, g, ends, fields["start_id"])["search"]
    return {**sizes, "end_id": ends[0], "search": search}


def write(config):
    source, target = config.source_vocab_size or config.vocab_size, config.vocab_size
    return {
        "architectures": ["MarianMTModel"], "eos_token_id": write_ends(config),
        "decoder_layers": config.decoder_layers or config.num_layers, "vocab_size": source,
        "decoder_vocab_size": target,
        "share_encoder_decoder_embeddings": config.source_vocab_size is None,
    }  # fmt: skip


def others(config):
    separate = config.source_vocab_size is not None
    tokenizer = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": separate}
    generation = write_generation(config, config.start_id)
    return {GENERATION: generation, "tokenizer_config.json": tokenizer}


FORMAT = Format(
    "huggingface", rows, SETTINGS, read=read, write=write, copies=copies, beside=GENERATION,
    others=others, unused=("classif_dropout", "classifier_dropout", "init_std"),
    fixed={"model_type": "marian", "is_encoder_decoder": True, "tie_word_embeddings": True},
    older=dict.fromkeys(OLDER, False) | {"static_position_embeddings": True},
    ours={"norm": "post", "interleaved_positions": False, "logits_bias": True},
)  # fmt: skip
