"""BART's checkpoints (Lewis et al. 2019) in Hugging Face's format."""

from .files import Tensors
from .format import Format
from .generation import GENERATION, read_generation, write_generation
from .marian import CROSS, OLDER, SELF, SHARED, SIDES, block
from .marian import SETTINGS as MARIAN
from .settings import REQUIRED, read_ends, write_ends
from .table import norm

SETTINGS = (
    ("vocab_size", "vocab_size", REQUIRED),
    *MARIAN,
    ("attention_dropout", "attention_dropout", 0.0),
    ("activation_dropout", "activation_dropout", 0.0),
)
BIAS = "final_logits_bias"


def rows(config, settings):
    return (
        (SHARED, "v d", "tokens/embeddings", "v d"), (BIAS, "1 v", "tokens/bias", "v"),
        *(
            row
            for name, side in zip(("decoder", "encoder"), SIDES, strict=True)
            for row in (
                (f"{side}embed_positions.weight", "t d", f"{name}_positions/embeddings", "t d"),
                *norm(f"{side}layernorm_embedding", f"{name}_embedding_norm"),
            )
        ),
        *block("model.encoder.layers.{i}.", "encoder_{i}/", SELF),
        *block("model.decoder.layers.{i}.", "decoder_{i}/", SELF, CROSS),
    )  # fmt: skip


def read(s, g, fields):
    for name in ("encoder_layerdrop", "decoder_layerdrop"):
        s.rate(name, 0)
    s.must("extra_pos_embeddings", 2)
    g.must("pad_token_id", fields["pad_id"])
    layers, ends = s.get("decoder_layers", fields["num_layers"]), read_ends(s)
    return {
        "decoder_layers": None if layers == fields["num_layers"] else layers, "end_id": ends[0],
        "logits_bias": BIAS in Tensors(s.file.parent).headers,
        "search": read_generation(s, g, ends, fields["start_id"])["search"],
    }  # fmt: skip


def write(config):
    return {
        "architectures": ["BartForConditionalGeneration"], "eos_token_id": write_ends(config),
        "decoder_layers": config.decoder_layers or config.num_layers,
    }  # fmt: skip


FORMAT = Format(
    "huggingface", rows, SETTINGS, read=read, write=write, beside=GENERATION,
    fixed={"model_type": "bart", "is_encoder_decoder": True, "tie_word_embeddings": True},
    older=dict.fromkeys(OLDER, False)
    | {"normalize_embedding": True, "static_position_embeddings": False},
    unused=("classif_dropout", "classifier_dropout", "init_std", "force_bos_token_to_be_generated",
            "save_step"),
    renamed=((r"^(?!model\.|lm_head\.|final_logits_bias)", "model."),),  # bart-base has no "model."
    ignored=r"model\.(en|de)coder\.version$",
    others=lambda config: {GENERATION: write_generation(config, config.start_id)},
    copies=lambda config: dict.fromkeys(
        ("lm_head.weight", *(f"{side}embed_tokens.weight" for side in SIDES)), SHARED
    ),
)  # fmt: skip
