"""Batches for text encoders: classes, tags, questions, pairs and masked tokens."""

import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from .batches import Buckets, epochs
from .labelled import LabelledTexts, Question, TaggedWords, TextPairs
from .spans import begins_word, code_points, read_contexts
from .text import PIECE, split_text
from .tokenizers.tokenizer import Tokenizer, surround

SKIPS = 4  # words that exceed the quota and are skipped for shorter ones, as in BERT's code
SHARES = (0.8, 0.9)  # of the masked tokens: below, hidden; between, random; above, unchanged


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
    labels = tf.constant(class_indices(texts.labels, class_names))
    tokens, types = encode_texts(texts, tokenizer, max_length)
    plan = Buckets(tokens.row_lengths().numpy(), buckets=buckets, batch_size=batch_size)

    def batch(rows, size, length):
        inputs = pad_inputs(rows, size, length, tokenizer.pad_id, tokens, types)
        return (
            inputs,
            fill(tf.gather(labels, rows), size),
            fill(tf.ones_like(rows, "float32"), size),
        )

    return plan.batches(batch, shuffle, seed, start)


def encode_texts(texts, tokenizer, max_length):
    """The ragged tokens of texts or pairs, and the types of pairs or None."""
    if texts.seconds is None:
        return tf.cast(tokenizer.encode(texts.texts, max_length), tf.int32), None
    return tokenizer.encode_pairs(texts.texts, texts.seconds, max_length)


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
    out; a warning gives their number. Other arguments are those of `classification_batches`.

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
    plan = Buckets(tokens.row_lengths().numpy(), buckets=buckets, batch_size=batch_size)

    def batch(rows, size, length):
        inputs = pad_inputs(rows, size, length, tokenizer.pad_id, tokens)
        return inputs, *(pad(tf.gather(x, rows), size, length) for x in (labels, weight))

    return plan.batches(batch, shuffle, seed, start)


def encode_words(sentences, tokenizer, max_length):
    """Tokenizes lists of words: ragged tokens (B, None), and words (B, None).

    Words are the indices of the words that begin at each token; -1 for other tokens. A token
    belongs to the word of its last character: with the space before it, it may begin earlier.
    """
    # A space before the first word too: byte pairs of words begin with one.
    texts = ["".join(f" {word}" for word in words) for words in sentences]
    ids, _, ends = tokenizer.offsets(texts)
    room = max_length - len(tokenizer.prefix) - len(tokenizer.suffix)
    ids, ends = ids[:, : max(room, 0)], ends[:, : max(room, 0)]
    lengths, place = ids.row_lengths().numpy(), ends.flat_values.numpy()
    found, at = [], 0
    for words, length in zip(sentences, lengths, strict=True):
        starts = np.cumsum([1, *(len(word) + 1 for word in words)])[:-1]
        word = np.searchsorted(starts, place[at : at + length] - 1, side="right") - 1
        found.append(np.where(np.diff(word, prepend=-1) != 0, word, -1))
        at += length
    words = ids.with_flat_values(tf.constant(np.concatenate(found), tf.int32))
    around = [[-1] * len(x) for x in (tokenizer.prefix, tokenizer.suffix)]
    ids = tf.cast(ids, tf.int32)
    return surround(ids, tokenizer.prefix, tokenizer.suffix), surround(words, *around)


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
    reading = read_contexts(
        tokenizer,
        [q.question for q in questions],
        [q.context for q in questions],
        max_length,
        overlap,
    )
    labels = tf.constant(answer_tokens(questions, reading))
    tokens, types = reading.tokens, reading.types
    plan = Buckets(tokens.row_lengths().numpy(), buckets=buckets, batch_size=batch_size)

    def batch(rows, size, length):
        inputs = pad_inputs(rows, size, length, tokenizer.pad_id, tokens, types)
        return (
            inputs,
            fill(tf.gather(labels, rows), size),
            fill(tf.ones_like(rows, "float32"), size),
        )

    return plan.batches(batch, shuffle, seed, start)


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

    ``tokens`` (2 B, L) has the first text of pair i in row 2 i, and the second in row 2 i + 1. With
    scores, ``labels`` (2 B,) are those of the pairs divided by ``scale``, for `CosineRegression`.
    Without, they number the texts, equal texts alike, for `InBatchNegatives`. ``sample_weight``
    (2 B,) is 0 for rows that fill the last batch, and their label is -1. Other arguments are those
    of `classification_batches`.

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
    texts = [text for pair in zip(pairs.firsts, pairs.seconds, strict=True) for text in pair]
    tokens = tf.cast(tokenizer.encode(texts, max_length), tf.int32)
    if pairs.scores is None:
        labels = np.unique(texts, return_inverse=True)[1].astype("float32")
    else:
        labels = np.repeat(np.array(pairs.scores, "float32") / scale, 2)
    labels = tf.constant(labels)
    lengths = tokens.row_lengths().numpy().reshape(-1, 2).max(1)
    plan = Buckets(lengths, buckets=buckets, batch_size=batch_size)

    def batch(rows, size, length):
        both, size = tf.reshape(tf.stack([2 * rows, 2 * rows + 1], axis=1), [-1]), 2 * size
        inputs = pad_inputs(both, size, length, tokenizer.pad_id, tokens)
        weight = fill(tf.ones_like(both, "float32"), size)
        return inputs, fill(tf.gather(labels, both) + 1.0, size) - 1.0, weight

    return plan.batches(batch, shuffle, seed, start)


