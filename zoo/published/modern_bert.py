"""ModernBERT's checkpoints (Warner et al. 2024) in Hugging Face's format."""

from .bert import last
from .encoders import read_encoder, write_encoder, write_sentences
from .format import Format
from .settings import ACTIVATIONS, nested
from .table import QKV

L, B, WORDS = "model.layers.{i}.", "block_{i}/", "model.embeddings.tok_embeddings.weight"
BODY = (
    (WORDS, "v d", "tokens/embeddings", "v d"),
    ("model.embeddings.norm.weight", "d", "embeddings_norm/gamma", "d"),
    (f"{L}attn_norm.weight", "d", f"{B}attention_norm/gamma", "d"),
    (f"{L}attn.Wqkv.weight", "(n h k) d", f"{B}attention/{QKV}/kernel", "d h k"),
    (f"{L}attn.Wo.weight", "d (h k)", f"{B}attention/output/kernel", "h k d"),
    (f"{L}mlp_norm.weight", "d", f"{B}feed_forward_norm/gamma", "d"),
    (f"{L}mlp.Wi.weight", "(n f) d", B + "feed_forward/{gate|expand}/kernel", "d f"),
    (f"{L}mlp.Wo.weight", "d f", f"{B}feed_forward/contract/kernel", "f d"),
    ("model.final_norm.weight", "d", "norm/gamma", "d"),
    ("head.dense.weight", "e d", "head/dense/kernel", "d e"),
    ("head.dense.bias", "e", "head/dense/bias", "e"),
    ("head.norm.weight", "d", "head/norm/gamma", "d"),
    *last("classifier"),
)
SETTINGS = (
    ("vocab_size", "vocab_size", 50368),
    ("max_position_embeddings", "max_length", 8192),
    ("num_hidden_layers", "num_layers", 22),
    ("hidden_size", "dim", 768),
    ("intermediate_size", "intermediate_dim", 1152),
    ("num_attention_heads", "num_heads", 12),
    ("embedding_dropout", "dropout", 0.0),
    ("attention_dropout", "attention_dropout", 0.0),
    ("hidden_activation", "activation", "gelu", ACTIVATIONS),
    ("norm_eps", "epsilon", 1e-5),
    ("pad_token_id", "pad_id", 50283),
    ("local_attention", "window", 128),
    ("classifier_activation", "head_activation", "gelu", ACTIVATIONS),
    ("classifier_bias", "head_bias", False),
    ("classifier_pooling", "head_pooling", "cls", {"cls": "token", "mean": "mean"}),
)
UNUSED = (
    # Positions are always rotary; files say "absolute" or, as mmBERT's, "sans_pos".
    "position_embedding_type",
    "eos_token_id", "tie_word_embeddings", "layer_norm_eps", "initializer_cutoff_factor",
    "reference_compile", "repad_logits_with_grad", "deterministic_flash_attn",
    "sparse_prediction", "sparse_pred_ignore_index",
)  # fmt: skip
KINDS = ("full_attention", "theta", 160_000.0), ("sliding_attention", "local_theta", 10_000.0)


def rows(config, settings):
    biased = settings is None or settings.get("decoder_bias", True)
    return *BODY, ("decoder.bias" if biased else None, "v", "head/bias", "v")


def layer_types(count, every):
    return [KINDS[i % every > 0][0] for i in range(count)]


def read(s, _, fields):
    found, count, every = {}, fields["num_layers"], s.get("global_attn_every_n_layers", 3)
    types = s.get("layer_types", layer_types(count, every))
    if types != layer_types(count, every):
        ends = [i for i in range(1, count) if types[i : i + 1] == [KINDS[0][0]]]
        every = ends[0] if ends else count
        if types != layer_types(count, every):
            raise s.error("layer_types", types, "full_attention in every n-th layer")
    for name in ("mlp_dropout", "classifier_dropout"):
        s.rate(name, fields["dropout"])
    s.flag("decoder_bias", True)
    rope = nested(s, "rope_parameters")
    old = {"theta": "global_rope_theta", "local_theta": "local_rope_theta"}
    for kind, ours, default in KINDS:
        r = nested(rope, kind)
        r.must("rope_type", "default")
        found[ours] = r.get("rope_theta", s.get(old[ours], default))
        r.all_read()
    rope.all_read()
    found |= read_encoder(s, "ModernBert", fields, fields["max_length"])
    return {"global_every": every, **found}


def write(config):
    c = config
    rope = {kind: {"rope_type": "default", "rope_theta": getattr(c, n)} for kind, n, _ in KINDS}
    return write_encoder(c, "ModernBert") | {
        "rope_parameters": rope, "layer_types": layer_types(c.num_layers, c.global_every),
        "mlp_dropout": c.dropout, "classifier_dropout": c.dropout, "decoder_bias": True,
        "tie_word_embeddings": True,
    }  # fmt: skip


FORMAT = Format(
    "huggingface", rows, SETTINGS, read=read, write=write, unused=UNUSED,
    fixed={"model_type": "modernbert", "norm_bias": False, "attention_bias": False,
           "mlp_bias": False},
    older={"is_decoder": False, "is_encoder_decoder": False, "add_cross_attention": False},
    others=lambda config: write_sentences(config, config.max_length),
    copies=lambda config: {"decoder.weight": WORDS} if config.head == "tokens" else {},
    renamed=((r"^(?!model\.|head\.|decoder\.|classifier\.)", "model."),),
)  # fmt: skip
