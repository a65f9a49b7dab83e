"""The half of a block that updates pairs of residues, of AlphaFold 2's Evoformer and ESMFold."""

from typing import Any

import keras

from .axial import norm_layer
from .feed_forward import FeedForward
from .parts import built
from .triangle import TriangleAttention, TriangleMultiplication


class PairBlock(keras.layers.Layer):
    """Base class of blocks that end with triangle updates and a feed-forward network of pairs.

    (Jumper et al. 2021, supplement, algorithm 6, lines 6 to 10.) A subclass calls `build_pairs` and
    `update_pairs`.

    Args:
        num_pair_heads: heads of the attention of pairs.
        chunk: the maximum number of rows that attention computes at once. Default: all.

    Attributes:
        remat: in training, keep only the block's inputs, and recompute the rest in the backward
            pass: less memory, more time.
    """

    def __init__(self, num_pair_heads: int, chunk: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_pair_heads = num_pair_heads
        self._chunk = chunk
        self.remat = False

    def build_pairs(self, z_shape):
        width, dtype = z_shape[-1], self.dtype_policy
        self.multiply_outgoing, self.multiply_incoming = (
            built(TriangleMultiplication(name == "outgoing", dtype=dtype, name=name), z_shape)
            for name in ("outgoing", "incoming")
        )
        self.attend_starting, self.attend_ending = (
            built(
                TriangleAttention(
                    self.num_pair_heads,
                    name == "starting",
                    chunk=self._chunk,
                    dtype=dtype,
                    name=name,
                ),
                z_shape,
            )
            for name in ("starting", "ending")
        )
        self.pair_norm = norm_layer("pair_norm", width, dtype)
        self.pair_feed_forward = built(
            FeedForward(4 * width, dtype=dtype, name="pair_feed_forward"), z_shape
        )

    @property
    def chunk(self) -> int | None:
        """The maximum number of rows that attention computes at once."""
        return self._chunk

    @chunk.setter
    def chunk(self, chunk):
        self._chunk = chunk
        for part in self.chunked():
            part.chunk = chunk

    def chunked(self) -> list:
        """The parts that compute rows in chunks."""
        return [self.attend_starting, self.attend_ending]

    def update_pairs(self, z, mask, drops, training=False):
        """The new z (B, N, N, C); ``drops`` are the five updates' dropout layers.

        The last may be None.
        """
        *drops, last = drops
        updates = (
            self.multiply_outgoing,
            self.multiply_incoming,
            self.attend_starting,
            self.attend_ending,
        )
        for update, drop in zip(updates, drops, strict=True):
            z = z + drop(update(z, mask=mask), training=training)
        y = self.pair_feed_forward(self.pair_norm(z), training=training)
        return z + (y if last is None else last(y, training=training))

    def compute_mask(self, *args, **kwargs):
        return None
