"""One block of AlphaFold 2's Evoformer: it updates an alignment and pairs of residues."""

from typing import Any

import keras

from .axial import norm_layer
from .dropout import Dropout
from .feed_forward import FeedForward
from .msa import MSAColumnAttention, MSAGlobalColumnAttention, MSARowAttention, OuterProductMean
from .pair_block import PairBlock
from .parts import built
from .remat import recomputed


@keras.saving.register_keras_serializable("polyhead")
class EvoformerBlock(PairBlock):
    """Attention within an alignment, its outer products, and triangle updates of pairs.

    (Jumper et al. 2021, supplement, algorithm 6, of the monomer models: the outer product mean
    comes after the alignment's updates.)

    Args:
        num_heads: heads of the attention within the alignment.
        num_pair_heads: heads of the attention of pairs.
        outer_dim: the width of each factor of the outer products.
        extra: whether the alignment has thousands of sequences, and its columns global attention
            (algorithm 18).
        dropout: rate for the attention within rows; all rows share a mask.
        pair_dropout: rate for the triangle updates.
        chunk: the maximum number of rows that attention and outer products compute at once, which
            limits memory. Default: all.

    Call with ``m`` (B, S, N, D), an alignment of S sequences to N residues, ``z`` (B, N, N, C), and
    boolean masks, True = exists: ``m_mask`` (B, S, N) and ``mask`` (B, N). The result is the pair
    of the new m and z.

    >>> m, z = np.ones((2, 3, 5, 32)), np.ones((2, 5, 5, 16))
    >>> block = EvoformerBlock(num_heads=4, num_pair_heads=2, outer_dim=8)
    >>> m, z = block(m, z, np.ones((2, 3, 5), "bool"), np.ones((2, 5), "bool"))
    >>> tuple(m.shape), tuple(z.shape)
    ((2, 3, 5, 32), (2, 5, 5, 16))
    """

    def __init__(
        self,
        num_heads: int,
        num_pair_heads: int,
        outer_dim: int = 32,
        extra: bool = False,
        dropout: float = 0.0,
        pair_dropout: float = 0.0,
        chunk: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_pair_heads, chunk, **kwargs)
        self.num_heads = num_heads
        self.outer_dim = outer_dim
        self.extra = extra
        self.dropout = dropout
        self.pair_dropout = pair_dropout

    def build(self, m_shape, z_shape, m_mask_shape=None, mask_shape=None):
        width, dtype, chunk = m_shape[-1], self.dtype_policy, self.chunk
        attention = dict(num_heads=self.num_heads, dtype=dtype)
        self.row_attention = built(
            MSARowAttention(**attention, chunk=chunk, name="row_attention"), m_shape, z_shape
        )
        if self.extra:
            columns = MSAGlobalColumnAttention(**attention, name="column_attention")
        else:
            columns = MSAColumnAttention(**attention, chunk=chunk, name="column_attention")
        self.column_attention = built(columns, m_shape)
        self.feed_forward_norm = norm_layer("feed_forward_norm", width, dtype)
        self.feed_forward = built(FeedForward(4 * width, dtype=dtype, name="feed_forward"), m_shape)
        self.outer_product = built(
            OuterProductMean(z_shape[-1], self.outer_dim, chunk, dtype=dtype, name="outer_product"),
            m_shape,
        )
        self.build_pairs(z_shape)
        shared, rate = (None, 1, None, None), self.pair_dropout
        self.drop = Dropout(self.dropout, shared, dtype=dtype, name="dropout")
        self.drop_rows = Dropout(rate, shared, dtype=dtype, name="drop_rows")
        self.drop_columns = Dropout(rate, (None, None, 1, None), dtype=dtype, name="drop_columns")

    def chunked(self) -> list:
        """The parts that compute rows in chunks."""
        alignment = [self.row_attention, self.outer_product]
        if not self.extra:
            alignment.append(self.column_attention)
        return super().chunked() + alignment

    def call(self, m, z, m_mask, mask, training=False):
        if self.remat and training:
            return recomputed(self, lambda m, z: self._forward(m, z, m_mask, mask, True), m, z)
        return self._forward(m, z, m_mask, mask, training)

    def _forward(self, m, z, m_mask, mask, training):
        m = m + self.drop(self.row_attention(m, z, mask=m_mask), training=training)
        m = m + self.column_attention(m, mask=m_mask)
        m = m + self.feed_forward(self.feed_forward_norm(m), training=training)
        z = z + self.outer_product(m, mask=m_mask)
        rows, columns = self.drop_rows, self.drop_columns
        return m, self.update_pairs(z, mask, (rows, rows, rows, columns, None), training)
