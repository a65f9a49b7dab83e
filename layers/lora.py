"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

import keras
from keras import ops

from .arguments import plain


@keras.saving.register_keras_serializable("polyhead")
class LowRank(keras.layers.Layer):
    """A LoRA adapter, added to a frozen map of x: x A B * alpha / rank, zero at first.

    Args:
        rank: r, of A (D, r) and B (r, H, K).
        heads: (H, K).
        alpha: the scale; ``rank`` if not given, so that the factor is 1.

    Call with ``x`` (B, T, D); the result is (B, T, H, K).

    Keras's files hold no adapters: the kernel is saved with its adapter merged (`Projection`), so
    that after loading the adapter is zero.
    """

    def __init__(self, rank, heads, alpha=None, **kwargs):
        super().__init__(**kwargs)
        rank = plain(rank)
        if type(rank) is not int or rank < 1:
            raise ValueError(f"rank must be a positive integer: {rank!r}")
        self.rank = rank
        self.heads = tuple(heads)
        self.alpha = rank if alpha is None else alpha

    def build(self, x_shape):
        # As in the paper's section 4.1, A is random and B zero.
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
        """The change of the kernel (D, H, K) by ``down`` (D, r) and ``up`` (r, H, K): NumPy."""
        down, up = ops.convert_to_numpy(down), ops.convert_to_numpy(up)
        flat = down @ up.reshape(self.rank, -1) * (self.alpha / self.rank)
        return flat.reshape(len(down), *self.heads)

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        self.up.assign(ops.zeros(self.up.shape))
