"""The keys and values of the positions decoded so far."""

from typing import NamedTuple

from keras import ops

from .arguments import Tensor


class KeyValueCache(NamedTuple):
    """The keys and values that a self-attention has seen, both (B, S, G, K), of static length S.

    ``index`` is the number of positions written. Decoding starts with an empty cache; attention
    returns a cache with the new positions. Its shape is constant, so decoding compiles one step.
    Layers only call `append`. This class writes in the way that is fastest when compiled; exports
    use `ScatterCache` of `polyhead.zoo.decoding`.

    >>> cache = KeyValueCache.empty(2, 16, num_kv_heads=4, head_dim=8, dtype="float32")
    >>> cache = cache.append(np.ones((2, 3, 4, 8)), np.ones((2, 3, 4, 8)))
    >>> int(cache.index)
    3
    """

    key: Tensor
    value: Tensor
    index: Tensor

    @classmethod
    def empty(
        cls,
        batch: int | Tensor,
        length: int | Tensor,
        num_kv_heads: int,
        head_dim: int,
        dtype: str,
    ) -> "KeyValueCache":
        zeros = ops.zeros((batch, length, num_kv_heads, head_dim), dtype)
        return cls(zeros, zeros, ops.zeros((), "int32"))

    def append(self, key: Tensor, value: Tensor) -> "KeyValueCache":
        """Returns the cache with T more positions: ``key`` and ``value`` (B, T, G, K).

        Raises:
            ValueError: it has no room for them. A compiled function cannot check this.
        """
        try:
            written = int(self.index)
        except (TypeError, ValueError):  # not known within a compiled function
            written = None
        if written is not None and written + key.shape[1] > self.key.shape[1]:
            raise ValueError(
                f"the cache has room for {self.key.shape[1]} positions: {written} are written, and "
                f"{key.shape[1]} more were given"
            )
        at = (0, self.index, 0, 0)
        return type(self)(
            ops.slice_update(self.key, at, ops.cast(key, self.key.dtype)),
            ops.slice_update(self.value, at, ops.cast(value, self.value.dtype)),
            self.index + ops.shape(key)[1],
        )

    def take(self, rows: Tensor) -> "KeyValueCache":
        """Returns the cache of the ``rows`` (B',), for example those that a beam search keeps."""
        return type(self)(
            ops.take(self.key, rows, axis=0), ops.take(self.value, rows, axis=0), self.index
        )
