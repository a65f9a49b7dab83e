"""Arguments and settings as plain Python values."""

from typing import Any

import numpy as np

Tensor = Any  # the backend's or Keras's: they have no common type


def plain(value):
    """``value`` with NumPy's scalars and arrays as Python's numbers and lists.

    What a configuration stores must be equal, hash and be written to JSON like Python's own.
    Applies within lists and tuples.

    >>> plain((np.int64(3), np.float32(0.5)))
    (3, 0.5)
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


def plain_fields(settings):
    """Makes the fields of a dataclass `plain`, for the beginning of its ``__post_init__``."""
    for name, value in vars(settings).items():
        object.__setattr__(settings, name, plain(value))
