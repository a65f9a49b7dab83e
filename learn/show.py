"""What the cells of the notebook share: comparing arrays, and drawing matrices."""

import time

import numpy as np
from keras import ops


def array(x):
    """A NumPy array of a tensor."""
    return ops.convert_to_numpy(x)


def assert_equal(a, b, atol=1e-5):
    """Raises an error if two arrays differ by more than rounding, and prints their shape."""
    a, b = array(a), array(b)
    assert a.shape == b.shape, f"the shapes differ: {a.shape} and {b.shape}"
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)
    print("equal:", a.shape)


def heatmap(axes, matrix, title="", rows=(), columns=(), numbers=None, cmap="Blues"):
    """Draws a matrix, with a label per row and column.

    ``numbers``, such as ".2f", writes the values in this format; NaN is a masked score, "-1e9".
    """
    matrix = np.asarray(array(matrix), "float64")
    axes.imshow(matrix, cmap=cmap, aspect="auto" if len(rows) == 0 else "equal")
    axes.set_title(title, fontsize=10)
    is_long = any(len(str(label)) > 2 for label in columns)
    turn = dict(rotation=60, ha="right") if is_long else {}
    axes.set_xticks(range(len(columns)), columns, fontsize=8, **turn)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    if numbers is None:
        return
    low, high = np.nanmin(matrix), np.nanmax(matrix)
    for (row, column), value in np.ndenumerate(matrix):
        is_dark = (value - low) > 0.6 * (high - low)
        color = "white" if is_dark else "black"
        label = "-1e9" if np.isnan(value) else format(value, numbers)
        axes.text(column, row, label, ha="center", va="center", fontsize=7, color=color)


def seconds(function, repeats=5):
    """The shortest wall time of a call; the first call, which compiles, does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
