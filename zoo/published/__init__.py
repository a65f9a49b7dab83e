"""Reads and writes checkpoints, our own and those of other libraries, by tables.

``FAMILIES`` of a model's class maps the ``model_type`` of a config.json (or "timm", or ".npz" for a
file without settings) to a module with a `FORMAT`. `open_checkpoint` reads, `write_checkpoint`
writes.
"""

import dataclasses
import importlib
import re
import reprlib
import warnings

import keras
import numpy as np
from keras import ops

from ...training import CheckpointError
from ...training.states import by_path, check_names, check_shapes, check_values, some
from . import table
from .files import ARCHIVE, Tensors, check_files, find_folder, naming_errors, read_json
from .format import NEVER
from .settings import Settings, write_settings

__all__ = ["family", "open_checkpoint", "read_json", "rename_fields", "write_checkpoint"]

CONFIG = "config.json"
PACKAGE = __package__.rpartition(".")[0]  # the zoo; FAMILIES are relative to it
# Fields of our configurations, Search and Sampling that were renamed: {old: new}.
OLDER_FIELDS = {
    "hidden_dim": "intermediate_dim",
    "labels": "class_names",
    "beams": "num_beams",
    "alpha": "length_penalty",
    "max_tokens": "max_new_tokens",
}


def family(config):
    """The class or the family that a ``config`` (a config.json's content) belongs to."""
    if is_keras_hub(config):
        return {"GPT2Backbone": "GPT", "ViTBackbone": "ViT"}.get(config.get("class_name"))
    if config.get("is_folding_model") is True:  # an ESM-2 with a trunk
        return "esmfold"
    timm = "timm" if "pretrained_cfg" in config else None
    return config.get("model") or timm or config.get("model_type")


def is_keras_hub(config):
    return str(config.get("registered_name")).startswith("keras_hub>")


def load_formats(cls):
    """Imports the formats of a model's class: ``{family: Format}``."""
    return {
        name: importlib.import_module(module, PACKAGE).FORMAT
        for name, module in cls.FAMILIES.items()
    }


def open_checkpoint(name, cls):
    """Opens a checkpoint of the class ``cls`` in the folder ``name``, or of this name on the hub.

    The checkpoint has three methods: ``config(overrides)`` returns the configuration, after
    comparing all shapes with the file's header; ``tokenizer(config)`` returns the tokenizer, or
    None; ``load(make)`` returns the model that the function ``make`` builds, with the file's
    weights.

    Raises:
        FileNotFoundError: there is no model.
        CheckpointError: it is a model of another class.
    """
    folder = find_folder(name)
    config, kind = identify(folder)
    if is_keras_hub(config):
        return importlib.import_module(".keras_hub", __package__).Preset(folder, cls, config)
    if kind == cls.__name__:
        return Own(folder, cls, config)
    if "model" not in config and kind in list(cls.FAMILIES):
        return Published(folder, cls, config, load_formats(cls)[kind])
    plain = isinstance(kind, str) and kind.isidentifier()
    kind = kind if plain else reprlib.repr(kind)
    raise CheckpointError(f"{folder} holds a {kind:.80}, not a {cls.__name__}")


def identify(folder):
    """The settings of the checkpoint in ``folder``, and its family.

    Raises:
        FileNotFoundError: there is no model.
        CheckpointError: the config.json is invalid.
    """
    check_files(folder)
    if folder.suffix == ARCHIVE:
        return {}, ARCHIVE
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no model: there is no {CONFIG} in it")
    config = read_json(folder / CONFIG)
    return config, family(config)


