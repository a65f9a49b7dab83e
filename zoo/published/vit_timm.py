"""ViT's checkpoints as timm (R. Wightman, PyTorch Image Models) writes them."""

import re

import numpy as np

from ..vit import ViTConfig
from .format import Format
from .settings import nested
from .table import dense, norm
from .vit_huggingface import UNBIASED

L, B = "blocks.{i}.", "block_{i}/"
QKV = dense(f"{L}attn.qkv", "(n h k) d", B + "attention/{query|key|value}", "d h k")
TENSORS = (
    ("cls_token", "1 1 d", "token/embeddings", "1 d"),
    ("pos_embed", "1 t d", "positions/embeddings", "t d"),
    *dense("patch_embed.proj", "d c y x", "patches/projection", "(y x c) d"),
    *norm(f"{L}norm1", f"{B}attention_norm"),
    *QKV,
    *dense(f"{L}attn.proj", "d (h k)", f"{B}attention/output", "h k d"),
    *norm(f"{L}norm2", f"{B}feed_forward_norm"),
    *dense(f"{L}mlp.fc1", "f d", f"{B}feed_forward/expand", "d f"),
    *dense(f"{L}mlp.fc2", "d f", f"{B}feed_forward/contract", "f d"),
    *dense("head", "c d", "head", "d c"),
)
ARCHITECTURE = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch(\d+)_(\d+)$")
# dim, layers, heads
SIZES = {
    "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}  # fmt: skip
FIXED = {"activation": "gelu", "epsilon": 1e-6}


def rows(config, settings):
    last = norm("norm" if settings or config.pooling == "token" else "fc_norm", "norm")
    biased = settings is None or settings.get("model_args", {}).get("qkv_bias", True)
    return TENSORS + last + (() if biased else UNBIASED)


def read(s, _):
    named = ARCHITECTURE.match(given := str(s.get("architecture")))
    if named is None:
        raise s.error("architecture", given, f"like {ARCHITECTURE.pattern}")
    size, patch, side = named.groups()
    dim, layers, heads = SIZES[size]
    cfg, arguments = nested(s, "pretrained_cfg"), nested(s, "model_args")
    shape = cfg.get("input_size", [3, int(side), int(side)])
    pooling, token = s.get("global_pool", "token"), arguments.get("class_token", True)
    if (pooling, token) not in (("token", True), ("avg", False)):
        raise s.error("global_pool", pooling, "token, or avg without a class token")
    arguments.must("global_pool", pooling)
    arguments.flag("qkv_bias", True)
    classes = s.get("num_classes", cfg.get("num_classes", 1000))
    labels = s.get("label_names", None)
    if not isinstance(labels, list | None):
        raise s.error("label_names", labels, "a list")
    if (mode := cfg.get("crop_mode", "center")) not in ("center", "squash"):
        raise s.error("crop_mode", mode, "center or squash")
    config = ViTConfig(
        image_size=arguments.get("img_size", shape[1:]), patch_size=int(patch),
        channels=arguments.get("in_chans", shape[0]), dim=dim, hidden_dim=4 * dim,
        num_classes=arguments.get("num_classes", classes), num_layers=layers, num_heads=heads,
        pooling="token" if token else "mean", labels=labels and tuple(labels),
        mean=cfg.get("mean", [0.5]), std=cfg.get("std", [0.5]), squash=mode == "squash",
        interpolation=cfg.get("interpolation", "bicubic"), crop=cfg.get("crop_pct", 0.9), **FIXED,
    )  # fmt: skip
    arguments.all_read()
    s.ignore("num_features", "label_descriptions")
    s.all_read()
    return config


def write(config):
    sizes = {size: name for name, size in SIZES.items()}
    size = sizes.get((config.dim, config.num_layers, config.num_heads))
    if size is None or config.hidden_dim != 4 * config.dim:
        raise ValueError(f"timm's sizes are {SIZES} (dim, layers, heads), and 4 dim: {config}")
    for name, value in FIXED.items():
        if getattr(config, name) != value:
            raise ValueError(f"timm's ViT has {name} {value!r}: {getattr(config, name)!r}")
    pooling = "token" if config.pooling == "token" else "avg"
    shape = {"img_size": list(config.image_size), "in_chans": config.channels}
    cfg = {
        "input_size": [config.channels, *config.image_size], "num_classes": config.num_classes,
        "mean": np.broadcast_to(config.mean, config.channels).tolist(),
        "std": np.broadcast_to(config.std, config.channels).tolist(),
        "interpolation": config.interpolation, "crop_pct": config.crop,
        "crop_mode": "squash" if config.squash else "center",
    }  # fmt: skip
    settings = {
        "architecture": f"vit_{size}_patch{config.patch_size}_{config.image_size[0]}",
        "num_classes": config.num_classes, "num_features": config.dim, "global_pool": pooling,
        "pretrained_cfg": cfg,
        "model_args": {**shape, "global_pool": pooling, "class_token": pooling == "token"},
    }  # fmt: skip
    labels = {} if config.labels is None else {"label_names": list(config.labels)}
    return {"config.json": settings | labels}


FORMAT = Format(
    "timm", rows, read, write, renamed=((r"^fc_norm\.", "norm."),),
    sizes=lambda config: {"y": config.patch_size, "x": config.patch_size},
)  # fmt: skip
