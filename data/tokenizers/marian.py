"""The tokenizer of Marian's translation models, in the graph."""

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import tensorflow as tf

from ...files import read, read_json, write_file
from .pieces import SPACE, PieceTokenizer, read_pieces
from .ragged import begin_rows
from .tokenizer import set_untracked

SOURCE, TARGET, VOCABULARY, TARGET_VOCABULARY = (
    "source.spm",
    "target.spm",
    "vocab.json",
    "target_vocab.json",
)


class MarianPieces(PieceTokenizer):
    """A tokenizer of two SentencePiece models, with tables from pieces to ids.

    Follows Hugging Face's `MarianTokenizer`: a language code at the start of a source, ``>>de<<``,
    is one token, and a piece that is not in the table is ``<unk>``. Unlike there, ``</s>`` in a
    text is ordinary text. Sequences start with the padding token.

    >>> tokenizer = polyhead.data.MarianPieces.load("opus-mt-de-en")  # doctest: +SKIP
    >>> tokenizer.tokens("Ein Hund.")  # doctest: +SKIP
    ['▁Ein', '▁Hund', '.', '</s>']

    Args:
        source: the bytes of the source language's SentencePiece model.
        target: the bytes of the target language's SentencePiece model.
        vocabulary: ``{piece: id}``.
        target_vocabulary: ``{piece: id}`` for targets. Default: ``vocabulary``.

    Raises:
        ValueError: the bytes are not a SentencePiece model; a table does not have the ids 0, 1, 2
            ..., or lacks ``<unk>``, ``</s>`` or ``<pad>``; or the tables differ in the last two.
    """

    def __init__(
        self,
        source: bytes,
        target: bytes,
        vocabulary: dict[str, int],
        target_vocabulary: dict[str, int] | None = None,
    ) -> None:
        models, vocabularies = {SOURCE: source, TARGET: target}, {VOCABULARY: vocabulary}
        if target_vocabulary is not None:
            vocabularies[TARGET_VOCABULARY] = target_vocabulary
        for name, table in vocabularies.items():
            check_table(name, table)
        tables = list(vocabularies.values())
        if any(tables[0][piece] != tables[-1][piece] for piece in ("</s>", "<pad>")):
            raise ValueError("both vocabularies must have the same numbers for </s> and <pad>")
        for name, model in models.items():
            check_pieces(name, model)
        super().__init__(models.values(), tf.string)
        self.end_id, self.pad_id = tables[0]["</s>"], tables[0]["<pad>"]
        self.start_id, self.suffix = self.pad_id, (self.end_id,)
        self.vocab_size = len(tables[-1])
        self.source_vocab_size = None if target_vocabulary is None else len(tables[0])
        self._unknown = tables[-1]["<unk>"]
        sides = tables[0], tables[-1]
        pieces = [sorted(table, key=table.get) for table in sides]
        set_untracked(self, models=models, vocabularies=vocabularies, _pieces=pieces)
        self._target_pieces = tf.constant(pieces[1])
        self._numbers = [id_table(table) for table in sides]

    def _encode(self, texts, target=False):
        pattern = "(?s)^(>>.*?<<)(.*)$"
        has_code = tf.strings.regex_full_match(texts, pattern)
        codes = tf.strings.regex_replace(texts, pattern, r"\1")
        rest = tf.where(has_code, tf.strings.regex_replace(texts, pattern, r"\2"), texts)
        pieces = begin_rows(has_code, codes, self._operations()[target].tokenize(rest))
        return self._numbers[target].lookup(pieces)

    def decode(self, tokens: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Decodes ``tokens`` (B, T) to texts (B,), without padding, end and unknown tokens."""
        rows = self.remove_ids(tokens, self.pad_id, self.end_id, self._unknown)
        texts = tf.strings.reduce_join(tf.gather(self._target_pieces, rows), axis=-1)
        return tf.strings.strip(tf.strings.regex_replace(texts, SPACE, " "))

    def pieces(self, tokens: Iterable[int], target: bool = False) -> list[str]:
        """The pieces of ``tokens`` (T,) as readable strings."""
        return [self._pieces[target][int(token)] for token in tokens]

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes ``source.spm``, ``target.spm``, ``vocab.json`` and maybe ``target_vocab.json``."""
        for name, model in self.models.items():
            write_file(Path(folder) / name, model)
        for name, table in self.vocabularies.items():
            write_file(Path(folder) / name, json.dumps(table, indent=0).encode())

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "MarianPieces":
        """Reads ``source.spm``, ``target.spm``, ``vocab.json`` and maybe ``target_vocab.json``."""
        folder = Path(folder)
        tables = []
        for name in (VOCABULARY, TARGET_VOCABULARY):
            if name == VOCABULARY or (folder / name).is_file():
                tables.append(read_json(folder / name))
        try:
            return cls(read(folder / SOURCE), read(folder / TARGET), *tables)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None


def check_table(name, table):
    numbers = list(table.values()) if isinstance(table, dict) else [None]
    if not all(type(n) is int for n in numbers) or set(numbers) != set(range(len(numbers))):
        raise ValueError(f"{name} must number its pieces 0, 1, 2 ...")
    if lacking := [piece for piece in ("<unk>", "</s>", "<pad>") if piece not in table]:
        raise ValueError(f"{name} lacks {lacking}")


def check_pieces(name, model):
    try:
        pieces = read_pieces(model)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from None
    if any(pieces.is_byte(i) for i in range(pieces.get_piece_size())):
        raise ValueError(f"{name} has byte pieces, which are not supported")


def id_table(table):
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(list(table), list(table.values()), tf.string, tf.int32),
        default_value=table["<unk>"],
    )
