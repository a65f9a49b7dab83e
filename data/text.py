"""Plain text: documents from files, and packed batches of their tokens."""

import operator
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np
import tensorflow as tf

from ..files import read_data
from .batches import check_sizes, epochs, fill
from .parallel import find_file
from .tokenizers.ragged import unpack
from .tokenizers.tokenizer import Tokenizer

SHARE = 0.9  # fraction of the text for training, if there is no validation file
PIECE = 1 << 20  # characters tokenized at once


def read_text(
    path: str | PathLike[str], split: str | None = "train", suffix: str = ".txt"
) -> list[str]:
    """Reads the documents of a file or a folder.

    From a folder it reads the file ``<split>.txt``, or ``.txt.gz``. A folder with neither
    ``train.txt`` nor ``val.txt`` is read as one document per ``*.txt`` file but ``test.txt``, in
    the order of names. Without separate files, the split "train" is the first 90% of all
    characters, and "val" the rest. The split None is all of a file.

    >>> polyhead.training.write_file("digits.txt", b"0123456789")
    >>> polyhead.data.read_text("digits.txt", "val")
    ['9']

    Raises:
        FileNotFoundError: the file does not exist, or the folder has no text.
        ValueError: a file is empty or not UTF-8, or the split is unknown.
    """
    path = Path(path)
    if split not in ("train", "val", "test", None):
        raise ValueError(f"split must be train, val or test: {split!r}")
    if split is None:
        return [read(path)]
    if path.is_dir():
        found = {name: find_file(path, f"{name}{suffix}") for name in ("train", "val", "test")}
        whole = found["train"] and found["val"] or split == "test"
        if whole and found[split]:
            return [read(found[split])]
        files = [file for file in sorted(path.glob(f"*{suffix}")) if file != found["test"]]
        if found["train"] or found["val"]:
            files = [found["train"] or path / f"train{suffix}"]
        if not files:
            raise FileNotFoundError(f"there are no files *{suffix} in {path}")
    else:
        files = [path]
    if split == "test":
        raise FileNotFoundError(f"{path} has no split test: there is no file test{suffix}")
    texts = [read(file) for file in files]
    first = int(SHARE * sum(map(len, texts)))
    parts = []
    for text in texts:
        parts.append(text[:first] if split == "train" else text[max(first, 0) :])
        first -= len(text)
        first = max(first, 0)
    return [part for part in parts if part]


def read(path):
    """Reads the text of a file, without a byte order mark and with every line ending as newline."""
    try:
        text = read_data(Path(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid UTF-8: {error}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise ValueError(f"{path} is empty")
    return text


def token_stream(texts: Iterable[str] | tf.data.Dataset, tokenizer: Tokenizer) -> np.ndarray:
    """Tokenizes documents and concatenates them, each with its end token, to an array (N,).

    Each document starts with the tokenizer's ``prefix``.

    >>> polyhead.data.token_stream(["ab", "c"], polyhead.data.Characters("abc"))
    array([1, 2, 0, 3, 0], dtype=int32)

    Args:
        texts: strings, or a `tf.data.Dataset` of them.
        tokenizer: any tokenizer of documents, for example `BytePairs` or `Characters`.

    Raises:
        ValueError: there is no text.
    """
    if isinstance(texts, tf.data.Dataset):
        texts = (text.decode("utf-8", "replace") for text in texts.as_numpy_iterator())
    parts = []
    for pieces in pieces_at_once(texts):
        rows = tokenizer.encode([piece for piece, *_ in pieces], add_special_tokens=False)
        for row, (_, begins, ends) in zip(unpack(rows), pieces, strict=True):
            if begins and tokenizer.prefix:
                parts.append(np.array(tokenizer.prefix, "int32"))
            parts.append(row.astype("int32"))
            if ends:
                parts.append(np.array([tokenizer.end_id], "int32"))
    if not parts:
        raise ValueError("there is no text")
    return np.concatenate(parts)


def pieces_at_once(texts):
    """Yields lists of pieces of documents, about `PIECE` characters, that are tokenized at once.

    A piece is (text, whether it begins its document, whether it ends it).
    """
    waiting, size = [], 0
    for text in texts:
        pieces = list(split_text(text))
        for i, piece in enumerate(pieces):
            waiting.append((piece, i == 0, i == len(pieces) - 1))
            size += len(piece)
            if size >= PIECE:
                yield waiting
                waiting, size = [], 0
    if waiting:
        yield waiting


def split_text(text):
    """Yields parts of a long ``text``, cut before white space, where no tokenizer has a word."""
    place, start = re.compile(r"(?<=\S)(?=[ \n])"), 0
    while len(text) - start > PIECE and (found := place.search(text, start + PIECE)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def text_batches(
    texts: str | Iterable[str] | tf.data.Dataset | np.ndarray,
    tokenizer: Tokenizer,
    length: int,
    batch_size: int = 8,
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
) -> tf.data.Dataset:
    """Batches of ``(tokens, labels, sample_weight)``, each (B, T), for `GPT.fit`.

    Documents, separated by end tokens, are concatenated and cut into rows of ``length`` tokens.
    Each token is a label once per epoch, predicted from the tokens before it in its row; before the
    first document there is an end token. The last row and the last batch are filled with tokens of
    weight 0. All tokens are kept in memory, 4 bytes each.

    >>> tokenizer = polyhead.data.Characters("abc")
    >>> batches = polyhead.data.text_batches(["abcab"], tokenizer, length=3, shuffle=False)
    >>> tokens, labels, weight = next(iter(batches))
    >>> tokens[:2].numpy()
    array([[0, 1, 2],
           [3, 1, 2]], dtype=int32)
    >>> labels[:2].numpy()
    array([[1, 2, 3],
           [1, 2, 0]], dtype=int32)

    Args:
        texts: strings, a `tf.data.Dataset` of them, or the output of `token_stream`.
        tokenizer: any tokenizer of documents, for example `BytePairs` or `Characters`.
        length: T.
        batch_size: B.
        shuffle: each epoch has other row boundaries and a new order, reproducible from ``seed``.
        start: a number of updates: the dataset is endless and begins there, to resume an
            interrupted run. Default: one epoch, of known length.

    Raises:
        ValueError: there is no text, or a size is not positive.
    """
    # NumPy's integers overflow where Python's do not.
    length, batch_size, seed = map(operator.index, (length, batch_size, seed))
    check_sizes(length=length, batch_size=batch_size)
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
        at = (at + first) % total  # the text is a ring with another beginning each epoch
        tensors = tf.gather(stream, (at - 1) % total), tf.gather(stream, at), weight
        return tuple(tf.ensure_shape(fill(x, batch_size), [batch_size, length]) for x in tensors)

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
