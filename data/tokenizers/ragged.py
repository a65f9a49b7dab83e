"""Operations on ragged rows. TensorFlow's own take several times as many operations each."""

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def join_rows(*parts: tf.RaggedTensor | Sequence[int]) -> tf.RaggedTensor:
    """Concatenates the rows (N, None) of ragged tensors, and ids that every row gets.

    >>> from polyhead.data.tokenizers.ragged import join_rows
    >>> join_rows([1], tf.ragged.constant([[5, 6], []]), [2]).to_list()
    [[1, 5, 6, 2], [1, 2]]
    """
    ragged = [part for part in parts if isinstance(part, tf.RaggedTensor)]
    count, dtype = ragged[0].nrows(), ragged[0].dtype
    values, starts, limits, size = [], [], [], 0
    for part in parts:
        if isinstance(part, tf.RaggedTensor):
            values.append(part.flat_values)
            starts.append(size + part.row_starts())
            limits.append(size + part.row_limits())
            size += tf.size(part.flat_values, tf.int64)
        elif len(part):
            values.append(tf.constant(part, dtype))
            starts.append(tf.fill([count], tf.cast(size, tf.int64)))
            limits.append(starts[-1] + len(part))
            size += len(part)
    starts, limits = tf.stack(starts, axis=1), tf.stack(limits, axis=1)
    at = tf.ragged.range(tf.reshape(starts, [-1]), tf.reshape(limits, [-1])).flat_values
    lengths = tf.reduce_sum(limits - starts, axis=1)
    return tf.RaggedTensor.from_row_lengths(
        tf.gather(tf.concat(values, axis=0), at), lengths, validate=False
    )


def begin_rows(where: tf.Tensor, values: tf.Tensor, rows: tf.RaggedTensor) -> tf.RaggedTensor:
    """Puts ``values`` (N,) where ``where`` (N,) is true before the ``rows`` (N, None).

    >>> from polyhead.data.tokenizers.ragged import begin_rows
    >>> rows = tf.ragged.constant([[5, 6], []])
    >>> begin_rows(tf.constant([False, True]), tf.constant([1, 2]), rows).to_list()
    [[5, 6], [2]]
    """
    count = tf.cast(where, tf.int64)
    chosen = tf.boolean_mask(values, where)
    return join_rows(tf.RaggedTensor.from_row_lengths(chosen, count, validate=False), rows)


def merge_rows(rows: tf.RaggedTensor) -> tf.RaggedTensor:
    """The rows (N, None) of (N, None, None): joins the parts of each row.

    >>> from polyhead.data.tokenizers.ragged import merge_rows
    >>> merge_rows(tf.ragged.constant([[[1, 2], [3]], [[]]])).to_list()
    [[1, 2, 3], []]
    """
    splits = tf.gather(rows.values.row_splits, rows.row_splits)
    return tf.RaggedTensor.from_row_splits(rows.values.values, splits, validate=False)


def unpack(rows: tf.RaggedTensor) -> list[np.ndarray]:
    """The rows of a ragged tensor as a list of arrays."""
    flat, splits = rows.flat_values.numpy(), rows.row_splits.numpy()
    return [flat[a:b] for a, b in itertools.pairwise(splits)]
