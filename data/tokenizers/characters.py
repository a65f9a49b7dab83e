"""Character tokenizer, for small experiments."""

import math
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import tensorflow as tf

from ...files import read, write_file
from .tokenizer import ByteTokenizer, replace_invalid

FILE = "characters.txt"


class Characters(ByteTokenizer):
    """A tokenizer with one token per character; token 0 ends a document.

    `encode` raises a `ValueError` for unknown characters; in a user's graph they become 0.

    >>> tokenizer = polyhead.data.Characters("abc")
    >>> tokenizer.encode(["cab"]).to_list()
    [[3, 1, 2]]
    >>> tokenizer.decode([[3, 1, 2]]).numpy()[0]
    b'cab'

    Args:
        characters: a string with each character once.

    Raises:
        ValueError: ``characters`` is empty or has duplicates.
    """

    portable = False
    eager_calls = math.inf  # a traced graph could not name unknown characters

    def __init__(self, characters: str) -> None:
        if not characters or len(set(characters)) < len(characters):
            raise ValueError(f"a vocabulary must have each character once: {characters!r:.100}")
        super().__init__([b"", *(c.encode() for c in characters)], end_id=0)
        self.characters = characters
        keys = tf.constant(self._bytes[1:])
        values = tf.range(1, self.vocab_size)
        self._tokens = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(keys, values), 0
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int | None = None) -> "Characters":
        """Creates a vocabulary of the ``vocab_size`` - 1 most frequent characters, or of all."""
        count = {}
        for text in texts:
            for character in text:
                count[character] = count.get(character, 0) + 1
        kept = sorted(count, key=lambda c: (-count[c], c))[: vocab_size and vocab_size - 1]
        return cls("".join(sorted(kept)))

    def _encode(self, texts, target=False):
        characters = tf.strings.unicode_split(replace_invalid(texts), "UTF-8")
        tokens = characters.with_flat_values(self._tokens.lookup(characters.flat_values))
        if tf.executing_eagerly() and tf.reduce_any(tokens.flat_values == 0):
            unknown = tf.boolean_mask(characters.flat_values, tokens.flat_values == 0)
            unknown = b"".join(tf.unique(unknown).y.numpy()).decode()
            raise ValueError(f"the vocabulary has no characters {unknown!r:.100}")
        return tokens

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes ``characters.txt``."""
        write_file(Path(folder) / FILE, self.characters.encode())

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "Characters":
        """Reads ``characters.txt``."""
        path = Path(folder) / FILE
        try:
            return cls(read(path).decode())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
