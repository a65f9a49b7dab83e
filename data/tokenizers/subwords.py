"""SentencePiece tokenizers (Kudo & Richardson 2018), trained or published, in the graph."""

import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import sentencepiece
import tensorflow as tf

from ...files import FAULTS, explain, read, read_json, write_file
from .merges import Merges
from .pieces import SENTINELS, SPACE, PieceTokenizer, Rules, read_pieces, read_rules, rebuild
from .ragged import begin_rows, merge_rows
from .tokenizer import MASKS, AddedTokens, hide_zeros, replace_invalid, set_untracked, show_zeros

FILE, T5_FILE, JSON = "tokenizer.model", "spiece.model", "tokenizer.json"
LONGEST = 4192  # bytes of a text; SentencePiece drops longer ones
# Parts of at most a quarter as many characters, which end at white space if possible.
PART = re.compile(rf"(?s).{{1,{LONGEST // 4}}}(?=\s|\Z)|.{{1,{LONGEST // 4}}}")


class Subwords(PieceTokenizer):
    """A SentencePiece tokenizer in TensorFlow's graph.

    >>> texts = ["A dog runs.", "A dog sleeps."]
    >>> tokenizer = polyhead.data.Subwords.train(texts, vocab_size=30, exact=False)
    >>> ids = tokenizer.encode(["A dog sleeps."])
    >>> tokenizer.decode(ids).numpy()[0]
    b'A dog sleeps.'

    Args:
        model: the bytes of a SentencePiece model.
        rules: the processing around the model. Default: by its pieces (`read_rules`).
        file: the name and the bytes of the file with model and rules, for `save`.

    Raises:
        ValueError: the bytes are not a SentencePiece model, or it is of an unknown kind.
    """

    def __init__(
        self, model: bytes, rules: Rules | None = None, file: tuple[str, bytes] | None = None
    ) -> None:
        if rules is None:
            model, rules = read_rules(model)
        super().__init__([model], tf.int32)
        self.model = model
        self._pieces = read_pieces(model)
        self._file = file or (FILE, model)
        self.portable = self._file[0] != FILE  # the library expects a Unigram model in this file
        self._merges = None  # created at the first call of `sampled`
        self.vocab_size = self._pieces.get_piece_size()
        self.pad_id, self.start_id, self.end_id = rules.pad_id, rules.start_id, rules.end_id
        template = rules.template
        self.prefix, self.suffix = template.prefix, template.suffix
        self.separator, self.pair_type = template.separator, template.pair_type
        self.mask_token = next((text for text in MASKS if text in rules.added), None)
        self.mask_id = rules.added.get(self.mask_token)
        self._added = AddedTokens(rules.added, **rules.strips) if rules.added else None
        self._hidden = [self.pad_id, self.start_id, self.end_id]
        if not rules.native:
            self._hidden.append(self._pieces.unk_id())
        content = [self._bytes_of(token) for token in range(self.vocab_size)]
        set_untracked(self, _rules=rules, _bytes=content)
        self._table = None if rules.native else tf.constant(content)

    def _bytes_of(self, token):
        piece = self._pieces.id_to_piece(token)
        if self._pieces.is_byte(token):
            return bytes([int(piece[1:-1], 16)])
        if token in self._hidden or self._pieces.is_control(token):
            return b""
        return piece.replace(SPACE, " ").encode()

    @property
    def sentinel_ids(self) -> tuple[int, ...]:
        """The ids of ``<extra_id_0>``, ``<extra_id_1>`` ..., as many as there are."""
        added = self._rules.added
        return tuple(added[name] for name in itertools.takewhile(added.__contains__, SENTINELS))

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 10000,
        exact: bool = True,
        sentinels: bool = False,
    ) -> "Subwords":
        """Learns a BPE vocabulary from strings, with pad 0, start 1 and end 2.

        Long texts are split into parts, at white space if possible.

        Args:
            texts: the strings.
            vocab_size: the number of tokens.
            exact: False makes ``vocab_size`` a maximum: less text gives a smaller vocabulary.
            sentinels: 100 of the tokens are ``<extra_id_0>``, ``<extra_id_1>`` ..., for
                `span_batches`, and the special tokens are those of T5: pad 0 (also the start of a
                target) and end 1. Decoded texts do not have sentinels.

        Raises:
            ValueError: there is no text, or too little for an ``exact`` vocabulary of this size.
        """
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise ValueError("a vocabulary cannot be learned without text")
        model = io.BytesIO()
        special = dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3)
        if sentinels:
            special = dict(pad_id=0, bos_id=-1, eos_id=1, unk_id=2, control_symbols=[*SENTINELS])
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(part for text in texts for part in parts(text)),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=exact,
                character_coverage=1.0,
                **special,
                num_threads=os.cpu_count(),
                minloglevel=2,
            )
        except RuntimeError as error:
            # The last line of SentencePiece's message names the limit.
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{len(texts)} texts give no vocabulary of {vocab_size} pieces: {reason}"
            ) from None
        return cls(model.getvalue())

    def _encode(self, texts, target=False):
        if self._rules.blanks:
            # The only white space character that T5's normalization does not map to a space.
            texts = tf.strings.regex_replace(texts, "\N{NEXT LINE}", " ")
        if self._added is None and self._rules.space in ("model", "never"):
            return self._operations()[0].tokenize(texts)
        parts = tf.RaggedTensor.from_uniform_row_length(texts, 1)
        ids = tf.fill(tf.shape(texts), -1)
        if self._added is not None:
            parts, ids, _ = self._added.split(hide_zeros(replace_invalid(texts)))
            parts = parts.with_flat_values(show_zeros(parts.flat_values))
        rows = self._operations()[0].tokenize(self._spaced(parts, ids))
        return merge_rows(parts.with_flat_values(begin_rows(ids >= 0, ids, rows)))

    def _spaced(self, parts, ids):
        """The texts of ``parts``, empty for added tokens, with the spaces that the rules add."""
        texts = tf.where(ids >= 0, "", parts.flat_values)
        space = self._rules.space
        if space in ("model", "never"):
            return texts
        lacks = "." if space == "prepend" else f"[^ {SPACE}]"
        spaced = tf.strings.regex_replace(texts, f"(?s)^({lacks})", r" \1", replace_global=False)
        if space != "first":
            return spaced
        place = tf.range(tf.size(texts, tf.int64))
        starts = place == tf.gather(parts.row_starts(), parts.value_rowids())
        return tf.where(starts, spaced, texts)

    def sampled(self, texts: Sequence[str], dropout: float, seed: int) -> list[list[int]]:
        """Tokenizes with BPE-dropout (Provilkov et al. 2020, arXiv 1910.13267).

        Each merge is skipped with probability ``dropout``. The result depends only on ``seed``, not
        on the process. A rate of 0.1 gives about a third more tokens.

        Raises:
            ValueError: the vocabulary is not a BPE vocabulary.
        """
        if self._merges is None:
            self._merges = Merges(self._pieces)
        return [[*row, self.end_id] for row in self._merges.sample(texts, dropout, seed)]

    def decode(self, tokens: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Decodes ``tokens`` (B, T) to texts (B,), without special tokens."""
        rows = self.remove_ids(tokens, *self._hidden)
        if self._rules.native:
            return tf.convert_to_tensor(self._operations()[0].detokenize(rows))
        texts = replace_invalid(tf.strings.reduce_join(tf.gather(self._table, rows), axis=-1))
        if self._rules.space == "never":
            return texts
        return tf.strings.regex_replace(texts, "^ ", "", replace_global=False)

    def text(self, tokens: Iterable[int]) -> bytes:
        """The bytes of ``tokens``, which may end within a character."""
        return b"".join(self._bytes[t] for t in tokens if 0 <= t < self.vocab_size)

    def pieces(self, tokens: Iterable[int], target: bool = False) -> list[str]:
        """The pieces of ``tokens`` (T,) as readable strings."""
        return [self._pieces.id_to_piece(int(token)) for token in tokens]

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes the SentencePiece model, or the ``tokenizer.json`` that it was rebuilt from."""
        name, content = self._file
        write_file(Path(folder) / name, content)

    @classmethod
    def load(
        cls,
        folder: str | PathLike[str],
        end: int | None = None,
        content: dict[str, Any] | None = None,
    ) -> "Subwords":
        """Reads ``tokenizer.json`` or, if there is none, a SentencePiece model.

        Args:
            folder: the folder of the file.
            end: the id of the end token, if ``tokenizer.json`` does not give it.
            content: the content of ``tokenizer.json``, if it was read already.

        Raises:
            ValueError: the file is invalid or has a setting that is not supported.
        """
        folder = Path(folder)
        names = [name for name in (JSON, FILE, T5_FILE) if (folder / name).is_file()]
        path = folder / (names[0] if names else FILE)
        found = content or (read_json(path) if path.name == JSON else read(path))
        try:
            if isinstance(found, dict):
                return cls.read(found, end)
            return cls(found, file=(path.name, found))
        except FAULTS as error:
            raise ValueError(f"{path}: {explain(error)}") from None

    @classmethod
    def read(cls, content: dict[str, Any], end: int | None = None) -> "Subwords":
        """Creates a tokenizer from the content of a ``tokenizer.json``; see `rebuild`."""
        text = json.dumps(content, ensure_ascii=False) + "\n"
        return cls(*rebuild(content, end), (JSON, text.encode()))


def parts(text):
    """Splits ``text`` if it is longer than SentencePiece's limit."""
    # SentencePiece also drops texts with these characters.
    text = text.replace("\0", " ").replace("\N{LOWER FIVE EIGHTHS BLOCK}", " ")
    return [text] if len(text.encode()) <= LONGEST else PART.findall(text)
