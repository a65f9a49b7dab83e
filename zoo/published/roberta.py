"""RoBERTa's checkpoints (Liu et al. 2019) in Hugging Face's format."""

from .bert import IGNORED, OLDER, RENAMED, SETTINGS, UNUSED, body, last
from .encoders import read_encoder, write_encoder, write_sentences
from .format import Format
from .table import dense, norm

CHANGED = {"vocab_size": 50265, "pad_token_id": 1}  # defaults
TABLE = tuple((row[0], row[1], CHANGED.get(row[0], row[2]), *row[3:]) for row in SETTINGS)
FIRST = *dense("classifier.dense", "e d", "head/dense", "d e"), *last("classifier.out_proj")
HEADS = {
    None: (), "classes": FIRST, "score": FIRST,
    "tags": last("classifier"), "spans": last("qa_outputs"),
    "tokens": (
        *dense("lm_head.dense", "e d", "head/dense", "d e"),
        *norm("lm_head.layer_norm", "head/norm"),
        ("lm_head.bias", "v", "head/bias", "v"),
    ),
}  # fmt: skip


def rows(config, settings):
    return body("roberta") + HEADS[config.head]


def copies(config):
    if config.head != "tokens":
        return {}
    words = "roberta.embeddings.word_embeddings.weight"
    return {"lm_head.decoder.weight": words, "lm_head.decoder.bias": "lm_head.bias"}


def read(s, _, fields):
    s.rate("classifier_dropout", fields["dropout"])
    length = fields["num_positions"] - fields["pad_id"] - 1
    found = read_encoder(s, "Roberta", fields, length)
    if found["head"] == "tokens" and fields["activation"] != "gelu":
        raise s.error("hidden_act", fields["activation"], "gelu, which this head always uses")
    return found


def write(config):
    if config.head == "tokens" and config.activation != "gelu":
        raise ValueError(f"activation must be 'gelu' in this format: {config.activation!r}")
    return write_encoder(config, "Roberta")


FORMAT = Format(
    "huggingface", rows, TABLE, read=read, write=write, copies=copies, unused=UNUSED, older=OLDER,
    fixed={"model_type": "roberta", "is_decoder": False, "add_cross_attention": False},
    ours={"positions_from_pad": True, "head_activation": "tanh"},
    others=lambda config: write_sentences(config, config.longest),
    renamed=((r"^(?!roberta\.|lm_head\.|classifier\.|qa_outputs\.)", "roberta."), *RENAMED),
    ignored=rf"roberta\.({IGNORED})",
)  # fmt: skip
