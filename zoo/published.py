"""Checkpoints that other libraries publish: found, read, and accounted for."""

import contextlib
import importlib.util
import json
import math
import re
from pathlib import Path

from ..training import CheckpointError, read_tensors

# What of a model on the hub is fetched; pickled weights only where there are no others.
FILES = ("*.json", "*.txt", "*.spm", "*.model", "*.safetensors")
# Settings of generation that Hugging Face may write out though they change nothing.
NEUTRAL = {
    "typical_p": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "num_beam_groups": 1,
    "diversity_penalty": 0.0, "num_return_sequences": 1, "remove_invalid_values": False,
    "guidance_scale": 1.0, "penalty_alpha": 0.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip


def fetched(name):
    """The folder ``name`` or, where there is none, that of the model of this name on the hub.

    Raises:
        FileNotFoundError: there is neither, or the hub cannot be asked.
    """
    folder = Path(name)
    if folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
        return folder
    if importlib.util.find_spec("huggingface_hub") is None:
        raise FileNotFoundError(
            f"there is no folder {name}; to fetch a model of this name from the hub, install "
            "polyhead[hub]"
        )
    import huggingface_hub

    try:
        found = Path(huggingface_hub.snapshot_download(str(name), allow_patterns=FILES))
        if not list(found.glob("*.safetensors")):
            found = Path(huggingface_hub.snapshot_download(str(name), allow_patterns="*.bin"))
    except Exception as error:  # its own, those of requests and of the file system
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"there is no folder {name}, and the hub gave none: {reason}"
        ) from error
    return found


def read_published(folder):
    """The ``{name: array}`` of a checkpoint, and the file that it begins with.

    Raises:
        FileNotFoundError: there are no weights, or none that can be read here.
        CheckpointError: naming a file that is broken, or not what an index says.
    """
    readers = {"model.safetensors": lambda path: read_tensors(path)[0]}
    readers["pytorch_model.bin"] = read_pickled
    for name, read in readers.items():
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read(folder / name), folder / name
        if index.is_file():
            return read_shards(index, read), index
    others = sorted(path.name for path in folder.glob("*.bin"))
    raise FileNotFoundError(
        f"{folder} has no model.safetensors{f', but {others}' if others else ''}"
    )


def read_shards(index, read):
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise CheckpointError(f"{index} has no weight_map of names to files")
    tensors = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file or file.startswith("."):
            raise CheckpointError(f"{index} names a file outside of its folder: {file}")
        if not (index.parent / file).is_file():
            raise CheckpointError(f"{index} names {file}, which is not there")
        held = read(index.parent / file)
        expected = {name for name, place in places.items() if place == file}
        if held.keys() != expected:
            differ = sorted(held.keys() ^ expected)
            raise CheckpointError(f"{index.parent / file} is not what the index says: {differ[:5]}")
        tensors |= held
    return tensors


def read_pickled(path):
    """The tensors of a file of PyTorch's, from which no code is run."""
    if importlib.util.find_spec("torch") is None:
        raise FileNotFoundError(
            f"{path} is read by torch, which is not installed. Where it is, it can be written as "
            "safetensors: the model's class in transformers, .from_pretrained(folder)"
            ".save_pretrained(folder)"
        )
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in tensors.items()}
    except Exception as error:  # of pickle, of zip files, of torch
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} holds no tensors alone: {reason}") from error


@contextlib.contextmanager
def named(file):
    """Within it, what a configuration refuses is a `CheckpointError` that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from None


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

    def flag(self, name, default):
        """The same of what is True or False, and nothing else."""
        if type(said := self.get(name, default)) is not bool:
            raise self.error(name, said, "True or False")
        return said

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


def renamed(variables, tensors, rules, source, linear):
    """What `assign` takes, for ``variables`` by path and tensors that PyTorch named and laid out.

    It takes what it names out of ``tensors``, as `assign` does.
    ``rules`` are pairs of a pattern and what takes its place, one after the other. A kernel has
    the axes of PyTorch's weight split into heads; where those are ``linear`` layers', (out, in),
    it is transposed.

    Returns:
        ``{name: variable}`` and ``{name: array}``, by PyTorch's names.

    Raises:
        CheckpointError: naming a tensor of another shape.
    """
    found, arrays = {}, {}
    for path, variable in variables.items():
        name = published_name(path, rules)
        if name in found:
            raise ValueError(f"two variables are read from {name}: {path}, {found[name].path}")
        found[name] = variable
        if name not in tensors:
            continue
        array, shape = tensors.pop(name), tuple(variable.shape)
        theirs = array.shape
        if linear and path.endswith("kernel"):
            array = array.T
        splits = {(*shape[:i], math.prod(shape[i:])) for i in range(len(shape))}
        joins = {(math.prod(shape[:i]), *shape[i:]) for i in range(1, len(shape) + 1)}
        if array.shape not in splits | joins | {(1, *shape)}:
            raise CheckpointError(f"{source}: {name} has shape {theirs}, of {shape} here")
        arrays[name] = array.reshape(shape)
    return found, arrays | tensors


def published_name(path, rules):
    """What the ``rules`` make of a variable's path."""
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return path
