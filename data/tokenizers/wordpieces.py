"""BERT's WordPiece (Devlin et al. 2019, appendix A.2), run in TensorFlow's graph."""

import collections
import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import tensorflow as tf

from ...files import read, read_json, write_file
from . import hugging_face
from .hugging_face import Template, read_added, read_template
from .normalization import WORDS, list_steps
from .ragged import join_rows
from .splits import split_with_starts, text_operations
from .tokenizer import AddedTokens, Tokenizer, align, replace_invalid, set_untracked

JSON, TEXT, CONFIG = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PREFIX = "##"  # of a piece that continues a word
MOST = 2**19  # maximum number of tokens; multilingual BERT has 119,547
LETTERS = 1000  # maximum number of characters of a vocabulary that is learned, as in Hugging Face

# What a decoder with "cleanup" replaces in a token, in this order.
CLEANUP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


class WordPieces(Tokenizer):
    """A WordPiece tokenizer: each word is split into the longest pieces of the vocabulary.

    Texts are cleaned, split at white space, punctuation and Chinese characters, and, if
    ``lowercase``, stripped of accents and lower-cased. A word that cannot be split into pieces is
    the unknown token. `encode`, `encode_pairs`, `offsets` and `decode` equal Hugging Face's
    ``tokenizers`` (BertNormalizer, BertPreTokenizer, WordPiece).

    >>> tokenizer = polyhead.data.WordPieces.train(["A dog, a log."], vocab_size=30)
    >>> tokenizer.tokens("A dog")
    ['[CLS]', 'a', 'dog', '[SEP]']
    >>> ids, types = tokenizer.encode_pairs(["A dog"], ["a log"])
    >>> types.to_list()
    [[0, 0, 0, 0, 1, 1, 1]]
    >>> tokenizer.decode(ids).numpy()[0]
    b'a dog a log'

    Args:
        vocabulary: the pieces in the order of their ids, unique; "" is an id without a piece.
        lowercase: whether text is lower-cased.
        strip_accents: whether accents are removed; None means if ``lowercase``.
        split_chinese: whether each Chinese character is a word.
        special: ``{text: id}`` of special tokens, which are never split, and which `decode` leaves
            out. Default: those of ``[PAD] [UNK] [CLS] [SEP] [MASK]`` in the vocabulary.
        added: ``{text: id}`` of other added tokens, which are never split; `decode` keeps them.
        flags: arguments of `AddedTokens`.
        template: the special tokens around texts and pairs. Default: ``[CLS] A [SEP] B [SEP]``.
        unknown: the token of words that cannot be split.
        longest: the maximum number of characters of a word; longer words are unknown.
        cleanup: whether `decode` removes spaces before punctuation.

    Raises:
        ValueError: two pieces are equal, or a special token that is needed is missing.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        lowercase: bool = True,
        *,
        strip_accents: bool | None = None,
        split_chinese: bool = True,
        special: Mapping[str, int] | None = None,
        added: Mapping[str, int] | None = None,
        flags: Mapping[str, Sequence[str]] | None = None,
        template: Template | None = None,
        unknown: str = UNKNOWN,
        longest: int = 100,
        cleanup: bool = True,
    ) -> None:
        super().__init__()
        vocabulary = list(vocabulary)
        if not all(isinstance(piece, str) and "\0" not in piece for piece in vocabulary):
            raise ValueError("a vocabulary must be a list of strings, without zero characters")
        if len(vocabulary) > MOST:
            raise ValueError(f"a vocabulary must have at most {MOST} pieces: {len(vocabulary)}")
        count = collections.Counter(piece for piece in vocabulary if piece)
        if twice := [piece for piece, times in count.items() if times > 1]:
            raise ValueError(f"a piece is in the vocabulary twice: {twice[0]!r}")
        ids = {piece: i for i, piece in enumerate(vocabulary) if piece}
        if special is None:
            special = {text: ids[text] for text in SPECIAL if text in ids}
        added = dict(added or {})
        whole = {**ids, **added, **special}
        needed = (PAD, unknown) if template else (PAD, unknown, CLS, SEP)
        if lacking := [text for text in needed if text not in whole]:
            raise ValueError(f"the vocabulary lacks the special tokens {lacking}")
        if unknown not in ids:
            raise ValueError(f"the vocabulary lacks the unknown token {unknown!r}")
        own = [*added.values(), *special.values()]
        if not all(isinstance(i, int) and 0 <= i < MOST for i in own):
            raise ValueError(f"ids must be integers from 0 to {MOST - 1}")
        if template is None:
            cls, sep = (whole[CLS],), (whole[SEP],)
            template = Template(cls, sep, sep, 1)
        self.vocab_size = max(len(vocabulary), *(i + 1 for i in own)) if own else len(vocabulary)
        template.check(self.vocab_size)
        self.prefix, self.suffix = template.prefix, template.suffix
        self.separator, self.pair_type = template.separator, template.pair_type
        self.pad_id = whole[PAD]
        self.end_id = self.suffix[-1] if self.suffix else self.pad_id
        self.mask_token = MASK if MASK in whole else None
        self.mask_id = whole.get(MASK)
        self.lowercase, self.longest = lowercase, longest
        strip = lowercase if strip_accents is None else strip_accents
        set_untracked(self, vocabulary=vocabulary, special=dict(special), added=added)
        settings = dict(strip_accents=strip_accents, split_chinese=split_chinese)
        settings |= dict(unknown=unknown, cleanup=cleanup, flags=dict(flags or {}))
        set_untracked(self, _settings=settings, _template=template)

        self._steps = list_steps(lowercase, strip, split_chinese)
        flags = {flag: list(names) for flag, names in (flags or {}).items()}
        late = {text for text in flags.get("normalized", ()) if text in {**added, **special}}
        normal = dict(zip(late, self._normalized(late), strict=True))
        texts = [""] * self.vocab_size
        for text, i in whole.items():
            texts[i] = normal.get(text, text)
        set_untracked(self, _texts=texts)
        self._first = tf.constant(texts)
        self._later = tf.constant([follow(text, cleanup) if text else "" for text in texts])
        hidden = {*special.values(), *(i for i, text in enumerate(texts) if not text)}
        self._shown = tf.constant([i not in hidden for i in range(self.vocab_size)])
        try:
            self._pieces = text_operations().FastWordpieceTokenizer(
                # A word has no spaces, so it is none of the pieces that fill gaps.
                vocab=[piece or f"{i} is unused" for i, piece in enumerate(vocabulary)],
                suffix_indicator=PREFIX,
                max_bytes_per_word=4 * longest,
                token_out_type=tf.int32,
                unknown_token=unknown,
                no_pretokenization=True,
            )
        except RuntimeError as error:  # a piece of more than 256 bytes
            raise ValueError(f"a piece is not supported: {error!s:.400}") from None
        self._unknown = unknown
        self._added = AddedTokens(
            {normal.get(text, text): i for text, i in {**added, **special}.items()},
            **{flag: [normal.get(text, text) for text in names] for flag, names in flags.items()},
        )

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 30000, lowercase: bool = True
    ) -> "WordPieces":
        """Learns a vocabulary of up to ``vocab_size`` tokens from strings.

        The special tokens have the ids 0 to 4: ``[PAD] [UNK] [CLS] [SEP] [MASK]``. The same texts
        give the same vocabulary.

        Raises:
            ValueError: there is no text, or ``vocab_size`` has no room for its characters.
        """
        import tokenizers

        learner = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=UNKNOWN))
        learner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
        learner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        count, kept = collections.Counter(), []
        for text in texts:
            words = learner.normalizer.normalize_str(text)
            words = learner.pre_tokenizer.pre_tokenize_str(words)
            for word, _ in words:
                count.update(word)
            kept.append(text)
        if not count:
            raise ValueError("a vocabulary cannot be learned without text")
        letters = sorted(sorted(count), key=lambda c: -count[c])[:LETTERS]
        # The trainer adds pieces such as ##a in the order of a hash map, which differs from run to
        # run: so they are given to it, as special tokens.
        inside = sorted(PREFIX + letter for letter in letters)
        needed = len(SPECIAL) + len(inside) + len(letters)
        if vocab_size < needed:
            raise ValueError(f"{len(letters)} characters need vocab_size >= {needed}: {vocab_size}")
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL, *inside],
            initial_alphabet=letters,
            limit_alphabet=len(letters),
            show_progress=False,
        )
        learner.train_from_iterator(kept, trainer)
        vocabulary = learner.get_vocab()
        return cls(sorted(vocabulary, key=vocabulary.__getitem__), lowercase)

    def _normalize(self, texts):
        for operation in self._steps:
            texts = operation(texts)
        return texts

    def _normalized(self, texts):
        with tf.init_scope():
            found = self._normalize(tf.constant(list(texts), tf.string, [len(texts)]))
            return [text.decode() for text in found.numpy()]

    def _encode(self, texts, target=False):
        return self._tokenize(self._clean(texts))

    def _clean(self, texts):
        # The normalizer removes U+FFFD as it does zero bytes, at which RegexSplit stops.
        return tf.strings.regex_replace(
            replace_invalid(texts), r"\x00", "\N{REPLACEMENT CHARACTER}"
        )

    def _tokenize(self, texts, places=False):
        """Tokenizes ``texts`` (B,) to ragged ids (B, None).

        If ``places``, also returns where each token begins and ends (N,): bytes of the normalized
        texts, which are joined.
        """
        parts, added, _ = self._added.split(texts, self._normalize)
        alone, flat = added >= 0, parts.flat_values
        # An added token is replaced by a letter, which is one word and one token.
        words, starts = split_with_starts(tf.where(alone, "a", flat), *WORDS)
        word = words.flat_values
        long = tf.strings.length(word, unit="UTF8_CHAR") > self.longest
        short = tf.where(long, self._unknown, word)
        if places:
            tokens, first, last = self._pieces.tokenize_with_offsets(short)
        else:
            tokens, first, last = self._pieces.tokenize(short), None, None
        row = tokens.value_rowids()
        part = tf.gather(words.value_rowids(), row)
        whole = tf.gather(alone, part)
        ids = tf.where(whole, tf.gather(added, part), tokens.flat_values)
        ids = tf.RaggedTensor.from_value_rowids(
            ids, tf.gather(parts.value_rowids(), part), nrows=parts.nrows(), validate=False
        )
        if not places:
            return ids
        # From places in a word to places in all texts.
        size, length = (tf.cast(tf.strings.length(x), tf.int64) for x in (flat, word))
        last = tf.where(tf.gather(long, row), tf.gather(length, row), last.flat_values)
        begin = tf.gather(tf.cumsum(size, exclusive=True), part)
        start = begin + tf.gather(starts.flat_values, row)
        first = tf.where(whole, begin, start + first.flat_values)
        return ids, first, tf.where(whole, begin + tf.gather(size, part), start + last)

    def _offsets(self, texts):
        texts = self._clean(texts)
        ids, first, last = self._tokenize(texts, places=True)
        # Each character is normalized alone, which gives as many bytes, and the same ones except
        # for combining marks whose order changes.
        parts, added, _ = self._added.split_raw(texts)
        flat, alone = parts.flat_values, added >= 0
        units = tf.strings.unicode_split(tf.where(alone, "a", flat), "UTF-8")
        part, units = units.value_rowids(), units.flat_values
        # Only of added tokens, so that a long text is not copied for each of its characters.
        alone, flat = tf.gather(alone, part), tf.gather(tf.where(alone, flat, ""), part)
        unique, index = tf.unique(units)
        outputs = tf.gather(self._normalize(unique), index)
        at = align(tf.where(alone, flat, units), tf.where(alone, flat, outputs))
        size = tf.strings.length(texts, unit="UTF8_CHAR")
        begin = tf.gather(tf.cumsum(size, exclusive=True), ids.value_rowids())
        starts, ends = tf.gather(at, first) - begin, tf.gather(at, last - 1) + 1 - begin
        return ids, ids.with_values(starts), ids.with_values(ends)

    def decode(self, tokens: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Decodes ``tokens`` (B, T) to texts (B,), without special tokens.

        Words are separated by spaces, and punctuation follows a word directly, as in Hugging Face's
        decoder. Ids outside the vocabulary are left out.
        """
        tokens = self.remove_unknown(tokens)
        tokens = tf.ragged.boolean_mask(tokens, tf.gather(self._shown, tokens))
        first, later = tf.gather(self._first, tokens[:, :1]), tf.gather(self._later, tokens[:, 1:])
        return tf.strings.reduce_join(join_rows(first, later), axis=-1)

    def pieces(self, tokens: Iterable[int], target: bool = False) -> list[str]:
        """The pieces of ``tokens`` (T,) as readable strings."""
        return [self._texts[int(token)] for token in tokens]

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes ``vocab.txt``, ``tokenizer.json`` and ``tokenizer_config.json``.

        Hugging Face's libraries read them too.
        """
        folder, settings = Path(folder), self._settings
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": self._list_added(),
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": settings["split_chinese"],
                "strip_accents": settings["strip_accents"],
                "lowercase": self.lowercase,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": self._post_processor(),
            "decoder": {"type": "WordPiece", "prefix": PREFIX, "cleanup": settings["cleanup"]},
            "model": {
                "type": "WordPiece",
                "unk_token": self._unknown,
                "continuing_subword_prefix": PREFIX,
                "max_input_chars_per_word": self.longest,
                "vocab": {piece: i for i, piece in enumerate(self.vocabulary) if piece},
            },
        }
        names = {"unk_token": self._unknown, "pad_token": PAD, "mask_token": self.mask_token}
        if self.prefix and self.suffix:
            names |= {"cls_token": self._texts[self.cls_id], "sep_token": self._texts[self.sep_id]}
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "strip_accents": settings["strip_accents"],
            "tokenize_chinese_chars": settings["split_chinese"],
            **{name: text for name, text in names.items() if text},
        }
        for name, value in ((JSON, content), (CONFIG, config)):
            text = json.dumps(value, ensure_ascii=False, indent=1)
            write_file(folder / name, f"{text}\n".encode())
        lines = [piece or f"[unused {i}]" for i, piece in enumerate(self.vocabulary)]
        write_file(folder / TEXT, ("\n".join(lines) + "\n").encode())

    def _list_added(self):
        flags = self._settings["flags"]
        return [
            {
                "id": i,
                "content": text,
                "single_word": False,
                **{
                    flag: text in flags.get(flag, ()) for flag in ("lstrip", "rstrip", "normalized")
                },
                "special": text in self.special,
            }
            for text, i in sorted({**self.added, **self.special}.items(), key=lambda item: item[1])
        ]

    def _post_processor(self):
        template = self._template
        if template == Template():
            return None
        used = dict.fromkeys((*template.prefix, *template.suffix, *(template.separator or ())))

        def tokens(ids, kind):
            return [{"SpecialToken": {"id": self._texts[i], "type_id": kind}} for i in ids]

        def text(name, kind):
            return {"Sequence": {"id": name, "type_id": kind}}

        before, kind = [*tokens(template.prefix, 0), text("A", 0)], template.pair_type
        pair = [*before, *tokens(template.separator or (), 0), text("B", kind)]
        return {
            "type": "TemplateProcessing",
            "single": [*before, *tokens(template.suffix, 0)],
            "pair": [*pair, *tokens(template.suffix, kind)],
            "special_tokens": {
                self._texts[i]: {"id": self._texts[i], "ids": [i], "tokens": [self._texts[i]]}
                for i in used
            },
        }

    @classmethod
    def load(
        cls, folder: str | PathLike[str], content: dict[str, Any] | None = None
    ) -> "WordPieces":
        """Reads ``tokenizer.json`` or, if there is none, ``vocab.txt``.

        ``tokenizer_config.json`` gives the case and the names of special tokens for ``vocab.txt``.
        Truncation and padding of ``tokenizer.json`` are ignored.

        Args:
            folder: the folder of the files.
            content: the content of ``tokenizer.json``, if it was read already.

        Raises:
            ValueError: a file is invalid or has a setting that is not supported; the message names
                both.
        """
        folder = Path(folder)
        path = folder / CONFIG
        config = read_json(path) if path.is_file() else {}
        try:
            lower, strip, chinese = read_config(config)
            if content is not None or (folder / JSON).is_file():
                path = folder / JSON
                tokenizer = cls.read(content or read_json(path))
                path = folder / CONFIG
                found = tokenizer._settings | {"lowercase": tokenizer.lowercase}
                for name, said, own in (
                    ("do_lower_case", lower, "lowercase"),
                    ("strip_accents", strip, "strip_accents"),
                    ("tokenize_chinese_chars", chinese, "split_chinese"),
                ):
                    if said is not None and said != found[own]:
                        raise ValueError(
                            f"{name} is {said}, but {found[own]} in {JSON}: remove the wrong one"
                        )
                return tokenizer
            read_names(config)
            listed = config.get("added_tokens_decoder") or {}
            entries = [{"id": int(i), **entry} for i, entry in listed.items()]
            special, added, flags = read_added({"added_tokens": entries})
            path = folder / TEXT
            lines = read(path).decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
            if empty := [number for number, line in enumerate(lines, 1) if not line]:
                raise ValueError(f"line {empty[0]} is empty")
            more = folder / "added_tokens.json"
            if more.is_file() and json.loads(read(more)):
                raise ValueError(f"added_tokens.json is not supported without {JSON}")
            ids = {line: i for i, line in enumerate(lines)}
            special |= {text: ids[text] for text in SPECIAL if text in ids}
            return cls(
                lines,
                lower is not False,
                strip_accents=strip,
                split_chinese=chinese is not False,
                special=special,
                added=added,
                flags=flags,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def read(cls, content: dict[str, Any]) -> "WordPieces":
        """Creates a tokenizer from the content of a ``tokenizer.json``."""
        model, decoder = (content.get(name) or {} for name in ("model", "decoder"))
        if not isinstance(model, dict) or not isinstance(decoder, dict):
            raise ValueError("model and decoder must be objects")
        vocab, longest = model.get("vocab"), model.get("max_input_chars_per_word", 100)
        unknown = model.get("unk_token", UNKNOWN)
        steps = hugging_face.list_steps(content, "normalizer")
        normalizer = steps[0] if len(steps) == 1 else {}
        first = [step.get("type") for step in hugging_face.list_steps(content, "pre_tokenizer")]
        prefix, strip = decoder.get("prefix", PREFIX), normalizer.get("strip_accents")
        for said, rule in (
            (model.get("type", "WordPiece") == "WordPiece", "model must be of type WordPiece"),
            (isinstance(vocab, dict), "model must have a vocab of pieces and ids"),
            (isinstance(unknown, str), f"unk_token must be a string: {unknown!r:.100}"),
            (
                type(longest) is int and 0 < longest < 2**24,
                f"max_input_chars_per_word must be from 1 to {2**24 - 1}: {longest!r}",
            ),
            (
                model.get("continuing_subword_prefix", PREFIX) == PREFIX == prefix,
                f"the prefix of pieces must be {PREFIX!r}",
            ),
            (
                normalizer.get("type") == "BertNormalizer",
                f"the only supported normalizer is BertNormalizer: {steps!r:.200}",
            ),
            (normalizer.get("clean_text", True) is True, "clean_text must be true"),
            (strip in (None, True, False), f"strip_accents must be true, false or null: {strip!r}"),
            (
                first == ["BertPreTokenizer"],
                f"the only supported pre_tokenizer is BertPreTokenizer: {first!r:.200}",
            ),
            (
                decoder.get("type", "WordPiece") == "WordPiece",
                f"the only supported decoder is WordPiece: {decoder!r:.200}",
            ),
        ):
            if not said:
                raise ValueError(rule)
        if not all(type(i) is int and 0 <= i < MOST for i in vocab.values()):
            raise ValueError(f"ids must be integers from 0 to {MOST - 1}")
        if len(set(vocab.values())) < len(vocab):
            raise ValueError("two pieces of the vocabulary have the same id")
        vocabulary = [""] * (max(vocab.values(), default=-1) + 1)
        for piece, i in vocab.items():
            vocabulary[i] = piece
        special, added, flags = read_added(content)
        return cls(
            vocabulary,
            normalizer.get("lowercase", True) is True,
            strip_accents=strip,
            split_chinese=normalizer.get("handle_chinese_chars", True) is True,
            special=special,
            added=added,
            flags=flags,
            template=read_template(content),
            unknown=unknown,
            longest=longest,
            cleanup=decoder.get("cleanup", True) is True,
        )


def follow(token, cleanup):
    """The text of a token that is not the first."""
    text = token[len(PREFIX) :] if token.startswith(PREFIX) else f" {token}"
    for old, new in CLEANUP if cleanup else ():
        text = text.replace(old, new)
    return text


def read_config(config):
    """Reads lower-casing, stripping of accents and splitting of Chinese characters from the content
    of ``tokenizer_config.json``; None is not given.

    Raises:
        ValueError: a setting is not supported.
    """
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    found = [config.get(name) for name in names]
    for name, value in zip(names, found, strict=True):
        if value not in (None, True, False):
            raise ValueError(f"{name} must be true, false or null: {value!r:.100}")
    if config.get("do_basic_tokenize") is False or config.get("never_split"):
        raise ValueError("do_basic_tokenize must be true, without never_split")
    return found


def read_names(config):
    """Checks the names of special tokens in ``tokenizer_config.json``."""
    for name, usual in zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True):
        said = config.get(f"{name}_token") or usual
        said = said.get("content") if isinstance(said, dict) else said
        if said != usual:
            raise ValueError(f"{name}_token must be {usual!r}: {said!r:.100}")
