"""One block of ESMFold's trunk: it updates features of residues and of their pairs."""

from typing import Any

import keras
from keras import ops

from .attention import MultiHeadAttention
from .axial import norm_layer
from .dropout import Dropout
from .feed_forward import FeedForward
from .pair_block import PairBlock
from .parts import built
from .remat import recomputed


@keras.saving.register_keras_serializable("polyhead")
class FoldingBlock(PairBlock):
    """Attention of residues with a bias from their pairs, and triangle updates of the pairs.

    (Lin et al. 2022, section A.3.1: the Evoformer block of AlphaFold 2, with one sequence in place
    of an alignment.)

    Args:
        num_heads: heads of the attention of residues.
        num_pair_heads: heads of the attention of pairs.
        dropout: rate; twice as high on rows and columns of pairs.
        chunk: the maximum number of rows of pairs that `TriangleAttention` computes at once, which
            limits its memory. Default: all.

    Call with ``s`` (B, N, D), ``z`` (B, N, N, C) and a boolean ``mask`` (B, N), True = exists; the
    result is the pair of the new s and z.

    >>> s, z = np.ones((2, 5, 32)), np.ones((2, 5, 5, 16))
    >>> s, z = FoldingBlock(num_heads=4, num_pair_heads=2)(s, z, np.ones((2, 5), "bool"))
    >>> tuple(s.shape), tuple(z.shape)
    ((2, 5, 32), (2, 5, 5, 16))
    """

    def __init__(
        self,
        num_heads: int,
        num_pair_heads: int,
        dropout: float = 0.0,
        chunk: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_pair_heads, chunk, **kwargs)
        self.num_heads = num_heads
        self.dropout = dropout

    def build(self, s_shape, z_shape, mask_shape=None):
        width, pair_width, dtype = s_shape[-1], z_shape[-1], self.dtype_policy

        def dense(name, size, x_size, **options):
            return built(
                keras.layers.Dense(size, dtype=dtype, name=name, **options), (None, x_size)
            )

        self.bias_norm = norm_layer("bias_norm", pair_width, dtype)
        self.bias = dense(
            "bias", self.num_heads, pair_width, use_bias=False, kernel_initializer="zeros"
        )
        self.attention_norm = norm_layer("attention_norm", width, dtype)
        self.attention = built(
            MultiHeadAttention(
                self.num_heads,
                use_bias=False,
                output_bias=True,
                gated=True,
                dtype=dtype,
                name="attention",
            ),
            s_shape,
        )
        self.feed_forward_norm = norm_layer("feed_forward_norm", width, dtype)
        self.feed_forward = built(FeedForward(4 * width, dtype=dtype, name="feed_forward"), s_shape)
        self.product_norm = norm_layer("product_norm", width, dtype)
        self.product = dense("product", pair_width, width)
        self.product_output = dense(
            "product_output", pair_width, pair_width, kernel_initializer="zeros"
        )
        self.build_pairs(z_shape)
        rate = self.dropout
        self.drop = Dropout(rate, dtype=dtype, name="dropout")
        self.drop_rows = Dropout(2 * rate, (None, None, 1, None), dtype=dtype, name="drop_rows")
        self.drop_columns = Dropout(
            2 * rate, (None, 1, None, None), dtype=dtype, name="drop_columns"
        )

    def call(self, s, z, mask, training=False):
        if self.remat and training:
            return recomputed(self, lambda s, z: self._forward(s, z, mask, True), s, z)
        return self._forward(s, z, mask, training)

    def _forward(self, s, z, mask, training):
        bias = ops.transpose(self.bias(self.bias_norm(z)), (0, 3, 1, 2))
        y = self.attention(
            self.attention_norm(s), mask=mask[:, None, None], bias=bias, training=training
        )
        s = s + self.drop(y, training=training)
        y = self.feed_forward(self.feed_forward_norm(s), training=training)
        s = s + self.drop(y, training=training)
        z = z + self._outer(s)
        rows, columns = self.drop_rows, self.drop_columns
        drops = rows, columns, rows, columns, self.drop
        return s, self.update_pairs(z, mask, drops, training)

    def _outer(self, s):
        """The update of each pair (i, j) by the products and differences of its residues."""
        j, i = ops.split(self.product(self.product_norm(s)), 2, axis=-1)
        j, i = j[:, None], i[:, :, None]
        return self.product_output(ops.concatenate([j * i, j - i], axis=-1))
