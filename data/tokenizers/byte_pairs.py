"""Byte-level byte-pair encoding (Radford et al. 2019, section 2.2), run in TensorFlow's graph."""

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import tensorflow as tf

from ...files import FAULTS, explain, read, read_json, write_file
from .hugging_face import Template, list_steps, read_added, read_template, read_trim
from .normalization import COMBINING, normalize
from .ragged import begin_rows, merge_rows
from .splits import (
    GPT2,
    PATTERNS,
    SPACE,
    remove_marks,
    split,
    split_words,
    text_operations,
    to_re2,
)
from .tokenizer import (
    MASKS,
    AddedTokens,
    ByteTokenizer,
    align,
    hide_zeros,
    replace_invalid,
    set_untracked,
    show_zeros,
    table,
)

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ANY = "PreTrainedTokenizerFast"  # Hugging Face's class that reads all of tokenizer.json
END = "<|endoftext|>"
PADS = ("<pad>", "[PAD]")  # of RoBERTa and of ModernBERT
NONE = 2**62  # the rank of a pair that is not merged
MOST = 2**19  # maximum number of tokens; published vocabularies have up to 262,144
WINDOW = 128  # bytes per window of a long word


class BytePairs(ByteTokenizer):
    """A byte-level BPE tokenizer: words are split into bytes, then pairs are merged.

    `encode` and `decode` equal Hugging Face's for GPT-2, RoBERTa, Llama 3, Qwen 2 and all others
    whose words are split by one of `splits.PATTERNS`.

    >>> tokenizer = polyhead.data.BytePairs.train(["a dog, a log"], vocab_size=258)
    >>> tokenizer.tokens("dog")
    ['d', 'og']
    >>> tokenizer.decode(tokenizer.encode(["a dog"])).numpy()[0]
    b'a dog'

    Args:
        vocabulary: ``{piece: token}``, the pieces written in GPT-2's alphabet of 256 characters.
        merges: pairs of pieces, in the order in which they are merged.
        special: ``{text: token}`` of special tokens, which are never split, and which `decode`
            leaves out.
        end: the special token that ends a document.
        added: ``{text: token}`` of other added tokens, which are never split; `decode` keeps them.
        pattern: a value of `splits.PATTERNS`.
        digits: whether each digit is a separate word.
        nfc: whether texts are normalized to NFC.
        ignore_merges: whether a word of the vocabulary is one token, without merges.
        prefix_space: whether a space is added before a text that does not begin with one, also
            after an added token.
        trim: whether spaces are no part of `offsets`, and whether a first one is taken as added.
        flags: arguments of `AddedTokens`.
        template: the special tokens around texts and pairs.
        content: the ``tokenizer.json`` with all of these, for `save`.

    Raises:
        ValueError: a byte has no token, two pieces have the same token, or a merge is not in the
            vocabulary.
    """

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: Sequence[Sequence[str]],
        special: Mapping[str, int],
        end: str = END,
        added: Mapping[str, int] | None = None,
        *,
        pattern: str = GPT2,
        digits: bool = False,
        nfc: bool = False,
        ignore_merges: bool = False,
        prefix_space: bool = False,
        trim: tuple[bool, bool] = (False, False),
        flags: Mapping[str, Sequence[str]] | None = None,
        template: Template | None = None,
        content: dict[str, Any] | None = None,
    ) -> None:
        added = dict(added or {})
        whole = {**added, **special}  # never cut
        if end not in special:
            raise ValueError(f"a vocabulary needs the special token {end!r}")
        if not isinstance(vocabulary, dict) or not all(isinstance(k, str) and k for k in whole):
            raise ValueError("a vocabulary must map texts to tokens")
        vocabulary = {k: v for k, v in vocabulary.items() if k not in whole}
        tokens = [*vocabulary.values(), *whole.values()]
        if not all(type(t) is int and 0 <= t < MOST for t in tokens):
            raise ValueError(f"tokens must be integers from 0 to {MOST - 1}")
        if len(set(tokens)) < len(tokens) or added.keys() & special.keys():
            raise ValueError("two pieces of the vocabulary have the same token")
        if lacking := [byte for byte, char in enumerate(ALPHABET) if char not in vocabulary]:
            raise ValueError(f"the vocabulary has no token for the bytes {lacking}")
        pieces = [b""] * (max(tokens) + 1)
        for piece, token in vocabulary.items():
            if not BYTES.keys() >= set(piece):
                raise ValueError(f"a piece is not written in GPT-2's alphabet: {piece!r}")
            pieces[token] = bytes([BYTES[char] for char in piece])
        words = [(pieces[t], t) for t in vocabulary.values()] if ignore_merges else []
        for text, token in added.items():
            pieces[token] = text.encode()
        for pair in merges:
            sound = isinstance(pair, list | tuple) and all(isinstance(piece, str) for piece in pair)
            if not sound or len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
                raise ValueError(f"a merge is not of pieces in the vocabulary: {pair!r:.100}")
        super().__init__(pieces, special[end], {token: text for text, token in special.items()})
        merges = [tuple(pair) for pair in merges]
        set_untracked(
            self, vocabulary=vocabulary, merges=merges, special=dict(special), added=added
        )
        set_untracked(self, _content=content)
        self.end = end
        template = template or Template()
        template.check(self.vocab_size)
        self.prefix, self.suffix = template.prefix, template.suffix
        self.separator, self.pair_type = template.separator, template.pair_type
        self._byte_tokens = tf.constant([vocabulary[char] for char in ALPHABET])
        self._merged = tf.constant([vocabulary[a + b] for a, b in merges] or [0])
        keys = [(vocabulary[a] << 32) + vocabulary[b] for a, b in merges]
        first = {key: rank for rank, key in reversed(list(enumerate(keys)))}
        first = first or {-1: NONE}  # a table must not be empty
        self._ranks = table(list(first), list(first.values()), tf.int64, NONE)
        words += [(text.encode(), token) for text, token in whole.items()]
        self._whole = table(*zip(*dict(words).items(), strict=True), tf.string, -1)
        self._added = AddedTokens(whole, **(flags or {}))
        self._words = to_re2(pattern, digits)
        self._normalize = to_nfc if nfc else None
        self._prefix_space, self._trim = prefix_space, tuple(trim)
        pads = [text for text in PADS if text in special]
        self.pad_id = special[pads[0]] if pads else self.end_id
        self.mask_token = next((text for text in MASKS if text in special), None)
        self.mask_id = special.get(self.mask_token)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 10000) -> "BytePairs":
        """Learns a vocabulary of up to ``vocab_size`` tokens from strings; the end token is 0.

        Raises:
            ValueError: there is no text, or ``vocab_size`` is less than 257.
        """
        import tokenizers

        texts = [text for text in texts if text]
        if not texts:
            raise ValueError("a vocabulary cannot be learned without text")
        if vocab_size < 257:
            raise ValueError(f"256 bytes and an end token need vocab_size >= 257: {vocab_size}")
        learner = tokenizers.Tokenizer(tokenizers.models.BPE())
        learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        learner.train_from_iterator(
            texts,
            tokenizers.trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=[END],
                initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        model = json.loads(learner.to_str())["model"]
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return cls(model["vocab"], merges, {END: 0})

    def _encode(self, texts, target=False):
        parts, _, rows, _ = self._tokenize(hide_zeros(replace_invalid(texts)))
        return merge_rows(parts.with_flat_values(rows))

    def _tokenize(self, texts):
        """Splits texts into parts; returns them, their ids, their ragged tokens, added spaces."""
        parts, ids, keys = self._added.split(texts, self._normalize)
        spaced = tf.zeros_like(ids)
        if self._prefix_space:
            lacks = tf.logical_and(keys != "", tf.strings.substr(keys, 0, 1) != " ")
            spaced = tf.cast(tf.logical_and(ids < 0, lacks), tf.int32)
            keys = tf.where(spaced > 0, " " + keys, keys)
        words = split_words(tf.where(ids >= 0, "-", keys), *self._words)
        part = words.value_rowids()
        # Only of added tokens, so that a long text is not copied for each of its words.
        alone = tf.gather(tf.where(ids >= 0, keys, ""), part)
        flat = tf.where(tf.gather(ids, part) >= 0, alone, words.flat_values)
        unique, index = tf.unique(flat, tf.int64)
        tokens = self.merge_words(show_zeros(remove_marks(unique)))
        rows = merge_rows(words.with_values(tf.gather(tokens, index)))
        return parts, ids, rows, spaced

    def _offsets(self, texts):
        texts = hide_zeros(replace_invalid(texts))
        parts, added, rows, spaced = self._tokenize(texts)
        ids = rows.flat_values
        # A token has as many bytes as its piece, or as its part if it is an added token.
        size = tf.strings.length(show_zeros(parts.flat_values))
        part = rows.value_rowids()
        piece, alone = tf.gather(self._table, ids), tf.gather(added >= 0, part)
        count = tf.where(alone, tf.gather(size, part), tf.strings.length(piece))
        last = tf.cumsum(count)
        # The code point of each byte; a space that was added stands for the first one of its part.
        begin = tf.cumsum(size, exclusive=True)
        byte = tf.ragged.range(begin - spaced, begin + size)
        byte = tf.maximum(byte.flat_values, tf.gather(begin, byte.value_rowids()))
        at = tf.gather(align(*self._units(texts)), byte)
        start, end = tf.gather(at, last - count), tf.gather(at, last - 1) + 1

        def of_texts(values):
            return merge_rows(parts.with_flat_values(rows.with_values(values)))

        ids = of_texts(ids)
        text = ids.value_rowids()
        before = tf.cumsum(tf.strings.length(texts, unit="UTF8_CHAR"), exclusive=True)
        start, end = (x - tf.gather(before, text) for x in (start, end))
        if self._trim[0]:

            def count_blanks(texts, pattern):
                left = tf.strings.regex_replace(texts, pattern, "")
                full, left = (tf.strings.length(x, unit="UTF8_CHAR") for x in (texts, left))
                return full - left

            def blanks(pattern, piece_pattern):
                whole = tf.gather(count_blanks(parts.flat_values, pattern), part)
                return tf.where(alone, whole, count_blanks(piece, piece_pattern))

            before, after = blanks(f"^[{SPACE}]+", "^ +"), blanks(f"[{SPACE}]+$", " +$")
            if self._trim[1]:
                number = tf.range(tf.size(text, tf.int64)) - tf.gather(ids.row_starts(), text)
                first = tf.logical_or(number == 0, start == 0)
                before = tf.where(tf.logical_and(first, before == 1), 0, before)
            start = tf.minimum(start + before, end)
            end = tf.where(end >= after, tf.maximum(end - after, start), end)
        rows = ids, ids.with_values(start), ids.with_values(end)
        return rows  # pyright: ignore[reportReturnType]

    def _units(self, texts):
        """Parts of ``texts`` that are normalized independently, before and after; see `align`."""
        if self._normalize is None:
            return (show_zeros(texts),) * 2
        parts, added, _ = self._added.split_raw(texts)
        flat, alone = parts.flat_values, added >= 0
        units = split(tf.where(alone, "", flat), UNIT)
        unique, index = tf.unique(units.flat_values)
        outputs = units.with_flat_values(tf.gather(self._normalize(unique), index))
        return [show_zeros(begin_rows(alone, flat, rows).flat_values) for rows in (units, outputs)]

    def merge_words(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Tokenizes ``words`` (W,) to ragged tokens (W, None).

        The number of merging rounds grows with the length of a word, so a long word is merged in
        windows that overlap by half. Where two consecutive windows share a token, the second one
        continues the first from there: then all neighbours are neighbours in some window, and the
        tokens are those of the whole word. Windows that share no token are joined and merged again,
        with as many bytes after them: so the number of rounds grows with the logarithm of the word.
        """
        whole = tf.cast(self._whole.lookup(words), tf.int32)
        plain = tf.where(whole < 0, words, "-")  # a whole word is one token, without pairs
        content = tf.io.decode_raw(tf.strings.reduce_join(plain), tf.uint8)
        byte_tokens = tf.gather(self._byte_tokens, tf.cast(content, tf.int32))
        length = tf.strings.length(plain)
        count = tf.maximum(-(-length // (WINDOW // 2)) - 1, 1)
        of_word = tf.repeat(tf.range(tf.size(words)), count)
        offset = tf.gather(tf.cumsum(length, exclusive=True), of_word)
        number = tf.range(tf.size(of_word)) - tf.gather(tf.cumsum(count, exclusive=True), of_word)
        start = offset + number * (WINDOW // 2)
        stop = tf.minimum(start + WINDOW, offset + tf.gather(length, of_word))

        def merge(start, stop, of_word, *_):
            at = tf.ragged.range(start, stop)
            window, at = at.value_rowids(), at.flat_values
            never_cut = tf.gather(whole, tf.gather(of_word, window))
            tokens = tf.where(never_cut < 0, tf.gather(byte_tokens, at), never_cut)
            tokens, at, window = self._merge(tokens, at, window)
            # The tokens of even and of odd windows, at the position of their first byte.
            count = tf.size(start, tf.int64)
            even, odd = (
                tf.tensor_scatter_nd_update(
                    tf.fill(tf.shape(content), -1),
                    tf.boolean_mask(at, window % 2 == parity)[:, None],
                    tf.boolean_mask(tokens, window % 2 == parity),
                )
                for parity in (0, 1)
            )
            later = tf.concat([[False], of_word[1:] == of_word[:-1]], axis=0)[: tf.size(start)]
            before = tf.gather(tf.concat([[0], stop[:-1]], axis=0)[: tf.size(start)], window)
            shared = tf.gather(tf.logical_and(even == odd, even >= 0), at)
            shared = tf.logical_and(shared, tf.logical_and(tf.gather(later, window), at < before))
            place = tf.where(shared, at, tf.int32.max)
            place = tf.math.unsorted_segment_min(place, window, count)
            apart = tf.logical_and(later, place == tf.int32.max)
            # A window's tokens count from where it meets the previous window to where it meets the
            # next one.
            first = tf.where(later, place, 0)
            last = tf.concat([tf.where(later, place, tf.int32.max)[1:], [tf.int32.max]], axis=0)
            last = last[: tf.size(start)]
            kept = tf.logical_and(at >= tf.gather(first, window), at < tf.gather(last, window))
            tokens = tf.boolean_mask(tokens, kept)
            row = tf.gather(of_word, tf.boolean_mask(window, kept))
            start, stop, of_word, size = join_windows(~apart, start, stop, of_word)
            # A window that was joined takes those that begin within as many bytes after it.
            reach = tf.minimum(2 * stop - start, tf.gather(tf.cumsum(length), of_word))
            reach = tf.searchsorted(start, tf.where(size > 1, reach, 0))
            places = tf.range(1, tf.size(start) + 1)
            change = tf.where(reach > places, 1, 0)
            opened = tf.scatter_nd(places[:, None], change, [tf.size(start) + 1])
            closed = tf.scatter_nd(reach[:, None], change, [tf.size(start) + 1])
            alone = tf.cumsum(opened - closed)[:-1] == 0
            start, stop, of_word, _ = join_windows(alone, start, stop, of_word)
            return start, stop, of_word, tokens, row, tf.reduce_any(apart)

        empty = tf.zeros([0], tf.int32)
        *_, tokens, row, _ = tf.while_loop(
            lambda *state: state[-1],
            merge,
            (start, stop, of_word, empty, empty, True),
            shape_invariants=(*[tf.TensorShape([None])] * 5, tf.TensorShape([])),
        )
        count = tf.size(words, tf.int64)
        return tf.RaggedTensor.from_value_rowids(
            tokens, tf.cast(row, tf.int64), nrows=count, validate=False
        )

    def _merge(self, tokens, at, word):
        """Merges pairs of ``tokens`` within each ``word``, those of lowest rank first.

        Pairs of the same rank are merged together, from left to right; pairs with a merged token
        have a higher rank. Returns the arguments for fewer tokens; ``at`` is where each begins.
        """
        count = tf.reduce_max(tf.concat([[-1], word], axis=0)) + 1

        def ranks(tokens, word):
            pair = tf.bitwise.left_shift(tf.cast(tokens[:-1], tf.int64), 32)
            rank = self._ranks.lookup(pair + tf.cast(tokens[1:], tf.int64))
            return tf.where(word[:-1] == word[1:], rank, NONE)

        def merge(tokens, at, word, rank):
            least = tf.gather(tf.math.unsorted_segment_min(rank, word[:-1], count), word[:-1])
            pairs = tf.logical_and(rank == least, rank < NONE)
            # Every other one of pairs that overlap, as in "aaa".
            position, run = tf.range(tf.size(pairs)), tf.cumsum(tf.cast(~pairs, tf.int32))
            start = tf.where(pairs, position, tf.int32.max)
            start = tf.gather(tf.math.unsorted_segment_min(start, run, tf.size(pairs) + 1), run)
            pairs = tf.logical_and(pairs, (position - start) % 2 == 0)
            new = tf.gather(self._merged, tf.cast(tf.where(pairs, rank, 0), tf.int32))
            one = tf.minimum(1, tf.size(tokens))
            tokens = tf.where(
                tf.concat([pairs, tf.fill([one], False)], axis=0),
                tf.concat([new, tokens[-1:]], axis=0),
                tokens,
            )
            kept = tf.concat([tf.fill([one], True), ~pairs], axis=0)
            tokens, at, word = (tf.boolean_mask(x, kept) for x in (tokens, at, word))
            return tokens, at, word, ranks(tokens, word)

        return tf.while_loop(
            lambda tokens, at, word, rank: tf.reduce_any(rank < NONE),
            merge,
            (tokens, at, word, ranks(tokens, word)),
            shape_invariants=(tf.TensorShape([None]),) * 4,
        )[:3]

    def without_mask(self) -> "BytePairs":
        """The same tokenizer without its mask, as of a model that has no embedding for it.

        The tokenizer must be one that was read from files.
        """
        content, mask = self._content, self.mask_token
        added = [entry for entry in content["added_tokens"] if entry["content"] != mask]
        vocab = {text: i for text, i in content["model"]["vocab"].items() if text != mask}
        model = {**content["model"], "vocab": vocab}
        return self.read({**content, "added_tokens": added, "model": model}, self.end_id)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json``, as Hugging Face's library."""
        content = self._content or self._new_content()
        text = json.dumps(content, ensure_ascii=False) + "\n"
        write_file(Path(folder) / FILE, text.encode())
        names = {"pad": self.pad_id, "eos": self.end_id, "mask": self.mask_id}
        names |= {"cls": self.cls_id, "sep": self.sep_id}
        special = {
            f"{name}_token": self.pieces([token])[0]
            for name, token in names.items()
            if token is not None
        }
        # Other classes than this one do not read all of tokenizer.json.
        config = json.dumps({"tokenizer_class": ANY, **special}, ensure_ascii=False)
        write_file(Path(folder) / CONFIG, f"{config}\n".encode())

    def _new_content(self):
        """The content of ``tokenizer.json`` for a tokenizer that was not read from one."""
        byte_level = {"type": "ByteLevel", "add_prefix_space": self._prefix_space}
        byte_level |= {"trim_offsets": True, "use_regex": True}
        whole = {**self.added, **self.special}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": token, "content": text, **flags, "special": text in self.special}
                for text, token in sorted(whole.items(), key=lambda item: item[1])
            ],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {**self.vocabulary, **whole},
                "merges": [list(pair) for pair in self.merges],
            },
        }

    @classmethod
    def load(
        cls,
        folder: str | PathLike[str],
        end: int | None = None,
        content: dict[str, Any] | None = None,
    ) -> "BytePairs":
        """Reads ``tokenizer.json`` or, if there is none, ``vocab.json`` and ``merges.txt``.

        ``tokenizer_config.json`` may add a space before each text.

        Args:
            folder: the folder of the files.
            end: the id of the token that ends a document. Default: that of ``<|endoftext|>`` or,
                without one, the last token of each text.
            content: the content of ``tokenizer.json``, if it was read already.

        Raises:
            FileNotFoundError: there are no such files.
            ValueError: a file is invalid or has a setting that is not supported; the message names
                it.
        """
        folder = Path(folder)
        path = folder / FILE if (folder / FILE).is_file() else folder / "vocab.json"
        content = content or read_json(path)
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        config = {} if config.get("tokenizer_class") in (ANY, "TokenizersBackend") else config
        space = config.get("add_prefix_space")
        try:
            if path.name == FILE:
                tokenizer = cls.read(content, end)
                if space is not None and bool(space) != tokenizer._prefix_space:
                    path = folder / CONFIG
                    raise ValueError(
                        f"add_prefix_space is {space}, but {tokenizer._prefix_space} in {FILE}: "
                        "remove the wrong one"
                    )
            elif END not in content and content.keys() >= set(ROBERTA):
                merges = read_merges(folder / "merges.txt")
                tokenizer = cls.read(roberta(content, merges, bool(space)), end)
            else:
                special = {k: v for k, v in content.items() if v == end or k == END}
                name = name_of(special, end)
                path = folder / "merges.txt"
                tokenizer = cls(content, read_merges(path), special, name, prefix_space=bool(space))
            if config.get("add_bos_token") and not tokenizer.prefix:
                path = folder / CONFIG
                raise ValueError(f"add_bos_token is supported as a post_processor of {FILE} only")
            return tokenizer
        except FAULTS as error:
            raise ValueError(f"{path}: {explain(error)}") from None

    @classmethod
    def read(cls, content: dict[str, Any], end: int | None = None) -> "BytePairs":
        """Creates a tokenizer from the content of a ``tokenizer.json``."""
        model, first = (content.get(name) or {} for name in ("model", "pre_tokenizer"))
        if not isinstance(model, dict) or not isinstance(first, dict):
            raise ValueError("model and pre_tokenizer must be objects")
        normalizer = content.get("normalizer")
        nfc = isinstance(normalizer, dict)
        nfc = nfc and [s.get("type") for s in list_steps(content, "normalizer")] == ["NFC"]
        for said, rule in (
            (model.get("type") == "BPE", "model must be of type BPE"),
            (nfc or not normalizer, f"the only supported normalizer is NFC: {normalizer!r:.200}"),
            (not model.get("continuing_subword_prefix"), "pieces must have no prefix"),
            (not model.get("end_of_word_suffix"), "pieces must have no suffix"),
            (isinstance(model.get("vocab"), dict), "model must have a vocab of pieces and tokens"),
            (isinstance(model.get("merges"), list), "model must have a list of merges"),
        ):
            if not said:
                raise ValueError(rule)
        pattern, digits, space = read_words(list_steps(content, "pre_tokenizer"))
        if max(len(model["vocab"]), len(model["merges"])) > MOST:
            raise ValueError(f"a vocabulary must have at most {MOST} pieces: {len(model['vocab'])}")
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        special, added, flags = read_added(
            content, lambda text, token: text == END if end is None else token == end
        )
        template = read_template(content)
        if end is None and END not in special and template.suffix:
            end = template.suffix[-1]
        return cls(
            model["vocab"],
            merges,
            special,
            name_of(special, end),
            added,
            pattern=pattern,
            digits=digits,
            nfc=nfc,
            ignore_merges=bool(model.get("ignore_merges")),
            flags=flags,
            template=template,
            prefix_space=space,
            trim=read_trim(content),
            content=content,
        )


