"""Tokenizers that run in TensorFlow's graph, selected by the content of their files.

All have one interface (`tokenizer.Tokenizer`):

- ``encode(texts)`` -> ragged ids, ``decode(ids)`` -> texts: tensors, eagerly or in a `tf.function`;
- ``encode_pairs(firsts, seconds)`` -> ragged ids and types, ``offsets(texts)`` -> ragged ids,
  starts and ends;
- ``tokens(text)``: the tokens of one text as readable strings;
- ``vocab_size``, ``pad_id``, ``end_id``, ``mask_id``; ``prefix`` and ``suffix``, ids around each
  text, and ``separator``, between those of a pair;
- ``save(folder)``, ``load(folder)``; ``spec(name)``, the input of an exported function.
"""

from pathlib import Path

from ...files import read_json

CHARACTERS = "characters.txt"
MARIAN = ("source.spm", "target.spm")
JSON = "tokenizer.json"
SENTENCEPIECE = ("tokenizer.model", "spiece.model")
BYTE_PAIRS = ("vocab.json", "merges.txt")
WORDPIECES = ("vocab.txt", "tokenizer_config.json")
# All files that tokenizers read and write.
FILES = (CHARACTERS, *MARIAN, "target_vocab.json", JSON, *SENTENCEPIECE, *BYTE_PAIRS, *WORDPIECES)


def load(folder, end=None):
    """Loads the tokenizer in ``folder``; returns None if there is none.

    The class is selected by the content of ``tokenizer.json`` or of the SentencePiece model.

    Args:
        end: the id of the end token, if the files do not give it. Default for byte pairs:
            ``<|endoftext|>`` or, without one, the last token of each text.

    Raises:
        FileNotFoundError: one of the tokenizer's files is missing.
        ValueError: a file is invalid, or has a setting that is not supported; the message names
            both.
    """
    folder = Path(folder)
    tokenizer = load_files(folder, end)
    if tokenizer is not None and not any((folder / x).is_file() for x in (JSON, *MARIAN)):
        check_added(folder, tokenizer)
    return tokenizer


def load_files(folder, end):
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
    if has(WORDPIECES[0]) if content is None else is_wordpiece(content):
        from .wordpieces import WordPieces

        return WordPieces.load(folder, content)
    if has(JSON, *BYTE_PAIRS):
        from .byte_pairs import BytePairs

        return BytePairs.load(folder, end, content)
    return None


def check_added(folder, tokenizer):
    """Checks that a tokenizer without ``tokenizer.json`` has the added tokens of its other files.

    Raises:
        ValueError: it lacks one, which would be cut into pieces.
    """

    def text(entry):
        return entry.get("content") if isinstance(entry, dict) else entry

    found, roles = set(), set()
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        found |= values.keys() if name == "added_tokens.json" else set()
        found |= set(map(text, values.get("additional_special_tokens") or ()))
        found |= set(map(text, (values.get("added_tokens_decoder") or {}).values()))
        roles |= {text(x) for key, x in values.items() if key.endswith("_token") and x}
    known = {*getattr(tokenizer, "special", ()), *getattr(tokenizer, "added", ())}
    known |= set(tokenizer.pieces(sorted(tokenizer.special_ids)))
    if unknown := sorted(map(str, found - roles - known)):
        raise ValueError(
            f"{folder} adds the tokens {', '.join(unknown)[:200]}, which are read from {JSON} "
            "only: save the tokenizer again with a new version of its library"
        )


def is_sentencepiece(content):
    """Whether the content of a ``tokenizer.json`` is a SentencePiece model."""
    model = content.get("model")
    if not isinstance(model, dict):
        return False
    return model.get("type") == "Unigram" or model.get("byte_fallback") is True


def is_wordpiece(content):
    """Whether the content of a ``tokenizer.json`` is a WordPiece model."""
    model = content.get("model")
    if not isinstance(model, dict):
        return False
    # Older files do not name the type.
    return model.get("type", "max_input_chars_per_word" in model) in (True, "WordPiece")
