"""Checkpoints that other libraries publish: found, read, and accounted for."""

import contextlib
import importlib.util
import json
import math
import re
import reprlib
import zipfile
from pathlib import Path

from ..training import CheckpointError, read_tensors
from ..training.states import check_file, some

# The files of a model on the hub that are fetched; pickled weights only where there are no others.
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
        raise FileNotFoundError(
            f"there is no folder {name}, and the hub gave none: {reason(error)}"
        ) from error
    return found


def check_files(folder):
    """Checks that the files in ``folder`` that a model may be read from are regular files.

    Raises:
        FileNotFoundError, CheckpointError: naming the file.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if any(path.match(pattern) for pattern in (*FILES, "*.bin")):
            check_file(path)


def reason(error):
    """An error's message in one line of bounded length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 400 else f"{lines[0][:400]} ..."


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
            tensors, file = read(folder / name), folder / name
        elif index.is_file():
            tensors, file = read_shards(index, read), index
        else:
            continue
        # A shape with a 0 would claim any size without data.
        if empty := [name for name, array in tensors.items() if not array.size]:
            raise CheckpointError(f"{file}: {empty[0]!r:.100} is empty")
        return tensors, file
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
            raise CheckpointError(f"{index} names a file outside of its folder: {file!r:.100}")
        if not (index.parent / file).exists():
            raise CheckpointError(f"{index} names {file!r:.100}, which is not there")
        check_file(index.parent / file)
        held = read(index.parent / file)
        expected = {name for name, place in places.items() if place == file}
        if held.keys() != expected:
            differ = sorted(held.keys() ^ expected)
            raise CheckpointError(f"{index.parent / file} is not what the index says: {differ[:5]}")
        tensors |= held
    return tensors


def read_pickled(path):
    """The tensors of one of PyTorch's files, from which no code is run.

    Raises:
        FileNotFoundError: torch is not installed.
        CheckpointError: it holds something else than tensors, or they are larger than the file.
    """
    if importlib.util.find_spec("torch") is None:
        raise FileNotFoundError(
            f"{path} is read by torch, which is not installed. Where it is, it can be written as "
            "safetensors: the model's class in transformers, .from_pretrained(folder)"
            ".save_pretrained(folder)"
        )
    import torch

    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > size:
                    raise ValueError("it is compressed, which PyTorch's files are not")
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(name, str) for name in tensors):
            raise ValueError("its tensors have no names")
        # Tied weights share their data, so that they count several times.
        if sum(tensor.nbytes for tensor in tensors.values()) > 4 * size:
            raise ValueError("its tensors are larger than the file")
        return {name: tensor.float().numpy() for name, tensor in tensors.items()}
    except Exception as error:  # of pickle, of zip files, of torch
        raise CheckpointError(f"{path} is not a file of tensors: {reason(error)}") from error


@contextlib.contextmanager
def named(file):
    """Within it, an error in a configuration becomes a `CheckpointError` that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{file}: {reason(error)}") from None


class Settings:
    """The settings of a JSON file, each of which must be read: an unknown setting is an error."""

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
            raise self.error(name, said, reprlib.repr(value))

    def flag(self, name, default):
        """The same of what is True or False, and nothing else."""
        if type(said := self.get(name, default)) is not bool:
            raise self.error(name, said, "True or False")
        return said

    def error(self, name, said, rule):
        return CheckpointError(f"{self.file}: {name} must be {rule}: {reprlib.repr(said)}")

    def ignore(self, *names):
        self.unread.difference_update(names)

    def default(self, name, value):
        if name not in self.values:
            self.values[name] = value
            self.unread.add(name)

    def all_read(self):
        if self.unread:
            raise CheckpointError(f"{self.file} has unknown settings {some(sorted(self.unread))}")


def read_json(path):
    """The object in a JSON file, as a dictionary.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not JSON, not an object, or says something twice.
    """

    def once(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name occurs twice in an object")
        return found

    check_file(path)
    try:
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {reason(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a configuration: it holds a {type(content).__name__}")
    return content


def ends(settings, *default):
    """The end tokens of ``eos_token_id``, which may be one or a list; the first is the model's.

    Raises:
        CheckpointError: it is an empty list.
    """
    found = settings.get("eos_token_id", *default)
    if found == []:
        raise settings.error("eos_token_id", found, "a token, or a list of tokens")
    return found if isinstance(found, list) else [found]


def laid_out(shapes, tensors, rules, source, linear):
    """The published names and our shapes of ``shapes``, pairs of a variable's path and its shape.

    On the way, tensors that PyTorch laid out otherwise are reshaped in place: in ``tensors`` they
    have our layout after their turn. A kernel has the axes of PyTorch's weight split into heads;
    those of ``linear`` layers are (out, in) there, and are transposed. ``rules`` are pairs of a
    pattern and its replacement, applied one after the other.

    Raises:
        CheckpointError: naming a tensor of another shape.
    """
    for path, shape in shapes:
        name = published_name(path, rules)
        if name in tensors:
            array = tensors[name]
            if linear and path.endswith("kernel"):
                array = array.T
            splits = {(*shape[:i], math.prod(shape[i:])) for i in range(len(shape))}
            joins = {(math.prod(shape[:i]), *shape[i:]) for i in range(1, len(shape) + 1)}
            if array.shape not in splits | joins | {(1, *shape)}:
                raise CheckpointError(
                    f"{source}: {name} has shape {tensors[name].shape}, of {shape} here"
                )
            tensors[name] = array.reshape(shape)
        yield name, shape


def published_name(path, rules):
    """A variable's path, with each of the ``rules`` applied."""
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return path
