"""DistilBERT's checkpoints (Sanh et al. 2019) in Hugging Face's format."""

from .bert import IGNORED, OLDER, RENAMED, UNUSED, last
from .encoders import read_encoder, write_encoder, write_sentences
from .format import Format
from .settings import ACTIVATIONS
from .table import QKV, dense, norm

E, H, B = "distilbert.embeddings.", "distilbert.transformer.layer.{i}.", "block_{i}/"
BODY = (
    (f"{E}word_embeddings.weight", "v d", "tokens/embeddings", "v d"),
    (f"{E}position_embeddings.weight", "t d", "positions/embeddings", "t d"),
    *norm(f"{E}LayerNorm", "embeddings_norm"),
    *dense(f"{H}attention.{{q|k|v}}_lin", "(h k) d", f"{B}attention/{QKV}", "d h k"),
    *dense(f"{H}attention.out_lin", "d (h k)", f"{B}attention/output", "h k d"),
    *norm(f"{H}sa_layer_norm", f"{B}attention_norm"),
    *dense(f"{H}ffn.lin1", "f d", f"{B}feed_forward/expand", "d f"),
    *dense(f"{H}ffn.lin2", "d f", f"{B}feed_forward/contract", "f d"),
    *norm(f"{H}output_layer_norm", f"{B}feed_forward_norm"),
)
FIRST = *dense("pre_classifier", "e d", "head/dense", "d e"), *last("classifier")
HEADS = {
    None: (), "classes": FIRST, "score": FIRST,
    "tags": last("classifier"), "spans": last("qa_outputs"),
    "tokens": (
        *dense("vocab_transform", "e d", "head/dense", "d e"),
        *norm("vocab_layer_norm", "head/norm"),
        ("vocab_projector.bias", "v", "head/bias", "v"),
    ),
}  # fmt: skip
SETTINGS = (
    ("vocab_size", "vocab_size", 30522),
    ("max_position_embeddings", "num_positions", 512),
    ("n_layers", "num_layers", 6),
    ("dim", "dim", 768),
    ("hidden_dim", "intermediate_dim", 3072),
    ("n_heads", "num_heads", 12),
    ("dropout", "dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.1),
    ("activation", "activation", "gelu", ACTIVATIONS),
    ("pad_token_id", "pad_id", 0),
)
OURS = {
    "type_vocab_size": 0, "head_activation": "relu", "epsilon": 1e-12, "positions_from_pad": False,
}  # fmt: skip


def rows(config, settings):
    return BODY + HEADS[config.head]


def copies(config):
    return {"vocab_projector.weight": BODY[0][0]} if config.head == "tokens" else {}


def read(s, _, fields):
    return read_encoder(s, "DistilBert", fields, fields["num_positions"])


FORMAT = Format(
    "huggingface", rows, SETTINGS, read=read, copies=copies, ours=OURS,
    older={**OLDER, "is_decoder": False, "add_cross_attention": False},
    write=lambda config: write_encoder(config, "DistilBert"), fixed={"model_type": "distilbert"},
    others=lambda config: write_sentences(config, config.num_positions),
    # Dropout of heads (see docs/checkpoints.md); how the saved positions were computed.
    unused=(*UNUSED, "qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds"),
    renamed=((r"^(?!distilbert\.|vocab_|pre_classifier\.|classifier\.|qa_outputs\.)",
              "distilbert."), *RENAMED),
    ignored=rf"distilbert\.({IGNORED})",
)  # fmt: skip
