"""Tests of the architecture (packages import only lower ones) and of the installed package."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The root package imports its public names by `importlib`, when they are used.
MAY_IMPORT = {
    "package": set(),
    "layers": set(),
    "data": {"files"},
    "training": {"files"},
    "serving": {"quiet"},  # the C++ loader filters TensorFlow's log lines itself
    "zoo": {"layers", "data", "training", "serving"},
    "recipes": {"zoo", "data", "training", "serving"},
    "learn": {"layers", "data", "training", "serving", "zoo", "recipes"},
}
# Packages that may import TensorFlow at the top of a file; `layers` must not import it at all.
TENSORFLOW = {"tensorflow", "tensorflow_text", "tensorflow_serving"}


def imports(path):
    """Yields (level, name, at the top) of each import in a file."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", node in tree.body
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name, node in tree.body) for alias in node.names)


SCRIPTS = {ROOT / "learn" / name for name in ("transformers.py", "build.py")}
FILES = [
    (folder, path)
    for folder in MAY_IMPORT
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path not in SCRIPTS  # they import polyhead as users do
]


@pytest.mark.parametrize("folder, path", FILES, ids=lambda x: x if isinstance(x, str) else x.name)
def test_packages_import_only_lower_ones(folder, path):
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


def test_the_package_list_equals_the_folders():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)
    inner = {p.parent.relative_to(ROOT) for f in folders for p in (ROOT / f).rglob("__init__.py")}
    packages = {".".join(("polyhead", *path.parts)) for path in inner - {Path("package")}}
    assert {"polyhead", *packages} == set(setuptools["packages"])
    installed = {f"polyhead.{f}": f for f in folders - {"package"}}
    assert {"polyhead": "package", **installed} == setuptools["package-dir"]
    assert not (ROOT / "polyhead").exists() and not (ROOT / "__init__.py").exists()


def test_all_versions_are_equal():
    import polyhead

    assert f"\nversion: {polyhead.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {polyhead.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_pinned_versions_satisfy_the_ranges():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines())
    pinned = {canonicalize_name(name): version for name, version in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        r for extra in ("test", "parity", "learn") for r in project["optional-dependencies"][extra]
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
def test_the_zoo_does_not_need_tensorflow(tmp_path):
    """Imports, builds, trains and saves on JAX, without tensorflow."""
    pytest.importorskip("jax", reason="jax is not installed: EXTRAS=parity")
    code = f"""
import sys
sys.modules["tensorflow"] = None
import numpy as np
from polyhead.zoo import Transformer
sizes = dict(num_layers=1, dim=16, intermediate_dim=16, num_heads=2, vocab_size=20)
model = Transformer.preset("tiny", **sizes)
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


FOLDERS = ("package", "layers", "data", "zoo", "training", "serving", "recipes", "learn")
# Prints the folder that polyhead was imported from.
USE = """
import sys
from pathlib import Path
import polyhead
assert not {"keras", "tensorflow", "numpy"} & set(sys.modules)
assert polyhead.layers.MultiHeadAttention and polyhead.layers.PositionalEmbedding
assert polyhead.GPT is polyhead.zoo.GPT and polyhead.ContractError.__name__ == "ContractError"
from polyhead.serving.export import export
from polyhead.recipes.command import app
from polyhead.recipes.translation import find_data
assert len(polyhead.data.read_split(find_data("sample"), "train", "en", "de")) == 4000
print(Path(polyhead.__file__).parent)
"""


@pytest.fixture
def hostile(tmp_path):
    """A working directory with user files that are named like our folders."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in FOLDERS:
        (folder / f"{name}.py").write_text("raise RuntimeError('a file of the user')")
    return folder


def use(code, folder):
    """Runs code in a folder, which Python searches first; returns its output."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_a_missing_library_skips_no_tests_above_the_line_that_asks_for_it():
    for path in (ROOT / "tests").rglob("test_*.py"):
        lines = ast.parse(path.read_text("utf-8")).body
        tests = [x.lineno for x in lines if isinstance(x, ast.FunctionDef) and "test_" in x.name]
        asking = [
            x.lineno
            for x in lines
            if isinstance(x, ast.Assign | ast.Expr) and "importorskip" in ast.dump(x)
        ]
        assert not asking or max(asking) < min(tests), path


@pytest.mark.slow
def test_the_editable_install_works_beside_user_files_and_in_the_checkout(hostile):
    for folder in (hostile, ROOT):
        assert use(USE, folder) == str(ROOT / "package")


@pytest.mark.slow
def test_the_wheel_works_beside_user_files_and_in_the_checkout(hostile, tmp_path):
    built, target = tmp_path / "built", tmp_path / "target"
    build = ["build", "--wheel", "--no-isolation", "--outdir", built, ROOT]
    subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    without_editable = f"""
import sys
sys.path[:] = [p for p in sys.path if "__editable__" not in p]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
sys.path.insert(1, {str(target)!r})
"""
    for folder in (hostile, ROOT):
        assert use(without_editable + USE, folder) == str(target / "polyhead")
    assert {path.name for path in (target / "polyhead").glob("*py*")} >= {
        "py.typed",
        "__init__.pyi",
    }
    [about] = target.glob("polyhead-*.dist-info")
    code = "import polyhead; print(polyhead.__version__)"
    assert about.name == f"polyhead-{use(without_editable + code, hostile)}.dist-info"
