"""Decoding: the engine that turns a step of a decoder into sequences."""

from keras import ops

from ..layers import KeyValueCache


class ScatterCache(KeyValueCache):
    """A cache that writes by scattering, which TensorFlow Serving accepts.

    `ops.slice_update` becomes an operation of XLA's, which the stock server does not link.
    """

    def _write(self, old, new):
        # One position at a time is written: row b of (B, S, H, K), position index.
        batch = ops.shape(new)[0]
        rows = ops.arange(batch)
        at = ops.stack([rows, ops.broadcast_to(self.index, (batch,))], axis=-1)
        return ops.scatter_update(old, at, ops.cast(new[:, 0], old.dtype))


def greedy(step, caches, limit, length, start_id, end_id, pad_id):
    """Takes the likeliest token at each step.

    Args:
        step: ``(tokens (B, 1), caches) -> (logits (B, 1, V), caches)``.
        caches: a structure of tensors that `step` reads and extends.
        limit: (B,) the most tokens each row may get, its end token included.
        length: L, at least the largest limit; what is returned has this shape.

    Returns:
        ``tokens`` (B, L), each row with its end token and then padding, and ``score`` (B,), the
        sum of its tokens' log-probabilities, the end token's included.
    """
    batch = ops.shape(limit)[0]
    tokens = ops.full((batch, length), pad_id, "int32")
    current = ops.full((batch, 1), start_id, "int32")
    score = ops.zeros((batch,), "float32")
    position = ops.arange(length)[None, :]

    def unfinished(index, current, tokens, score, finished, caches):
        return ops.logical_and(index < length, ops.logical_not(ops.all(finished)))

    def decode(index, current, tokens, score, finished, caches):
        logits, caches = step(current, caches)
        logits = ops.cast(logits[:, 0], "float32")
        chosen = ops.cast(ops.argmax(logits, axis=-1), "int32")
        gain = ops.max(logits, axis=-1) - ops.logsumexp(logits, axis=-1)
        chosen = ops.where(finished, pad_id, chosen)
        score = score + ops.where(finished, 0.0, gain)
        tokens = ops.where(position == index, chosen[:, None], tokens)
        finished = ops.logical_or(finished, chosen == end_id)
        finished = ops.logical_or(finished, index + 1 >= limit)
        return index + 1, chosen[:, None], tokens, score, finished, caches

    start = (ops.zeros((), "int32"), current, tokens, score, limit <= 0, caches)
    _, _, tokens, score, _, _ = ops.while_loop(unfinished, decode, start)
    return tokens, score