class Own:
    """A folder that `save_pretrained` wrote; the tensors' names are the variables' paths."""

    def __init__(self, folder, cls, config):
        self.folder, self._cls = folder, cls
        self._quantization = config.pop("quantization", {})
        self._config = rename_fields({name: config[name] for name in config if name != "model"})

    def config(self, overrides):
        file, config = self.folder / CONFIG, self._cls.Config
        head, overrides = split_head(self._cls, overrides)
        known = {field.name for field in dataclasses.fields(config)}
        if unknown := sorted(set(self._config) - known):
            raise CheckpointError(f"{file} has unknown settings {some(unknown)}")
        config = configure(config, self._config, overrides, file)
        self._tensors = Tensors(self.folder)
        check_shapes(self._cls.shapes(config), self._tensors.headers, self._tensors.file)
        self._renewed = NEVER
        if head:
            config, self._renewed = self._cls.change_head(config, **head)
        if self._quantization and self._renewed != NEVER:
            raise ValueError("a quantized model cannot get another head: quantize it afterwards")
        return config

    def tokenizer(self, config):
        return self._cls.load_tokenizer(self.folder, config)

    def load(self, make):
        tensors, renewed = self._tensors, self._renewed

        def read(variable):
            array = tensors.read(variable.path)
            check_values(variable, variable.path, array, tensors.file)
            return array

        def check(model):
            variables = by_path(model.weights)
            ours, theirs = (
                {path for path in paths if not re.match(renewed, path)}
                for paths in (variables, tensors.headers)
            )
            check_names(sorted(ours - theirs), sorted(theirs - ours), tensors.file)
            shapes = ((path, v.shape) for path, v in variables.items() if path in ours)
            check_shapes(shapes, tensors.headers, tensors.file)

        if not self._quantization:
            return build(make, read, check, lambda path: re.match(renewed, path))
        model = make()
        with naming_errors(self.folder / CONFIG):
            model._restore_quantization(self._quantization)
        check(model)
        for variable in model.weights:
            variable.assign(read(variable))
        return model


def configure(config, fields, overrides, file):
    """The configuration of a file with ``overrides``; errors of the file name it, others do not."""
    try:
        return config(**{**fields, **overrides})
    except (TypeError, ValueError):
        with naming_errors(file):
            config(**fields)
        raise


def split_head(cls, overrides):
    """Splits changes of the head from other ``overrides``; the file is compared without them."""
    return tuple(
        {name: value for name, value in overrides.items() if (name in cls.HEAD) == is_head}
        for is_head in (True, False)
    )


def rename_fields(values):
    """Replaces the names of `OLDER_FIELDS` in ``values``, in nested objects too."""
    return {
        OLDER_FIELDS.get(name, name): rename_fields(value) if isinstance(value, dict) else value
        for name, value in values.items()
    }


