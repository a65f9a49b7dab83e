"""The interface of all tokenizers, and text operations in TensorFlow's graph."""

import re
from collections.abc import Iterable, Sequence

import tensorflow as tf

from .splits import SPACE, split

# A character that valid text does not contain; it replaces zero bytes, at which RegexSplit stops.
ZERO, ZERO_PATTERN = b"\xed\xa0\x81", r"\x{d801}"


class Tokenizer(tf.Module):
    """Converts texts to ids and back, in TensorFlow's graph.

    A subclass defines ``_encode(texts, target)``, `decode`, `pieces`, ``save`` and ``load``. It is
    a `tf.Module`, so that an export can track it.

    Attributes:
        vocab_size: the number of tokens.
        source_vocab_size: the number of source tokens, if it differs from that of targets.
        pad_id, end_id: ids that pad a batch and end a text.
        prefix, suffix: ids before and after those of each text.
    """

    source_vocab_size = None
    prefix, suffix = (), ()

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
        rows = self._encode(tf.convert_to_tensor(texts, tf.string), target)
        before, after = (self.prefix, self.suffix) if add_special_tokens else ((), ())
        if max_length is not None:
            rows = rows[:, : max(max_length - len(before) - len(after), 0)]
        if before or after:
            rows = surround(rows, before, after)
        return rows  # pyright: ignore[reportReturnType]  (TensorFlow's stubs know only tensors)

    def tokens(self, text: str, target: bool = False) -> list[str]:
        """The tokens of one text as readable strings."""
        return self.pieces(self.encode([text], target=target)[0].numpy(), target)

    def prompts(
        self, texts: Sequence[str] | tf.Tensor, longest: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Tokenizes ``texts`` (B,) to ids (B, P), padded on the left, and their numbers (B,).

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
            rows = surround(rows, self.prefix, ())
        else:
            rows = rows[:, -longest:]
            empty = tf.cast(rows.row_lengths() == 0, tf.int64)
            ends = tf.fill([tf.reduce_sum(empty)], self.end_id)
            rows = tf.concat([rows, tf.RaggedTensor.from_row_lengths(ends, empty)], axis=1)
        count = rows.row_lengths()
        ids = tf.reverse_sequence(rows.to_tensor(self.end_id), count, seq_axis=1)
        none = tf.cast(tf.shape(ids)[1] == 0, tf.int32)  # P is at least 1, also without texts
        return tf.pad(tf.reverse(ids, [1]), [[0, 0], [none, 0]]), tf.cast(count, tf.int32)

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
        self.end_id = self.pad_id = end_id
        self.vocab_size = len(pieces)
        set_untracked(self, _bytes=pieces, _names=special or {})
        self._table = tf.constant(pieces, tf.string)

    def decode(self, tokens: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Decodes ``tokens`` (B, T) to texts (B,); invalid UTF-8 becomes U+FFFD, as in Python.

        Special tokens, and ids outside the vocabulary, are left out.
        """
        tokens = tf.cast(tokens, tf.int32)
        if not isinstance(tokens, tf.RaggedTensor):
            tokens = tf.RaggedTensor.from_tensor(tokens)
        known = tf.logical_and(tokens >= 0, tokens < self.vocab_size)
        pieces = tf.gather(self._table, tf.ragged.boolean_mask(tokens, known))
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
        set_untracked(self, ids=dict(ids))
        self._table = table(list(ids), list(ids.values()), tf.string, -1)
        raw = pattern_of([text for text in ids if text not in normalized], lstrip, rstrip)
        late = pattern_of([text for text in ids if text in normalized], lstrip, rstrip)
        self._first, self._second = raw, "|".join(filter(None, (raw, late))) if late else ""
        strips = [rf"^[{SPACE}]*({pattern_of(lstrip)})" if lstrip else ""]
        strips.append(rf"({pattern_of(rstrip)})[{SPACE}]*$" if rstrip else "")
        self._strips = tuple(filter(None, strips))

    def split(self, texts, normalize=None):
        """Splits ``texts`` (B,) into ragged parts (B, None); also returns ids (P,) and keys (P,).

        The id of a part that is not an added token is -1. The key of a part is its text, without
        the white space that an added token includes.
        """
        parts = tf.RaggedTensor.from_uniform_row_length(texts, 1)
        if self._first:
            parts = parts.with_flat_values(split(texts, self._first)).merge_dims(1, 2)
        if normalize is not None:
            flat = parts.flat_values
            added = self._find(flat)[0] >= 0
            parts = parts.with_flat_values(tf.where(added, flat, normalize(flat)))
        if self._second:
            again = split(parts.flat_values, self._second)
            parts = parts.with_flat_values(again).merge_dims(1, 2)
        return parts, *self._find(parts.flat_values)

    def _find(self, parts):
        for strip in self._strips:
            stripped = tf.strings.regex_replace(parts, strip, r"\1")
            parts = tf.where(self._table.lookup(stripped) >= 0, stripped, parts)
        return tf.cast(self._table.lookup(parts), tf.int32), parts


def surround(rows, before, after):
    """Adds the ids ``before`` and ``after`` to each of the ragged ``rows``."""

    def fill(ids):
        return tf.tile(tf.constant([ids], rows.dtype, [1, len(ids)]), [rows.nrows(), 1])

    return tf.concat([fill(before), rows, fill(after)], axis=1)


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
