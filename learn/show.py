"""What the cells of the notebook share: arrays, data, proteins, learning rates, drawing, times."""

import time

import numpy as np
from keras import ops
from matplotlib.colors import to_rgb

from ..data import LabelledImages, Structure, residues
from ..data.shapes import shapes
from ..data.views import confidence_colors
from ..layers.frames import from_points, place_atoms, torsion_frames
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


def ideal_protein(sequence, phi, psi):
    """The structure with these torsions (N,), in degrees, and ideal lengths and angles.

    Side chains have the torsions -65, 180, 180 ...
    """
    row = np.array([residues.LETTERS.index(letter) for letter in sequence])
    n, ca, c = np.moveaxis(backbone(phi, psi).astype("float32"), 1, 0)
    angles = np.full((len(row), 7), 180.0)
    angles[:, 1], angles[:, 2], angles[:, 3] = phi, psi, -65
    angles = np.radians(angles).astype("float32")
    torsions = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    groups = residues.GROUP_ROTATION[row], residues.GROUP_TRANSLATION[row]
    tables = residues.ATOM14_GROUP, residues.ATOM14_POSITION, residues.ATOM14_MASK
    frames = torsion_frames(from_points(n, ca, c), torsions, groups)
    atoms = array(place_atoms(frames, *(table[row] for table in tables)))
    slots = residues.ATOM37_TO_ATOM14[row][..., None]
    positions = np.take_along_axis(atoms, slots, axis=1)
    chain, numbers = np.zeros(len(row)), np.arange(1, len(row) + 1)
    return Structure(row, chain, numbers, positions, residues.ATOM37_MASK[row])


def backbone(phi, psi):
    """The positions (N, 3, 3) of N, CA and C, which torsions place one after the other."""
    atoms = [np.array(x) for x in ([-0.525, 1.363, 0.0], [0.0, 0.0, 0.0], [1.526, 0.0, 0.0])]
    for i in range(1, len(phi)):
        # Typical lengths of bonds, angles, and torsions; the peptide bond is flat (180).
        for length, angle, torsion in (
            (1.329, 116.6, psi[i - 1]),
            (1.458, 121.7, 180.0),
            (1.526, 111.0, phi[i]),
        ):
            a, b, c = atoms[-3:]
            angle, torsion = np.radians([angle, torsion])
            x = (c - b) / np.linalg.norm(c - b)
            z = np.cross(b - a, x)
            z = z / np.linalg.norm(z)
            across = np.cos(torsion) * np.cross(z, x) + np.sin(torsion) * z
            atoms.append(c + length * (np.sin(angle) * across - np.cos(angle) * x))
    return np.reshape(atoms, (-1, 3, 3))


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


def plddt_colors(plddt):
    """The colors of AlphaFold's database for pLDDT (N,), as `Structure.plot` and `view` have."""
    colors, index, _ = confidence_colors(plddt)
    return [colors[i] for i in index]


def draw_chain(axes, points, color, title=""):
    """Draws the CA atoms (N, 3) as a smooth tube seen along z; what is far is pale.

    ``color`` is one color, or one per residue. The first residue has the letter N.
    """
    points = np.asarray(points)
    colors = [color] * len(points) if isinstance(color, str) else list(color)
    ends = np.concatenate([points[:1], points, points[-1:]])
    t = np.arange(8)[:, None] / 8
    curve = []  # (Catmull & Rom 1974)
    for p, q, r, s in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        cubic = 3 * (q - r) + s - p
        curve.append(q + t / 2 * (r - p + t * (2 * p - 5 * q + 4 * r - s + t * cubic)))
    curve = np.concatenate([*curve, points[-1:]])
    low, high = curve[:, 2].min(), curve[:, 2].max()
    for i in np.argsort(points[:, 2]):
        path = curve[max(8 * i - 5, 0) : 8 * i + 6]  # half of the way to both neighbours
        pale = 0.6 * (high - points[i, 2]) / (high - low)
        style = dict(solid_joinstyle="round", zorder=3 + (points[i, 2] - low) / 1000)
        for edge, width, tone in ((1, 9, "black"), (0, 7, colors[i])):
            shown = pale + (1 - pale) * np.array(to_rgb(tone))
            x, y = path[edge : len(path) - edge, :2].T
            axes.plot(x, y, color=shown, linewidth=width, solid_capstyle="butt", **style)
    axes.annotate("N", points[0, :2], (-11, 0), textcoords="offset points", va="center", zorder=9)
    axes.set_aspect("equal")
    axes.margins(0.12)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)


def seconds(function, repeats=5):
    """The shortest wall time of a call; the first call, which compiles, does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
