"""The notebook is built from its source, and two builds are equal."""

import base64
import io

import numpy as np
import pytest

from polyhead.learn import build

SOURCE = """# %% [markdown]
# # Title
#
# A line, and $x_1$.

# %%
def f(x):
    return x


# %% tags=["measured"]
print(f(1))
"""


def stream(name, *lines):
    return {"output_type": "stream", "name": name, "text": list(lines)}


def measured(text):
    return {"source": "x", "metadata": {"tags": ["measured"]}, "outputs": [stream("stdout", text)]}


def test_the_percent_format_has_cells_of_text_and_code():
    text, code, last = build.cells(SOURCE)
    assert text["cell_type"] == "markdown" and text["source"] == "# Title\n\nA line, and $x_1$."
    assert code["cell_type"] == "code" and code["source"] == "def f(x):\n    return x"
    assert last["metadata"] == {"tags": ["measured"]} and last["source"] == "print(f(1))"
    assert [cell["id"] for cell in (text, code, last)] == ["cell-000", "cell-001", "cell-002"]


def test_log_lines_are_removed_and_printed_text_is_joined():
    outputs = [
        stream("stdout", "a\n", "b"),
        stream("stderr", "a log line\n"),
        stream("stdout", "c"),
    ]
    cell = {"source": "x", "metadata": {}, "outputs": outputs}
    build.clean(cell, {})
    assert cell["outputs"] == [stream("stdout", "a\n", "bc")]


def test_measured_outputs_are_kept_unless_measured_again(monkeypatch):
    monkeypatch.delenv("MEASURE", raising=False)
    cell, old = measured("new"), [stream("stdout", "old")]
    build.clean(cell, {"x": old})
    assert cell["outputs"] == old
    monkeypatch.setenv("MEASURE", "1")
    cell = measured("new")
    build.clean(cell, {"x": old})
    assert cell["outputs"] == [stream("stdout", "new")]


def test_figures_have_few_colors():
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype("uint8")
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    reduced = base64.b64decode(build.reduce_colors(base64.b64encode(content.getvalue()).decode()))
    assert len(Image.open(io.BytesIO(reduced)).getcolors()) <= build.COLORS
    assert len(reduced) < len(content.getvalue()) / 3


@pytest.mark.slow
def test_two_builds_are_equal(tmp_path):
    pytest.importorskip("nbclient", reason="Jupyter is not installed: EXTRAS=learn")
    (tmp_path / "book.py").write_text(SOURCE)
    for name in ("first", "second"):
        build.build(tmp_path / f"{name}.ipynb", tmp_path / "book.py")
    first, second = ((tmp_path / f"{name}.ipynb").read_bytes() for name in ("first", "second"))
    assert first == second and b"1\\n" in first
