"""What the models of the zoo have in common: configuration, tokenizer, files."""

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import keras

from ..layers import TransformerBlock
from ..training import CheckpointError, Model, read_tensors, write_tensors
from ..training.states import assign, by_path

# What a configuration and its tokenizer must agree on.
VOCABULARY = ("vocab_size", "pad_id", "start_id", "end_id")
TOKENIZER = "tokenizer.model"  # the name of its file, which can be seen without TensorFlow


class Pretrained(Model):
    """A model made from a configuration, which saves and loads itself as a folder of data.

    ``config.json``, ``model.safetensors`` (the variables' paths are the tensors' names) and,
    where there is a tokenizer, its file. Nothing in them is code.
    """

    Config: ClassVar[type]
    PRESETS: ClassVar[dict]

    @classmethod
    def preset(cls, name, tokenizer=None, **overrides):
        """A published size with fresh weights; the tokenizer says how large the vocabulary is."""
        if name not in cls.PRESETS:
            raise ValueError(f"{cls.__name__} has presets {', '.join(cls.PRESETS)}: {name!r}")
        if tokenizer is not None:
            for agreed in VOCABULARY:
                overrides.setdefault(agreed, getattr(tokenizer, agreed))
        return cls(dataclasses.replace(cls.PRESETS[name], **overrides), tokenizer)

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
        """The model that `save_pretrained` wrote to ``folder``.

        Raises:
            FileNotFoundError: there is no model.
            CheckpointError: it is another model's, or broken; the message names what.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no model: there is no config.json in it")
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            kind = config.pop("model", None)
        except (ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{folder / 'config.json'} is no configuration: {error}"
            ) from None
        if kind != cls.__name__:
            raise CheckpointError(f"{folder} holds a {kind}, not a {cls.__name__}")
        known = {field.name for field in dataclasses.fields(cls.Config)}
        if unknown := sorted(set(config) - known):
            raise CheckpointError(f"{folder / 'config.json'} has unknown settings {unknown}")
        tensors, _ = read_tensors(folder / "model.safetensors")
        model = cls(cls.Config(**config), cls.load_tokenizer(folder))
        assign(by_path(model.weights), tensors, folder / "model.safetensors")
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
        if not {"config.json"} <= names <= {"config.json", "model.safetensors", TOKENIZER}:
            return False
        try:
            return json.loads((folder / "config.json").read_text("utf-8"))["model"] == cls.__name__
        except (ValueError, KeyError, TypeError):
            return False

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
