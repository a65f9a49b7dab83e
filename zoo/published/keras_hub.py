"""Converts models from and to KerasHub (keras-nlp), and reads its preset folders.

Weights are copied by a `table` in both directions, as for the formats of other libraries.
"""

import dataclasses
import importlib.util
import math
import re
import warnings
from typing import Any

import numpy as np

from ...training import CheckpointError
from ...training.states import by_path
from ..gpt import GPT, GPTConfig
from ..model import Pretrained
from ..vit import ViT, ViTConfig
from . import table
from .files import read_json, reason

T, B = "transformer_layer_{i}/", "block_{i}/"
HEADS = tuple(
    row
    for theirs, ours in ((T + "self_attention/", B), ("vit_encoder/transformer_block_{i}/mha/", B))
    for part in ("query", "key", "value")
    for row in (
        (f"{theirs}{part}/kernel", "d h k", f"{ours}attention/{part}/kernel", "d h k"),
        (f"{theirs}{part}/bias", "h k", f"{ours}attention/{part}/bias", "h k"),
    )
)


def affine(theirs, ours, axes="d f", kernel="kernel", bias="bias"):
    """The rows of a kernel (or a norm's gamma) and its bias."""
    return (f"{theirs}/{kernel}", axes, f"{ours}/{kernel}", axes), (
        f"{theirs}/{bias}", axes.split()[-1], f"{ours}/{bias}", axes.split()[-1]
    )  # fmt: skip


def norm(theirs, ours):
    return affine(theirs, ours, "d", "gamma", "beta")


GPT2_TENSORS = (
    ("token_embedding/embeddings", "v d", "tokens/embeddings", "v d"),
    ("position_embedding/embeddings", "t d", "positions/embeddings", "t d"),
    *HEADS[:6],
    *affine(T + "self_attention/attention_output", B + "attention/output", "h k d"),
    *norm(T + "self_attention_layer_norm", B + "attention_norm"),
    *affine(T + "feedforward_intermediate_dense", B + "feed_forward/expand"),
    *affine(T + "feedforward_output_dense", B + "feed_forward/contract"),
    *norm(T + "feedforward_layer_norm", B + "feed_forward_norm"),
    *norm("layer_norm", "norm"),
)
V = "vit_encoder/transformer_block_{i}/"
EMBED = "vit_patching_and_embedding/"
VIT_TENSORS = (
    (EMBED + "class_token", "1 1 d", "token/embeddings", "1 d"),
    (EMBED + "patch_embedding/kernel", "y x c d", "patches/projection/kernel", "(y x c) d"),
    (EMBED + "patch_embedding/bias", "d", "patches/projection/bias", "d"),
    (EMBED + "position_embedding/embeddings", "t d", "positions/embeddings", "t d"),
    *HEADS[6:],
    *affine(V + "mha/attention_output", B + "attention/output", "h k d"),
    *norm(V + "ln_1", B + "attention_norm"),
    *norm(V + "ln_2", B + "feed_forward_norm"),
    *affine(V + "mlp/dense_1", B + "feed_forward/expand"),
    *affine(V + "mlp/dense_2", B + "feed_forward/contract"),
    *norm("vit_encoder/ln", "norm"),
    *affine("predictions", "head"),
)
TENSORS = {GPT: GPT2_TENSORS, ViT: VIT_TENSORS}


def from_keras_hub(model: Any) -> Pretrained:
    """Converts a KerasHub model, with its weights and tokenizer, to polyhead.

    Args:
        model: a `GPT2CausalLM`, `GPT2Backbone`, `ViTImageClassifier` or `ViTBackbone`. Tokenizer
            and image preprocessing are taken from its ``preprocessor``, if it has one.

    Raises:
        TypeError: the model has another class.
        ValueError: polyhead's model does not support a setting.

    >>> import keras_hub  # doctest: +SKIP
    >>> gpt2 = keras_hub.models.GPT2CausalLM.from_preset("gpt2_base_en")  # doctest: +SKIP
    >>> polyhead.from_keras_hub(gpt2).export("exported")  # doctest: +SKIP
    """
    cls, config, tokenizer = describe(model)
    dtype = getattr(model, "backbone", model).dtype_policy
    return copy_in(cls(config, tokenizer, initialize=False, dtype=dtype), model)


