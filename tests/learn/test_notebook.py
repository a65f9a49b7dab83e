"""The committed notebook equals its source, and was executed without errors."""

import base64
import json
import os
import re
import subprocess
import sys

import pytest

from polyhead.learn import build, checks
from tests.test_package import ROOT

SOURCE = (ROOT / "learn" / "transformers.py").read_text("utf-8")
CELLS = build.cells(SOURCE)
BUILT = ROOT / "learn" / "transformers.ipynb"
# GitHub's renderer of mathematics does not know these.
UNSUPPORTED = (r"\newcommand", r"\label", r"\eqref", r"\ref{", "<script")


@pytest.fixture(scope="module")
def book():
    return json.loads(BUILT.read_text("utf-8"))


def outputs(book):
    return [output for cell in book["cells"] for output in cell.get("outputs", ())]


def test_the_notebook_equals_its_source(book):
    def parts(cell):
        return (
            cell["cell_type"],
            build.source_of(cell),
            cell["metadata"].get("tags", []),
            cell["id"],
        )

    assert [parts(c) for c in book["cells"]] == [parts(c) for c in CELLS]


def test_the_notebook_was_executed_from_top_to_bottom(book):
    counts = [c["execution_count"] for c in book["cells"] if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    found = outputs(book)
    assert not [o for o in found if o["output_type"] == "error" or o.get("name") == "stderr"]


def test_the_notebook_has_pictures_and_names_no_paths_or_addresses(book):
    pictures = [o for o in outputs(book) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 10
    for picture in pictures:
        assert base64.b64decode(picture["data"]["image/png"])[:4] == b"\x89PNG"
    written = BUILT.read_text("utf-8")
    assert not re.search(r"/(home|tmp|root|work|usr)/| at 0x", written)
    assert len(written.encode()) < 1_000_000


def test_lines_of_code_fit_on_a_page():
    wide = [
        line
        for cell in CELLS
        if cell["cell_type"] == "code"
        for line in cell["source"].splitlines()
        if len(line) > 79
    ]
    assert not wide


def test_no_cell_imports_a_module_that_a_file_of_the_folder_hides():
    """A kernel finds learn/transformers.py where a cell wants Hugging Face's transformers."""
    hidden = {path.stem for path in BUILT.parent.glob("*.py")} | {"checks"}
    code = "\n".join(c["source"] for c in CELLS if c["cell_type"] == "code")
    imported = set(re.findall(r"^\s*(?:import|from)\s+(\w+)", code, re.MULTILINE))
    assert "polyhead" in imported and not imported & hidden


def test_mathematics_renders_on_github():
    text = "\n".join(c["source"] for c in CELLS if c["cell_type"] == "markdown")
    assert not [command for command in UNSUPPORTED if command in text]
    assert text.count("$$") % 2 == 0


def test_every_exercise_has_a_cell_whose_stub_is_not_done_yet(book):
    names = [name for name, check in vars(checks).items() if hasattr(check, "__wrapped__")]
    for name in names:
        [cell] = [c for c in book["cells"] if re.search(rf"checks\.{name}\(", build.source_of(c))]
        said = "".join(text for o in cell["outputs"] for text in o["text"])
        assert said.splitlines()[-1].endswith(checks.NOT_DONE), name


def test_jupytext_reads_the_same_cells():
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed: EXTRAS=docs")
    read = jupytext.reads(SOURCE, "py:percent").cells
    assert [(c.cell_type, c.source) for c in read] == [(c["cell_type"], c["source"]) for c in CELLS]


@pytest.mark.slow
@pytest.mark.long
def test_the_whole_notebook_builds(tmp_path):
    pytest.importorskip("nbclient", reason="Jupyter is not installed: EXTRAS=learn")
    build.build(tmp_path / "built.ipynb")


@pytest.mark.slow
def test_the_source_runs_without_jupyter(tmp_path):
    """With FAST=1, which skips most of the training of the build above."""
    environment = {**os.environ, "FAST": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, ROOT / "learn" / "transformers.py"],
        cwd=ROOT / "learn",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
