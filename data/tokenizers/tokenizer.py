"""The interface of all tokenizers, and text operations in TensorFlow's graph."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from .ragged import begin_rows, join_rows, merge_rows
from .splits import SPACE, split

EAGER = 8  # calls from Python before tracing, which takes as long as about 25 of them
MASKS = ("[MASK]", "<mask>")  # names of the mask in published vocabularies
# A character that valid text does not contain; it replaces zero bytes, at which RegexSplit stops.
ZERO, ZERO_PATTERN = b"\xed\xa0\x81", r"\x{d801}"


class Tokenizer(tf.Module):
    """Converts texts to ids and back, in TensorFlow's graph.

    A subclass defines ``_encode(texts, target)``, `decode`, `pieces`, ``save`` and ``load``, and
    ``_offsets(texts)`` if it has offsets. It is a `tf.Module`, so that an export can track it.

    Attributes:
        vocab_size: the number of tokens.
        source_vocab_size: the number of source tokens, if it differs from that of targets.
        pad_id, end_id: ids that pad a batch and end a text.
        start_id: the id from which a decoder predicts the first token of a target.
        prefix, suffix: ids before and after those of each text.
        separator: ids between the two texts of a pair; None if the tokenizer has no pairs.
        pair_type: the type of the second text of a pair; that of the first is 0.
        eager_calls: the number of calls from Python before the operations are traced.
        mask_token, mask_id: the token that stands for a hidden one, and its id; None without one.
        token_is_word: whether each token is a word of its own, as a residue of a protein is.
        portable: whether Hugging Face's library reads the files.
    """

    source_vocab_size: int | None = None
    start_id: int | None = None
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    separator: tuple[int, ...] | None = None
    pair_type: int = 0
    mask_token: str | None = None
    mask_id: int | None = None
    token_is_word: bool = False
    portable: bool = True
    eager_calls: float = EAGER

    @property
    def cls_id(self) -> int | None:
        """The first id of each text, such as that of ``[CLS]`` or ``<s>``; None without one."""
        return self.prefix[0] if self.prefix else None

    @property
    def sep_id(self) -> int | None:
        """The last id of each text, such as that of ``[SEP]`` or ``</s>``; None without one."""
        return self.suffix[-1] if self.suffix else None

    @property
    def sentinel_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that stand for the first, second ... hidden span of a text."""
        return ()

    @property
    def special_ids(self) -> set[int]:
        """The ids that stand for no text."""
        around = {*self.prefix, *(self.separator or ()), *self.suffix, *self.sentinel_ids}
        return (around | {self.pad_id, self.start_id, self.end_id, self.mask_id}) - {None}

    def encode(
        self,
        texts: Sequence[str] | tf.Tensor,
        max_length: int | None = None,
        target: bool = False,
        add_special_tokens: bool = True,
    ) -> tf.RaggedTensor:
        """Tokenizes ``texts`` (B,) to ragged ids (B, None).

        Args:
            max_length: the maximum number of ids per text, including special ones; others are cut
                from the end of the text.
            target: the texts are targets, for a tokenizer with one vocabulary per side.
            add_special_tokens: whether to add `prefix` and `suffix` to each text.
        """
        return self._run(self._encode_rows, [texts], max_length, target, add_special_tokens)

    def _encode_rows(self, texts, max_length, target, add_special_tokens):
        rows = self._encode(texts, target)
        before, after = (self.prefix, self.suffix) if add_special_tokens else ((), ())
        if max_length is not None:
            rows = rows[:, : max(max_length - len(before) - len(after), 0)]
        return join_rows(before, rows, after) if before or after else rows

    def _run(self, method, texts, *settings) -> Any:
        """``method(*texts, *settings)``; from Python, in a graph after `eager_calls`.

        TensorFlow's operations are slow one by one: a text takes 40 ms, in a graph 1 ms.
        """
        texts = [tf.convert_to_tensor(x, tf.string) for x in texts]
        if not tf.executing_eagerly():
            return method(*texts, *settings)
        # Not an attribute of the module: an export would save the graphs.
        runs = vars(self).setdefault("_runs", {})
        run = runs.get(key := (method.__name__, *settings), 0)
        if run == self.eager_calls:
            spec = [tf.TensorSpec([None], tf.string)] * len(texts)
            run = tf.function(lambda *x: method(*x, *settings), spec, autograph=False)
        if not isinstance(run, int):
            runs[key] = run
            return run(*texts)
        runs[key] = run + 1
        return method(*texts, *settings)

    def encode_pairs(
        self,
        firsts: Sequence[str] | tf.Tensor,
        seconds: Sequence[str] | tf.Tensor,
        max_length: int | None = None,
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """Tokenizes pairs of texts to ragged ids (B, None) and types (B, None), both int32.

        A pair is `prefix`, the first text, `separator`, the second text, `suffix`. The second text
        and the suffix have type `pair_type`, all others 0.

        Args:
            firsts, seconds: texts (B,).
            max_length: the maximum number of ids per pair, including special ones. Ids are removed
                from the end of the longer text until both have the same length, then from the ends
                of both (Hugging Face's ``longest_first``).

        Raises:
            ValueError: the tokenizer has no pairs, or there are not as many second texts.
        """
        special = self.num_pair_special()
        sides = [tf.convert_to_tensor(texts, tf.string) for texts in (firsts, seconds)]
        if not sides[0].shape.is_compatible_with(sides[1].shape):
            raise ValueError(
                "there must be as many first as second texts:"
                f" {sides[0].shape[0]} and {sides[1].shape[0]}"
            )
        room = None if max_length is None else max(max_length - special, 0)
        return self._run(self._encode_pair_rows, sides, room)

    def _encode_pair_rows(self, firsts, seconds, room):
        first, second = (tf.cast(self._encode(x, False), tf.int32) for x in (firsts, seconds))
        if room is not None:
            first, second = cut_pairs(first, second, room)
        return self.join_pairs(first, second)

    def num_pair_special(self) -> int:
        """The number of special ids of a pair.

        Raises:
            ValueError: the tokenizer has no pairs.
        """
        if self.separator is None:
            raise ValueError("this tokenizer has no form for pairs of texts")
        return len(self.prefix) + len(self.separator) + len(self.suffix)

    def join_pairs(self, first, second) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """The ids and types of pairs, see `encode_pairs`, of the ids of texts, both int32."""
        ids = join_rows(self.prefix, first, self.separator, second, self.suffix)
        before, after = len(self.prefix) + len(self.separator), len(self.suffix)
        lengths = [before + first.row_lengths(), second.row_lengths() + after]
        lengths = tf.stack(lengths, axis=1)
        types = tf.tile(tf.constant([0, self.pair_type], tf.int32), [first.nrows()])
        types = ids.with_values(tf.repeat(types, tf.reshape(lengths, [-1])))
        return ids, types  # pyright: ignore[reportReturnType]

    def offsets(
        self, texts: Sequence[str] | tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Tokenizes ``texts`` (B,) to ragged ids, starts and ends, each (B, None) int32.

        Special tokens are not added. ``text[start:end]`` is what a token stands for: starts and
        ends count the code points of the text as given, as Hugging Face's ``offsets`` do.

        Raises:
            ValueError: the tokenizer has no offsets.
        """
        return self._run(self._offsets, [texts])

    def _offsets(self, texts):
        raise ValueError(f"{type(self).__name__} has no offsets of tokens")

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, without special ones."""
        return self.encode(texts, add_special_tokens=False).row_lengths().numpy().tolist()

    def tokens(self, text: str, target: bool = False) -> list[str]:
        """The tokens of one text as readable strings."""
        return self.pieces(self.encode([text], target=target)[0].numpy(), target)

    def remove_unknown(self, tokens):
        """Removes ids outside the vocabulary from ``tokens`` (B, T); returns a ragged tensor."""
        tokens = tf.cast(tokens, tf.int32)
        if not isinstance(tokens, tf.RaggedTensor):
            tokens = tf.RaggedTensor.from_tensor(tokens)
        known = tf.logical_and(tokens >= 0, tokens < self.vocab_size)
        return tf.ragged.boolean_mask(tokens, known)

    def prompts(
        self, texts: Sequence[str] | tf.Tensor, longest: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Tokenizes ``texts`` (B,) to ids (B, P), padded on the left, and their numbers (B,).

        See `prompt_rows`.
        """
        rows = self.prompt_rows(texts, longest)
        count = rows.row_lengths()
        ids = tf.reverse_sequence(rows.to_tensor(self.end_id), count, seq_axis=1)
        none = tf.cast(tf.shape(ids)[1] == 0, tf.int32)  # P is at least 1, also without texts
        return tf.pad(tf.reverse(ids, [1]), [[0, 0], [none, 0]]), tf.cast(count, tf.int32)

    def prompt_rows(self, texts: Sequence[str] | tf.Tensor, longest: int) -> tf.RaggedTensor:
        """Tokenizes ``texts`` (B,) to ragged ids (B, None).

        A prompt starts with `prefix`, unless the text itself does. Prompts of more than ``longest``
        ids keep the end of the text. An empty prompt becomes the end token.
        """
        rows = self.encode(texts, add_special_tokens=False)
        if self.prefix:
            begins = tf.reduce_any(rows[:, :1] == self.prefix[0], axis=1)
            starts = rows.row_starts() + tf.cast(begins, tf.int64)
            rows = tf.gather(rows.flat_values, tf.ragged.range(starts, rows.row_limits()))
            kept = longest - len(self.prefix)
            rows = rows[:, -kept:] if kept > 0 else rows[:, :0]
            return join_rows(self.prefix, rows)
        rows = rows[:, -longest:]
        empty = tf.cast(rows.row_lengths() == 0, tf.int64)
        ends = tf.fill([tf.reduce_sum(empty)], self.end_id)
        ends = tf.RaggedTensor.from_row_lengths(ends, empty, validate=False)
        return join_rows(rows, ends)

    @staticmethod
    def prefixed(prefix: str, texts: tf.Tensor) -> tf.Tensor:
        """``texts`` (B,) with ``prefix`` before each that is not empty."""
        return tf.where(texts == "", texts, tf.strings.join([prefix, texts])) if prefix else texts

    @staticmethod
    def spec(name: str, dtype: str | tf.DType = "string") -> tf.TensorSpec:
        """The input ``name`` of an exported function: texts for `encode`, or numbers."""
        return tf.TensorSpec([None], dtype, name=name)


class ByteTokenizer(Tokenizer):
    """A tokenizer whose tokens are byte strings: a text is the bytes of its tokens.

    Args:
        pieces: the bytes of each token; empty for special tokens.
        end_id: the id of the token that ends a document.
        special: ``{id: text}`` of special tokens, for `pieces`.
    """

    def __init__(self, pieces, end_id, special=None):
        super().__init__()
        self.end_id = self.pad_id = self.start_id = end_id
        self.vocab_size = len(pieces)
        set_untracked(self, _bytes=pieces, _names=special or {})
        self._table = tf.constant(pieces, tf.string)

    def decode(self, tokens: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Decodes ``tokens`` (B, T) to texts (B,); invalid UTF-8 becomes U+FFFD, as in Python.

        Special tokens, and ids outside the vocabulary, are left out.
        """
        pieces = tf.gather(self._table, self.remove_unknown(tokens))
        return replace_invalid(tf.strings.reduce_join(pieces, axis=-1))

    def text(self, tokens: Iterable[int]) -> bytes:
        """The bytes of ``tokens``, which may end within a character."""
        return b"".join(self._bytes[t] for t in tokens if 0 <= t < self.vocab_size)

    def pieces(self, tokens: Iterable[int], target: bool = False) -> list[str]:
        """The texts of ``tokens`` (T,) as readable strings."""
        tokens = [int(token) for token in tokens]
        return [self._names.get(t) or self._bytes[t].decode("utf-8", "replace") for t in tokens]


class AddedTokens(tf.Module):
    """Splits texts at added tokens, the longest first, as Hugging Face does.

    Args:
        ids: ``{text: id}`` of added tokens, which are never split.
        normalized: added tokens that are found after the text is normalized.
        lstrip, rstrip: added tokens that include the white space before or after them.
    """

    def __init__(self, ids, normalized=(), lstrip=(), rstrip=()):
        super().__init__()
        if not all(isinstance(text, str) and text for text in ids):
            raise ValueError("an added token must be a string, not ''")  # it is found everywhere
        set_untracked(self, ids=dict(ids))
        raw = [text for text in ids if text not in normalized]
        late = [text for text in ids if text in normalized]
        self._tables = [
            table(texts, [ids[text] for text in texts], tf.string, -1) if texts else None
            for texts in (raw, late)
        ]
        self._patterns = [pattern_of(texts, lstrip, rstrip) for texts in (raw, late)]
        strips = [rf"^[{SPACE}]*({pattern_of(lstrip)})" if lstrip else ""]
        strips.append(rf"({pattern_of(rstrip)})[{SPACE}]*$" if rstrip else "")
        both = {*lstrip} & {*rstrip}
        strips.append(rf"^[{SPACE}]*({pattern_of(sorted(both))})[{SPACE}]*$" if both else "")
        self._strips = tuple(filter(None, strips))

    def split(self, texts, normalize=None):
        """Splits ``texts`` (B,) into ragged parts (B, None); also returns ids (P,) and keys (P,).

        The id of a part that is not an added token is -1. The key of a part is its text, without
        the white space that an added token includes.
        """
        parts, ids, keys = self.split_raw(texts)
        flat = parts.flat_values
        if normalize is not None:
            flat = tf.where(ids >= 0, flat, normalize(flat))
            parts, keys = parts.with_flat_values(flat), tf.where(ids >= 0, keys, flat)
        if self._patterns[1]:
            again = split(tf.where(ids >= 0, "", flat), self._patterns[1])
            found, stripped = self._find(again.flat_values, 1)
            parts = merge_rows(parts.with_flat_values(begin_rows(ids >= 0, flat, again)))
            keys = begin_rows(ids >= 0, keys, again.with_flat_values(stripped)).flat_values
            ids = begin_rows(ids >= 0, ids, again.with_flat_values(found)).flat_values
        return parts, ids, keys

    def split_raw(self, texts):
        """Like `split`, for the tokens that are found before ``texts`` are normalized."""
        if self._patterns[0]:
            parts = split(texts, self._patterns[0])
        else:
            parts = tf.RaggedTensor.from_uniform_row_length(texts, 1)
        return parts, *self._find(parts.flat_values, 0)

    def _find(self, parts, stage):
        known = self._tables[stage]
        if known is None:
            return tf.fill(tf.shape(parts), -1), parts
        for strip in self._strips:
            stripped = tf.strings.regex_replace(parts, strip, r"\1")
            parts = tf.where(known.lookup(stripped) >= 0, stripped, parts)
        return tf.cast(known.lookup(parts), tf.int32), parts


def cut_pairs(first, second, room):
    """Cuts ragged rows to at most ``room`` ids of both, as Hugging Face's ``longest_first``."""
    counts = first.row_lengths(), second.row_lengths()
    short, long = tf.minimum(*counts), tf.maximum(*counts)
    fits = tf.minimum(long, tf.maximum(short, room - short))
    halves = tf.constant([room // 2, room - room // 2], tf.int64)
    enough = short + fits <= room
    short, long = tf.where(enough, short, halves[0]), tf.where(enough, fits, halves[1])
    swapped = counts[0] > counts[1]

    def cut(rows, count):
        starts = rows.row_starts()
        return tf.gather(rows.flat_values, tf.ragged.range(starts, starts + count))

    return cut(first, tf.where(swapped, long, short)), cut(second, tf.where(swapped, short, long))


def align(units, outputs):
    """The code point of the input that each byte of the output stands for, (bytes,) int32.

    Counts code points from the start of the first unit. The first code point of an output stands
    for the first of its unit, the others for the last ones, one each.

    Args:
        units: parts (U,) of texts that are normalized independently.
        outputs: the normalized ``units`` (U,).
    """
    count, out = (tf.strings.length(x, unit="UTF8_CHAR") for x in (units, outputs))
    size = tf.strings.length(outputs)
    content = tf.io.decode_raw(tf.strings.reduce_join(outputs), tf.uint8)
    unit = tf.repeat(tf.range(tf.size(units)), size)
    starts = tf.cast(tf.bitwise.bitwise_and(content, 0xC0) != 0x80, tf.int32)
    place = tf.cumsum(starts) - 1 - tf.gather(tf.cumsum(out, exclusive=True), unit)
    last = tf.gather(count, unit) - 1
    at = tf.clip_by_value(last + 1 - tf.gather(out, unit) + place, 0, last)
    return tf.gather(tf.cumsum(count, exclusive=True), unit) + tf.where(place == 0, 0, at)


def pattern_of(texts, lstrip=(), rstrip=()):
    """A pattern of RE2 that matches any of ``texts``, the longest first."""

    def one(text):
        escaped = re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)
        left = f"[{SPACE}]*" if text in lstrip else ""
        return left + escaped + (f"[{SPACE}]*" if text in rstrip else "")

    return "|".join(map(one, sorted(texts, key=len, reverse=True)))


def replace_invalid(texts):
    """Replaces invalid UTF-8 in ``texts`` by U+FFFD."""
    return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")


def hide_zeros(texts):
    """Replaces zero bytes in ``texts`` by `ZERO`."""
    return tf.strings.regex_replace(texts, r"\x00", ZERO)


def show_zeros(texts):
    return tf.strings.regex_replace(texts, ZERO_PATTERN, "\x00")


def table(keys, values, kind, default):
    """A lookup table in the graph, from ``kind`` to int64."""
    keys, values = tf.constant(keys, kind, [len(keys)]), tf.constant(values, tf.int64, [len(keys)])
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)


def set_untracked(module, **attributes):
    """Sets attributes of a `tf.Module` that are not exported.

    TensorFlow wraps each item of a list or dict that it tracks, which takes minutes for a large
    vocabulary.
    """
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
