"""Batches of texts of similar length: a budget of tokens each, a few static shapes."""

import operator
import warnings

import numpy as np
import tensorflow as tf


def translation_batches(
    pairs,
    tokenizer,
    tokens=8192,
    max_length=128,
    buckets=4,
    shuffle=True,
    seed=0,
    start=None,
    bpe_dropout=0.0,
    twice=False,
):
    """Batches of ``({"source", "target"}, labels, sample_weight)`` for `Transformer.fit`.

    ``source`` and ``target`` (B, L) are tokens, ``labels`` (B, L) what follows each target token
    and ``sample_weight`` (B, L) is 0 on padding, else 1. Pairs of like length share a batch:
    there are ``buckets`` lengths L, those that make the least padding, and for each of them one
    B, the multiple of 8 with B * L <= ``tokens`` (8 at least). So there are as many shapes to
    compile as buckets. Rows left over join the next longer bucket, and the last batch is filled
    up with rows of padding.

    Args:
        pairs: a `ParallelText`.
        tokenizer: `Subwords` or `MarianPieces`.
        tokens: padded tokens of a batch, on either side.
        max_length: pairs with more pieces, end included, on either side are left out, and so
            are those with an empty side; a warning counts them.
        shuffle: a new order and new batches each epoch, the same for the same ``seed``.
        start: with a number of updates, the dataset has no end and begins there, as an
            interrupted run would have gone on. Without, it is one epoch, of known length, in a
            new order each time it is iterated.
        bpe_dropout: segments the texts differently each epoch (see `Subwords.sampled`). A pair
            that becomes too long for its bucket keeps its usual tokens.
        twice: each row is followed by the same again, as a loss of `consistency` wants it. There
            are as many batches, of twice as many rows.

    Raises:
        ValueError: no pair is left, an argument is out of its range, or the tokenizer cannot
            cut texts otherwise than it does.
    """
    # NumPy's integers overflow where Python's do not.
    tokens, max_length, buckets, seed = map(operator.index, (tokens, max_length, buckets, seed))
    if tokens < 1 or buckets < 1 or max_length < 2:
        raise ValueError(
            "tokens and buckets must be positive and max_length at least 2: "
            f"{tokens}, {buckets}, {max_length}"
        )
    if not 0 <= bpe_dropout < 1:
        raise ValueError(f"bpe_dropout must be in [0, 1): {bpe_dropout}")
    if bpe_dropout and not hasattr(tokenizer, "sampled"):
        raise ValueError(f"{type(tokenizer).__name__} has no BPE-dropout: {bpe_dropout}")
    source = tokenizer.encode(pairs.sources)
    target = tokenizer.encode(pairs.targets, target=True)
    lengths = np.stack([source.row_lengths().numpy(), target.row_lengths().numpy()])
    keep = np.flatnonzero((lengths.min(0) > 1) & (lengths.max(0) <= max_length))
    if not len(keep):
        raise ValueError(f"no pair has between 1 and {max_length - 1} pieces on both sides")
    if len(keep) < len(pairs):
        warnings.warn(
            f"{len(pairs) - len(keep)} of {len(pairs)} pairs are empty or longer than "
            f"{max_length} pieces and are left out",
            stacklevel=2,
        )
    sides = tf.gather(source, keep), tf.gather(target, keep)
    longest = lengths.max(0)[keep]
    if bpe_dropout:
        texts = [[texts[i] for i in keep] for texts in (pairs.sources, pairs.targets)]
        usual = [side.to_list() for side in sides]

        def draw(number, room):
            """Both sides in the pieces of an epoch, or in the usual ones where there is no room."""
            seeds = np.random.SeedSequence((seed % 2**64, number)).generate_state(2)
            sampled = [tokenizer.sampled(texts[i], bpe_dropout, int(seeds[i])) for i in (0, 1)]
            return [
                [row if len(row) <= most else plain for row, plain, most in zip(*rows, strict=True)]
                for rows in zip(sampled, usual, [room, room], strict=True)
            ]

        # A bucket has room for the pieces that were drawn first.
        first_drawn = zip(*draw(0, [max_length] * len(keep)), strict=True)
        longest = np.maximum(longest, [max(map(len, pair)) for pair in first_drawn])
    plan = Buckets(longest, tokens, buckets)

    def pieces(number):
        """The ragged tokens of both sides in an epoch."""
        if not bpe_dropout:
            return sides

        def arrays(number):
            return [
                array
                for rows in draw(int(number) + 1, np.minimum(plan.room, max_length))
                for array in (np.concatenate(rows), [len(row) for row in rows])
            ]

        flat = tf.numpy_function(arrays, [number], [tf.int64] * 4)
        for tensor in flat:
            tensor.set_shape([None])
        tokens = [tf.RaggedTensor.from_row_lengths(*flat[i : i + 2]) for i in (0, 2)]
        return tuple(tf.cast(side, tf.int32) for side in tokens)

    def batch(rows, size, length, source, target):
        copies, pad = 1 + twice, tokenizer.pad_id
        rows, shape = tf.repeat(rows, copies), [copies * size, length]
        labels = tf.gather(target, rows).to_tensor(pad, shape=shape)
        starts = tf.fill([shape[0], 1], tokenizer.start_id)
        shifted = tf.concat([starts, labels[:, :-1]], axis=1)
        inputs = {
            "source": tf.gather(source, rows).to_tensor(pad, shape=shape),
            # The last label is the end piece, which is no input.
            "target": tf.where(labels != pad, shifted, pad),
        }
        weight = tf.cast(labels != pad, tf.float32)
        return inputs, labels, weight

    return plan.batches(batch, shuffle, seed, start, pieces)


