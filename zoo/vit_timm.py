"""ViT's checkpoints as timm (R. Wightman, PyTorch Image Models) writes them, queries, keys and
values in one tensor."""

import re

import numpy as np

from ..training import CheckpointError
from . import vit_huggingface as huggingface
from .published import published_name
from .vit import ViTConfig

# Hugging Face's name of a tensor, from timm's.
NAMES = (
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.", r"vit.encoder.layer.\1."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^(fc_)?norm\.", "vit.layernorm."),
    (r"^head\.", "classifier."),
)
ARCHITECTURE = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch(\d+)_(\d+)$")
# dim, layers, heads
SIZES = {
    "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}  # fmt: skip
LINEAR, BESIDE = huggingface.LINEAR, huggingface.BESIDE
rules, redundant = huggingface.rules, huggingface.redundant


def unpacked(settings, config, tensors, source):
    arrays = {}
    for name, array in tensors.items():
        name = published_name(name, NAMES)
        if ".attn.qkv." not in name:
            arrays[name] = array
        elif array.ndim == 0 or len(array) % 3:
            raise CheckpointError(f"{source}: {name} has shape {array.shape}, not three thirds")
        else:
            for part, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                arrays[name.replace("attn.qkv", f"attention.attention.{part}")] = rows
    if settings.values.get("model_args", {}).get("qkv_bias") is False:
        arrays |= huggingface.unbiased(arrays, source)
    return huggingface.unpacked(settings, config, arrays, source)


def read_config(s, pixels):
    """The `ViTConfig` of the `Settings` of timm's config.json: an architecture's name.

    Raises:
        CheckpointError: naming a setting that is missing, unknown, or not honoured.
    """
    named = ARCHITECTURE.match(said := str(s.get("architecture")))
    if named is None:
        raise s.error("architecture", said, f"like {ARCHITECTURE.pattern}")
    size, patch, side = named.groups()
    dim, layers, heads = SIZES[size]
    for name in ("pretrained_cfg", "model_args"):
        if not isinstance(given := s.get(name, {}), dict):
            raise s.error(name, given, "settings")
    cfg = type(s)(f"{s.file}, pretrained_cfg", s.get("pretrained_cfg", {}))
    shape = cfg.get("input_size", [3, int(side), int(side)])
    arguments = type(s)(f"{s.file}, model_args", s.get("model_args", {}))
    channels = arguments.get("in_chans", shape[0])
    image = arguments.get("img_size", shape[1:])
    pooling = s.get("global_pool", "token")
    token = arguments.get("class_token", True)
    if (pooling, token) not in (("token", True), ("avg", False)):
        raise s.error("global_pool", pooling, "token, or avg without a class token")
    arguments.must("global_pool", pooling)
    arguments.flag("qkv_bias", True)
    classes = arguments.get("num_classes", s.get("num_classes", cfg.get("num_classes", 1000)))
    labels = s.get("label_names", None)
    if not isinstance(labels, list | None):
        raise s.error("label_names", labels, "a list")
    if (mode := cfg.get("crop_mode", "center")) not in ("center", "squash"):
        raise s.error("crop_mode", mode, "center or squash")
    config = ViTConfig(
        image_size=image,
        patch_size=int(patch),
        channels=channels,
        num_classes=classes,
        num_layers=layers,
        dim=dim,
        hidden_dim=4 * dim,
        num_heads=heads,
        pooling="token" if token else "mean",
        labels=labels and tuple(labels),
        mean=cfg.get("mean", [0.5]),
        std=cfg.get("std", [0.5]),
        interpolation=cfg.get("interpolation", "bicubic"),
        squash=mode == "squash",
        crop=cfg.get("crop_pct", 0.9),
    )
    arguments.all_read()
    s.ignore("num_features", "label_descriptions", "num_classes")
    s.all_read()
    return config