def describe(model):
    """Describes a KerasHub model: polyhead's class, configuration and tokenizer."""
    kind = type(model).__name__
    if kind in ("GPT2CausalLM", "GPT2Backbone"):
        return GPT, *describe_gpt(model)
    if kind in ("ViTImageClassifier", "ViTBackbone"):
        return ViT, describe_vit(model), None
    raise TypeError(f"from_keras_hub supports KerasHub's GPT-2 and ViT, not {kind}")


def to_keras_hub(model: Pretrained) -> Any:
    """Converts a model, with its weights and tokenizer, to KerasHub.

    A `GPT` becomes a `GPT2CausalLM`; a `ViT` becomes a `ViTImageClassifier`, or a `ViTBackbone` if
    it has no head. LoRA adapters are merged.

    Raises:
        TypeError: the model has another class.
        ValueError: KerasHub's model does not support a setting.

    >>> model = polyhead.load("runs/text")  # doctest: +SKIP
    >>> polyhead.to_keras_hub(model).save_to_preset("preset")  # doctest: +SKIP
    """
    if model._quantization():
        raise ValueError("a quantized model cannot be converted: quantize it in KerasHub")
    if isinstance(model, GPT):
        return write_gpt(model)
    if isinstance(model, ViT):
        return write_vit(model)
    raise TypeError(f"to_keras_hub supports GPT and ViT, not {type(model).__name__}")


class Preset:
    """The folder of a KerasHub preset with this ``config``; see `open_checkpoint`.

    Raises:
        CheckpointError: it is not a GPT-2 or a ViT, or names code outside of Keras.
    """

    TASKS = {"GPT2Backbone": "GPT2CausalLM", "ViTBackbone": "ViTImageClassifier"}

    def __init__(self, folder, cls, config):
        self.folder, self._cls, self._kind = folder, cls, config["class_name"]
        if self._kind not in self.TASKS:
            raise CheckpointError(f"{folder} holds KerasHub's {self._kind!s:.80}: not supported")
        for path in sorted(folder.glob("*.json")):
            check_modules(path, read_json(path))

    def config(self, overrides):
        models = import_keras_hub().models
        whole = self._kind == "GPT2Backbone" or (self.folder / "task.json").is_file()
        kind = self.TASKS[self._kind] if whole else self._kind
        try:
            self._model = getattr(models, kind).from_preset(str(self.folder))
        except Exception as error:  # of h5py, of Keras
            raise CheckpointError(
                f"{self.folder}: KerasHub cannot read it: {reason(error)}"
            ) from error
        cls, config, self._tokenizer = describe(self._model)
        if cls is not self._cls:
            raise CheckpointError(
                f"{self.folder} holds a {cls.__name__}, not a {self._cls.__name__}"
            )
        return dataclasses.replace(config, **overrides)

    def tokenizer(self, config):
        return self._tokenizer

    def load(self, make):
        return copy_in(make(), self._model)


def check_modules(path, content):
    """Checks that all objects that a JSON file describes belong to Keras or KerasHub."""
    if isinstance(content, dict):
        module = content.get("module")
        if module is not None and str(module).split(".")[0] not in ("keras", "keras_hub"):
            raise CheckpointError(f"{path} names code outside of Keras: {module!r:.100}")
        content = list(content.values())
    for item in content if isinstance(content, list) else ():
        check_modules(path, item)


def import_keras_hub():
    if importlib.util.find_spec("keras_hub") is None:
        raise ImportError('KerasHub\'s models need keras-hub: pip install "polyhead[keras-nlp]"')
    import keras_hub

    return keras_hub