def masked_batches(
    texts: "str | Sequence[str] | DocumentTokens",
    tokenizer: Tokenizer,
    length: int = 128,
    batch_size: int = 32,
    rate: float = 0.15,
    whole_words: bool = False,
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
        whole_words: choose all tokens of a word or none.
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
    number = len(texts.ids)
    count = -(-number // room)
    size = -(-count // batch_size)
    fresh = np.ones(tokenizer.vocab_size, bool)  # tokens that may be chosen, or replace one
    fresh[list(special_ids(tokenizer))] = False
    ordinary, fresh = tf.constant(np.flatnonzero(fresh), tf.int32), tf.constant(fresh)

    def in_rows(values, spare):
        values = np.pad(values, (0, count * room - number), constant_values=spare)
        return tf.constant(values.reshape(count, room), tf.int32)

    ids, words = in_rows(texts.ids, tokenizer.pad_id), in_rows(texts.words, texts.words[-1] + 1)
    lengths = tf.constant(np.minimum(number - room * np.arange(count), room), tf.int32)

    def batch(order, key, i):
        rows = order[i * batch_size : (i + 1) * batch_size]
        original, word, within = (
            fill(tf.gather(x, rows), batch_size) for x in (ids, words, lengths)
        )
        text = (tf.range(room) < within[:, None]) & tf.gather(fresh, original)
        key = tf.random.experimental.stateless_fold_in(key, i)
        keys = [tf.random.experimental.stateless_fold_in(key, j) for j in range(3)]
        # One random number for each word; the words with the smallest numbers are chosen.
        drawn = tf.random.stateless_uniform([batch_size, room], keys[0])
        drawn = tf.gather(drawn, word - word[:, :1], batch_dims=1)
        order = tf.argsort(tf.where(text, drawn, 2.0), axis=1, stable=True)
        quota = tf.reduce_sum(tf.cast(text, tf.float32), axis=1) * rate + 0.5
        quota = tf.minimum(tf.cast(quota, tf.int32), most)[:, None]
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
        tokens = surround(tokens, tokenizer.prefix, tokenizer.suffix)
        inputs = {
            "tokens": tokens.to_tensor(tokenizer.pad_id, shape=[batch_size, length]),
            "positions": at + len(tokenizer.prefix),
        }
        return inputs, tf.where(weight, labels, 0), tf.cast(weight, tf.float32)

    def epoch(number):
        number = tf.cast(number, tf.int64) if shuffle else tf.zeros([], tf.int64)
        key = tf.stack([tf.cast(seed, tf.int64), number])
        order = tf.range(count)
        if shuffle:
            order = tf.random.experimental.stateless_shuffle(order, key)
        return tf.data.Dataset.range(size, output_type=tf.int32).map(
            lambda i: batch(order, key, i), num_parallel_calls=2
        )

    return epochs(lambda numbers: numbers.flat_map(epoch), size, seed, start)


class DocumentTokens(NamedTuple):
    """The tokens of all documents, ``ids`` (N,), and ``words`` (N,), the number of their word."""

    ids: np.ndarray
    words: np.ndarray


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
    parts, firsts, waiting, size, count = [], [], [], 0, 0
    last = np.array(tokenizer.suffix[-1:], "int32")

    def tokenize():
        nonlocal count
        pieces, ends = zip(*waiting, strict=True)
        if whole_words:
            ids, *places = tokenizer.offsets(pieces)
            row, places = tf.cast(ids.value_rowids(), tf.int32), [x.flat_values for x in places]
            new = begins_word(code_points(pieces), row, *places).numpy()
        else:
            ids = tokenizer.encode(pieces, add_special_tokens=False)
            new = np.ones(ids.flat_values.shape, bool)
        flat, splits = ids.flat_values.numpy(), ids.row_splits.numpy()
        count += len(flat)
        for i, end in enumerate(ends):
            here = slice(splits[i], splits[i + 1])
            parts.extend([flat[here], last] if end else [flat[here]])
            firsts.extend([new[here], np.ones(len(last), bool)] if end else [new[here]])
        waiting.clear()

    for text in texts:
        pieces = list(split_text(text))
        for i, piece in enumerate(pieces):
            waiting.append((piece, i == len(pieces) - 1))
            size += len(piece)
            if size >= PIECE:
                tokenize()
                size = 0
    if waiting:
        tokenize()
    if not count:
        raise ValueError("there is no text")
    ids = np.concatenate(parts).astype("int32")
    return DocumentTokens(ids, np.cumsum(np.concatenate(firsts)).astype("int32"))


def special_ids(tokenizer):
    """The ids that stand for no text."""
    given = (*tokenizer.prefix, *(tokenizer.separator or ()), *tokenizer.suffix)
    return {*given, tokenizer.pad_id, tokenizer.mask_id}


def pad_inputs(rows, size, length, pad_id, tokens, types=None):
    """The inputs of a model for ``rows``: padded tokens, or a dictionary with their types."""
    tokens = pad(tf.gather(tokens, rows), size, length, pad_id)
    if types is None:
        return tokens
    return {"tokens": tokens, "types": pad(tf.gather(types, rows), size, length)}


def pad(rows, size, length, value=0):
    return rows.to_tensor(value, shape=[size, length])


def fill(x, size):
    """Appends zeros to ``x`` (N, ...), up to ``size`` rows."""
    return tf.pad(x, [[0, size - tf.shape(x)[0]], *[[0, 0]] * (x.shape.rank - 1)])


def check_sizes(**sizes):
    for name, value in sizes.items():
        if operator.index(value) < 1:
            raise ValueError(f"{name} must be positive: {value}")