class Published:
    """A checkpoint in another library's `Format`."""

    def __init__(self, folder, cls, config, form):
        self.folder, self._cls, self._format = folder, cls, form
        self._settings = Settings(folder if folder.suffix == ARCHIVE else folder / CONFIG, config)

    def config(self, overrides):
        form, settings = self._format, self._settings
        head, overrides = split_head(self._cls, overrides)
        beside = self.folder / (form.beside or CONFIG)
        others = read_json(beside) if form.beside and beside.is_file() else {}
        self._tensors = Tensors(self.folder)
        self._names = self._map_names()
        with naming_errors(settings.file):
            settings.fixed(form.fixed | form.older)
            fields = settings.read(form.settings)
            fields |= form.read(settings, Settings(beside, others), fields) | form.ours
            settings.finish(*form.unused)
            fields |= form.infer(self._shape)
        config = configure(self._cls.Config, fields, overrides, settings.file)
        for line in settings.warnings:
            warnings.warn(line, stacklevel=3)
        config = form.adjust(self._set_tied(config), self._stored)
        self._match(config)
        if head:
            config, renewed = self._cls.change_head(config, **head)
            if renewed != NEVER:
                self._match_new_head(config)
        return config

    def _map_names(self):
        """Maps the table's names to the file's: ``{name in the table: name in the file}``."""
        names = {}
        for name in self._tensors.headers:
            ours = table.rename(name, self._format.renamed)
            if re.match(self._format.ignored, ours):
                names.setdefault(ours, name)  # a new head may need it
                continue
            for pattern, words in self._format.refused:
                if re.match(pattern, ours):
                    raise CheckpointError(
                        f"{self._tensors.file}: {name} is {words}, which {self._cls.__name__} "
                        "does not have"
                    )
            if ours in names:
                raise CheckpointError(
                    f"{self._tensors.file}: {name} and {names[ours]} are the same tensor"
                )
            names[ours] = name
        return names

    def _set_tied(self, config):
        """Sets ``tied`` by the tensors: True unless the head exists and differs from the embedding.

        Hugging Face's library does the same, whatever the file's settings are.
        """
        head, embedding = (self._names.get(name) for name in self._format.head or (None, None))
        if head is None:
            return config
        headers, read = self._tensors.headers, self._tensors.read
        tied = embedding is not None and headers[head] == headers[embedding]
        tied = tied and np.array_equal(read(head), read(embedding))
        if tied:
            del self._names[self._format.head[0]]
        return dataclasses.replace(config, tied=tied)

    def _shape(self, name):
        """The shape of the tensor of a name in the table, or None."""
        return self._tensors.headers[self._names[name]].shape if name in self._names else None

    def _stored(self, name):
        """The tensor of a name in the table, or None."""
        return self._tensors.read(self._names[name]) if name in self._names else None

    def _rows(self, config):
        """The table; optional tensors that the file lacks are None in it."""
        for row in self._format.rows(config, self._settings):
            absent = row[0] not in self._names and re.match(self._format.optional, row[0] or "")
            yield (None, *row[1:]) if absent else row

    def _match(self, config):
        """Finds the tensor of each variable, and checks all names and shapes."""
        form, file, headers = self._format, self._tensors.file, self._tensors.headers
        rows, shapes = self._rows(config), self._cls.shapes(config)
        entries, missing = table.match(rows, shapes, form.sizes(config), self._names)
        copies = {
            name: expected(headers[self._names[name]].shape) if callable(expected) else expected
            for name, expected in form.copies(config).items()
            if name in self._names
        }
        held = {entry.name for entry in entries}
        held |= {name for name, expected in copies.items() if expected is not None}
        unread = sorted(
            self._names[name]
            for name in self._names.keys() - held
            if not re.match(form.ignored, name)
        )
        if len(missing) > 5:  # `match` stopped at the sixth
            raise CheckpointError(f"{file} does not fit the model: it lacks {missing[:5]} and more")
        check_names(missing, unread, file)
        for entry in entries:
            if entry.name is not None:
                name = self._names[entry.name]
                check_shape(name, headers[name].shape, table.shape_of(entry), file)
        self._entries = entries
        for name in sorted(held & copies.keys()):
            self._check_copy(self._names[name], copies[name])

    def _match_new_head(self, config):
        """Finds the tensors of a model with another head than the file's.

        Of the new head, weights are read that the file has by name, except those of the last map;
        the others keep their initial values.
        """
        shapes = [
            (path, shape)
            for path, shape in self._cls.shapes(config)
            if not re.match("head/(output/|bias)", path)
        ]
        rows = self._rows(config)
        entries, _ = table.match(rows, shapes, self._format.sizes(config), self._names)
        headers = self._tensors.headers
        self._entries = [
            entry
            for entry in entries
            if entry.name is None or headers[self._names[entry.name]].shape == table.shape_of(entry)
        ]

    def _check_copy(self, name, expected):
        """Checks that a tensor equals another tensor, or nearly a computed array."""
        tensors, other, tolerance = self._tensors, "its expected values", 1e-2
        if isinstance(expected, str):
            other = self._names[expected]
            shape, needed = (tensors.headers[n].shape for n in (name, other))
            check_shape(name, shape, needed, tensors.file)
            expected, tolerance = tensors.read(other), 0
        if not np.allclose(tensors.read(name), expected, rtol=0, atol=tolerance):
            raise CheckpointError(f"{tensors.file}: {name} differs from {other}")

    def tokenizer(self, config):
        return self._cls.load_tokenizer(self.folder, config)

    def load(self, make):
        places = {part.path: entry for entry in self._entries for part in entry.parts}
        held = {}  # parts of fused tensors, until they are used

        def read(variable):
            entry, path = places[variable.path], variable.path
            if entry.name is None:
                return np.zeros(variable.shape)
            name = self._names[entry.name]
            if path not in held:
                held.update(table.read(entry, self._tensors.read(name)))
            array = held.pop(path)
            check_values(variable, name, array, self._tensors.file)
            return array

        return build(make, read, is_new=lambda path: path not in places)


