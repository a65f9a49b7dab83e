"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

import math

import keras
from keras import ops

from .arguments import plain


@keras.saving.register_keras_serializable("polyhead")
class LowRank(keras.layers.Layer):
    """A LoRA adapter, added to a frozen projection of x: x A B * alpha / rank, initially zero.

    Args:
        rank: r, the rank of A (D, r) and B (r, H, K).
        heads: (H, K).
        alpha: the scale. Default: ``rank``, so that the factor is 1.

    Call with ``x`` (B, T, D); the result is (B, T, H, K).

    Files hold no adapters: `Projection` saves its kernel with the adapter merged, so the adapter is
    zero after loading.
    """

    def __init__(self, rank, heads, alpha=None, **kwargs):
        super().__init__(**kwargs)
        rank = plain(rank)
        if type(rank) is not int or rank < 1:
            raise ValueError(f"rank must be a positive integer: {rank!r}")
        self.rank = rank
        self.heads = tuple(heads)
        self.alpha = rank if alpha is None else plain(alpha)
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be a positive number: {alpha!r}")

    def build(self, x_shape):
        # A is random and B is zero (section 4.1).
        self.down = self.add_weight(
            name="down",
            shape=(x_shape[-1], self.rank),
            initializer=keras.initializers.HeUniform(),
        )
        self.up = self.add_weight(name="up", shape=(self.rank, *self.heads), initializer="zeros")

    def call(self, x):
        return ops.einsum("btr,rhk->bthk", ops.matmul(x, self.down), self.up) * (
            self.alpha / self.rank
        )

    def product(self, down, up):
        """The NumPy array (D, H, K) that ``down`` (D, r) and ``up`` (r, H, K) add to the kernel."""
        down, up = ops.convert_to_numpy(down), ops.convert_to_numpy(up)
        flat = down @ up.reshape(self.rank, -1) * (self.alpha / self.rank)
        return flat.reshape(len(down), *self.heads)

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        self.up.assign(ops.zeros(self.up.shape))
