"""ViT's checkpoints (Dosovitskiy et al. 2020), as Hugging Face reads and writes them."""

import re

import numpy as np

from ..training import CheckpointError
from .published import named, published_name
from .vit import ViTConfig

# The name of a tensor, from the path of the variable that it belongs to.
RULES = (
    (r"^block_(\d+)/", r"vit.encoder.layer.\1."),
    (r"attention_norm/", "layernorm_before."),
    (r"feed_forward_norm/", "layernorm_after."),
    (r"attention/(query|key|value)/", r"attention.attention.\1."),
    (r"attention/output/", "attention.output.dense."),
    (r"feed_forward/expand/", "intermediate.dense."),
    (r"feed_forward/contract/", "output.dense."),
    (r"^norm/", "vit.layernorm."),
    (r"^token/embeddings$", "vit.embeddings.cls_token"),
    (r"^positions/embeddings$", "vit.embeddings.position_embeddings"),
    (r"^patches/projection/", "vit.embeddings.patch_embeddings.projection."),
    (r"^head/", "classifier."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)
# Names of version 5 of its library, and what was before.
OLDER = (
    (r"^(?!vit\.|classifier\.)", "vit."),
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)
# What classifies no image: a head over the class token of another training, a mask's vector.
UNUSED = re.compile(r"vit\.(pooler\.dense\.(weight|bias)|embeddings\.mask_token)$")
PATCHES = "vit.embeddings.patch_embeddings.projection.weight"
LINEAR = True  # weights are those of linear layers, (out, in)
BESIDE = "preprocessor_config.json"  # is read with config.json

RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
    "silu": "silu", "swish": "silu",
}  # fmt: skip


def rules(config):
    return RULES


def redundant(config, tensors):
    return {}


def unpacked(settings, config, tensors, source):
    """``tensors`` by their older names, without `UNUSED`, patches as the rows of a linear layer.

    Where queries, keys and values have no biases (``qkv_bias``), they are zero.
    """
    arrays = {published_name(name, OLDER): array for name, array in tensors.items()}
    arrays = {name: array for name, array in arrays.items() if not UNUSED.match(name)}
    if PATCHES in arrays and arrays[PATCHES].ndim == 4:  # (D, C, P, P)
        kernel = arrays[PATCHES].transpose(0, 2, 3, 1)
        arrays[PATCHES] = kernel.reshape(len(kernel), -1)
    return arrays | (unbiased(arrays, source) if settings.values.get("qkv_bias") is False else {})


def unbiased(arrays, source):
    """The biases, zero, of the queries, keys and values of a checkpoint that has none.

    Raises:
        CheckpointError: it has one.
    """
    biases = {}
    for name, array in arrays.items():
        if re.search(r"attention\.attention\.(query|key|value)\.weight$", name) and array.ndim:
            bias = name.removesuffix("weight") + "bias"
            if bias in arrays:
                raise CheckpointError(f"{source} has a tensor {bias}: qkv_bias must be True")
            biases[bias] = np.zeros(len(array), "float32")
    return biases


def read_config(s, pixels):
    """The `ViTConfig` of the `Settings` of config.json and preprocessor_config.json.

    Raises:
        CheckpointError: naming a setting that is missing, unknown, or not honoured.
    """
    s.must("model_type", "vit")
    activation = s.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise s.error("hidden_act", activation, f"one of {sorted(ACTIVATIONS)}")
    s.flag("qkv_bias", True)
    labels = s.get("id2label", None)
    classes = s.get("num_labels", 2 if labels is None else len(labels))
    if "ViTForImageClassification" not in s.get("architectures", ["ViTForImageClassification"]):
        classes, labels = 0, None
    if labels is not None:
        if not isinstance(labels, dict) or classes != len(labels):
            raise s.error("id2label", labels, f"the names of {classes!r} classes")
        if sorted(labels) != sorted(str(i) for i in range(classes)):
            raise s.error("id2label", sorted(labels), f"of the classes 0 to {classes - 1}")
        labels = tuple(labels[str(i)] for i in range(classes))
    patch = s.get("patch_size", 16)
    if isinstance(patch, list):
        if len(set(patch)) != 1:
            raise s.error("patch_size", patch, "a square's")
        patch = patch[0]
    channels = s.get("num_channels", 3)
    config = ViTConfig(
        image_size=s.get("image_size", 224),
        patch_size=patch,
        channels=channels,
        num_classes=classes,
        num_layers=s.get("num_hidden_layers", 12),
        dim=s.get("hidden_size", 768),
        hidden_dim=s.get("intermediate_size", 3072),
        num_heads=s.get("num_attention_heads", 12),
        dropout=s.get("hidden_dropout_prob", 0.0),
        attention_dropout=s.get("attention_probs_dropout_prob", 0.0),
        activation=ACTIVATIONS[activation],
        epsilon=s.get("layer_norm_eps", 1e-12),
        labels=labels,
        **read_pixels(pixels),
    )
    # Settings without influence on the logits.
    s.ignore(
        "dtype", "encoder_stride", "finetuning_task", "gradient_checkpointing",
        "initializer_range", "label2id", "pooler_act", "pooler_output_size", "problem_type",
        "torch_dtype", "transformers_version", "_name_or_path", "_num_labels",
    )  # fmt: skip
    s.all_read()
    return config


