"""Images as sequences of patches, section 3.1 of Dosovitskiy et al. 2020."""

from typing import Any

import keras
import numpy as np
from keras import ops

from .arguments import Tensor
from .positions import sinusoids


@keras.saving.register_keras_serializable("polyhead")
class PatchEmbedding(keras.layers.Layer):
    """Cuts an image into patches and projects the pixels of each to a vector (E in equation 1).

    Args:
        patch_size: P, the side of a patch in pixels.
        dim: D.

    Call with ``images`` (B, Y, X, C), whose sides are multiples of P; the result is
    (B, Y / P * X / P, D), row by row.

    Raises:
        ValueError: a side of the image is not a multiple of P.

    >>> tuple(PatchEmbedding(patch_size=16, dim=192)(np.ones((2, 32, 48, 3))).shape)
    (2, 6, 192)
    """

    def __init__(self, patch_size: int, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch_size = patch_size
        self.dim = dim

    def build(self, images_shape):
        dtype = self.dtype_policy
        self.projection = keras.layers.Dense(self.dim, dtype=dtype, name="projection")
        self.projection.build((None, None, self.patch_size**2 * images_shape[-1]))

    def call(self, images):
        size = self.patch_size
        _, height, width, channels = images.shape
        rows, columns = grid(height, width, size)
        squares = ops.reshape(images, (-1, rows, size, columns, size, channels))
        squares = ops.transpose(squares, (0, 1, 3, 2, 4, 5))
        return self.projection(ops.reshape(squares, (-1, rows * columns, size**2 * channels)))


def grid(height, width, patch_size):
    """The rows and columns of patches in an image.

    Raises:
        ValueError: a side is not a multiple of ``patch_size``.
    """
    if height % patch_size or width % patch_size:
        raise ValueError(f"an image's sides must be multiples of {patch_size}: {height} x {width}")
    return height // patch_size, width // patch_size


def interpolate(table, old, new):
    """Interpolates positions (Y X, D) of the ``old`` grid (Y, X) to (Y' X', D) of the ``new`` grid.

    By cubic convolution, as in the reference implementations (section 3.2): each new position
    depends on the nearest four old ones in each direction; edges are repeated.
    """
    if old == new:
        return table
    table = ops.reshape(table, (*old, -1))
    down, across = (ops.convert_to_tensor(cubic(a, b)) for a, b in zip(old, new, strict=True))
    return ops.reshape(ops.einsum("ai,bj,ijd->abd", down, across, table), (-1, table.shape[-1]))


def cubic(old, new):
    """The matrix (new, old) of cubic convolution with a = -3/4 (Keys 1981, equation 15)."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(at).astype(int)
    matrix = np.zeros((new, old), "float32")
    for tap in range(-1, 3):
        x, a = np.abs(at - (first + tap)), -0.75
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        weight = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), weight)
    return matrix


def grid_sinusoids(grid, dim):
    """``grid`` (Y, X) -> (Y X, D) in float32: D / 2 sinusoids of the row, then of the column."""
    half = 2 * -(-dim // 4)
    down, across = (sinusoids(ops.arange(side), half, interleaved=False) for side in grid)
    rows, columns = grid
    table = ops.concatenate(
        [ops.repeat(down, columns, axis=0), ops.tile(across, (rows, 1))], axis=1
    )
    return table[:, :dim]


@keras.saving.register_keras_serializable("polyhead")
class ClassToken(keras.layers.Layer):
    """Prepends a learned vector to each sequence (x_class in equation 1).

    Call with ``x`` (B, N, D); the result is (B, 1 + N, D).

    >>> tuple(ClassToken()(np.ones((2, 6, 192))).shape)
    (2, 7, 192)
    """

    def build(self, x_shape):
        self.embeddings = self.add_weight(
            name="embeddings", shape=(1, x_shape[-1]), initializer="zeros"
        )

    def call(self, x):
        token = ops.cast(self.embeddings, x.dtype)[None]
        return ops.concatenate([ops.broadcast_to(token, (ops.shape(x)[0], 1, x.shape[-1])), x], 1)


@keras.saving.register_keras_serializable("polyhead")
class GridPositions(keras.layers.Layer):
    """Adds learned positional embeddings to the patches of an image (E_pos in equation 1).

    They are initialized as sinusoids of the row and the column, so nearby patches have similar
    positions from the first step. (Beyer et al. 2022, arXiv 2205.01580, do not train them.)

    Args:
        grid: Y and X, the rows and columns of patches.
        extra: the number of tokens before the patches, each with its own position.

    Call with ``x`` (B, extra + Y' X', D) and its ``grid`` (Y', X'); the result has the same shape.
    If this is not the grid of the weights, positions are interpolated.

    >>> positions = GridPositions(grid=(2, 3), extra=1)
    >>> tuple(positions(np.ones((2, 7, 192))).shape)
    (2, 7, 192)
    """

    def __init__(self, grid: tuple[int, int], extra: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid = tuple(grid)
        self.extra = int(extra)

    def build(self, x_shape):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.extra + self.grid[0] * self.grid[1], x_shape[-1]),
            initializer=self._initial,
        )

    def _initial(self, shape, dtype):
        # Small random values for the tokens before the patches: the class token is initially zero,
        # and layer normalization of zeros gives zeros.
        before = keras.random.normal((self.extra, shape[-1]), stddev=0.02)
        table = ops.concatenate([before, grid_sinusoids(self.grid, shape[-1])], axis=0)
        return ops.cast(table, dtype)

    def call(self, x, grid=None):
        return x + ops.cast(self.table(grid or self.grid), x.dtype)

    def table(self, grid: tuple[int, int]) -> Tensor:
        """The positions (extra + Y' X', D) of a ``grid`` (Y', X')."""
        before, places = ops.split(ops.convert_to_tensor(self.embeddings), [self.extra], axis=0)
        return ops.concatenate([before, interpolate(places, self.grid, tuple(grid))], axis=0)
