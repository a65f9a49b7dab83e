"""Plain text: documents from files, and batches of their tokens, packed."""

import operator
import re
from pathlib import Path

import numpy as np
import tensorflow as tf

from .batches import epochs

SHARE = 0.9  # of a text that has no validation file, so much is for training
PIECE = 1 << 20  # characters tokenized at once


def read_text(path, split="train", suffix=".txt"):
    """The documents of a file or a folder, a list of strings.

    Of a folder, the file ``<split>.txt``; where it has neither ``train.txt`` nor ``val.txt``, all
    its ``*.txt`` in the order of their names, a document each. Where there is no file of its own
    for it, the split "train" is the first 90% of all characters, and "val" the rest.

    Raises:
        FileNotFoundError: there is no such file, or no text in the folder.
        ValueError: a file is empty or not UTF-8, or the split is unknown.
    """
    path = Path(path)
    if split not in ("train", "val", "test"):
        raise ValueError(f"a split is train, val or test: {split!r}")
    if path.is_dir():
        names = [name for name in ("train", "val") if (path / f"{name}{suffix}").is_file()]
        if names == ["train", "val"] or (names and split == "test"):
            return [read(path / f"{split}{suffix}")]
        files = [path / f"train{suffix}"] if names else sorted(path.glob(f"*{suffix}"))
        if not files:
            raise FileNotFoundError(f"no files *{suffix} in {path}")
    else:
        files = [path]
    if split == "test":
        raise FileNotFoundError(f"{path} has no split test: no file test{suffix}")
    texts = [read(file) for file in files]
    first = int(SHARE * sum(map(len, texts)))
    parts = []
    for text in texts:
        parts.append(text[:first] if split == "train" else text[max(first, 0) :])
        first -= len(text)
        first = max(first, 0)
    return [part for part in parts if part]


def read(path):
    """The text of a file, without a byte order mark and with newlines for any end of a line."""
    try:
        text = Path(path).read_text("utf-8-sig")  # reads "\r\n" and "\r" as "\n"
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid UTF-8: {error}") from None
    if not text:
        raise ValueError(f"{path} is empty")
    return text


def token_stream(texts, tokenizer):
    """The tokens (N,) of documents one after the other, each with its end: a NumPy array.

    A document starts with the tokenizer's ``prefix``, where it has one.

    Args:
        texts: strings, or a `tf.data.Dataset` of them.
        tokenizer: `BytePairs` or `Characters`.
    """
    if isinstance(texts, tf.data.Dataset):
        texts = (text.decode("utf-8", "replace") for text in texts.as_numpy_iterator())
    parts, waiting, size = [], [], 0

    def tokenize():
        nonlocal size
        rows = tokenizer.encode([piece for piece, *_ in waiting], add_special_tokens=False)
        flat, splits = rows.flat_values.numpy(), rows.row_splits.numpy()
        for i, (_, begins, ends) in enumerate(waiting):
            if begins and tokenizer.prefix:
                parts.append(np.array(tokenizer.prefix, "int32"))
            parts.append(flat[splits[i] : splits[i + 1]].astype("int32"))
            if ends:
                parts.append(np.array([tokenizer.end_id], "int32"))
        waiting.clear()
        size = 0

    for text in texts:
        pieces = list(cut(text))
        for i, piece in enumerate(pieces):
            waiting.append((piece, i == 0, i == len(pieces) - 1))
            size += len(piece)
            if size >= PIECE:
                tokenize()
    if waiting:
        tokenize()
    if not parts:
        raise ValueError("there is no text")
    return np.concatenate(parts)


def cut(text):
    """Pieces of a long ``text``, before white space: where no word is, whatever the tokenizer."""
    place, start = re.compile(r"(?<=\S)(?=[ \n])"), 0
    while len(text) - start > PIECE and (found := place.search(text, start + PIECE)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def text_batches(texts, tokenizer, length, batch_size=8, shuffle=True, seed=0, start=None):
    """Batches of ``(tokens, labels, sample_weight)``, each (B, T), for `GPT.fit`.

    Documents follow each other, separated by their ends, and are cut into rows of ``length``
    tokens without a gap: every token is once a label in an epoch, by what stands before it in its
    row, and the first one of all by an end. The last row, and the last batch, are filled up with
    tokens of weight 0. All tokens are kept in memory, 4 bytes each.

    Args:
        texts: strings, a `tf.data.Dataset` of them, or what `token_stream` made of them.
        tokenizer: `BytePairs` or `Characters`.
        length: T.
        batch_size: B.
        shuffle: each epoch rows begin elsewhere and come in a new order, the same for the same
            ``seed``.
        start: with a number of updates, the dataset has no end and begins there, as an
            interrupted run would have gone on. Without, it is one epoch, of known length.

    Raises:
        ValueError: no text, or a size that is not positive.
    """
    # NumPy's integers overflow where Python's do not.
    length, batch_size, seed = map(operator.index, (length, batch_size, seed))
    for name, value in (("length", length), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be positive: {value}")
    if not isinstance(texts, np.ndarray):
        texts = token_stream([texts] if isinstance(texts, str) else texts, tokenizer)
    stream = tf.constant(texts, tf.int32)
    total = len(texts)
    rows = -(-total // length)
    count = -(-rows // batch_size)
    within = tf.range(length)

    def batch(order, first, i):
        chosen = order[i * batch_size : (i + 1) * batch_size]
        at = chosen[:, None] * length + within
        weight = tf.cast(at < total, tf.float32)
        at = (at + first) % total  # the text is a ring, which begins elsewhere each epoch
        fill = [[0, batch_size - tf.shape(chosen)[0]], [0, 0]]
        tensors = tf.gather(stream, (at - 1) % total), tf.gather(stream, at), weight
        return tuple(tf.ensure_shape(tf.pad(x, fill), [batch_size, length]) for x in tensors)

    def epoch(number):
        order, first = tf.range(rows), tf.zeros([], tf.int32)
        if shuffle:
            key = tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64)])
            order = tf.random.experimental.stateless_shuffle(order, key)
            first = tf.random.stateless_uniform([], key, 0, length, tf.int32)
        return tf.data.Dataset.range(count, output_type=tf.int32).map(
            lambda i: batch(order, first, i), num_parallel_calls=2
        )

    return epochs(lambda numbers: numbers.flat_map(epoch), count, seed, start)