def read_words(steps):
    """Reads the steps of a ``pre_tokenizer``: the pattern, whether each digit is a separate word,
    and whether a space is added before a text.

    Raises:
        ValueError: a step or a pattern is not supported; the message names it.
    """
    steps, pattern, digits = list(steps), None, False
    if not steps or steps[-1].get("type") != "ByteLevel":
        raise ValueError("pre_tokenizer must be ByteLevel, or end with it")
    space = bool(steps[-1].get("add_prefix_space"))
    if space and len(steps) > 1:
        raise ValueError("pre_tokenizer must not add a prefix space after another step")
    if steps[-1].get("use_regex", True):
        pattern = GPT2
    for step in steps[:-1]:
        if step.get("type") == "Digits" and step.get("individual_digits") and pattern == GPT2:
            digits = True
        elif step.get("type") == "Split" and pattern is None:
            how = step.get("behavior"), bool(step.get("invert"))
            published = step.get("pattern")
            pattern = published.get("Regex") if isinstance(published, dict) else None
            if pattern not in PATTERNS.values() or how not in SPLITS:
                raise ValueError(f"pre_tokenizer splits by an unknown pattern: {step!r:.400}")
        else:
            raise ValueError(f"pre_tokenizer has a step that is not supported: {step!r:.200}")
    if pattern is None:
        raise ValueError("pre_tokenizer must split into words")
    return pattern, digits, space


