"""The teaching module: a notebook, its exercises with checks, and derivations.

Start with `learn/README.md`. Its modules are imported on first use.
"""

import importlib

__all__ = ["checks", "show", "solutions"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__():
    return sorted([*globals(), *__all__])