def describe_gpt(model):
    backbone = getattr(model, "backbone", model)
    tokenizer = getattr(getattr(model, "preprocessor", None), "tokenizer", None)
    if tokenizer is not None:
        from ...data import BytePairs

        special = {text: tokenizer.vocabulary[text] for text in tokenizer.unsplittable_tokens}
        merges = [pair.split(" ") for pair in tokenizer.merges if not pair.startswith("#version")]
        tokenizer = BytePairs(tokenizer.vocabulary, merges, special, tokenizer.end_token)
    config = GPTConfig(
        vocab_size=backbone.vocabulary_size,
        max_length=backbone.max_sequence_length,
        num_layers=backbone.num_layers,
        dim=backbone.hidden_dim,
        intermediate_dim=backbone.intermediate_dim,
        num_heads=backbone.num_heads,
        dropout=backbone.dropout,
        attention_dropout=backbone.dropout,
        end_id=backbone.vocabulary_size - 1 if tokenizer is None else tokenizer.end_id,
    )
    return config, tokenizer


def write_gpt(model):
    c, models = model.config, import_keras_hub().models
    checks = {"tied": True, "activation": "gelu_tanh", "epsilon": 1e-5}
    check_settings(c, {**checks, "attention_dropout": c.dropout}, "GPT-2")
    backbone = models.GPT2Backbone(
        vocabulary_size=c.vocab_size,
        num_layers=c.num_layers,
        num_heads=c.num_heads,
        hidden_dim=c.dim,
        intermediate_dim=c.intermediate_dim or 4 * c.dim,
        dropout=c.dropout,
        max_sequence_length=c.max_length,
        dtype=model.dtype_policy,
    )
    copy_out(model, backbone)
    preprocessor = None
    if (tokenizer := model.tokenizer) is not None:
        if not hasattr(tokenizer, "merges"):
            raise ValueError(
                "KerasHub's GPT-2 has byte pairs, not characters: set model.tokenizer = None"
            )
        merges = [" ".join(pair) for pair in tokenizer.merges]
        vocabulary = {**tokenizer.vocabulary, **tokenizer.added, **tokenizer.special}
        tokenizer = models.GPT2Tokenizer(vocabulary=vocabulary, merges=merges)
        preprocessor = models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=c.max_length)
    return models.GPT2CausalLM(backbone, preprocessor)


def describe_vit(model):
    b = getattr(model, "backbone", model)
    head = type(model).__name__ == "ViTImageClassifier"
    if not (b.use_mha_bias and b.use_mlp_bias and b.use_patch_bias and b.use_class_token):
        raise ValueError(
            "our ViT has all biases and a class token: use_mha_bias, use_mlp_bias, use_patch_bias "
            "and use_class_token must be True"
        )
    if head and (model.pooling != "token" or model.intermediate_dim is not None):
        raise ValueError(
            "our ViT's head is one layer on the class token: pooling must be 'token' and "
            f"intermediate_dim None: {model.pooling!r}, {model.intermediate_dim}"
        )
    height, width, channels = b.image_shape
    [patch] = {*b.patch_size}
    return ViTConfig(
        image_size=(height, width),
        patch_size=patch,
        channels=channels,
        num_classes=model.num_classes if head else 0,
        num_layers=b.num_layers,
        dim=b.hidden_dim,
        intermediate_dim=b.mlp_dim,
        num_heads=b.num_heads,
        dropout=b.dropout_rate,
        attention_dropout=b.attention_dropout,
        epsilon=b.layer_norm_epsilon,
        **read_converter(getattr(getattr(model, "preprocessor", None), "image_converter", None)),
    )


