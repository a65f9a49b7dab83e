"""ESM-2's checkpoints (Lin et al. 2022) in Hugging Face's format."""

import dataclasses

import numpy as np

from ..esm import make_rotary
from . import roberta
from .bert import RENAMED, body
from .encoders import MODULES, TOKENIZER, read_encoder, write_encoder
from .format import Format
from .table import dense, norm

H, B, WORDS = "esm.encoder.layer.{i}.", "block_{i}/", "esm.embeddings.word_embeddings.weight"
ROWS = (
    *body("esm"),
    # Unlike BERT's, these norms are before the sublayers.
    *norm(f"{H}attention.LayerNorm", f"{B}attention_norm"),
    *norm(f"{H}LayerNorm", f"{B}feed_forward_norm"),
    *norm("esm.encoder.emb_layer_norm_after", "norm"),
    *dense("esm.contact_head.regression", "o n", "contacts", "n o"),
)
SETTINGS = (
    ("vocab_size", "vocab_size", 33),
    ("max_position_embeddings", "max_length", 1026),
    ("num_hidden_layers", "num_layers", 12),
    ("hidden_size", "dim", 768),
    ("intermediate_size", "intermediate_dim", 3072),
    ("num_attention_heads", "num_heads", 12),
    ("hidden_dropout_prob", "dropout", 0.1),
    ("attention_probs_dropout_prob", "attention_dropout", 0.1),
    ("layer_norm_eps", "epsilon", 1e-12),
    ("pad_token_id", "pad_id", 1),
    ("eos_token_id", "end_id", 2),
    ("mask_token_id", "mask_id", 32),
    ("rope_theta", "theta", 10_000.0),
    ("token_dropout", "token_dropout", False),
)
POSITIONS = {"position_embedding_type": "rotary", "emb_layer_norm_before": False}
FIXED = {
    "model_type": "esm", "is_decoder": False, "add_cross_attention": False,
    "tie_word_embeddings": True,
}  # fmt: skip
# The published ESMFold and many fine-tuned models have none.
OPTIONAL = r"esm\.contact_head\."
IGNORED = r"esm\.(embeddings\.position_(embeddings\.weight|ids)$|pooler\.)"


def rows(config, settings):
    return *ROWS, *roberta.HEADS[config.head]


def rates(config):
    """The rates of the rotations, which each file has."""
    return np.float32(make_rotary(config).rates)


def rate_names(config):
    """Their names: one in version 5 of transformers, which writes it with a "*"; or per layer."""
    layers = [f"encoder.layer.{i}.attention.self." for i in ("*", *range(config.num_layers))]
    return [f"esm.{layer}rotary_embeddings.inv_freq" for layer in ("", *layers)]


def copies(config):
    """The rates, and the tied head."""

    def expected(shape):
        return rates(config) if shape == rates(config).shape else None

    found = dict.fromkeys(rate_names(config), expected)
    return found | ({"lm_head.decoder.weight": WORDS} if config.head == "tokens" else {})


def adjust(config, stored):
    """Reads whether the rates were rounded to float16, as in the published ESMFold."""
    found = next((x for name in rate_names(config) if (x := stored(name)) is not None), None)
    half = dataclasses.replace(config, half_rates=True)
    is_half = found is not None and np.array_equal(found, rates(half))
    return half if is_half and not np.array_equal(found, rates(config)) else config


def constants(config):
    return {"esm.rotary_embeddings.inv_freq": rates(config)}


def check_positions(s):
    """Checks that the network is an ESM-2, which the first ESM is not."""
    for name, default in (
        ("position_embedding_type", "absolute"),
        ("emb_layer_norm_before", False),
    ):
        if (given := s.get(name, default)) != (value := POSITIONS[name]):
            raise s.error(name, given, f"{value!r}, as in ESM-2")


def read(s, _, fields):
    check_positions(s)
    found = read_encoder(s, "Esm", fields, fields["max_length"])
    if found["head"] in ("score", "spans"):
        raise s.error("architectures", s.get("architectures"), "of several classes or residues")
    file = s.file.parent / MODULES
    if file.is_file() and found.get("pooling") != "token":
        s.warnings.append(
            f"{file}: embeddings differ from those of sentence-transformers, which pools <cls> and "
            "<eos> too"
        )
    return found


def write(config):
    if config.activation != "gelu":
        raise ValueError(f"activation must be 'gelu' in this format: {config.activation!r}")
    pooling = config.pooling, config.normalize
    if config.head is None and pooling != ("mean", False):
        raise ValueError(f"pooling must be the mean, not normalized, in this format: {pooling}")
    return write_encoder(config, "Esm") | POSITIONS


FORMAT = Format(
    "huggingface", rows, SETTINGS, read=read, write=write, copies=copies,
    fixed={**FIXED, "is_folding_model": False},
    older={"hidden_act": "gelu"},
    # No files of sentence-transformers, which pools <cls> and <eos> too.
    others=lambda config: {TOKENIZER: {"model_max_length": config.max_length}},
    constants=constants,
    adjust=adjust,
    renamed=((r"^(?!esm\.|lm_head\.|classifier\.)", "esm."), *RENAMED),
    ignored=IGNORED,
    optional=OPTIONAL,
)  # fmt: skip
