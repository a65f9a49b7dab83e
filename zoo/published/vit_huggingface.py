"""ViT's checkpoints (Dosovitskiy et al. 2020) in Hugging Face's format."""

from .format import Format
from .generation import NAMES
from .pixels import PIXELS, read_pixels, write_pixels
from .settings import ACTIVATIONS, read_labels, write_labels
from .table import QKV, dense, norm

L, B = "vit.encoder.layer.{i}.", "block_{i}/"
EMBEDDINGS, PATCHES = "vit.embeddings.", "vit.embeddings.patch_embeddings.projection"
TENSORS = (
    (f"{EMBEDDINGS}cls_token", "1 1 d", "token/embeddings", "1 d"),
    (f"{EMBEDDINGS}position_embeddings", "1 t d", "positions/embeddings", "t d"),
    *dense(PATCHES, "d c y x", "patches/projection", "(y x c) d"),
    *norm(f"{L}layernorm_before", f"{B}attention_norm"),
    *dense(f"{L}attention.attention.{QKV}", "(h k) d", f"{B}attention/{QKV}", "d h k"),
    *dense(f"{L}attention.output.dense", "d (h k)", f"{B}attention/output", "h k d"),
    *norm(f"{L}layernorm_after", f"{B}feed_forward_norm"),
    *dense(f"{L}intermediate.dense", "f d", f"{B}feed_forward/expand", "d f"),
    *dense(f"{L}output.dense", "d f", f"{B}feed_forward/contract", "f d"),
    *norm("vit.layernorm", "norm"),
    *dense("classifier", "c d", "head", "d c"),
)
UNBIASED = ((None, "h k", f"{B}attention/{QKV}/bias", "h k"),)
RENAMED = (  # the names of version 5 of transformers
    (r"^(?!vit\.|classifier\.)", "vit."),
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"attention\.([qkv])_proj", lambda m: f"attention.attention.{PARTS[m[1]]}"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)
PARTS = {"q": "query", "k": "key", "v": "value"}
NAMED = {name: ours for name, ours in ACTIVATIONS.items() if name not in ("gelu_fast", "tanh")}
SETTINGS = (
    ("num_channels", "channels", 3),
    ("num_hidden_layers", "num_layers", 12),
    ("hidden_size", "dim", 768),
    ("intermediate_size", "intermediate_dim", 3072),
    ("num_attention_heads", "num_heads", 12),
    ("hidden_dropout_prob", "dropout", 0.0),
    ("attention_probs_dropout_prob", "attention_dropout", 0.0),
    ("hidden_act", "activation", "gelu", NAMED),
    ("layer_norm_eps", "epsilon", 1e-12),
    ("image_size", "image_size", 224),
)
KIND = "ViTForImageClassification"


def rows(config, settings):
    return TENSORS + (UNBIASED if settings and not settings.get("qkv_bias", True) else ())


def read(s, pixels, fields):
    s.flag("qkv_bias", True)
    (count, labels), kind = read_labels(s, 2), s.get("problem_type", None)
    if KIND not in s.get("architectures", [KIND]):
        count, labels = 0, None
    elif kind not in (None, "single_label_classification") or count == 1:
        raise s.error("problem_type", kind, "of one of several classes per image")
    patch = s.get("patch_size", 16)
    if isinstance(patch, list):
        if len(set(patch)) != 1:
            raise s.error("patch_size", patch, "a square")
        patch = patch[0]
    fields = {"num_classes": count, "class_names": labels, "patch_size": patch}
    return fields | read_pixels(pixels)


def write(config):
    settings = write_labels(config.class_names, config.num_classes)
    settings |= {"patch_size": config.patch_size, "qkv_bias": True}
    settings["architectures"] = [KIND if config.num_classes else "ViTModel"]
    square = len(set(config.image_size)) == 1
    return settings | ({"image_size": config.image_size[0]} if square else {})


FORMAT = Format(
    "huggingface", rows, SETTINGS, read=read, write=write, beside=PIXELS, renamed=RENAMED,
    fixed={"model_type": "vit", "is_encoder_decoder": False}, ours={"pooling": "token"},
    older={"is_decoder": False, "add_cross_attention": False},
    unused=("encoder_stride", "pooler_act", "pooler_output_size", "tie_word_embeddings", *NAMES),
    others=lambda config: {PIXELS: write_pixels(config)},
    ignored=r"vit\.(pooler\.dense\.(weight|bias)|embeddings\.mask_token)$",
    sizes=lambda config: {"y": config.patch_size, "x": config.patch_size},
)  # fmt: skip
