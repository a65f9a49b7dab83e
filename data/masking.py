"""Masked tokens of text, for masked language models."""

import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from .batches import check_sizes, fill, row_batches
from .spans import begins_word, code_points
from .text import pieces_at_once
from .tokenizers.ragged import join_rows, unpack
from .tokenizers.tokenizer import Tokenizer

SKIPS = 4  # words that exceed the quota and are skipped for shorter ones, as in BERT's code
SHARES = (0.8, 0.9)  # of the masked tokens: below, hidden; between, random; above, unchanged


def masked_batches(
    texts: "str | Sequence[str] | DocumentTokens",
    tokenizer: Tokenizer,
    length: int = 128,
    batch_size: int = 32,
    rate: float = 0.15,
    whole_words: bool = False,
    pack: bool = True,
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
) -> tf.data.Dataset:
    """Batches of ``({"tokens", "positions"}, labels, sample_weight)`` for the head "tokens".

    Documents are concatenated and cut into rows of ``length`` tokens, special ones included (the
    FULL-SENTENCES of Liu et al. 2019, section 4.2). The fraction ``rate`` of each row is chosen,
    differently each epoch; 80% of these tokens are replaced by the mask token, 10% by a random
    token, and 10% stay (Devlin et al. 2019, section 3.1). ``positions``, ``labels`` and
    ``sample_weight`` (B, M) are their places, the original tokens, and 0 where fewer than M are
    chosen.

    >>> tokenizer = polyhead.data.WordPieces.train(["a dog on a log"], vocab_size=30)
    >>> inputs, labels, weight = next(
    ...     iter(polyhead.data.masked_batches(["a dog on a log"] * 9, tokenizer, length=12))
    ... )
    >>> inputs["tokens"].shape.as_list(), labels.shape.as_list()
    ([32, 12], [32, 2])

    Args:
        texts: documents, or their tokens by `document_tokens`.
        length: T.
        batch_size: B.
        whole_words: choose all tokens of a word or none. (Of tokens by `document_tokens`, it is
            that function's.)
        pack: False: a row has tokens of one document only, a protein for example, and padding.
        shuffle: each epoch has a new order and other masks, reproducible from ``seed``; without,
            each iteration has the masks of ``seed``.
        start: see `classification_batches`.

    Raises:
        ValueError: there is no text, the tokenizer has no mask token, or an argument is out of
            range.
    """
    check_sizes(length=length, batch_size=batch_size)
    if not 0 < rate < 1:
        raise ValueError(f"rate must be in (0, 1): {rate}")
    if tokenizer.mask_id is None:
        raise ValueError(f"{type(tokenizer).__name__} has no mask token")
    room = operator.index(length) - len(tokenizer.prefix) - len(tokenizer.suffix)
    if room < 2:
        raise ValueError(f"length has no room for text: {length}")
    most = min(max(1, round(rate * room)), room - 1)
    if not isinstance(texts, DocumentTokens):
        texts = [texts] if isinstance(texts, str) else texts
        texts = document_tokens(texts, tokenizer, whole_words)
    first, within = cut_rows(texts, room, None if pack else len(tokenizer.suffix[-1:]))
    count = len(first)
    fresh = np.ones(tokenizer.vocab_size, bool)  # tokens that may be chosen, or replace one
    fresh[list(tokenizer.special_ids)] = False
    ordinary, fresh = tf.constant(np.flatnonzero(fresh), tf.int32), tf.constant(fresh)

    ids, words = (tf.constant(np.pad(x, (0, room)), tf.int32) for x in texts[:2])
    begins, lengths = tf.constant(first, tf.int32), tf.constant(within, tf.int32)

    def batch(rows, key):
        begin, within = (fill(tf.gather(x, rows), batch_size) for x in (begins, lengths))
        places = begin[:, None] + tf.range(room)
        is_text = tf.range(room) < within[:, None]
        original = tf.where(is_text, tf.gather(ids, places), tokenizer.pad_id)
        word = tf.where(is_text, tf.gather(words, places), tf.gather(words, begin)[:, None])
        text = is_text & tf.gather(fresh, original)
        keys = [tf.random.experimental.stateless_fold_in(key, j) for j in range(3)]
        # One random number for each word; the words with the smallest numbers are chosen.
        drawn = tf.random.stateless_uniform([batch_size, room], keys[0])
        drawn = tf.gather(drawn, word - word[:, :1], batch_dims=1)
        order = tf.argsort(tf.where(text, drawn, 2.0), axis=1, stable=True)
        quota = tf.reduce_sum(tf.cast(text, tf.float32), axis=1) * rate + 0.5
        quota = tf.minimum(tf.maximum(tf.cast(quota, tf.int32), 1), most)[:, None]
        taken, ranked = (tf.gather(x, order, batch_dims=1) for x in (text, word))

        def exceeding(taken):
            """The tokens beyond the quota, and all tokens of the first word among them."""
            over = taken & (tf.cumsum(tf.cast(taken, tf.int32), axis=1) > quota)
            excess = tf.gather(
                ranked, tf.argmax(tf.cast(over, tf.int32), axis=1)[:, None], batch_dims=1
            )
            return over, tf.reduce_any(over, axis=1, keepdims=True) & (ranked == excess)

        for _ in range(SKIPS):
            taken &= ~exceeding(taken)[1]
        over, excess = exceeding(taken)
        taken &= ~(over | excess)
        first = tf.argsort(tf.cast(~taken, tf.int32), axis=1, stable=True)[:, :most]
        at, weight = (tf.gather(x, first, batch_dims=1) for x in (order, taken))
        labels = tf.gather(original, at, batch_dims=1)
        fate = tf.random.stateless_uniform([batch_size, most], keys[1])
        other = tf.random.stateless_uniform(
            [batch_size, most], keys[2], maxval=tf.size(ordinary), dtype=tf.int32
        )
        new = tf.where(fate < SHARES[1], tf.gather(ordinary, other), labels)
        new = tf.where(fate < SHARES[0], tokenizer.mask_id, new)
        row = tf.repeat(tf.range(batch_size)[:, None], most, axis=1)
        places = tf.boolean_mask(tf.stack([row, at], axis=-1), weight)
        tokens = tf.tensor_scatter_nd_update(original, places, tf.boolean_mask(new, weight))
        tokens = tf.RaggedTensor.from_tensor(tokens, within)
        tokens = join_rows(tokenizer.prefix, tokens, tokenizer.suffix)
        inputs = {
            "tokens": tokens.to_tensor(tokenizer.pad_id, shape=[batch_size, length]),
            "positions": at + len(tokenizer.prefix),
        }
        return inputs, tf.where(weight, labels, 0), tf.cast(weight, tf.float32)

    return row_batches(batch, count, batch_size, shuffle, seed, start)


