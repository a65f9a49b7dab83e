"""Tensors by name in safetensors files: weights, and the whole state of a training."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save


class CheckpointError(ValueError):
    """A checkpoint that is not what it should be: the message names the file and the tensor."""


def write_tensors(path, tensors, about=None):
    """Writes ``{name: array}`` and, as JSON in the header, ``about``: complete or not at all."""
    arrays = {name: np.array(value, order="C") for name, value in tensors.items()}
    # Other libraries ask for a format: PyTorch's differs in nothing.
    write_file(path, save(arrays, metadata={"format": "pt", "polyhead": json.dumps(about)}))


def write_file(path, content):
    """Writes bytes: the file appears complete or not at all."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_tensors(path):
    """The ``{name: array}`` of a file, and what it holds about them."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = (file.metadata() or {}).get("polyhead", "null")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(about)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is no complete safetensors file: {error}") from error
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} has tensors of a type unknown here: {error}") from error


def by_path(variables):
    """``{path: variable}``; the paths are the format, so two alike are an error."""
    named = {}
    for variable in variables:
        if variable.path in named:
            raise ValueError(f"two variables have the path {variable.path}")
        named[variable.path] = variable
    return named


def random_states(model):
    """The states of the model's random generators, which are not among its weights."""
    weights = {id(v) for v in model.weights + model.metrics_variables}
    return [v for v in model.variables if id(v) not in weights]


def some(names):
    """The first of ``names``, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{names[:5]}{more}" if names else "nothing else"


def assign(variables, tensors, source):
    """Gives ``{name: variable}`` the values ``{name: array}``, all of them or none.

    It takes them out of ``tensors`` one by one, so that memory does not hold all of them twice.

    Raises:
        CheckpointError: naming what is missing, left over, or of another shape.
    """
    missing = sorted(set(variables) - set(tensors))
    unread = sorted(set(tensors) - set(variables))
    if missing or unread:
        raise CheckpointError(
            f"{source} does not fit the model: it lacks {some(missing)}, "
            f"and the model has no {some(unread)}"
        )
    for name, variable in variables.items():
        if tuple(variable.shape) != tensors[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tensors[name].shape}, "
                f"the model's is {tuple(variable.shape)}"
            )
    for name, variable in variables.items():
        variable.assign(tensors.pop(name))
