"""What the models of the zoo have in common: configuration, tokenizer, files."""

import dataclasses
import importlib
import json
import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from ..layers import TransformerBlock
from ..training import CheckpointError, Model, read_tensors, write_tensors
from ..training.states import assign, by_path

# The names of tokenizers' files, which can be seen without TensorFlow.
SUBWORDS = "tokenizer.model"
MARIAN = ("source.spm", "target.spm", "vocab.json", "target_vocab.json")
BYTE_PAIRS = ("tokenizer.json", "vocab.json", "merges.txt")
CHARACTERS = "characters.txt"


class Pretrained(Model):
    """A model made from a configuration, which saves and loads itself as a folder of data.

    ``config.json``, ``model.safetensors`` (the variables' paths are the tensors' names) and,
    where there is a tokenizer, its file. Nothing in them is code.
    """

    Config: ClassVar[type]
    PRESETS: ClassVar[dict]
    # What a configuration and its tokenizer must agree on.
    VOCABULARY: ClassVar[tuple] = ("vocab_size", "end_id")
    # Modules that read other libraries' checkpoints, by the ``model_type`` of their config.json.
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

    def __init__(self, config, tokenizer=None, **kwargs):
        super().__init__(**kwargs)
        for name in self.VOCABULARY if tokenizer is not None else ():
            theirs, ours = getattr(tokenizer, name), getattr(config, name)
            if theirs != ours:
                raise ValueError(
                    f"tokenizer and model must have one vocabulary: {name} {theirs} and {ours}"
                )
        self.config = config
        self.tokenizer = tokenizer

    def get_config(self):
        return dataclasses.asdict(self.config)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(cls.Config(**config))

    def save_pretrained(self, folder, weights=None):
        """Writes the model to ``folder``, complete or not at all; an older one is replaced.

        ``weights``, ``{path: array}``, are written in the place of the model's own.
        """
        folder = Path(folder)
        if folder.is_file():
            raise FileExistsError(f"{folder} is a file; a model is saved as a folder")
        if folder.exists() and not self.replaceable(folder):
            raise FileExistsError(f"{folder} holds something else than a {type(self).__name__}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            config = {"model": type(self).__name__, **self.get_config()}
            (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            if weights is None:
                weights = {path: v.numpy() for path, v in by_path(self.weights).items()}
            write_tensors(beside / "model.safetensors", weights)
            if self.tokenizer is not None:
                self.tokenizer.save(beside)
            beside.chmod(0o755)  # mkdtemp's folders are their owner's alone
            replace_folder(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    @classmethod
    def from_pretrained(cls, folder):
        """The model that `save_pretrained` wrote to ``folder``, or a published one.

        Published models are those that Hugging Face's library saves, as safetensors: of which
        families, the class says. All tensors and settings are accounted for, or it is an error.

        Raises:
            FileNotFoundError: there is no model.
            CheckpointError: it is another model's, or broken; the message names what.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no model: there is no config.json in it")
        config = read_json(folder / "config.json")
        kind = config.pop("model", None)
        if kind is None and str(config.get("model_type")) in cls.FAMILIES:
            return cls.from_published(folder, config)
        kind = kind or config.get("model_type")
        if kind != cls.__name__:
            raise CheckpointError(f"{folder} holds a {kind}, not a {cls.__name__}")
        known = {field.name for field in dataclasses.fields(cls.Config)}
        if unknown := sorted(set(config) - known):
            raise CheckpointError(f"{folder / 'config.json'} has unknown settings {unknown}")
        tensors, _ = read_tensors(folder / "model.safetensors")
        try:
            config = cls.Config(**config)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
        model = cls(config, cls.load_tokenizer(folder))
        assign(by_path(model.weights), tensors, folder / "model.safetensors")
        return model

    @classmethod
    def from_published(cls, folder, config):
        family = importlib.import_module(cls.FAMILIES[config["model_type"]], __package__)
        weights = folder / "model.safetensors"
        if not weights.is_file():
            pickled = sorted(path.name for path in folder.glob("*.bin"))
            other = f", and {pickled} may hold code: save it again as safetensors"
            raise FileNotFoundError(f"{folder} has no model.safetensors{other if pickled else ''}")
        generation = folder / "generation_config.json"
        search = Settings(generation, read_json(generation) if generation.is_file() else {})
        try:
            config = family.read_config(Settings(folder / "config.json", config), search)
        except CheckpointError:
            raise
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
        tensors, _ = read_tensors(weights)
        for name, shape in family.sizes(config).items():
            if name in tensors and tensors[name].shape != shape:
                raise CheckpointError(
                    f"{weights}: {name} has shape {tensors[name].shape}, config.json says {shape}"
                )
            if name not in tensors:
                raise CheckpointError(f"{weights} lacks {name}")
        model = cls(config, cls.load_tokenizer(folder))
        for name, value in family.redundant(config, tensors).items():
            if name in tensors:
                array = tensors.pop(name)
                if array.shape != value.shape or not np.allclose(array, value, atol=1e-2):
                    raise CheckpointError(f"{weights}: {name} is not what the others say it is")
        rules = family.rules(config)
        assign(*renamed(by_path(model.weights), tensors, rules, weights), weights)
        return model

    @classmethod
    def load_tokenizer(cls, folder):
        """The tokenizer saved in ``folder``, or None."""
        return None

    @classmethod
    def replaceable(cls, folder):
        """Whether a folder is empty, or holds nothing but what `save_pretrained` wrote."""
        names = {path.name for path in folder.iterdir()}
        if not names:
            return True
        ours = {"config.json", "model.safetensors", SUBWORDS, CHARACTERS, *MARIAN, *BYTE_PAIRS}
        if not {"config.json"} <= names <= ours:
            return False
        try:
            return json.loads((folder / "config.json").read_text("utf-8"))["model"] == cls.__name__
        except (ValueError, KeyError, TypeError):
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

    def compile_from_config(self, config):
        # Keras leaves models uncompiled whose `compile` has defaults of its own.
        self.compile(**keras.saving.deserialize_keras_object(config))


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


class Settings:
    """The settings of a JSON file, each of which must be read: what is not honoured is an error."""

    def __init__(self, file, values):
        self.file = file
        self.values = {name: value for name, value in values.items() if value is not None}
        self.unread = set(self.values)

    def get(self, name, *default):
        self.unread.discard(name)
        if name not in self.values and not default:
            raise CheckpointError(f"{self.file} does not say {name}")
        return self.values.get(name, *default)

    def must(self, name, value):
        """If it is said, it must be ``value``."""
        if (said := self.get(name, value)) != value:
            raise self.error(name, said, repr(value))

    def error(self, name, said, rule):
        return CheckpointError(f"{self.file}: {name} must be {rule}: {said!r}")

    def ignore(self, *names):
        self.unread.difference_update(names)

    def default(self, name, value):
        if name not in self.values:
            self.values[name] = value
            self.unread.add(name)

    def all_read(self):
        if self.unread:
            raise CheckpointError(f"{self.file} has unknown settings {sorted(self.unread)}")


def read_json(path):
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no configuration: it holds a {type(content).__name__}")
    return content


def renamed(variables, tensors, rules, source):
    """What `assign` takes, for ``variables`` by path and tensors that PyTorch named and laid out.

    ``rules`` are pairs of a pattern and what takes its place, one after the other. A kernel is
    PyTorch's weight (out, in) transposed, with its axes split into heads.

    Returns:
        ``{name: variable}`` and ``{name: array}``, by PyTorch's names.

    Raises:
        CheckpointError: naming a tensor of another shape.
    """
    named, arrays = {}, dict(tensors)
    for path, variable in variables.items():
        name = path
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in named:
            raise ValueError(f"two variables are read from {name}: {path}, {named[name].path}")
        named[name] = variable
        if name not in tensors:
            continue
        array, shape = tensors[name], tuple(variable.shape)
        theirs = array.shape
        if path.endswith("kernel"):
            array = array.T
        splits = {(*shape[:i], math.prod(shape[i:])) for i in range(len(shape))}
        joins = {(math.prod(shape[:i]), *shape[i:]) for i in range(1, len(shape) + 1)}
        if array.shape not in splits | joins | {(1, *shape)}:
            raise CheckpointError(f"{source}: {name} has shape {theirs}, of {shape} here")
        arrays[name] = array.reshape(shape)
    return named, arrays