def cut_rows(texts, room, last):
    """The first token of each row of up to ``room`` tokens, and their number, both (R,).

    Args:
        last: the number of special tokens that end a document, and that rows of one document do not
            need; None: a row may have tokens of several documents.
    """
    if last is None:
        starts, ends = np.zeros(1, "int64"), np.array([len(texts.ids)])
    else:
        starts, ends = texts.starts, np.append(texts.starts[1:], len(texts.ids)) - last
    pieces = -(-(ends - starts) // room)  # of each document, or of all
    first = np.repeat(starts, pieces) + room * (
        np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    )
    return first, np.minimum(np.repeat(ends, pieces) - first, room)


class DocumentTokens(NamedTuple):
    """The tokens of all documents.

    Attributes:
        ids: (N,).
        words: (N,) the number of each token's word.
        starts: (D,) the first token of each document.
    """

    ids: np.ndarray
    words: np.ndarray
    starts: np.ndarray


def document_tokens(
    texts: Iterable[str], tokenizer: Tokenizer, whole_words: bool = False
) -> DocumentTokens:
    """Tokenizes documents and concatenates them, each with the tokenizer's last special token.

    Args:
        whole_words: number the words, as spans of letters and digits; otherwise each token is a
            word.

    Raises:
        ValueError: there is no text.
    """
    parts, firsts, starts, count, total = [], [], [], 0, 0
    last = np.array(tokenizer.suffix[-1:], "int32")
    for pieces in pieces_at_once(texts):
        strings = [piece for piece, *_ in pieces]
        if whole_words:
            ids, *places = tokenizer.offsets(strings)
            row, places = tf.cast(ids.value_rowids(), tf.int32), [x.flat_values for x in places]
            new = begins_word(tokenizer, code_points(strings), row, *places)
        else:
            ids = tokenizer.encode(strings, add_special_tokens=False)
            new = tf.ones_like(ids.flat_values, tf.bool)
        rows = zip(unpack(ids), unpack(ids.with_values(new)), pieces, strict=True)
        for row, first, (_, begins, ends) in rows:
            starts.extend([total] if begins else [])
            count += len(row)
            total += len(row) + ends * len(last)
            parts.extend([row, last] if ends else [row])
            firsts.extend([first, np.ones(len(last), bool)] if ends else [first])
    if not count:
        raise ValueError("there is no text")
    ids = np.concatenate(parts).astype("int32")
    words = np.cumsum(np.concatenate(firsts)).astype("int32")
    return DocumentTokens(ids, words, np.array(starts))
