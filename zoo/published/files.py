"""Finds and checks the files of a checkpoint, and reads them one tensor at a time."""

import contextlib
import importlib.util
import json
import math
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ...training import CheckpointError
from ...training.states import check_file

# The files that are downloaded from the hub; pickled weights only if there are no others.
ARCHIVE = ".npz"  # a file that is a checkpoint by itself
FILES = ("*.json", "*.txt", "*.spm", "*.model", "*.safetensors")


def find_folder(name):
    """Returns the folder or file ``name``; if there is none, downloads the model from the hub.

    Raises:
        FileNotFoundError: neither exists, or the hub cannot be reached.
    """
    folder = Path(name)
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)) and folder.suffix != ARCHIVE
    if folder.exists() or not is_name:
        return folder
    if importlib.util.find_spec("huggingface_hub") is None:
        raise FileNotFoundError(
            f"there is no folder {name}; to download a model of this name from the hub, install "
            "polyhead[hub]"
        )
    import huggingface_hub

    try:
        found = Path(huggingface_hub.snapshot_download(str(name), allow_patterns=FILES))
        if not list(found.glob("*.safetensors")):
            found = Path(huggingface_hub.snapshot_download(str(name), allow_patterns="*.bin"))
    except Exception as error:  # of huggingface_hub, of requests or of the file system
        raise FileNotFoundError(
            f"there is no folder {name}, and the download from the hub failed: {reason(error)}"
        ) from error
    return found


def check_files(folder):
    """Checks that the files of a checkpoint in ``folder`` are regular files.

    Raises:
        FileNotFoundError, CheckpointError: a file is not; the message names it.
    """
    if folder.suffix == ARCHIVE:
        check_file(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if any(path.match(pattern) for pattern in (*FILES, "*.bin")):
            check_file(path)


def reason(error):
    """An error's message as one line of at most 400 characters."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 400 else f"{line[:400]} ..."


@contextlib.contextmanager
def naming_errors(file):
    """Turns an error in a configuration into a `CheckpointError` that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{file}: {reason(error)}") from None


def read_json(path, kind=dict):
    """Reads a JSON object as a dictionary, or a list of objects if ``kind`` is `list`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not JSON, not of this kind, or has a duplicate name.
    """

    def once(pairs):
        result = dict(pairs)
        if len(result) < len(pairs):
            raise ValueError("a name occurs twice in an object")
        return result

    check_file(path)
    try:
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {reason(error)}") from None
    for value in content if kind is list and isinstance(content, list) else [content]:
        if not isinstance(value, dict):
            raise CheckpointError(
                f"{path} is not a configuration: it holds a {type(value).__name__}"
            )
    if not isinstance(content, kind):
        raise CheckpointError(f"{path} is not a list: it holds a {type(content).__name__}")
    return content


class Header(NamedTuple):
    """The header of a tensor, which is read before its values."""

    shape: tuple


class SafeTensors:
    """A safetensors file: ``headers`` of all tensors, and `read` for the values of one tensor.

    The file is opened again for each tensor, because the pages that were read use memory until it
    is closed.

    Raises:
        CheckpointError: it is not a complete safetensors file.
    """

    def __init__(self, path):
        self.path = path
        with self._open() as file:
            self.headers = {
                name: Header(tuple(file.get_slice(name).get_shape())) for name in file.keys()
            }

    @contextlib.contextmanager
    def _open(self):
        try:
            with safe_open(self.path, framework="numpy") as file:
                yield file
        except (SafetensorError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path} is not a complete safetensors file: {error}"
            ) from error
        except (AttributeError, TypeError) as error:
            raise CheckpointError(f"{self.path} has tensors of an unknown type: {error}") from error

    def read(self, name):
        with self._open() as file:
            return file.get_tensor(name)


