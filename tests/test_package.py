"""The architecture of design.md, held: imports flow one way, and what is installed is whole."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "layers": set(),
    "data": set(),
    "training": set(),
    "serving": set(),
    "zoo": {"layers", "data", "training", "serving"},
    "recipes": {"zoo", "data", "training", "serving"},
}
# What every folder imports first. It imports nothing of polyhead, Keras or TensorFlow.
QUIET = ("serving", {"quiet"})
# Where TensorFlow may stand at the top of a file; `zoo` and `layers` have none anywhere.
TENSORFLOW = {"tensorflow", "tensorflow_text", "tensorflow_serving"}


def imports(path):
    """(level, name, at the top) of each import in a file, except of `QUIET`."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if (node.module, {alias.name for alias in node.names}) == QUIET:
                continue
            yield node.level, node.module or "", node in tree.body
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name, node in tree.body) for alias in node.names)


FILES = [(folder, path) for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("folder, path", FILES, ids=lambda x: x if isinstance(x, str) else x.name)
def test_imports_flow_one_way(folder, path):
    within = len(path.relative_to(ROOT / folder).parts) - 1  # folders between
    for level, name, top in imports(path):
        level, first = max(level - within, level and 1), name.split(".")[0]
        assert first != "polyhead", f"{path}: imports inside are relative"
        if level > 1 or first in MAY_IMPORT and level == 0:
            assert first in MAY_IMPORT[folder], f"{path}: {folder} must not import {first}"
        if folder in ("layers", "zoo"):
            assert first not in TENSORFLOW, f"{path}: {folder} is keras.ops"
            if folder == "zoo" and level == 2 and first in ("data", "serving"):
                assert not top, f"{path}: zoo imports {first} only when a method is called"


def test_packages_are_the_folders():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)
    packages = {
        p.parent.relative_to(ROOT) for f in folders for p in (ROOT / f).rglob("__init__.py")
    }
    assert {".".join(("polyhead", *p.parts)) for p in packages} == set(setuptools["packages"])
    assert {f"polyhead.{f}": f for f in folders} == setuptools["package-dir"]
    assert not (ROOT / "polyhead").exists() and not (ROOT / "__init__.py").exists()


def test_exact_versions_meet_the_ranges():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines())
    pinned = {canonicalize_name(name): version for name, version in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        r for extra in ("test", "parity") for r in project["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), (
            requirement
        )


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from polyhead.recipes.command import main\n"
        "for command in ('train translation', 'evaluate', 'predict', 'generate', 'models'):\n"
        "    sys.argv = ['polyhead', *command.split(), '--help']\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'matplotlib', 'sacrebleu'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "Ctrl-C" in done.stdout and "--restart" in done.stdout


@pytest.mark.slow
def test_the_zoo_needs_no_tensorflow(tmp_path):
    """Imports, builds, trains and saves on JAX with tensorflow blocked from import."""
    pytest.importorskip("jax", reason="jax is not installed: EXTRAS=parity")
    code = f"""
import sys
sys.modules["tensorflow"] = None
import numpy as np
from polyhead.zoo import Transformer
model = Transformer.preset("tiny", num_layers=1, dim=16, hidden_dim=16, num_heads=2, vocab_size=20)
model.compile()
x = np.random.randint(3, 20, (8, 5))
before = model.get_weights()[0]
model.fit({{"source": x, "target": x}}, x, sample_weight=np.ones((8, 5)), epochs=2, verbose=0)
assert abs(model.get_weights()[0] - before).max() > 0
model.save_pretrained({str(tmp_path / "saved")!r})
again = Transformer.from_pretrained({str(tmp_path / "saved")!r})
a, b = (np.asarray(m({{"source": x, "target": x}})) for m in (model, again))
assert (a == b).all()
"""
    done = run(code, KERAS_BACKEND="jax")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_wheel_is_whole_beside_a_users_own_layers(tmp_path):
    built = tmp_path / "built"
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", built, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = built.glob("*.whl")
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    elsewhere.mkdir()
    for name in ("layers", "data", "zoo", "training", "serving", "recipes"):
        (elsewhere / f"{name}.py").write_text("raise RuntimeError('a file of the user')")
    code = f"""
import sys
sys.path[:] = [p for p in sys.path if {str(ROOT)!r} != p and "__editable__" not in p]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
sys.path.insert(0, {str(target)!r})
from polyhead.zoo import Transformer
from polyhead.serving.export import export
from polyhead.recipes.command import app
from polyhead.data import read_split
from polyhead.recipes.translation import folder_of
import polyhead.layers
assert polyhead.layers.__file__.startswith({str(target)!r}), polyhead.layers.__file__
assert len(read_split(folder_of("sample"), "train", "en", "de")) == 4000
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
