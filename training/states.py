"""Named tensors in safetensors files: weights, and the state of training runs."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..files import write_file


class CheckpointError(ValueError):
    """A checkpoint is invalid; the message names the file, and the tensor or the setting."""


def write_tensors(
    path: str | PathLike[str], tensors: Mapping[str, Any], about: object = None
) -> None:
    """Writes ``{name: array}`` and, as JSON in the header, ``about``; atomically.

    >>> polyhead.training.write_tensors("x.safetensors", {"x": np.ones(2)}, about="an example")
    """
    arrays = {name: np.array(value, order="C") for name, value in tensors.items()}
    # Other libraries require a format; PyTorch's has the same bytes.
    write_file(path, save(arrays, metadata={"format": "pt", "polyhead": json.dumps(about)}))


def read_tensors(path: str | PathLike[str]) -> tuple[dict[str, np.ndarray], Any]:
    """Reads the ``{name: array}`` of a file, and the ``about`` that was written with them.

    >>> polyhead.training.write_tensors("x.safetensors", {"x": np.ones(2)}, about="an example")
    >>> polyhead.training.read_tensors("x.safetensors")
    ({'x': array([1., 1.])}, 'an example')

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is not a complete safetensors file.
    """
    check_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            about = (file.metadata() or {}).get("polyhead", "null")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(about)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} has tensors of an unknown type: {error}") from error


def check_file(path):
    """Checks that a path is a regular file: a folder cannot be read, and a pipe would block.

    Raises:
        FileNotFoundError: the path does not exist, or is a broken link.
        CheckpointError: the path is not a regular file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")


def by_path(variables):
    """``{path: variable}``; paths name the tensors in files, so duplicates are an error."""
    named = {}
    for variable in variables:
        if variable.path in named:
            raise ValueError(f"two variables have the path {variable.path}")
        named[variable.path] = variable
    return named


def random_states(model):
    """The states of the model's random generators; they are not weights."""
    weights = {id(v) for v in model.weights + model.metrics_variables}
    return [v for v in model.variables if id(v) not in weights]


def some(names):
    """Formats the first of ``names`` and the number of the others."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{names[:5]}{more}"


def check_names(missing, unread, source):
    """Raises a `CheckpointError` if tensors are missing or left over."""
    parts = [f"it lacks {some(missing)}"] if missing else []
    parts += [f"the model has no {some(unread)}"] if unread else []
    if parts:
        raise CheckpointError(f"{source} does not fit the model: {', and '.join(parts)}")


def check_shapes(shapes, tensors, source):
    """Checks that ``tensors`` has every name of ``shapes``, with that shape.

    Args:
        shapes: pairs of a name and a shape. May be an endless iterator: the check stops at the
            sixth missing name.

    Raises:
        CheckpointError: a tensor is missing or has another shape; the message names it.
    """
    missing = []
    for name, shape in shapes:
        if name not in tensors:
            missing.append(name)
            if len(missing) > 5:
                break
        elif tensors[name].shape != tuple(shape):
            raise CheckpointError(
                f"{source}: {name} has shape {tensors[name].shape}, the model's is {tuple(shape)}"
            )
    if missing:
        more = " and more" if len(missing) > 5 else ""
        raise CheckpointError(f"{source} does not fit the model: it lacks {missing[:5]}{more}")


def check_values(variable, name, array, source):
    """Checks that array and variable are both floating or both not, and that values are finite.

    Raises:
        CheckpointError: the message names the tensor.
    """
    kind, ours = (keras.backend.standardize_dtype(x.dtype) for x in (array, variable))
    if ("float" in kind) != ("float" in ours):
        raise CheckpointError(f"{source}: {name} has type {kind}, the model's is {ours}")
    if "float" in ours and array.size:
        # Finite in the variable's type; NaN is both minimum and maximum.
        with np.errstate(over="ignore", invalid="ignore"):
            ends = np.array([array.min(), array.max()]).astype(ours)
        if not np.isfinite(ends.astype("float64")).all():
            raise CheckpointError(f"{source}: {name} has values that are not finite in {ours}")


def assign(variables, tensors, source, unchecked=()):
    """Assigns ``{name: array}`` to ``{name: variable}``, all of them or none.

    Arrays are removed from ``tensors`` one by one, so that memory does not hold all of them twice.

    Args:
        unchecked: prefixes of the names of tensors that may be non-finite.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or type, or non-finite;
            the message names it.
    """
    missing, unread = set(variables) - set(tensors), set(tensors) - set(variables)
    check_names(sorted(missing), sorted(unread), source)
    check_shapes(((name, v.shape) for name, v in variables.items()), tensors, source)
    for name, variable in variables.items():
        if not name.startswith(unchecked):
            check_values(variable, name, tensors[name], source)
    for name, variable in variables.items():
        variable.assign(tensors.pop(name))
