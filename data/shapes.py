"""A small generated image data set: coloured shapes on noise."""

import numpy as np

from .images import LabelledImages

SHAPES = ("circle", "cross", "diamond", "ring", "square", "stripes", "triangle", "waves")
COUNTS = {"train": 4000, "val": 400, "test": 400}
SIDE = 32


def shapes(split="train", side=SIDE):
    """Generates `LabelledImages` of eight shapes with random size, place, angle and colour."""
    if split not in COUNTS:
        raise ValueError(f"split must be train, val or test: {split!r}")
    random = np.random.default_rng([1, list(COUNTS).index(split)])
    labels = np.arange(COUNTS[split]) % len(SHAPES)
    images = np.stack([draw_shape(SHAPES[label], side, random) for label in labels])
    return LabelledImages(images, labels, SHAPES)


def draw_shape(shape, side, random):
    """Draws a ``shape`` in an array (side, side, 3)."""
    size = side * random.uniform(0.2, 0.4)
    centre = random.uniform(size * 0.9, side - size * 0.9, 2)
    turn = random.uniform(0, 2 * np.pi)
    y, x = (np.mgrid[:side, :side] - centre[:, None, None] + 0.5) / size
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    radius, largest = np.hypot(x, y), np.maximum(abs(x), abs(y))
    inside = {
        "circle": radius < 0.9,
        "cross": (largest < 1) & (np.minimum(abs(x), abs(y)) < 0.3),
        "diamond": abs(x) + 2 * abs(y) < 1.2,
        "ring": (radius < 1) & (radius > 0.6),
        "square": largest < 0.75,
        "stripes": (largest < 1) & (np.sin(9 * x) > 0),
        "triangle": (y > -0.6) & (y + 1.7 * abs(x) < 0.9),
        "waves": (largest < 1) & (np.sin(9 * x + 2.5 * np.sin(4 * y)) > 0),
    }[shape]
    back, front = random.uniform(0, 255, (2, 3))
    while np.abs(back - front).max() < 80:
        front = random.uniform(0, 255, 3)
    image = np.where(inside[..., None], front, back) + random.normal(0, 12, (side, side, 3))
    return np.clip(image, 0, 255).astype("uint8")
