"""Tokenizers that run in TensorFlow's graph, selected by the content of their files.

All have one interface (`tokenizer.Tokenizer`):

- ``encode(texts)`` -> ragged ids, ``decode(ids)`` -> texts: tensors, eagerly or in a `tf.function`;
- ``tokens(text)``: the tokens of one text as readable strings;
- ``vocab_size``, ``pad_id``, ``end_id``; ``prefix`` and ``suffix``, ids around each text;
- ``save(folder)``, ``load(folder)``; ``spec(name)``, the input of an exported function.
"""

from pathlib import Path

from ..files import read_json

CHARACTERS = "characters.txt"
MARIAN = ("source.spm", "target.spm")
JSON = "tokenizer.json"
SENTENCEPIECE = ("tokenizer.model", "spiece.model")
BYTE_PAIRS = ("vocab.json", "merges.txt")
# All files that tokenizers read and write.
FILES = (CHARACTERS, *MARIAN, "target_vocab.json", JSON, *SENTENCEPIECE, *BYTE_PAIRS)


def load(folder, end=None):
    """Loads the tokenizer in ``folder``; returns None if there is none.

    The class is selected by the content of ``tokenizer.json`` or of the SentencePiece model.

    Args:
        end: the id of the end token, if the files do not give it. Default for byte pairs:
            ``<|endoftext|>``.

    Raises:
        FileNotFoundError: one of the tokenizer's files is missing.
        ValueError: a file is invalid, or has a setting that is not supported; the message names
            both.
    """
    folder = Path(folder)

    def has(*names):
        return any((folder / name).is_file() for name in names)

    if has(CHARACTERS):
        from .characters import Characters

        return Characters.load(folder)
    if has(*MARIAN):
        from .marian import MarianPieces

        return MarianPieces.load(folder)
    content = read_json(folder / JSON) if has(JSON) else None
    if has(*SENTENCEPIECE) if content is None else is_sentencepiece(content):
        from .subwords import Subwords

        return Subwords.load(folder, end, content)
    if has(JSON, *BYTE_PAIRS):
        from .byte_pairs import BytePairs

        return BytePairs.load(folder, end, content)
    return None


def is_sentencepiece(content):
    """Whether the content of a ``tokenizer.json`` is a SentencePiece model."""
    model = content.get("model")
    if not isinstance(model, dict):
        return False
    return model.get("type") == "Unigram" or model.get("byte_fallback") is True
