"""What the models of the zoo have in common: configuration, tokenizer, files."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from ..layers import MultiHeadAttention, TransformerBlock
from ..training import CheckpointError, Model, read_tensors, write_tensors
from ..training.states import assign, by_path
from .published import Settings, fetched, named, read_json, read_published, renamed

# The names of tokenizers' files, which can be seen without TensorFlow.
SUBWORDS = "tokenizer.model"
MARIAN = ("source.spm", "target.spm", "vocab.json", "target_vocab.json")
BYTE_PAIRS = ("tokenizer.json", "vocab.json", "merges.txt")
CHARACTERS = "characters.txt"
TOKENIZERS = (SUBWORDS, CHARACTERS, *MARIAN, *BYTE_PAIRS)


class Pretrained(Model):
    """A model made from a configuration, which saves and loads itself as a folder of data.

    ``config.json``, ``model.safetensors`` (the variables' paths are the tensors' names) and,
    where there is a tokenizer, its file. Nothing in them is code.

    Without ``initialize`` weights are not drawn as the model's paper has it, which costs memory:
    of a model whose weights will be read.
    """

    Config: ClassVar[type]
    PRESETS: ClassVar[dict]
    # What a configuration and its tokenizer must agree on.
    VOCABULARY: ClassVar[tuple] = ("vocab_size", "end_id")
    # Modules that read other libraries' checkpoints, by the ``model_type`` of their config.json, or
    # "timm".
    FAMILIES: ClassVar[dict] = {}

    @classmethod
    def preset(cls, name, tokenizer=None, **overrides):
        """A published size with fresh weights; the tokenizer says how large the vocabulary is."""
        if name not in cls.PRESETS:
            raise ValueError(f"{cls.__name__} has presets {', '.join(cls.PRESETS)}: {name!r}")
        if tokenizer is not None:
            for agreed in cls.VOCABULARY:
                overrides.setdefault(agreed, getattr(tokenizer, agreed))
        return cls(dataclasses.replace(cls.PRESETS[name], **overrides), tokenizer)

    def __init__(self, config, tokenizer=None, initialize=True, **kwargs):
        super().__init__(**kwargs)
        for name in self.VOCABULARY if tokenizer is not None else ():
            theirs, ours = getattr(tokenizer, name), getattr(config, name)
            if theirs != ours:
                raise ValueError(
                    f"tokenizer and model must have one vocabulary: {name} {theirs} and {ours}"
                )
        self.config = config
        self.tokenizer = tokenizer
        self._searches = {}  # what is compiled, of decoding above all

    def get_config(self):
        return dataclasses.asdict(self.config)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(cls.Config(**config))

    def freeze(self, pattern):
        """Training leaves the weights as they are whose paths match ``pattern``, an expression.

        Call it before `compile`. Paths are those of ``[v.path for v in model.weights]``.

        Raises:
            ValueError: none matches, or it is no regular expression.
        """
        try:
            frozen = [v for v in self.weights if re.search(pattern, v.path)]
        except re.error as error:
            raise ValueError(f"no regular expression: {pattern!r}: {error}") from None
        if not frozen:
            raise ValueError(f"no weight matches {pattern!r}")
        for v in frozen:
            v.trainable = False

    def enable_lora(self, rank, alpha=None):
        """Freezes the model but for low-rank changes of every attention's query and value.

        Call it before `compile`. What is saved and exported has them merged into the weights.
        (Hu et al. 2021, arXiv 2106.09685.)

        Args:
            rank: of the changes; their scale is ``alpha`` / rank, 1 where there is no alpha.
        """
        attentions = self._attentions()
        if any(attention.adapters for attention in attentions):
            raise ValueError("low-rank adaptation is enabled already")
        self._searches.clear()  # they were compiled without
        before = self.weights
        for attention in attentions:
            attention.enable_lora(rank, alpha)
        for v in before:
            v.trainable = False

    def _attentions(self):
        return [x for x in self._flatten_layers() if isinstance(x, MultiHeadAttention)]

    def _merged(self, weights):
        """``weights``, ``{path: array}``, with low-rank changes in the kernels that they are of."""
        weights = dict(weights)
        for attention in self._attentions():
            for name, adapter in attention.adapters.items():
                down, up = (weights.pop(v.path) for v in (adapter.down, adapter.up))
                weights[getattr(attention, name).kernel.path] += adapter.product(down, up)
        return weights

    def _whole(self):
        """The model, or where it has low-rank changes, another that has them merged."""
        if not any(attention.adapters for attention in self._attentions()):
            return self
        model = type(self)(self.config, self.tokenizer, initialize=False, dtype=self.dtype_policy)
        weights = {path: v.numpy() for path, v in by_path(self.weights).items()}
        assign(by_path(model.weights), self._merged(weights), "this model")
        return model

    def save_pretrained(self, folder, weights=None, format="polyhead"):
        """Writes the model to ``folder``, complete or not at all; an older one is replaced.

        Args:
            weights: ``{path: array}``, written in the place of the model's own.
            format: "polyhead", or "huggingface" for a checkpoint that Hugging Face's library
                loads, where the class has a family that can be written.

        Raises:
            FileExistsError: there is something else than a model in the folder.
            ValueError: a format, or a setting, that cannot be written.
        """
        files = self._files(format, weights)
        folder = Path(folder)
        if folder.is_file():
            raise FileExistsError(f"{folder} is a file; a model is saved as a folder")
        if folder.exists() and not self.replaceable(folder):
            raise FileExistsError(f"{folder} holds something else than a {type(self).__name__}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, content in files.items():
                if name.endswith(".json"):
                    (beside / name).write_text(json.dumps(content, indent=2) + "\n")
                else:
                    write_tensors(beside / name, content)
            if self.tokenizer is not None:
                self.tokenizer.save(beside)
            beside.chmod(0o755)  # mkdtemp's folders are their owner's alone
            replace_folder(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _files(self, format, weights):
        """What `save_pretrained` writes: JSON, and tensors by name."""
        if weights is None:
            weights = {path: v.numpy() for path, v in by_path(self.weights).items()}
        weights = self._merged(weights)
        if format == "polyhead":
            config = {"model": type(self).__name__, **self.get_config()}
            return {"config.json": config, "model.safetensors": weights}
        families = {
            name: importlib.import_module(module, __package__)
            for name, module in self.FAMILIES.items()
        }
        written = [family for family in families.values() if hasattr(family, "written")]
        if format != "huggingface" or not written:
            formats = ["polyhead", "huggingface"][: 1 + bool(written)]
            raise ValueError(f"{type(self).__name__} is saved as {formats}: {format!r}")
        return written[0].written(self.config, weights)

    @classmethod
    def from_pretrained(cls, folder, **overrides):
        """The model that `save_pretrained` wrote to ``folder``, or a published one.

        Published models are those that Hugging Face's library saves, as safetensors, whole or in
        shards; or as ``.bin`` where torch is installed. Of which families, the class says. All
        tensors and settings are accounted for, or it is an error. Where there is no such folder,
        it is the name of a model on Hugging Face's hub. ``overrides`` change the configuration:
        ``dropout=0.2``.

        Raises:
            FileNotFoundError: there is no model.
            CheckpointError: it is another model's, or broken; the message names what.
        """
        folder = fetched(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no model: there is no config.json in it")
        config = read_json(folder / "config.json")
        kind = config.pop("model", None)
        family = "timm" if "pretrained_cfg" in config else str(config.get("model_type"))
        if kind is None and family in cls.FAMILIES:
            return cls.from_published(folder, family, config, overrides)
        kind = kind or config.get("model_type")
        if kind != cls.__name__:
            raise CheckpointError(f"{folder} holds a {kind}, not a {cls.__name__}")
        known = {field.name for field in dataclasses.fields(cls.Config)}
        if unknown := sorted(set(config) - known):
            raise CheckpointError(f"{folder / 'config.json'} has unknown settings {unknown}")
        tensors, _ = read_tensors(folder / "model.safetensors")
        with named(folder / "config.json"):
            config = cls.Config(**{**config, **overrides})
        model = cls(config, cls.load_tokenizer(folder, config), initialize=False)
        assign(by_path(model.weights), tensors, folder / "model.safetensors")
        return model

    @classmethod
    def from_published(cls, folder, family, config, overrides):
        family = importlib.import_module(cls.FAMILIES[family], __package__)
        beside = folder / family.BESIDE
        others = Settings(beside, read_json(beside) if beside.is_file() else {})
        settings = Settings(folder / "config.json", config)
        with named(settings.file):
            config = dataclasses.replace(family.read_config(settings, others), **overrides)
        tensors, weights = read_published(folder)
        tensors = family.unpacked(settings, tensors, weights)
        for name, shape in family.sizes(config).items():
            if name in tensors and tensors[name].shape != shape:
                raise CheckpointError(
                    f"{weights}: {name} has shape {tensors[name].shape}, config.json says {shape}"
                )
            if name not in tensors:
                raise CheckpointError(f"{weights} lacks {name}")
        model = cls(config, cls.load_tokenizer(folder, config), initialize=False)
        for name, value in family.redundant(config, tensors).items():
            if name in tensors:
                array = tensors.pop(name)
                if array.shape != value.shape or not np.allclose(array, value, atol=1e-2):
                    raise CheckpointError(f"{weights}: {name} is not what the others say it is")
        variables = by_path(model.weights)
        assign(*renamed(variables, tensors, family.rules(config), weights, family.LINEAR), weights)
        return model

    @classmethod
    def load_tokenizer(cls, folder, config):
        """The tokenizer saved in ``folder`` beside a model of ``config``, or None."""
        return None

    @classmethod
    def replaceable(cls, folder):
        """Whether a folder is empty, or holds nothing but what `save_pretrained` wrote."""
        names = {path.name for path in folder.iterdir()}
        if not names:
            return True
        ours = {"config.json", "preprocessor_config.json", "model.safetensors", *TOKENIZERS}
        if not {"config.json"} <= names <= ours:
            return False
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            return config.get("model", config.get("model_type")) in (cls.__name__, *cls.FAMILIES)
        except (ValueError, AttributeError):
            return False

    def _need_tokenizer(self, verb):
        if self.tokenizer is None:
            name = type(self).__name__
            raise ValueError(f"{verb} needs a tokenizer: {name}(config, tokenizer)")
        return self.tokenizer

    def compile(self, *args, remat=False, **kwargs):
        """Keras's `compile`; with ``remat`` the backward pass computes blocks again.

        Of each `TransformerBlock` training then keeps the input alone: less memory, more time.
        """
        for layer in self._flatten_layers():
            if isinstance(layer, TransformerBlock):
                layer.remat = remat
        super().compile(*args, **kwargs)

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {**config, "optimizer_built": self.optimizer.built}

    def compile_from_config(self, config):
        # Keras leaves models uncompiled whose `compile` has defaults of its own.
        config = keras.saving.deserialize_keras_object(config)
        built = config.pop("optimizer_built", False)
        self.compile(**config)
        if built:
            self.optimizer.build(self.trainable_variables)  # for its state, which is read next


def replace_folder(new, folder):
    """Renames ``new`` to ``folder``; one that was there is set aside, and goes at the end."""
    old = None
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        if old is not None:
            os.rename(old, folder)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def check_sizes(config, *sizes, optional=(), tokens=()):
    """Raises a ValueError where settings that many configurations have are out of their range.

    ``sizes`` are positive, ``optional`` ones may be None, ``tokens`` are of the vocabulary; heads
    divide the width, and rates of dropout are rates.
    """
    for name in (*sizes, *optional):
        value = getattr(config, name)
        if value is None and name in optional:
            continue
        if type(value) is not int or value < 1:
            none = ", or None" if name in optional else ""
            raise ValueError(f"{name} must be a positive integer{none}: {value!r}")
    for name in tokens:
        value = getattr(config, name)
        if type(value) is not int or not 0 <= value < config.vocab_size:
            raise ValueError(f"{name} must be a token, of {config.vocab_size}: {value!r}")
    if config.dim % config.num_heads:
        raise ValueError(f"dim must divide into num_heads: {config.dim} / {config.num_heads}")
    for name in ("dropout", "attention_dropout"):
        if not 0 <= (value := getattr(config, name, 0)) < 1:
            raise ValueError(f"{name} must be in [0, 1): {value}")