def read_pixels(s):
    """How images become pixels, of the `Settings` of a ``preprocessor_config.json``."""
    with named(s.file):
        return pixel_settings(s)


def pixel_settings(s):
    for name, value in (("do_rescale", True), ("do_resize", True), ("rescale_factor", 1 / 255)):
        s.must(name, value)
    plain = {"mean": (0.0,), "std": (1.0,)}  # one for all channels
    mean, std = (s.get(f"image_{name}", [0.5]) for name in ("mean", "std"))
    resample = s.get("resample", 2)
    if resample not in RESAMPLING:
        raise s.error("resample", resample, f"one of {sorted(RESAMPLING)}")
    size, cropped = s.get("size", None), s.get("crop_size", None)
    square, cut = s.flag("default_to_square", True), s.flag("do_center_crop", False)
    shortest = "shortest_edge" in size if isinstance(size, dict) else not square
    height, width = sides("size", size, s) if cut or size is not None else (0, 0)
    if shortest and not cut:
        raise s.error("size", size, "a height and a width, where nothing is cut out")
    crop = 1.0
    if cut:
        side, other = sides("crop_size", cropped, s)
        if side > height or other > width:
            raise s.error("size", size, f"a size from which {cropped} is cut")
        # Of another size by rounding, but of the same shape.
        if abs(side / height - other / width) > 1 / min(height, width):
            raise s.error("crop_size", cropped, f"of the shape of {size}")
        crop = min(side, other) / min(height, width)
    s.ignore(
        "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb",
        "data_format", "input_data_format", "return_tensors", "disable_grouping", "device",
        "do_pad", "pad_size", "image_seq_length",
    )  # fmt: skip
    normalized = s.flag("do_normalize", True)
    s.all_read()
    settings = {"mean": mean, "std": std} if normalized else plain
    settings |= {"interpolation": RESAMPLING[resample], "squash": not shortest, "crop": crop}
    return settings


def sides(name, size, s):
    """Height and width of a size as an image processor's settings ``s`` have it."""
    if not isinstance(size, dict):
        found = [size, size]
    elif set(size) == {"shortest_edge"}:
        found = 2 * [size["shortest_edge"]]
    else:
        found = [size.get(side) for side in ("height", "width")] if len(size) == 2 else []
    if not found or not all(type(side) is int and side > 0 for side in found):
        raise s.error(name, size, "a number, a height and a width, or a shortest_edge")
    return found


def written(config, weights):
    """A checkpoint for Hugging Face: files of JSON and of tensors, by name.

    Raises:
        ValueError: naming a setting that its ViT has no word for.
    """
    if not config.squash and len(set(config.image_size)) > 1:
        raise ValueError(f"what is cut out must be square there: image_size {config.image_size}")
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if config.pooling != "token":
        raise ValueError(f"Hugging Face's ViT has a class token: pooling {config.pooling!r}")
    if config.activation not in activations:
        raise ValueError(f"its activations are {sorted(activations)}: {config.activation!r}")
    tensors = {}
    for path, array in weights.items():
        name = published_name(path, RULES)
        if path.endswith("kernel"):
            width = array.shape[-1] if path.endswith("output/kernel") else None
            array = array.reshape(-1, width) if width else array.reshape(len(array), -1)
            array = array.T
        elif path.endswith("bias"):
            array = array.reshape(-1)
        tensors[name] = array
    size, channels = config.patch_size, config.channels
    kernel = tensors[PATCHES].reshape(config.dim, size, size, channels)
    tensors[PATCHES] = kernel.transpose(0, 3, 1, 2)
    for name in ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings"):
        tensors[name] = tensors[name][None]
    labels = config.labels or [f"LABEL_{i}" for i in range(config.num_classes)]
    side = config.image_size[0] if len(set(config.image_size)) == 1 else list(config.image_size)
    settings = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification" if config.num_classes else "ViTModel"],
        "image_size": side,
        "patch_size": size,
        "num_channels": channels,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "hidden_act": activations[config.activation],
        "layer_norm_eps": config.epsilon,
        "qkv_bias": True,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    numbers = {name: number for number, name in RESAMPLING.items()}
    size = dict(zip(("height", "width"), config.image_size, strict=True))
    cut = not config.squash or config.crop < 1
    pixels = {
        "image_processor_type": "DeiTImageProcessor" if cut else "ViTImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": np.broadcast_to(config.mean, channels).tolist(),
        "image_std": np.broadcast_to(config.std, channels).tolist(),
        "rescale_factor": 1 / 255,
        "resample": numbers[config.interpolation],
        "size": size,
    }
    if cut:
        pixels |= {"do_center_crop": True, "crop_size": size}
        pixels["size"] = {name: round(side / config.crop) for name, side in size.items()}
        if not config.squash:
            pixels["size"] = {"shortest_edge": pixels["size"]["height"]}
    return {
        "config.json": settings,
        BESIDE: pixels,
        "model.safetensors": tensors,
    }
