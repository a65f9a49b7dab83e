"""Batches for text encoders: classes, tags, questions and pairs."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from .batches import Buckets, check_integer, check_sizes, fill
from .labelled import LabelledTexts, Question, TaggedWords, TextPairs
from .spans import join_words, read_contexts, word_of
from .tokenizers.ragged import join_rows
from .tokenizers.tokenizer import Tokenizer

PART = 256  # number of texts whose tokens are located at once


def classification_batches(
    texts: LabelledTexts,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    batch_size: int = 32,
    max_length: int = 128,
    buckets: int = 4,
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
) -> tf.data.Dataset:
    """Batches of ``(tokens, labels, sample_weight)`` for a model with the head "classes".

    ``tokens`` (B, L) are padded; for pairs they are a dictionary of ``tokens`` and ``types``.
    ``labels`` (B,) are the classes, and ``sample_weight`` (B,) is 0 for rows that fill the last
    batch. There are ``buckets`` lengths L, chosen for the least padding; see `Buckets`.

    >>> texts = polyhead.data.LabelledTexts(["A dog.", "A log."], ["yes", "no"])
    >>> tokenizer = polyhead.data.WordPieces.train(texts.texts, vocab_size=30)
    >>> batches = polyhead.data.classification_batches(
    ...     texts, tokenizer, texts.classes, batch_size=8, shuffle=False
    ... )
    >>> tokens, labels, weight = next(iter(batches))
    >>> tokens.shape.as_list(), labels.numpy()[:2], int(weight.numpy().sum())
    ([8, 8], array([1, 0], dtype=int32), 2)

    Args:
        class_names: the names of the classes, in the order of the model's.
        batch_size: B.
        max_length: longer texts are cut; of pairs the longer side.
        shuffle: a new order and new batches each epoch, reproducible from ``seed``.
        start: a number of updates: the dataset is endless and begins there, to resume an
            interrupted run. Default: one epoch, of known length, reshuffled at each iteration.

    Raises:
        ValueError: a label is not in ``class_names``, or a size is not positive.
    """
    check_sizes(batch_size=batch_size, max_length=max_length, buckets=buckets)
    labels = class_indices(texts.labels, class_names)
    tokens, types = encode_texts(texts, tokenizer, max_length)
    rows = Rows(tokens, tokenizer.pad_id, labels, types)
    return rows.batches(batch_size, buckets, shuffle, seed, start)


def encode_texts(texts, tokenizer, max_length):
    """The ragged tokens of texts or pairs, and the types of pairs or None."""
    check_room(tokenizer, max_length)
    if texts.seconds is None:
        return tf.cast(tokenizer.encode(texts.texts, max_length), tf.int32), None
    return tokenizer.encode_pairs(texts.texts, texts.seconds, max_length)


def check_room(tokenizer, max_length):
    """Checks that rows of ``max_length`` tokens have room for text, beside the special tokens."""
    special = len(tokenizer.prefix) + len(tokenizer.suffix)
    if max_length <= special:
        raise ValueError(
            f"max_length must be more than the {special} special tokens of a text: {max_length}"
        )


def class_indices(labels, class_names):
    """The index of each of ``labels`` in ``class_names``, (N,) int32."""
    index = {name: i for i, name in enumerate(class_names)}
    if unknown := sorted(set(labels) - set(index)):
        names = ", ".join(map(str, class_names))
        raise ValueError(f"{unknown[0]!r} is not one of the {len(index)} classes: {names[:80]}")
    return np.array([index[label] for label in labels], "int32")


def tagging_batches(
    sentences: TaggedWords,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    batch_size: int = 32,
    max_length: int = 128,
    buckets: int = 4,
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
) -> tf.data.Dataset:
    """Batches of ``(tokens, labels, sample_weight)``, each (B, L), for the head "tags".

    The first token of each word has the label of the word; other tokens have weight 0 (Devlin et
    al. 2019, section 5.3). Words are joined by spaces. Words beyond ``max_length`` tokens are left
    out; a warning gives their number. Batches of long sentences have fewer rows, so that each batch
    has about as many tokens as ``batch_size`` sentences of mean length, and each word about the
    same part in the loss. Other arguments are those of `classification_batches`.

    >>> sentences = polyhead.data.TaggedWords([["Ada", "sleeps"]], [["B-person", "O"]])
    >>> tokenizer = polyhead.data.WordPieces.train(["Ada sleeps"], vocab_size=30)
    >>> batches = polyhead.data.tagging_batches(
    ...     sentences, tokenizer, sentences.classes, batch_size=8, shuffle=False
    ... )
    >>> tokens, labels, weight = next(iter(batches))
    >>> int(weight.numpy().sum()), [sentences.classes[i] for i in labels.numpy()[0, 1:3]]
    (2, ['B-person', 'O'])
    """
    check_sizes(batch_size=batch_size, max_length=max_length, buckets=buckets)
    tokens, words = encode_words(sentences.words, tokenizer, max_length)
    flat, row = words.flat_values.numpy(), words.value_rowids().numpy()
    first = flat >= 0
    base = np.cumsum([0, *map(len, sentences.words)])
    tags = class_indices([tag for tags in sentences.tags for tag in tags], class_names)
    if (lost := len(tags) - first.sum()) > 0:
        warnings.warn(
            f"{lost} of {len(tags)} words are beyond {max_length} tokens of their sentence, or "
            "without tokens, and are left out",
            stacklevel=2,
        )
    labels = words.with_flat_values(tf.constant(np.where(first, tags[base[row] + flat], 0)))
    weight = words.with_flat_values(tf.constant(first, tf.float32))
    rows = Rows(tokens, tokenizer.pad_id, labels, weight=weight)
    return rows.batches(batch_size, buckets, shuffle, seed, start)


def encode_words(sentences, tokenizer, max_length):
    """Tokenizes lists of words: ragged tokens (B, None), and words (B, None).

    Words are the indices of the words that begin at each token; -1 for other tokens.
    """
    check_room(tokenizer, max_length)
    ids, starts, _ = locate(tokenizer, list(map(join_words, sentences)))
    room = max_length - len(tokenizer.prefix) - len(tokenizer.suffix)
    ids, starts = ids[:, : max(room, 0)], starts[:, : max(room, 0)]
    lengths, place = ids.row_lengths().numpy(), starts.flat_values.numpy()
    found, at = [], 0
    for words, length in zip(sentences, lengths, strict=True):
        word = word_of(words, place[at : at + length])
        found.append(np.where(np.diff(word, prepend=-1) != 0, word, -1))
        at += length
    words = ids.with_flat_values(tf.constant(np.concatenate([[], *found]), tf.int32))
    before, after = tokenizer.prefix, tokenizer.suffix
    ids = join_rows(before, tf.cast(ids, tf.int32), after)
    return ids, join_rows([-1] * len(before), words, [-1] * len(after))


def locate(tokenizer, texts):
    """`Tokenizer.offsets` of many strings: of equal ones once, and in parts, to save memory."""
    index, different = number(texts)
    parts = [
        tokenizer.offsets(different[i : i + PART]) for i in range(0, max(len(different), 1), PART)
    ]
    index = tf.constant(index, tf.int32)
    return [tf.gather(tf.concat(rows, axis=0), index) for rows in zip(*parts, strict=True)]


def number(items):
    """The number of each item, where equal ones have the same, and the different items."""
    numbers = {}
    return [numbers.setdefault(item, len(numbers)) for item in items], list(numbers)


def question_batches(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    batch_size: int = 16,
    max_length: int = 384,
    overlap: int = 128,
    buckets: int = 4,
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
) -> tf.data.Dataset:
    """Batches of ``({"tokens", "types"}, labels, sample_weight)`` for the head "spans".

    A row is a question and a window of its context; windows of a long context share ``overlap``
    tokens. ``labels`` (B, 2) are the indices of the first and the last token of the first answer,
    or 0, the first special token, if the window does not hold all of it or there is none (Devlin
    et al. 2019, sections 4.2 and 4.3). ``sample_weight`` (B,) is 0 for rows that fill a batch.
    Other arguments are those of `classification_batches`.

    >>> question = polyhead.data.Question("1", "Who sleeps?", "Ada sleeps.", (("Ada", 0),))
    >>> tokenizer = polyhead.data.WordPieces.train([question.question, question.context], 60)
    >>> inputs, labels, weight = next(iter(polyhead.data.question_batches([question], tokenizer)))
    >>> sorted(inputs), labels.shape.as_list()
    (['tokens', 'types'], [16, 2])
    """
    check_sizes(batch_size=batch_size, max_length=max_length, buckets=buckets)
    if check_integer("overlap", overlap) < 0:
        raise ValueError(f"overlap must be a non-negative integer: {overlap}")
    reading = read_contexts(
        tokenizer,
        [q.question for q in questions],
        [q.context for q in questions],
        max_length,
        min(overlap, max_length),
        locate,
    )
    labels = answer_tokens(questions, reading)
    rows = Rows(reading.tokens, tokenizer.pad_id, labels, reading.types)
    return rows.batches(batch_size, buckets, shuffle, seed, start)


def answer_tokens(questions, reading):
    """The first and the last token (W, 2) of the first answer in each window; 0 without one."""
    rows, first, count = (x.numpy() for x in reading.windows)
    before = reading.before.numpy()
    splits, starts, ends = (
        x.numpy()
        for x in (reading.starts.row_splits, reading.starts.flat_values, reading.ends.flat_values)
    )
    labels = np.zeros((len(rows), 2), "int32")
    for i, row in enumerate(rows):
        if not questions[row].answers:
            continue
        text, place = questions[row].answers[0]
        begin = splits[row]
        # The last token that begins at the answer or before; the first that ends at its end.
        head = np.searchsorted(starts[begin : splits[row + 1]], place, side="right") - 1
        tail = np.searchsorted(ends[begin : splits[row + 1]], place + len(text), side="left")
        if first[i] <= head <= tail < first[i] + count[i]:
            labels[i] = before[i] - first[i] + np.array([head, tail])
    return labels


def pair_batches(
    pairs: TextPairs,
    tokenizer: Tokenizer,
    batch_size: int = 32,
    max_length: int = 128,
    buckets: int = 4,
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
    scale: float = 1.0,
) -> tf.data.Dataset:
    """Batches of ``(tokens, labels, sample_weight)`` of pairs, for a model without a head.

    ``tokens`` (2 B, L) has the first text of pair i in row 2 i, and the second in row 2 i + 1. If
    the pairs have scores, ``labels`` (2 B,) are these scores divided by ``scale``, for
    `CosineRegression`. If not, each different text has a number, and ``labels`` are the numbers of
    the rows' texts, for `InBatchNegatives`. Rows that fill the last batch have the label -1 and,
    in ``sample_weight`` (2 B,), the weight 0. Other arguments are those of
    `classification_batches`.

    >>> pairs = polyhead.data.TextPairs(["A dog runs."], ["A dog is running."], scores=[4.5])
    >>> tokenizer = polyhead.data.WordPieces.train(pairs.firsts + pairs.seconds, 60)
    >>> batches = polyhead.data.pair_batches(pairs, tokenizer, batch_size=8, scale=5.0)
    >>> tokens, labels, weight = next(iter(batches))
    >>> tokens.shape[0], labels.numpy()[:2]
    (16, array([0.9, 0.9], dtype=float32))

    Args:
        batch_size: B.
        scale: the score of equal texts.
    """
    check_sizes(batch_size=batch_size, max_length=max_length, buckets=buckets)
    if not scale > 0:
        raise ValueError(f"scale must be positive: {scale}")
    check_room(tokenizer, max_length)
    texts = [text for pair in zip(pairs.firsts, pairs.seconds, strict=True) for text in pair]
    tokens = tf.cast(tokenizer.encode(texts, max_length), tf.int32)
    if pairs.scores is None:
        labels = np.array(number(texts)[0], "float32")
    else:
        labels = np.repeat(np.array(pairs.scores, "float32") / scale, 2)
    rows = Rows(tokens, tokenizer.pad_id, labels, group=2, no_label=-1)
    return rows.batches(batch_size, buckets, shuffle, seed, start)


class Rows(NamedTuple):
    """N rows of which batches are made.

    Attributes:
        tokens: ragged (N, None).
        pad_id: pads the tokens.
        labels: (N, ...), or ragged (N, None), padded with 0.
        types: ragged (N, None), or None.
        weight: ragged (N, None), padded with 0; None is 1 for each row.
        group: the number of consecutive rows that stay together.
        no_label: the label of rows that fill the last batch.
    """

    tokens: Any
    pad_id: int
    labels: Any
    types: Any = None
    weight: Any = None
    group: int = 1
    no_label: int = 0

    def batches(self, batch_size, buckets, shuffle, seed, start):
        """A dataset of ``(inputs, labels, sample_weight)``, ``batch_size`` groups each.

        With weights of tokens, long rows share a batch with fewer others: the loss is a mean over
        the tokens of a batch, and all tokens should count the same.
        """
        lengths = self.tokens.row_lengths().numpy()
        longest, even = lengths.reshape(-1, self.group).max(1), self.weight is not None
        plan = Buckets(longest, None, buckets, batch_size, even)
        weight = np.ones(len(lengths), "float32") if self.weight is None else self.weight
        labels, weight = (
            x if isinstance(x, tf.RaggedTensor) else tf.constant(x) for x in (self.labels, weight)
        )

        def batch(rows, size, length):
            rows = tf.reshape(self.group * rows[:, None] + tf.range(self.group), [-1])
            size *= self.group

            def take(x, value=0):
                x = tf.gather(x, rows)
                if isinstance(x, tf.RaggedTensor):
                    return x.to_tensor(value, shape=[size, length])
                return fill(x, size, value)

            inputs = take(self.tokens, self.pad_id)
            if self.types is not None:
                inputs = {"tokens": inputs, "types": take(self.types)}
            return inputs, take(labels, self.no_label), take(weight)

        return plan.batches(batch, shuffle, seed, start)
