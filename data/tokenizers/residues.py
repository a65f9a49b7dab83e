"""The tokenizer of protein sequences: one token per residue (ESM-2: Lin et al. 2022)."""

import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import tensorflow as tf

from ...files import read, write_file
from ..residues import ESM_LETTERS as LETTERS
from ..residues import ESM_TOKENS as TOKENS
from .splits import SPACE
from .tokenizer import Tokenizer, replace_invalid, set_untracked, table

FILE = "vocab.txt"
MASK, UNKNOWN = TOKENS[-1], "X"
WHITE = re.sub(r"\\x\{(\w+)\}", lambda m: chr(int(m[1], 16)), SPACE)  # for Python's patterns
OTHER = re.compile(rf"[^{re.escape(LETTERS + LETTERS.lower())}{WHITE}]")


class Residues(Tokenizer):
    """Tokens of protein sequences: ``<cls>``, a token for each residue, ``<eos>``.

    Residues are letters, in upper or lower case: the 20 amino acids, X (unknown), B (D or N), Z (E
    or Q), U (selenocysteine), O (pyrrolysine), and the gaps "." and "-". White space is left out,
    and ``<mask>`` is the mask token. Ids are those of ESM-2.

    In Python, another letter is an error; in an export it is read as X.

    >>> tokenizer = polyhead.data.Residues()
    >>> tokenizer.tokens("mk<mask> V")
    ['<cls>', 'M', 'K', '<mask>', 'V', '<eos>']
    >>> tokenizer.decode(tokenizer.encode(["MKV"])).numpy()[0]
    b'MKV'
    """

    token_is_word = True

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = len(TOKENS)
        self.prefix, self.suffix = (0,), (2,)
        self.pad_id, self.end_id = 1, 2
        self.mask_token, self.mask_id = MASK, TOKENS.index(MASK)
        self._letters = tf.constant([t if len(t) == 1 else "" for t in TOKENS])
        ids = [TOKENS.index(letter) for letter in LETTERS]
        white = re.findall(f"[{WHITE}]", "".join(map(chr, range(0x10000))))
        # "#", which no sequence has, stands for the mask; white space, which is left out, is -1.
        keys, values = [*LETTERS, "#", *white], [*ids, self.mask_id, *[-1] * len(white)]
        self._ids = table(keys, values, tf.string, TOKENS.index(UNKNOWN))
        set_untracked(self, _special={i for i, t in enumerate(TOKENS) if len(t) > 1 or t in ".-"})

    @property
    def special_ids(self) -> set[int]:
        return self._special

    def _run(self, method, texts, *settings) -> Any:
        for sequence in texts[0] if not tf.is_tensor(texts[0]) else ():
            check_letters(sequence)
        return super()._run(method, texts, *settings)

    def _encode(self, texts, target=False):
        return self._offsets(texts)[0]

    def _offsets(self, texts):
        # The mask becomes a letter and spaces, so that all places stay the same.
        texts = tf.strings.regex_replace(replace_invalid(texts), "#", "?")
        texts = tf.strings.regex_replace(texts, MASK, "#".ljust(len(MASK)))
        letters = tf.strings.unicode_split(tf.strings.upper(texts), "UTF-8")
        ids = tf.cast(self._ids.lookup(letters.flat_values), tf.int32)
        starts = tf.cast(tf.ragged.range(letters.row_lengths()).flat_values, tf.int32)
        ends = starts + tf.where(ids == self.mask_id, len(MASK), 1)
        kept = letters.with_values(ids >= 0)
        return tuple(
            tf.ragged.boolean_mask(letters.with_values(x), kept) for x in (ids, starts, ends)
        )

    def decode(self, tokens: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Decodes ``tokens`` (B, T) to sequences (B,), without special tokens."""
        return tf.strings.reduce_join(tf.gather(self._letters, self.remove_unknown(tokens)), -1)

    def pieces(self, tokens: Iterable[int], target: bool = False) -> list[str]:
        """The letters, or names, of ``tokens`` (T,)."""
        return [TOKENS[int(token)] for token in tokens]

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes ``vocab.txt``, as Hugging Face's library does."""
        write_file(Path(folder) / FILE, "\n".join(TOKENS).encode())

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "Residues":
        """Checks the tokens of ``vocab.txt``, if there is one: they are the same in all ESM-2.

        Raises:
            ValueError: they are others.
        """
        path = Path(folder) / FILE
        if path.is_file() and tuple(read(path).decode("utf-8", "replace").split()) != TOKENS:
            raise ValueError(f"{path} does not have the {len(TOKENS)} tokens of ESM-2")
        return cls()


def check_letters(sequence: str, mask: bool = True) -> None:
    """Checks that each letter of a protein sequence is a residue.

    Args:
        mask: whether ``<mask>`` is allowed.

    Raises:
        ValueError: one is not; the message has its position, counted from 1.
    """
    text = sequence.decode("utf-8", "replace") if isinstance(sequence, bytes) else sequence
    if not mask and MASK in text:
        raise ValueError(f"there must be no {MASK} in {text[:40]!r}")
    if other := OTHER.search(text.replace(MASK, " " * len(MASK))):
        raise ValueError(
            f"a protein sequence must have the letters {LETTERS} only: {other[0]!r} at position "
            f"{other.start() + 1} of {text[:40]!r}"
        )
