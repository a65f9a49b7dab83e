"""Public classes and functions have types, and examples that run."""

import doctest
import importlib
import inspect
import json
import os
import pkgutil
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import polyhead
from tests.test_package import ROOT

# What each subpackage exports. `serving` imports nothing heavy, so its names are in its modules.
PUBLIC = {name: None for name in ("layers", "data", "training", "zoo")} | {
    "serving.contract": ("ContractError", "check_operations"),
    "serving.export": ("export",),
    "serving.formats": ("FormatError", "export_network"),
    "serving.loader": ("SavedModel",),
}
# Examples that take more than a second.
SLOW = ("Checkpoints", "check_operations", "export", "fit")


def public():
    """Yields (subpackage, name, object) of the public classes and functions."""
    for path, names in PUBLIC.items():
        module = importlib.import_module(f"polyhead.{path}")
        for name in names or module.__all__:
            yield path, name, getattr(module, name)


def methods(cls):
    """Yields the public methods of a class that do not override those of other libraries."""
    for name, member in vars(cls).items():
        own = all(
            base.__module__.startswith("polyhead") or not hasattr(base, name)
            for base in cls.__mro__[1:-1]
        )
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if inspect.isfunction(function) and (
            name == "__init__" or own and (name == "__call__" or not name.startswith("_"))
        ):
            yield name, function


def untyped(function):
    """The parameters, and "return", that have no annotation."""
    signature = inspect.signature(inspect.unwrap(function))
    names = [
        p.name
        for p in signature.parameters.values()
        if p.annotation is p.empty and p.name not in ("self", "cls")
    ]
    return names + ["return"] * (signature.return_annotation is signature.empty)


def test_public_signatures_are_typed():
    found = {}
    for path, name, thing in public():
        functions = {name: thing}
        if inspect.isclass(thing):
            functions = {f"{name}.{method}": f for method, f in methods(thing)}
            if issubclass(thing, tuple | Exception):
                functions.pop(f"{name}.__init__", None)
        found |= {f"{path}.{k}": untyped(f) for k, f in functions.items() if untyped(f)}
    assert not found


@pytest.mark.slow
def test_pyright_finds_every_public_name_and_checks_arguments(tmp_path):
    package = tmp_path / "packages" / "polyhead"
    shutil.copytree(ROOT / "package", package)
    for name in polyhead.SUBPACKAGES:
        shutil.copytree(ROOT / name, package / name, ignore=lambda *_: ["samples"])
    names = [name for names in polyhead.PUBLIC.values() for name in names]
    right = ["import polyhead", "import polyhead.serving.export", "print(polyhead.__version__)"]
    right += [f"print(polyhead.{name})" for name in names]
    right += [f"print(polyhead.{path}.{name})" for path, name, _ in public() if "." not in path]
    wrong = ["polyhead.training.strategy('2')", "polyhead.load(3)", "print(polyhead.Bort)"]
    (tmp_path / "user.py").write_text("\n".join([*right, *wrong, ""]))
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "pyright",
            "--outputjson",
            "--pythonpath",
            sys.executable,
            "user.py",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
    )
    errors = [e for e in json.loads(found.stdout)["generalDiagnostics"] if e["severity"] == "error"]
    lines = [e["range"]["start"]["line"] for e in errors]
    assert lines == [len(right) + i for i in range(len(wrong))], errors


def test_everything_public_has_an_example():
    without = [
        f"{path}.{name}"
        for path, name, thing in public()
        if not (inspect.isclass(thing) and issubclass(thing, Exception))
        and ">>>" not in (thing.__doc__ or "")
    ]
    assert not without


def examples():
    """Yields the examples of all docstrings."""
    finder = doctest.DocTestFinder()
    for name in polyhead.SUBPACKAGES:
        package = importlib.import_module(f"polyhead.{name}")
        modules = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        # Importing the source of the notebook would run it.
        skipped = ("__main__", "learn.transformers")
        names = [m.name for m in modules if not m.name.endswith(skipped)]
        for module in map(importlib.import_module, [package.__name__, *names]):
            yield from (test for test in finder.find(module) if test.examples)


def run(selected, tmp_path, monkeypatch):
    """Runs examples, each in an empty folder; returns their number and the differences.

    They can use the names of their module and those below.
    """
    names = {"keras": keras, "np": np, "polyhead": polyhead, "tf": tf}
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    runner, output = doctest.DocTestRunner(optionflags=options, verbose=False), []
    for i, test in enumerate(selected):
        folder = tmp_path / str(i)
        folder.mkdir()
        monkeypatch.chdir(folder)
        test.globs |= names
        runner.run(test, out=output.append)
    return runner.tries, "".join(output)


def is_slow(test):
    return test.name.split(".")[-1] in SLOW


def test_examples_print_the_shown_output(tmp_path, monkeypatch):
    count, differences = run((t for t in examples() if not is_slow(t)), tmp_path, monkeypatch)
    assert count > 30 and not differences, differences


@pytest.mark.slow
def test_slow_examples_print_the_shown_output(tmp_path, monkeypatch):
    count, differences = run(filter(is_slow, examples()), tmp_path, monkeypatch)
    assert count > 10 and not differences, differences
