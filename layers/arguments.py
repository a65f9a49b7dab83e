"""Arguments and settings as plain Python values."""

from typing import Any

import numpy as np

Tensor = Any  # a tensor of the backend or of Keras: they have no common type


def plain(value):
    """Converts NumPy scalars and arrays to Python numbers and lists, within lists and tuples too.

    A configuration with plain values can be compared, hashed and written to JSON.

    >>> plain((np.int64(3), np.float32(0.5)))
    (3, 0.5)
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


def plain_fields(settings):
    """Makes the fields of a dataclass `plain`; call it first in ``__post_init__``."""
    for name, value in vars(settings).items():
        object.__setattr__(settings, name, plain(value))