class Pickled:
    """A PyTorch file, with the interface of `SafeTensors`. No code in it is run.

    The file is opened again after each 50 MB, because the pages that were read use memory until it
    is closed. Files from before PyTorch 1.6 are in memory as a whole.

    Raises:
        FileNotFoundError: torch is not installed.
        CheckpointError: it holds something other than tensors, or they are larger than the file.
    """

    PAGES = 50e6  # bytes

    def __init__(self, path):
        if importlib.util.find_spec("torch") is None:
            raise FileNotFoundError(
                f"{path} is read by torch, which is not installed: install it, or convert the file "
                "to safetensors with the model's class in transformers, .from_pretrained(folder)"
                ".save_pretrained(folder)"
            )
        size = path.stat().st_size
        self.path = path
        try:
            self._is_mapped = zipfile.is_zipfile(path)
            if self._is_mapped:
                with zipfile.ZipFile(path) as entries:
                    if sum(entry.file_size for entry in entries.infolist()) > size:
                        raise ValueError("it is compressed, which PyTorch's files are not")
            self._open()
            tensors = self._tensors
            if not all(isinstance(name, str) for name in tensors):
                raise ValueError("its tensors have no names")
            # Tied weights share their data, but are counted several times.
            if sum(tensor.nbytes for tensor in tensors.values()) > 4 * size:
                raise ValueError("its tensors are larger than the file")
            self.headers = {name: Header(tuple(tensor.shape)) for name, tensor in tensors.items()}
        except Exception as error:  # of pickle, of zip files, of torch
            raise CheckpointError(f"{path} is not a file of tensors: {reason(error)}") from error

    def _open(self):
        import torch

        mapped = self._is_mapped
        self._tensors = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
        self._pages = 0

    def read(self, name):
        import torch

        if self._is_mapped and self._pages > self.PAGES:
            self._tensors = None
            self._open()
        tensor = self._tensors[name]
        self._pages += tensor.nbytes
        return tensor.to(torch.float32, copy=True).numpy()


class Archive:
    """A NumPy file (.npz), with the interface of `SafeTensors`. No code in it is run.

    Raises:
        CheckpointError: it is not a file of float arrays, or one is compressed.
    """

    def __init__(self, path):
        self.path, self.headers = path, {}
        with self._open() as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise ValueError(f"{entry.filename} is not an uncompressed array of floats")
                with archive.open(entry) as file:
                    shape, dtype = read_header(file)
                    size = file.tell() + math.prod(shape) * dtype.itemsize
                if dtype.kind != "f" or not size == entry.file_size == entry.compress_size:
                    raise ValueError(f"{entry.filename} is not an uncompressed array of floats")
                self.headers[entry.filename.removesuffix(".npy")] = Header(tuple(shape))

    @contextlib.contextmanager
    def _open(self):
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (ValueError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{self.path} is not an .npz file: {reason(error)}") from error

    def read(self, name):
        with self._open() as archive, archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def read_header(file):
    """The shape and the dtype of a NumPy array in a file."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}.get(version)
    if read is None:
        raise ValueError(f"the version of an array is {version}")
    shape, _, dtype = getattr(np.lib.format, read)(file)
    return shape, dtype


class Tensors:
    """The tensors of a checkpoint in ``folder``, in one file or in shards; or an .npz file.

    ``headers`` are ``{name: Header}``; ``file`` is the file that error messages name.

    Raises:
        FileNotFoundError: there are no weights, or they need torch.
        CheckpointError: a file is invalid, or does not match the index.
    """

    def __init__(self, folder):
        self.file, self._shards = open_files(folder)
        self.headers = {
            name: header for shard in self._shards for name, header in shard.headers.items()
        }
        # A shape with a 0 would claim any size without data.
        if empty := [name for name, header in self.headers.items() if 0 in header.shape]:
            raise CheckpointError(f"{self.file}: {empty[0]!r:.100} is empty")

    def read(self, name):
        return next(shard for shard in self._shards if name in shard.headers).read(name)


def open_files(folder):
    """The file that error messages name, and the opened files."""
    if folder.suffix == ARCHIVE:
        return folder, [Archive(folder)]
    for name, kind in (("model.safetensors", SafeTensors), ("pytorch_model.bin", Pickled)):
        file, index = folder / name, folder / f"{name}.index.json"
        if file.is_file():
            return file, [kind(file)]
        if index.is_file():
            return index, list(open_shards(index, kind))
    others = sorted(path.name for path in folder.glob("*.bin"))
    raise FileNotFoundError(
        f"{folder} has no model.safetensors{f', but {others}' if others else ''}"
    )


def open_shards(index, kind):
    """Opens the files that an index names, and checks that each holds the tensors it should."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise CheckpointError(f"{index} has no weight_map of names to files")
    for file in sorted(set(places.values())):
        if Path(file).name != file or file.startswith("."):
            raise CheckpointError(f"{index} names a file outside of its folder: {file!r:.100}")
        path = index.parent / file
        if not path.exists():
            raise CheckpointError(f"{index} names {file!r:.100}, which is not there")
        check_file(path)
        shard = kind(path)
        expected = {name for name, place in places.items() if place == file}
        if shard.headers.keys() != expected:
            differ = sorted(shard.headers.keys() ^ expected)
            raise CheckpointError(f"{path} is not what the index says: {differ[:5]}")
        yield shard
