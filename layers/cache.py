"""Keys and values of the positions decoded so far."""

from typing import Any, NamedTuple

from keras import ops


class KeyValueCache(NamedTuple):
    """What a self-attention has seen: ``key`` and ``value`` (B, S, G, K), of static length S.

    ``index`` is the number of positions written. The decoding engine makes a cache and hands it
    in, and attention gives it back longer, so that one compiled step serves every position.
    How it writes is its own business: layers only call `append`. This one is fastest where it
    is compiled; `zoo.decoding` has the one for what is exported.
    """

    key: Any
    value: Any
    index: Any

    @classmethod
    def empty(cls, batch, length, num_kv_heads, head_dim, dtype):
        zeros = ops.zeros((batch, length, num_kv_heads, head_dim), dtype)
        return cls(zeros, zeros, ops.zeros((), "int32"))

    def append(self, key, value):
        """The cache after the T positions ``key``, ``value`` (B, T, G, K)."""
        at = (0, self.index, 0, 0)
        return type(self)(
            ops.slice_update(self.key, at, ops.cast(key, self.key.dtype)),
            ops.slice_update(self.value, at, ops.cast(value, self.value.dtype)),
            self.index + ops.shape(key)[1],
        )

    def take(self, rows):
        """The cache of ``rows`` (B',) in the place of those it has: a beam search's survivors."""
        return type(self)(
            ops.take(self.key, rows, axis=0), ops.take(self.value, rows, axis=0), self.index
        )
