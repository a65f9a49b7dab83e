"""Batches of texts of similar length, with a maximum number of tokens and few static shapes."""

import math
import operator
import warnings

import numpy as np
import tensorflow as tf

from .parallel import ParallelText
from .summaries import Summaries
from .tokenizers.tokenizer import Tokenizer


def translation_batches(
    pairs: ParallelText,
    tokenizer: Tokenizer,
    tokens: int = 8192,
    max_length: int = 128,
    buckets: int = 4,
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
    bpe_dropout: float = 0.0,
    twice: bool = False,
) -> tf.data.Dataset:
    """Batches of ``({"source", "target"}, labels, sample_weight)`` for `Transformer.fit`.

    ``source`` and ``target`` (B, L) are tokens, ``labels`` (B, L) the next token of each target
    token, and ``sample_weight`` (B, L) is 0 on padding, else 1. Pairs of similar length share a
    batch. There are ``buckets`` lengths L, chosen for the least padding, each with one batch size
    B: the multiple of 8 with B * L <= ``tokens`` (at least 8). So at most ``buckets`` shapes are
    compiled. Remaining rows join the next longer bucket, and the last batch is filled with padding.

    >>> pairs = polyhead.data.ParallelText(["Ein Hund."], ["A dog."])
    >>> texts = pairs.sources + pairs.targets
    >>> tokenizer = polyhead.data.Subwords.train(texts, vocab_size=30, exact=False)
    >>> inputs, labels, weight = next(iter(polyhead.data.translation_batches(pairs, tokenizer)))
    >>> sorted(inputs), labels.shape == weight.shape
    (['source', 'target'], True)

    Args:
        pairs: the sentences and their translations.
        tokenizer: `Subwords` or `MarianPieces`.
        tokens: padded tokens per batch, on either side.
        max_length: pairs with more tokens (end token included) on a side are left out, as are pairs
            with an empty side; a warning gives their number.
        shuffle: a new order and new batches each epoch, reproducible from ``seed``.
        start: a number of updates: the dataset is endless and begins there, to resume an
            interrupted run. Default: one epoch, of known length, reshuffled at each iteration.
        bpe_dropout: rate of BPE-dropout, which segments the texts differently each epoch (see
            `Subwords.sampled`). A pair that becomes too long for its bucket keeps its usual tokens.
        twice: repeats each row, for the ``consistency`` of `SmoothedCrossEntropy`: the same number
            of batches, with twice as many rows.

    Raises:
        ValueError: no pair is left, an argument is out of range, or the tokenizer does not support
            BPE-dropout.
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
        raise ValueError(f"{type(tokenizer).__name__} does not support BPE-dropout: {bpe_dropout}")
    source = tokenizer.encode(pairs.sources)
    target = tokenizer.encode(pairs.targets, target=True)
    lengths = np.stack([source.row_lengths().numpy(), target.row_lengths().numpy()])
    keep = np.flatnonzero((lengths.min(0) > 1) & (lengths.max(0) <= max_length))
    if not len(keep):
        raise ValueError(f"no pair has between 1 and {max_length - 1} tokens on both sides")
    if len(keep) < len(pairs):
        warnings.warn(
            f"{len(pairs) - len(keep)} of {len(pairs)} pairs are empty or longer than "
            f"{max_length} tokens and are left out",
            stacklevel=2,
        )
    sides = tf.gather(source, keep), tf.gather(target, keep)
    longest = lengths.max(0)[keep]
    if bpe_dropout:
        texts = [[texts[i] for i in keep] for texts in (pairs.sources, pairs.targets)]
        usual = [side.to_list() for side in sides]

        def sample(number, room):
            """Samples the tokens of both sides for an epoch; too long rows keep the usual ones."""
            seeds = np.random.SeedSequence((seed % 2**64, number)).generate_state(2)
            sampled = [tokenizer.sampled(texts[i], bpe_dropout, int(seeds[i])) for i in (0, 1)]
            return [
                [row if len(row) <= most else plain for row, plain, most in zip(*rows, strict=True)]
                for rows in zip(sampled, usual, [room, room], strict=True)
            ]

        # A bucket has room for a first sample.
        first_sample = zip(*sample(0, [max_length] * len(keep)), strict=True)
        longest = np.maximum(longest, [max(map(len, pair)) for pair in first_sample])
    plan = Buckets(longest, tokens, buckets)

    def epoch_tokens(number):
        """The ragged tokens of both sides for an epoch."""
        if not bpe_dropout:
            return sides

        def arrays(number):
            return [
                array
                for rows in sample(int(number) + 1, np.minimum(plan.room, max_length))
                for array in (np.concatenate(rows), [len(row) for row in rows])
            ]

        flat = tf.numpy_function(arrays, [number], [tf.int64] * 4)
        for tensor in flat:
            tensor.set_shape([None])
        parts = (flat[i : i + 2] for i in (0, 2))
        tokens = (tf.RaggedTensor.from_row_lengths(*part, validate=False) for part in parts)
        return tuple(tf.cast(side, tf.int32) for side in tokens)

    return plan.batches(make_batch(tokenizer, 1 + twice), shuffle, seed, start, sample=epoch_tokens)


def summary_batches(
    summaries: Summaries,
    tokenizer: Tokenizer,
    tokens: int = 8192,
    max_length: int = 512,
    max_target_length: int = 128,
    buckets: int = 4,
    prefix: str = "",
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
) -> tf.data.Dataset:
    """Batches of ``({"source", "target"}, labels, sample_weight)`` for `T5.fit` and `BART.fit`.

    As `translation_batches`, but ``source`` is (B, S) and the others are (B, T): texts are longer
    than their summaries. Each summary of a text is an example. Longer texts and summaries are
    truncated. Texts of similar length share a batch, with B * S <= ``tokens``, and each bucket has
    one T.

    >>> from polyhead.data import Subwords, Summaries, summary_batches
    >>> summaries = Summaries(["Ada ran home. It rained."], [["Ada ran."]])
    >>> tokenizer = Subwords.train(summaries.texts, vocab_size=30, exact=False)
    >>> inputs, labels, weight = next(iter(summary_batches(summaries, tokenizer)))
    >>> inputs["target"].shape == labels.shape
    True

    Args:
        summaries: texts and their summaries.
        tokenizer: the model's.
        tokens: padded source tokens per batch.
        max_length, max_target_length: the maximum number of tokens of a text and of a summary.
        prefix: added to each text.
        shuffle, seed, start: see `translation_batches`.

    Raises:
        ValueError: there is no text, or an argument is out of range.
    """
    pairs = [(prefix + text, x) for text, listed in summaries for x in listed]
    if not pairs:
        raise ValueError("there is no text with a summary")
    check_sizes(tokens=tokens, buckets=buckets)
    if min(max_length, max_target_length) < 2:
        raise ValueError(
            "max_length and max_target_length must be at least 2: "
            f"{max_length}, {max_target_length}"
        )
    texts, targets = zip(*pairs, strict=True)
    source = tf.cast(tokenizer.encode(texts, max_length), tf.int32)
    target = tf.cast(tokenizer.encode(targets, max_target_length, target=True), tf.int32)
    lengths = [side.row_lengths().numpy() for side in (source, target)]
    plan = Buckets(lengths[0], tokens, buckets)
    widths = plan.widths(lengths[1])
    batch = make_batch(tokenizer, target_width=lambda length: tf.gather(widths, length // 4))
    return plan.batches(batch, shuffle, seed, start, lambda number: (source, target))


def make_batch(tokenizer, copies=1, target_width=lambda length: length):
    """A function that makes a batch of a `Buckets` from the ragged tokens of both sides.

    Args:
        copies: how often each row is repeated.
        target_width: a function of the length of sources, a tensor.
    """
    pad = tokenizer.pad_id

    def batch(rows, size, length, source, target):
        rows, size, width = tf.repeat(rows, copies), copies * size, target_width(length)
        labels = tf.gather(target, rows).to_tensor(pad, shape=[size, width])
        shifted = tf.concat([tf.fill([size, 1], tokenizer.start_id), labels[:, :-1]], axis=1)
        inputs = {
            "source": tf.gather(source, rows).to_tensor(pad, shape=[size, length]),
            # The last label is the end token, which is not an input.
            "target": tf.where(labels != pad, shifted, pad),
        }
        return inputs, labels, tf.cast(labels != pad, tf.float32)

    return batch


class Buckets:
    """A plan of batches with few shapes, where rows of similar length share a batch.

    There are at most ``buckets`` lengths L, chosen for the least padding, each with one batch size
    B: the multiple of 8 with B * L <= ``tokens`` (at least 8), or ``batch_size``. Remaining rows
    join the next longer bucket, and the last batch is padded with empty rows.

    Args:
        lengths: (N,) tokens of each row: of a pair, those of the longer side; of a question with
            its context, the sum.
        tokens: padded tokens per batch.
        batch_size: rows per batch, instead of a number of tokens.
        even: with ``batch_size``: instead B rows have at most as many padded tokens as
            ``batch_size`` rows of mean length, and B is a multiple of gcd(batch_size, 8).

    ``room`` (N,) is the length to which each row is padded, unless it joins a longer bucket.
    """

    def __init__(self, lengths, tokens=None, buckets=4, batch_size=None, even=False):
        if not len(lengths):
            raise ValueError("there are no examples to make batches of")
        self._ends = ends = bucket_lengths(lengths, buckets)
        self._bucket = np.searchsorted(ends, lengths)
        self.room = ends[self._bucket]
        unit = 8
        if even:
            tokens, unit = int(batch_size * self.room.mean()), math.gcd(batch_size, 8)
        size = None if even else batch_size
        self._plan = [tf.constant(column) for column in plan(lengths, ends, tokens, size, unit)]

    def __len__(self):
        return int(self._plan[0].shape[0])

    def widths(self, lengths):
        """The width of the other side of each bucket, a multiple of 4, at its length / 4.

        Args:
            lengths: (N,) the tokens of each row on the other side.
        """
        longest = [lengths[self.room <= end].max() for end in self._ends]
        widths = np.zeros(self._ends[-1] // 4 + 1, "int32")
        widths[self._ends // 4] = -(-np.array(longest) // 4) * 4
        return tf.constant(widths)

    def batches(self, batch, shuffle=True, seed=0, start=None, sample=lambda number: ()):
        """A dataset of ``batch(rows, size, length, *sampled)``.

        Args:
            batch: a function, run in the graph, of the indices of at most ``size`` rows and the
                length to which they are padded.
            shuffle: a new order and new batches each epoch, reproducible from ``seed``.
            start: see `epochs`.
            sample: a function from an epoch's number to the ``sampled`` arguments of `batch`.
        """
        first, size, length = self._plan
        check_seed(seed)

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
    """A dataset of ``batches(numbers)``, for the numbers of epochs of ``count`` batches each.

    With ``start`` it is endless, and begins after this many batches. Without, it is one epoch, of
    known length, with another number at each iteration.
    """
    # Each machine takes its part of every batch, not every other file.
    split = tf.data.Options()
    split.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    if start is not None:
        start = operator.index(start)
        numbers = tf.data.Dataset.range(start // count, np.iinfo(np.int64).max)
        return batches(numbers).skip(start % count).prefetch(4).with_options(split)
    number = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
    known = tf.data.experimental.assert_cardinality(count)
    return batches(number).apply(known).prefetch(4).with_options(split)


def row_batches(batch, count, batch_size, shuffle=True, seed=0, start=None):
    """A dataset of ``batch(rows, key)`` over ``count`` rows.

    Args:
        batch: a function, run in the graph, of the indices of at most ``batch_size`` rows and of a
            key (2,) for random numbers, which is another one for each batch.
        shuffle: each epoch has a new order and other keys, reproducible from ``seed``; without,
            each iteration has the same.
        start: see `epochs`.
    """
    size = -(-count // batch_size)
    check_seed(seed)

    def epoch(number):
        number = tf.cast(number, tf.int64) if shuffle else tf.zeros([], tf.int64)
        key = tf.stack([tf.cast(seed, tf.int64), number])
        order = tf.range(count)
        if shuffle:
            order = tf.random.experimental.stateless_shuffle(order, key)

        def make(i):
            rows = order[i * batch_size : (i + 1) * batch_size]
            return batch(rows, tf.random.experimental.stateless_fold_in(key, i))

        return tf.data.Dataset.range(size, output_type=tf.int32).map(make, num_parallel_calls=2)

    return epochs(lambda numbers: numbers.flat_map(epoch), size, seed, start)


def bucket_lengths(lengths, buckets):
    """Chooses at most ``buckets`` multiples of 4 as lengths with the least padding."""
    rounded = -(-np.asarray(lengths) // 4) * 4
    ends, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: the fewest padded tokens of the j shortest groups; cuts[k][j]: the start of the last
    # of k buckets.
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


def plan(lengths, ends, tokens=None, batch_size=None, unit=8):
    """First row, number of rows and length of every batch, for rows sorted by bucket."""
    last = np.cumsum(np.bincount(np.searchsorted(ends, lengths), minlength=len(ends)))
    if batch_size is None:
        sizes = np.maximum(tokens // ends // unit * unit, unit)
    else:
        sizes = np.full(len(ends), batch_size)
    row, batches = 0, []
    for length, size, stop in zip(ends, sizes, last, strict=True):
        while row + size <= stop or (stop == last[-1] and row < stop):
            batches.append((row, size, length))
            row += size
    return np.array(batches, "int32").T


def fill(x, size, value=0):
    """Appends rows of ``value`` to ``x`` (N, ...), up to ``size`` rows."""
    paddings = [[0, size - tf.shape(x)[0]], *[[0, 0]] * (x.shape.rank - 1)]
    return tf.pad(x, paddings, constant_values=value)


def check_sizes(**sizes):
    for name, value in sizes.items():
        if check_integer(name, value) < 1:
            raise ValueError(f"{name} must be positive: {value}")


def check_seed(seed):
    if not -(2**63) <= check_integer("seed", seed) < 2**63:
        raise ValueError(f"seed must be a 64-bit integer: {seed}")


def check_integer(name, value):
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer: {value!r:.80}") from None