def read_converter(converter):
    """Reads the preprocessing of an `ImageConverter`, which computes scale * pixels + offset."""
    if converter is None:
        return {"mean": (0.0,), "std": (1 / 255,)}  # pixels as they are
    if converter.pad_to_aspect_ratio:
        raise ValueError("images must not be padded: pad_to_aspect_ratio is True")
    if not converter.antialias:
        warnings.warn(
            "KerasHub resizes these images without antialiasing, polyhead with it: predictions for "
            "images of other sizes differ slightly",
            stacklevel=4,
        )
    scale = np.ravel(1.0 if converter.scale is None else converter.scale)
    std = 1 / (255 * scale)
    mean = -np.ravel(0.0 if converter.offset is None else converter.offset) * std
    return {
        "mean": tuple(mean.tolist()),
        "std": tuple(std.tolist()),
        "interpolation": converter.interpolation,
        "squash": not converter.crop_to_aspect_ratio,
    }


def write_vit(model):
    c, keras_hub = model.config, import_keras_hub()
    check_settings(c, {"pooling": "token", "activation": "gelu", "crop": 1.0}, "ViT")
    check_settings(c, {"stochastic_depth": 0.0}, "ViT")
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(*c.image_size, c.channels),
        patch_size=c.patch_size,
        num_layers=c.num_layers,
        num_heads=c.num_heads,
        hidden_dim=c.dim,
        mlp_dim=c.intermediate_dim,
        dropout_rate=c.dropout,
        attention_dropout=c.attention_dropout,
        layer_norm_epsilon=c.epsilon,
        dtype=model.dtype_policy,
    )
    if not c.num_classes:
        return copy_out(model, backbone)
    std, mean = np.broadcast_to(c.std, c.channels), np.broadcast_to(c.mean, c.channels)
    converter = keras_hub.layers.ViTImageConverter(
        image_size=c.image_size,
        scale=(1 / (255 * std)).tolist(),
        offset=(-mean / std).tolist(),
        interpolation=c.interpolation,
        antialias=True,
        crop_to_aspect_ratio=not c.squash,
    )
    preprocessor = keras_hub.models.ViTImageClassifierPreprocessor(converter)
    classifier = keras_hub.models.ViTImageClassifier(
        backbone, c.num_classes, preprocessor, activation=None
    )
    return copy_out(model, classifier)


def check_settings(config, expected, name):
    for field, value in expected.items():
        if (ours := getattr(config, field)) != value and not (
            isinstance(value, float) and math.isclose(ours, value)
        ):
            raise ValueError(f"KerasHub's {name} needs {field} {value!r}: {ours!r}")


def tensors(model):
    """``{name in the table: variable}``; KerasHub counts the blocks of a ViT from 1."""

    def name(path):
        return re.sub(r"(?<=transformer_block_)\d+", lambda n: str(int(n[0]) - 1), path)

    return {name(path): v for path, v in by_path(model.weights).items()}


def sizes(ours):
    """The sizes of axes that the shapes of variables do not determine: those of a patch."""
    side = getattr(ours.config, "patch_size", None)
    return {"y": side, "x": side} if side else {}


def copy_in(ours, theirs):
    """Copies the weights of KerasHub's model to ``ours``, and returns it."""
    named, variables = tensors(theirs), by_path(ours.weights)
    entries, missing = table.match(
        TENSORS[type(ours)], ours.shapes(ours.config), sizes(ours), named
    )
    left = sorted(named.keys() - {entry.name for entry in entries})
    if missing or left:
        raise ValueError(f"KerasHub's model lacks {missing}, and has {left}")
    for entry in entries:
        for path, array in table.read(entry, named[entry.name].numpy()):
            variables[path].assign(array)
    return ours


def copy_out(ours, theirs):
    """Copies the weights of ``ours`` to KerasHub's model, and returns it."""
    weights = ours._merge_lora({path: v.numpy() for path, v in by_path(ours.weights).items()})
    named, shapes = tensors(theirs), ((path, array.shape) for path, array in weights.items())
    for entry in table.match(TENSORS[type(ours)], shapes, sizes(ours), named)[0]:
        named[entry.name].assign(table.write(entry, weights))
    return theirs
