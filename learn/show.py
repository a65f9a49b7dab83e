"""What the cells of the notebook share: arrays and data, learning rates, drawing, times."""

import time

import numpy as np
from keras import ops

from ..data import LabelledImages
from ..data.shapes import shapes
from ..training import Linear


def tensor(x):
    """A tensor of float32."""
    return ops.convert_to_tensor(x, dtype="float32")


def normal(*shape, seed=0):
    """A tensor of random numbers from N(0, 1)."""
    return tensor(np.random.default_rng(seed).normal(size=shape))


def array(x):
    """A NumPy array of a tensor."""
    return ops.convert_to_numpy(x)


def jacobian(function, x):
    """d function(x) / d x as a NumPy array: the axes of the result, then those of x."""
    import tensorflow as tf

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = function(x)
    # One element after the other: all at once, attention crashes in oneDNN on CPUs with AVX-512.
    return array(tape.jacobian(y, x, experimental_use_pfor=False))


def bright_shapes(split, kinds):
    """The library's shapes of these kinds, bright on black: images (N, 32, 32, 1) with labels.

    A pixel is how much it differs from the corner.
    """
    found = shapes(split)
    names = np.array(found.classes)[found.labels]
    chosen = np.flatnonzero(np.isin(names, kinds))
    pixels = found.images[chosen].astype("int16")
    pixels = abs(pixels - pixels[:, :1, :1]).max(axis=-1, keepdims=True)
    labels = [kinds.index(name) for name in names[chosen]]
    return LabelledImages(pixels.astype("uint8"), labels, kinds)


def optimizer(kind, peak, updates):
    """An optimizer of this kind; the learning rate rises to its peak, then falls to 0."""
    warmup = max(updates // 10, 1)
    return kind(Linear(peak, warmup=warmup, updates=updates + 1))


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
