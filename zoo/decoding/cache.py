"""The key-value cache of exported decoders."""

from keras import ops

from ...layers import KeyValueCache


class ScatterCache(KeyValueCache):
    """A cache that writes with `ops.scatter_update`, which TensorFlow Serving can run.

    `ops.slice_update` becomes an XLA operation, which the stock server does not link.
    """

    def append(self, key, value):
        # (B T, 2): the row and the position of each new vector (H, K).
        batch, count = ops.shape(key)[:2]
        if key.shape[1] == 1:
            row, position = ops.arange(batch), ops.broadcast_to(self.index, (batch,))
        else:
            row, position = ops.meshgrid(
                ops.arange(batch), ops.arange(count) + self.index, indexing="ij"
            )
        at = ops.reshape(ops.stack([row, position], axis=-1), (-1, 2))
        key, value = (
            ops.scatter_update(old, at, ops.reshape(ops.cast(new, old.dtype), (-1, *old.shape[2:])))
            for old, new in ((self.key, key), (self.value, value))
        )
        return type(self)(key, value, self.index + count)