# A character and those that may join it: combining marks, vowels and finals of Hangul.
UNIT = rf"(?s).(?:{COMBINING}|[\x{{1160}}-\x{{11ff}}])*"
# The words are the matches of a pattern; all known patterns match every character.
SPLITS = (("Isolated", False), ("Removed", True))


def to_nfc(texts):
    """Normalizes to Unicode's composed form, as Hugging Face's step NFC does."""

    def nfc(texts):
        return hide_zeros(text_operations().normalize_utf8(show_zeros(texts), "NFC"))

    return normalize(texts, nfc)


def join_windows(first, start, stop, of_word):
    """Joins each window that is ``first`` (N,) with those up to the next; also returns how many."""
    group = tf.cumsum(tf.cast(first, tf.int32)) - 1
    start, of_word = tf.boolean_mask(start, first), tf.boolean_mask(of_word, first)
    stop = tf.math.unsorted_segment_max(stop, group, tf.size(start))
    size = tf.math.unsorted_segment_sum(tf.ones_like(group), group, tf.size(start))
    return start, stop, of_word, size


def read_merges(path):
    """Reads ``merges.txt``: a pair of pieces per line, after a line with the version."""
    lines = read(path).decode().replace("\r\n", "\n").split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    return [tuple(line.split(" ")) for line in lines if line]


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def roberta(vocabulary, merges, space):
    """The content of a ``tokenizer.json`` for RoBERTa's ``vocab.json`` and ``merges.txt``."""
    step = {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": True}
    ends = {"cls": ["<s>", vocabulary["<s>"]], "sep": ["</s>", vocabulary["</s>"]]}
    flags = dict.fromkeys(("single_word", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": vocabulary[text], "content": text, "lstrip": text == "<mask>", **flags}
            | {"special": True}
            for text in sorted(ROBERTA, key=vocabulary.__getitem__)
        ],
        "pre_tokenizer": step,
        "post_processor": {**step, "type": "RobertaProcessing", **ends},
        "decoder": step,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [list(pair) for pair in merges]},
    }


def name_of(special, end):
    """The text of the token ``end``."""
    if end is None:
        return END
    named = [text for text, token in special.items() if token == end]
    if not named:
        raise ValueError(f"the end token {end} is not a special token: {special}")
    return named[0]


def alphabet():
    """The character that GPT-2's files use for each byte: itself if it is visible."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


ALPHABET = alphabet()
BYTES = {char: byte for byte, char in enumerate(ALPHABET)}
