"""Builds the notebook from its source: executes all cells, and keeps their output.

    python learn/build.py              # learn/transformers.py -> learn/transformers.ipynb
    FAST=1 python learn/build.py OUT   # a shorter run, for tests, written to OUT

The source is in the percent format of Jupytext: "# %%" begins a cell of code, "# %% [markdown]" one
of text, whose lines are comments; `tags=["measured"]` in the marker sets tags. Two builds give the
same bytes: cells have fixed ids, and there are no times. Cells that print or draw measured times
have the tag "measured"; their outputs are kept from the previous build unless MEASURE=1.
"""

import base64
import io
import json
import os
import re
import sys
from pathlib import Path

from polyhead.training import write_file  # pyright: ignore[reportMissingImports]  (a script)

SOURCE = Path(__file__).with_name("transformers.py")
MARKER = re.compile(r"# %%(?P<text> \[markdown\])?(?: tags=(?P<tags>\[.*\]))?")
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
COLORS = 128  # of a figure: fewer bytes, and no visible difference


def cells(source: str) -> list[dict]:
    """The cells of a source, in the format of notebooks (nbformat 4.5).

    >>> [cell["source"] for cell in cells("# %% [markdown]\\n# # Title\\n\\n# %%\\nx = 1\\n")]
    ['# Title', 'x = 1']
    """
    found = []
    for line in source.splitlines():
        if marker := MARKER.fullmatch(line):
            tags = json.loads(marker["tags"] or "[]")
            cell = {
                "cell_type": "markdown" if marker["text"] else "code",
                "id": f"cell-{len(found):03}",
                "metadata": {"tags": tags} if tags else {},
                "source": [],
            }
            if not marker["text"]:
                cell |= {"execution_count": None, "outputs": []}
            found.append(cell)
        elif found:
            cell = found[-1]
            is_text = cell["cell_type"] == "markdown"
            cell["source"].append(re.sub("^# ?", "", line) if is_text else line)
    for cell in found:
        cell["source"] = "\n".join(cell["source"]).strip("\n")
    return found


def execute(book: dict, folder: Path) -> dict:
    """Runs all cells of a notebook in one kernel, in ``folder``; raises if one fails."""
    import nbformat  # pyright: ignore[reportMissingImports]  (in the extra learn)
    from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]

    node = nbformat.from_dict(book)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(node, timeout=900, record_timing=False, resources=resources)
    client.execute()
    return json.loads(nbformat.writes(node))


def clean(cell: dict, previous: dict) -> None:
    """Removes what differs between runs from the outputs of a cell of code.

    ``previous`` maps the source of measured cells to their outputs in the last build.
    """
    is_measured = "measured" in cell["metadata"].get("tags", [])
    if is_measured and source_of(cell) in previous and "MEASURE" not in os.environ:
        cell["outputs"] = previous[source_of(cell)]
        return
    # Libraries' log lines go; printed text that they were between is one output again.
    kept = []
    for output in cell["outputs"]:
        if output.get("name") == "stderr":
            continue
        if kept and output.get("name") == kept[-1].get("name") == "stdout":
            text = "".join([*kept[-1]["text"], *output["text"]])
            kept[-1]["text"] = text.splitlines(keepends=True)
        else:
            kept.append(output)
    cell["outputs"] = kept
    for output in kept:
        data = output.get("data", {})
        if "image/png" in data:
            data["image/png"] = reduce_colors(data["image/png"])
            data.pop("text/plain", None)  # "<Figure size 640x480 with 1 Axes>"


def source_of(cell: dict) -> str:
    """The source of a cell: a string, or lines of a file."""
    return "".join(cell["source"])


def reduce_colors(png: str) -> str:
    """A PNG (base64) with a palette of `COLORS` colors."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image = image.quantize(COLORS, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def build(target: Path, source: Path = SOURCE) -> None:
    """Executes ``source`` and writes the notebook ``target``."""
    book = {
        "cells": cells(source.read_text("utf-8")),
        "metadata": KERNEL,
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    previous = {}
    if target.exists():
        old = json.loads(target.read_text("utf-8"))["cells"]
        previous = {source_of(cell): cell["outputs"] for cell in old if cell.get("outputs")}
    book = execute(book, source.parent)
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            clean(cell, previous)
    book["metadata"] = KERNEL  # without the versions that the kernel reports
    lines = json.dumps(book, ensure_ascii=False, indent=1, sort_keys=True)
    write_file(target, f"{lines}\n".encode())


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE.with_suffix(".ipynb"))