def build(make, read, check=lambda model: None, is_new=lambda path: False):
    """Builds the model ``make()`` with the values that ``read(variable)`` returns.

    Variables are never allocated with other values: peak memory is the model plus the values of one
    variable. ``check(model)`` is called before any value is read. Weights whose path ``is_new``
    keep their initial values, and a warning names them.
    """
    failed = []

    def initializer(variable):
        def values(shape, dtype):
            try:
                if not failed and (array := read(variable)).shape == tuple(shape):
                    return ops.convert_to_tensor(array, dtype)
                failed.append(ValueError(f"{variable.path} has shape {tuple(shape)}"))
            except Exception as error:
                failed.append(error)
            return ops.zeros(shape, dtype)

        return values

    # Within this scope variables have no values; at its end Keras calls all initializers, even if
    # one fails.
    with keras.StatelessScope():
        model = make()
        try:
            check(model)
        except CheckpointError as error:
            failed.append(error)
        new = [variable.path for variable in model.weights if is_new(variable.path)]
        for variable in model.weights:
            if variable.path not in new:
                variable._initializer = initializer(variable)
    if failed:
        raise failed[0]
    if new:
        warnings.warn(f"new weights, to be trained: {', '.join(new)}", stacklevel=4)
    return model


def write_checkpoint(model, format, weights):
    """Returns the contents of a model's files by name: JSON objects, and ``{name: array}``.

    Args:
        weights: ``{path: array}``.

    Raises:
        ValueError: the format is unknown, or cannot express a setting.
    """
    config, kind, quantization = model.config, type(model).__name__, model._quantization()
    if format == "huggingface" and not getattr(model.tokenizer, "portable", True):
        warnings.warn(
            f"Hugging Face's library does not read the files of {type(model.tokenizer).__name__}: "
            "give its model the tokens of polyhead's tokenizer",
            stacklevel=3,
        )
    if format == "polyhead":
        settings = {"model": kind, **dataclasses.asdict(config)}
        settings |= {"quantization": quantization} if quantization else {}
        return {CONFIG: settings, "model.safetensors": weights}
    forms = {}
    for form in load_formats(type(model)).values():
        if form.name is not None:
            forms.setdefault(form.name, []).append(form)
    if format not in forms:
        raise ValueError(f"{kind} is saved as {['polyhead', *forms]}: {format!r}")
    if quantization:
        raise ValueError(f"a quantized model is saved as 'polyhead' only: {format!r}")
    # Of several families, the one that fits the configuration.
    form = next(
        (f for f in forms[format] if all(getattr(config, n) == v for n, v in f.ours.items())),
        forms[format][0],
    )
    for name, value in form.ours.items():
        if (given := getattr(config, name)) != value:
            raise ValueError(f"{name} must be {value!r} in the format {format!r}: {given!r}")
    settings = form.fixed | write_settings(form.settings, config) | form.write(config)
    files = {CONFIG: settings, **form.others(config)}
    if model.tokenizer is None:
        files.pop("tokenizer_config.json", None)
    shapes = ((path, array.shape) for path, array in weights.items())
    entries, _ = table.match(form.rows(config, None), shapes, form.sizes(config))
    tensors = {entry.name: table.write(entry, weights) for entry in entries}
    return {**files, "model.safetensors": tensors | form.constants(config)}


def check_shape(name, shape, expected, source):
    if shape != expected:
        raise CheckpointError(f"{source}: {name} has shape {shape}, expected {expected}")
