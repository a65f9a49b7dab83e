"""Marian's translation models (Junczys-Dowmunt et al. 2018), as Hugging Face saves them."""

from ..transformer import TransformerConfig
from .format import Format
from .generation import move_generation, read_generation, write_generation
from .settings import ACTIVATIONS, REQUIRED, read_ends, write_ends, write_settings
from .table import dense, norm, sinusoids

SETTINGS = (
    ("d_model", "dim", REQUIRED),
    ("encoder_layers", "num_layers", REQUIRED),
    ("encoder_ffn_dim", "hidden_dim", REQUIRED),
    ("encoder_attention_heads", "num_heads", REQUIRED),
    ("max_position_embeddings", "max_length", REQUIRED),
    ("dropout", "dropout", 0.1),
    ("activation_function", "activation", REQUIRED,
     {name: ACTIVATIONS[name] for name in ("relu", "gelu", "swish", "silu", "tanh")}),
    ("scale_embedding", "scale_embeddings", False),
    ("pad_token_id", "pad_id", REQUIRED),
    ("decoder_start_token_id", "start_id", REQUIRED),
)  # fmt: skip
AGAIN = (("num_hidden_layers", "num_layers"), ("decoder_attention_heads", "num_heads"),
         ("decoder_ffn_dim", "hidden_dim"))  # fmt: skip
FIXED = {"model_type": "marian", "is_encoder_decoder": True, "tie_word_embeddings": True}
OLDER = {  # which older versions wrote
    "is_decoder": False, "add_cross_attention": False, "add_bias_logits": False,
    "add_final_layer_norm": False, "do_blenderbot_90_layernorm": False, "normalize_before": False,
    "normalize_embedding": False, "static_position_embeddings": True,
}  # fmt: skip
RATES = ("activation_dropout", "attention_dropout", "encoder_layerdrop", "decoder_layerdrop")
OURS = {"norm": "post", "interleaved_positions": False, "logits_bias": True}


def block(theirs, ours, *attentions):
    """The rows of a block; ``attentions`` are pairs of a published name and ours."""
    for name, own in attentions:
        yield from norm(f"{theirs}{name}_layer_norm", f"{ours}{own}_norm")
        for part in ("query", "key", "value"):
            weight = f"{theirs}{name}.{part[0]}_proj"
            yield from dense(weight, "(h k) d", f"{ours}{own}/{part}", "d h k")
        yield from dense(f"{theirs}{name}.out_proj", "d (h k)", f"{ours}{own}/output", "h k d")
    yield from norm(f"{theirs}final_layer_norm", f"{ours}feed_forward_norm")
    yield from dense(f"{theirs}fc1", "f d", f"{ours}feed_forward/expand", "d f")
    yield from dense(f"{theirs}fc2", "d f", f"{ours}feed_forward/contract", "f d")


SELF, CROSS = ("self_attn", "attention"), ("encoder_attn", "cross_attention")
SHARED, SIDES = "model.shared.weight", ("model.decoder.", "model.encoder.")


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
    target = rows(config, None)[0][0]
    names = ["lm_head.weight"]
    names += [f"{side}embed_tokens.weight" for side in SIDES if target == SHARED]
    found = {f"{side}embed_positions.weight": sinusoids(config.dim) for side in SIDES}
    return found | dict.fromkeys(names, target)


def read(s, g):
    s.fixed(FIXED | OLDER)
    for name in RATES:
        s.rate(name, 0)
    config = s.read(SETTINGS)
    s.must("extra_pos_embeddings", config["pad_id"] + 1)
    s.fixed({theirs: config[ours] for theirs, ours in AGAIN})
    layers, size = s.get("decoder_layers"), s.get("vocab_size")
    config["decoder_layers"] = None if layers == config["num_layers"] else layers
    shared = s.flag("share_encoder_decoder_embeddings", True)
    if shared:
        s.must("decoder_vocab_size", size)
    config["source_vocab_size"] = None if shared else size
    config["vocab_size"] = s.get("decoder_vocab_size", size)
    ends = read_ends(s)
    move_generation(s, g)
    g.must("pad_token_id", config["pad_id"])
    search = read_generation(g, ends, config["start_id"])["search"]
    s.finish("classif_dropout", "classifier_dropout", "init_std")
    return TransformerConfig(**config, **OURS, end_id=ends[0], search=search)


def write(config):
    for name, value in OURS.items():
        if getattr(config, name) != value:
            raise ValueError(f"Marian has {name} {value!r}: {getattr(config, name)!r}")
    separate = config.source_vocab_size is not None
    settings = FIXED | {"architectures": ["MarianMTModel"]} | write_settings(SETTINGS, config)
    settings |= {theirs: getattr(config, ours) for theirs, ours in AGAIN}
    settings["decoder_layers"] = config.decoder_layers or config.num_layers
    settings["vocab_size"] = config.source_vocab_size or config.vocab_size
    settings["decoder_vocab_size"] = config.vocab_size
    settings["share_encoder_decoder_embeddings"] = not separate
    settings["eos_token_id"] = write_ends(config)
    tokenizer = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": separate}
    return {
        "config.json": settings,
        "generation_config.json": write_generation(config, config.start_id),
        "tokenizer_config.json": tokenizer,
    }


FORMAT = Format("huggingface", rows, read, write, "generation_config.json", copies=copies)
