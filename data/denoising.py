"""Span corruption of text, to pretrain encoder-decoders."""

import bisect
import operator
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from .batches import check_sizes, make_batch, row_batches
from .text import token_stream
from .tokenizers.ragged import join_rows
from .tokenizers.tokenizer import Tokenizer


def span_batches(
    texts: str | Sequence[str] | np.ndarray,
    tokenizer: Tokenizer,
    length: int = 128,
    batch_size: int = 32,
    rate: float = 0.15,
    mean_span: float = 3.0,
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
) -> tf.data.Dataset:
    """Batches of ``({"source", "target"}, labels, sample_weight)`` for `T5.fit` and `BART.fit`.

    The objective is span corruption (Raffel et al. 2019, arXiv 1910.10683, sections 3.1.4 and
    3.3.4). Documents are concatenated and cut into rows. In each row, random spans with the
    fraction ``rate`` of the tokens are hidden: in ``source`` (B, S) a sentinel replaces each span;
    the labels (B, T) are each sentinel with the tokens of its span, then the end token. As in
    `translation_batches`, ``target`` (B, T) are the labels after a start token, and
    ``sample_weight`` (B, T) is 0 on padding, else 1.

    The numbers of hidden tokens and of spans are those of T5's code, the same in all full rows. All
    divisions of the hidden tokens into spans, and of the others into gaps before the spans, are
    equally likely. A row ends with a span, so ``length`` should allow several.

    S is ``length``: a row has as many tokens of text as fill the source. T is what its spans need.
    With the defaults, 141 tokens of text give S = 128 and T = 29.

    >>> from polyhead.data import Subwords, span_batches
    >>> texts = ["a dog on a log"] * 9
    >>> tokenizer = Subwords.train(texts, vocab_size=130, exact=False, sentinels=True)
    >>> inputs, labels, weight = next(iter(span_batches(texts, tokenizer)))
    >>> inputs["source"].shape.as_list(), labels.shape.as_list()
    ([32, 128], [32, 29])

    Args:
        texts: documents, or the output of `token_stream`. Special tokens in them are left out.
        tokenizer: a tokenizer with sentinels: that of a published T5, or `Subwords.train` with
            ``sentinels=True``.
        length: S, special tokens included.
        batch_size: B.
        rate: the fraction of the tokens that is hidden.
        mean_span: the mean number of tokens of a span.
        shuffle: each epoch has a new order and other spans, reproducible from ``seed``; without,
            each iteration has the spans of ``seed``.
        start: see `translation_batches`.

    Raises:
        ValueError: there is no text, the tokenizer has no sentinels or fewer than a row needs, or
            an argument is out of range.
    """
    check_sizes(length=length, batch_size=batch_size)
    length, batch_size = operator.index(length), operator.index(batch_size)
    if not 0 < rate < 1:
        raise ValueError(f"rate must be in (0, 1): {rate}")
    if not mean_span >= 1:
        raise ValueError(f"mean_span must be at least 1: {mean_span}")
    if not tokenizer.sentinel_ids:
        raise ValueError(
            f"{type(tokenizer).__name__} has no sentinels: train a vocabulary by "
            "Subwords.train(texts, sentinels=True)"
        )
    special = len(tokenizer.prefix) + len(tokenizer.suffix)

    def source_length(number):
        noise, spans = count_noise(number, rate, mean_span)
        return number - noise + spans + special

    longest = int(length / (1 - rate)) + 2  # too long for the source
    room = bisect.bisect_right(range(1, longest), length, key=source_length)
    if room < 2:
        raise ValueError(f"length has no room for text: {length}")
    noise, most = map(int, count_noise(room, rate, mean_span))
    if most > len(tokenizer.sentinel_ids):
        raise ValueError(
            f"a row of length {length} has {most} spans, but {type(tokenizer).__name__} has only "
            f"{len(tokenizer.sentinel_ids)} sentinels: use a smaller length or rate, or a larger "
            "mean_span"
        )
    if not isinstance(texts, np.ndarray):
        texts = token_stream([texts] if isinstance(texts, str) else texts, tokenizer)
    ids = texts[~np.isin(texts, list(tokenizer.special_ids))]
    if not len(ids):
        raise ValueError("there is no text")
    count = -(-len(ids) // room)
    lengths = np.minimum(len(ids) - room * np.arange(count), room)
    ids = np.pad(ids, (0, count * room - len(ids))).reshape(count, room)
    columns = [
        tf.constant(x, tf.int32) for x in (ids, lengths, *count_noise(lengths, rate, mean_span))
    ]
    sentinels = tf.constant(tokenizer.sentinel_ids[:most], tf.int32)
    make = make_batch(tokenizer, target_width=lambda length: noise + most + special)
    place = tf.range(room)

    def batch(rows, key):
        tokens, number, noise, spans = (tf.gather(x, rows) for x in columns)

        def divide(items, i):
            """Divides ``items`` (N,) of each row into ``spans`` parts: the part of each item."""
            drawn = tf.random.stateless_uniform(
                [tf.size(rows), room], tf.random.experimental.stateless_fold_in(key, i)
            )
            inner = (place > 0) & (place < items[:, None])
            order = tf.argsort(tf.where(inner, drawn, 2.0), axis=1, stable=True)
            begins = inner & (tf.argsort(order, axis=1) < spans[:, None] - 1)
            return tf.cumsum(tf.cast(begins, tf.int32), axis=1)

        # The tokens of gap i have the key 2 i, those of the span after it 2 i + 1.
        keys = [
            tf.where(place < items[:, None], 2 * divide(items, i) + i, 2 * room)
            for i, items in enumerate((number - noise, noise))
        ]
        keys = tf.sort(tf.concat(keys, axis=1), axis=1)[:, :room]
        text = place < number[:, None]
        hidden = text & (keys % 2 == 1)
        first = hidden & (keys != tf.pad(keys[:, :-1], [[0, 0], [1, 0]]))
        sentinel = tf.gather(sentinels, tf.minimum(keys // 2, most - 1))
        source = tf.ragged.boolean_mask(tf.where(first, sentinel, tokens), text & (first | ~hidden))
        # Before each hidden token there is room for a sentinel.
        target, kept = (
            tf.reshape(tf.stack(pair, axis=-1), [-1, 2 * room])
            for pair in ((sentinel, tokens), (first, hidden))
        )
        target = tf.ragged.boolean_mask(target, kept)
        sides = (join_rows(tokenizer.prefix, x, tokenizer.suffix) for x in (source, target))
        return make(tf.range(tf.size(rows)), batch_size, length, *sides)

    return row_batches(batch, count, batch_size, shuffle, seed, start)


def count_noise(number, rate, mean_span):
    """The numbers of hidden tokens and of spans in rows of ``number`` tokens, as in T5's code.

    (``random_spans_noise_mask``.) A row of one token has no span.
    """
    noise = np.clip(np.round(number * rate), 1, number - 1)
    spans = np.clip(np.round(noise / mean_span), 1, np.minimum(noise, number - noise))
    return noise.astype("int32"), spans.astype("int32")
