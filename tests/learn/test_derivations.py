"""`make derivations` builds the PDF of learn/transformers.tex."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "texlive-latex-base",
    "texlive-latex-recommended",
    "texlive-pictures",
    "lmodern",
    "latexmk",
)


def make(folder, *arguments):
    command = ["make", "derivations", f"DERIVATIONS={folder}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_missing_latex_is_reported(tmp_path):
    result = make(tmp_path, f"LATEXMK={tmp_path}/missing")
    assert result.returncode != 0
    for package in PACKAGES:
        assert re.search(rf"\b{package}\b", result.stderr), result.stderr


@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_package_is_reported(tmp_path, missing):
    error = "! LaTeX Error: File `tikz.sty' not found." if missing else "! Undefined command."
    latexmk = tmp_path / "latexmk"
    latexmk.write_text(
        f"#!/bin/sh\n[ \"$1\" = -version ] && exit 0\ncat << 'END'\n{error}\nEND\nexit 12\n"
    )
    latexmk.chmod(0o755)
    result = make(tmp_path, f"LATEXMK={latexmk}")
    assert result.returncode != 0
    assert error.split(":")[0] in result.stderr
    assert ("texlive-pictures" in result.stderr) == missing, result.stderr


@pytest.mark.skipif(shutil.which("latexmk") is None, reason="LaTeX is not installed")
def test_the_text_compiles_without_warnings(tmp_path):
    result = make(tmp_path)
    assert result.returncode == 0, result.stderr
    log = (tmp_path / "transformers.log").read_text(errors="replace")
    log = log.replace("\n", "")  # LaTeX breaks lines after 79 characters
    assert "undefined" not in log
    assert "multiply" not in log
    wide = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)]
    assert max(wide, default=0) <= 5
    pages = int(re.search(r"Output written on .*?\((\d+) pages", log)[1])
    assert 16 <= pages <= 20
