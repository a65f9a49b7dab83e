"""ViT's checkpoints in the format of timm (R. Wightman, PyTorch Image Models)."""

import re

import numpy as np

from .format import Format
from .settings import nested, write_settings
from .table import QKV, dense, norm
from .vit_huggingface import UNBIASED

L, B = "blocks.{i}.", "block_{i}/"
TENSORS = (
    ("cls_token", "1 1 d", "token/embeddings", "1 d"),
    ("pos_embed", "1 t d", "positions/embeddings", "t d"),
    *dense("patch_embed.proj", "d c y x", "patches/projection", "(y x c) d"),
    *norm(f"{L}norm1", f"{B}attention_norm"),
    *dense(f"{L}attn.qkv", "(n h k) d", f"{B}attention/{QKV}", "d h k"),
    *dense(f"{L}attn.proj", "d (h k)", f"{B}attention/output", "h k d"),
    *norm(f"{L}norm2", f"{B}feed_forward_norm"),
    *dense(f"{L}mlp.fc1", "f d", f"{B}feed_forward/expand", "d f"),
    *dense(f"{L}mlp.fc2", "d f", f"{B}feed_forward/contract", "f d"),
    *dense("head", "c d", "head", "d c"),
)
ARCHITECTURE = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch(\d+)_(\d+)$")
SIZES = {  # dim, layers, heads
    "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}  # fmt: skip
PIXELS = (  # of pretrained_cfg
    ("mean", "mean", (0.5,)),
    ("std", "std", (0.5,)),
    ("interpolation", "interpolation", "bicubic"),
    ("crop_pct", "crop", 0.9),
    ("crop_mode", "squash", "center", {"center": False, "squash": True}),
)
POOLING = {"token": "token", "avg": "mean"}


def rows(config, settings):
    last = norm("norm" if settings or config.pooling == "token" else "fc_norm", "norm")
    biased = settings is None or settings.get("model_args", {}).get("qkv_bias", True)
    return TENSORS + last + (() if biased else UNBIASED)


def read(s, _, fields):
    named = ARCHITECTURE.match(given := str(s.get("architecture")))
    if named is None:
        raise s.error("architecture", given, f"like {ARCHITECTURE.pattern}")
    size, patch, side = named.groups()
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
    fields = dict(zip(("dim", "num_layers", "num_heads"), SIZES[size], strict=True))
    fields |= {"intermediate_dim": 4 * fields["dim"], "patch_size": int(patch), **cfg.read(PIXELS)}
    fields |= {"pooling": POOLING[pooling], "class_names": labels and tuple(labels)}
    fields["image_size"] = arguments.get("img_size", shape[1:])
    fields["channels"] = arguments.get("in_chans", shape[0])
    fields["num_classes"] = arguments.get("num_classes", classes)
    arguments.all_read()
    return fields


def write(config):
    c, sizes = config, {size: name for name, size in SIZES.items()}
    size = sizes.get((c.dim, c.num_layers, c.num_heads))
    if size is None or c.intermediate_dim != 4 * c.dim:
        raise ValueError(
            f"dim, num_layers, num_heads must be one of {SIZES}, intermediate_dim 4 * dim: {c}"
        )
    side, pooling = list(c.image_size), {name: ours for ours, name in POOLING.items()}[c.pooling]
    cfg = {"input_size": [c.channels, *side], **write_settings(PIXELS, c)}
    cfg |= {name: np.broadcast_to(cfg[name], c.channels).tolist() for name in ("mean", "std")}
    arguments = {"img_size": side, "in_chans": c.channels, "class_token": pooling == "token"}
    settings = {
        "architecture": f"vit_{size}_patch{c.patch_size}_{side[0]}", "num_features": c.dim,
        "num_classes": c.num_classes, "global_pool": pooling, "pretrained_cfg": cfg,
        "model_args": {**arguments, "global_pool": pooling},
    }  # fmt: skip
    return settings | ({} if c.class_names is None else {"label_names": list(c.class_names)})


FORMAT = Format(
    "timm", rows, read=read, write=write, unused=("num_features", "label_descriptions"),
    ours={"activation": "gelu", "epsilon": 1e-6}, renamed=((r"^fc_norm\.", "norm."),),
    sizes=lambda config: {"y": config.patch_size, "x": config.patch_size},
)  # fmt: skip