class Buckets:
    """A plan of batches: rows of similar length share one, and there are few shapes.

    There are at most ``buckets`` lengths L, those that need the least padding, and for each of
    them one B, the multiple of 8 with B * L <= ``tokens`` (at least 8). Rows left over join the
    next longer bucket, and the last batch is padded with empty rows.

    Args:
        lengths: (N,) of the rows, in tokens: of pairs the longer side, of questions with what they
            are asked about the sum.
        tokens: padded tokens of a batch.

    ``room`` (N,) is the length to which each row is padded, unless it is left over.
    """

    def __init__(self, lengths, tokens, buckets=4):
        ends = bucket_lengths(lengths, buckets)
        self._bucket = np.searchsorted(ends, lengths)
        self.room = ends[self._bucket]
        self._plan = [tf.constant(column) for column in plan(lengths, ends, tokens)]

    def __len__(self):
        return int(self._plan[0].shape[0])

    def batches(self, batch, shuffle=True, seed=0, start=None, sample=lambda number: ()):
        """A dataset of ``batch(rows, size, length, *sampled)``.

        Args:
            batch: a function, in the graph, of the indices of at most ``size`` rows and the length
                to which they are padded.
            shuffle: a new order and new batches each epoch, the same for the same ``seed``.
            start: see `epochs`.
            sample: a function of an epoch's number that returns what `batch` gets as ``sampled``.
        """
        first, size, length = self._plan

        def epoch(number, *sampled):
            order, batches = tf.range(len(self._bucket)), tf.range(len(self))
            if shuffle:
                key = tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64)])
                order = tf.random.experimental.stateless_shuffle(order, key)
                batches = tf.random.experimental.stateless_shuffle(batches, key + 1)
            order = tf.gather(order, tf.argsort(tf.gather(self._bucket, order), stable=True))

            def make(i):
                return batch(order[first[i] : first[i] + size[i]], size[i], length[i], *sampled)

            return tf.data.Dataset.from_tensor_slices(batches).map(make, num_parallel_calls=2)

        def numbered(number):
            return number, *sample(number)

        return epochs(
            lambda numbers: numbers.map(numbered).prefetch(1).flat_map(epoch),
            len(self),
            seed,
            start,
        )


def epochs(batches, count, seed, start=None):
    """A dataset of ``batches(numbers)``, where the numbers are of epochs of ``count`` batches.

    With ``start`` it has no end, and begins after so many batches; without, it is one epoch, of
    known length, another each time it is iterated.
    """
    # On several machines each takes its part of every batch, not every other file.
    split = tf.data.Options()
    split.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    if start is not None:
        start = operator.index(start)
        numbers = tf.data.Dataset.range(start // count, np.iinfo(np.int64).max)
        return batches(numbers).skip(start % count).prefetch(4).with_options(split)
    number = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
    known = tf.data.experimental.assert_cardinality(count)
    return batches(number).apply(known).prefetch(4).with_options(split)


def bucket_lengths(lengths, buckets):
    """At most ``buckets`` lengths, multiples of 4, to which padding all ``lengths`` costs least."""
    rounded = -(-np.asarray(lengths) // 4) * 4
    ends, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: the fewest padded tokens of the j shortest groups; cut[k][j]: where the last
    # of k buckets begins.
    cost, cuts = np.where(below > 0, np.inf, 0.0), []
    for _ in range(min(buckets, len(ends))):
        options = cost[:-1, None] + (below[None, 1:] - below[:-1, None]) * ends[None, :]
        options = np.where(np.tri(len(ends), dtype=bool).T, options, np.inf)
        cuts.append(options.argmin(0))
        cost = np.concatenate([[0.0], options.min(0)])
    chosen, j = [], len(ends)
    for cut in reversed(cuts):
        if j == 0:
            break
        chosen.append(ends[j - 1])
        j = cut[j - 1]
    return np.array(chosen[::-1])


def plan(lengths, ends, tokens):
    """First row, rows and length of every batch, over rows sorted by bucket."""
    last = np.cumsum(np.bincount(np.searchsorted(ends, lengths), minlength=len(ends)))
    sizes = np.maximum(tokens // ends // 8 * 8, 8)
    row, batches = 0, []
    for length, size, stop in zip(ends, sizes, last, strict=True):
        while row + size <= stop or (stop == last[-1] and row < stop):
            batches.append((row, size, length))
            row += size
    return np.array(batches, "int32").T
