"""BERT's checkpoints (Devlin et al. 2018) in Hugging Face's format."""

from .encoders import read_encoder, write_encoder, write_sentences
from .format import Format
from .settings import ACTIVATIONS
from .table import QKV, dense, norm

PREDICTIONS = "cls.predictions."
SETTINGS = (
    ("vocab_size", "vocab_size", 30522),
    ("type_vocab_size", "type_vocab_size", 2),
    ("max_position_embeddings", "num_positions", 512),
    ("num_hidden_layers", "num_layers", 12),
    ("hidden_size", "dim", 768),
    ("intermediate_size", "intermediate_dim", 3072),
    ("num_attention_heads", "num_heads", 12),
    ("hidden_dropout_prob", "dropout", 0.1),
    ("attention_probs_dropout_prob", "attention_dropout", 0.1),
    ("hidden_act", "activation", "gelu", ACTIVATIONS),
    ("layer_norm_eps", "epsilon", 1e-12),
    ("pad_token_id", "pad_id", 0),
)
OLDER = {"position_embedding_type": "absolute", "is_encoder_decoder": False}
UNUSED = ("tie_word_embeddings", "eos_token_id")  # the tensors decide what is tied
# Names before version 3 of transformers; a buffer; heads of pretraining (NSP; AntiBERTy's).
RENAMED = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
IGNORED = r"embeddings\.position_ids$|pooler\.|cls\.(seq_relationship|species|chain|graft)\."


def body(prefix):
    """The rows of the network; RoBERTa has them under another prefix."""
    e, h, b = f"{prefix}.embeddings.", f"{prefix}.encoder.layer.{{i}}.", "block_{i}/"
    return (
        (f"{e}word_embeddings.weight", "v d", "tokens/embeddings", "v d"),
        (f"{e}token_type_embeddings.weight", "v d", "types/embeddings", "v d"),
        (f"{e}position_embeddings.weight", "t d", "positions/embeddings", "t d"),
        *norm(f"{e}LayerNorm", "embeddings_norm"),
        *dense(f"{h}attention.self.{QKV}", "(h k) d", f"{b}attention/{QKV}", "d h k"),
        *dense(f"{h}attention.output.dense", "d (h k)", f"{b}attention/output", "h k d"),
        *norm(f"{h}attention.output.LayerNorm", f"{b}attention_norm"),
        *dense(f"{h}intermediate.dense", "f d", f"{b}feed_forward/expand", "d f"),
        *dense(f"{h}output.dense", "d f", f"{b}feed_forward/contract", "f d"),
        *norm(f"{h}output.LayerNorm", f"{b}feed_forward_norm"),
    )


def last(name):
    return dense(name, "c d", "head/output", "d c")


POOLER = *dense("bert.pooler.dense", "e d", "head/dense", "d e"), *last("classifier")
HEADS = {
    None: (), "classes": POOLER, "score": POOLER,
    "tags": last("classifier"), "spans": last("qa_outputs"),
    "tokens": (
        *dense(f"{PREDICTIONS}transform.dense", "e d", "head/dense", "d e"),
        *norm(f"{PREDICTIONS}transform.LayerNorm", "head/norm"),
        (f"{PREDICTIONS}bias", "v", "head/bias", "v"),
    ),
}  # fmt: skip


def rows(config, settings):
    return body("bert") + HEADS[config.head]


def copies(config):
    if config.head != "tokens":
        return {}
    decoder = f"{PREDICTIONS}decoder."
    words = "bert.embeddings.word_embeddings.weight"
    return {f"{decoder}weight": words, f"{decoder}bias": f"{PREDICTIONS}bias"}


def read(s, _, fields):
    s.rate("classifier_dropout", fields["dropout"])
    return read_encoder(s, "Bert", fields, fields["num_positions"], {"AntiBERTy": "tokens"})


FORMAT = Format(
    "huggingface", rows, SETTINGS, read=read, write=lambda config: write_encoder(config, "Bert"),
    fixed={"model_type": "bert", "is_decoder": False, "add_cross_attention": False}, older=OLDER,
    unused=UNUSED, ours={"positions_from_pad": False, "head_activation": "tanh"}, copies=copies,
    others=lambda config: write_sentences(config, config.num_positions),
    renamed=((r"^(?!bert\.|cls\.|classifier\.|qa_outputs\.)", "bert."), *RENAMED),
    ignored=rf"(bert\.)?({IGNORED})",
)  # fmt: skip
