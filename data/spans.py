"""Windows over long texts, and spans of text by code points, in TensorFlow's graph."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from .batches import fill
from .tokenizers.ragged import join_rows

LOWEST = -1e30  # the score of a span that is not possible
SLICE = 32  # maximum number of windows that a network gets at once in an export


def in_graph(function: Callable) -> Callable:
    """Runs ``function`` in a graph from Python too, traced once for all shapes of its tensors.

    One by one, TensorFlow's operations are slow.
    """
    graph = tf.function(function, autograph=False, reduce_retracing=True)

    @functools.wraps(function)
    def run(*args):
        return (graph if tf.executing_eagerly() else function)(*args)

    return run


class Windows(NamedTuple):
    """W windows over the tokens of B texts, in the order of the texts; each (W,), int32.

    Attributes:
        row: the index of the text.
        first: the index, in the text, of the window's first token.
        count: the number of tokens.
    """

    row: tf.Tensor
    first: tf.Tensor
    count: tf.Tensor

    @classmethod
    def cut(cls, lengths: tf.Tensor, room: tf.Tensor | int, overlap: int) -> "Windows":
        """Cuts texts of ``lengths`` (B,) tokens into windows of up to ``room`` tokens.

        Consecutive windows share ``overlap`` tokens, but at most half of a window. The last window
        of a text may be shorter. A text without tokens has one window.

        >>> from polyhead.data.spans import Windows
        >>> windows = Windows.cut(tf.constant([10, 3]), room=5, overlap=2)
        >>> windows.first.numpy(), windows.count.numpy()
        (array([0, 3, 6, 0], dtype=int32), array([5, 5, 4, 3], dtype=int32))

        Args:
            room: at least 1; a number, or (B,).
        """
        lengths = tf.cast(lengths, tf.int32)
        room = tf.broadcast_to(room, tf.shape(lengths))
        step = room - tf.minimum(overlap, room // 2)
        number = 1 + tf.maximum(-((room - lengths) // step), 0)  # rounded up
        row = tf.repeat(tf.range(tf.size(lengths)), number)
        index = tf.range(tf.size(row)) - tf.gather(tf.cumsum(number, exclusive=True), row)
        first = index * tf.gather(step, row)
        return cls(row, first, tf.minimum(tf.gather(room, row), tf.gather(lengths, row) - first))

    def take(self, tokens: tf.RaggedTensor) -> tf.RaggedTensor:
        """The windows (W, None) of ``tokens`` (B, None)."""
        starts = tf.gather(tokens.row_starts(), self.row) + tf.cast(self.first, tf.int64)
        at = tf.ragged.range(starts, starts + tf.cast(self.count, tf.int64))
        return tf.gather(tokens.flat_values, at)

    @in_graph
    def kept(self) -> tf.RaggedTensor:
        """The tokens (W, None) of each window, by index within it, that no other window keeps.

        Two windows that overlap keep half of the tokens they share: each token is kept by the
        window in which more text surrounds it. All kept tokens, in order, are those of the texts.
        """
        stop = self.first + self.count
        same = self.row[1:] == self.row[:-1]
        middle = (self.first[1:] + stop[:-1] + 1) // 2
        begin = tf.concat([self.first[:1], tf.where(same, middle, self.first[1:])], axis=0)
        stop = tf.concat([tf.where(same, middle, stop[:-1]), stop[-1:]], axis=0)
        return tf.ragged.range(begin - self.first, stop - self.first)


@in_graph
def text_windows(
    tokenizer: Any, rows: tf.RaggedTensor, length: int, overlap: int
) -> tuple[Windows, tf.RaggedTensor]:
    """Cuts ``rows`` (B, None) of tokens into windows of ``length`` tokens, special ones included.

    Returns:
        the windows, and their tokens (W, None) with the tokenizer's ``prefix`` and ``suffix``.

    Raises:
        ValueError: ``length`` leaves no room for a text.
    """
    room = length - len(tokenizer.prefix) - len(tokenizer.suffix)
    if room < 1:
        raise ValueError(f"a window must have room for a text: {length} tokens")
    windows = Windows.cut(rows.row_lengths(), room, overlap)
    tokens = join_rows(tokenizer.prefix, windows.take(rows), tokenizer.suffix)
    return windows, tokens  # pyright: ignore[reportReturnType]


class Reading(NamedTuple):
    """Questions and the windows of their contexts; see `read_contexts`.

    Attributes:
        windows: W windows over the B contexts' tokens.
        tokens, types: (W, None), ragged: prefix, question, separator, window, suffix.
        before: (W,) the number of tokens before those of the context.
        starts, ends: (B, None), ragged: the place of each token of a context, in code points.
        truncated: (B,) whether the question was truncated.
    """

    windows: Windows
    tokens: tf.RaggedTensor
    types: tf.RaggedTensor
    before: tf.Tensor
    starts: tf.RaggedTensor
    ends: tf.RaggedTensor
    truncated: tf.Tensor

    def logits(self, network: Callable, pad_id: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs a network on the windows.

        Returns:
            the logits (W, C, 2) of the tokens of the contexts, and the score of no answer (W,):
            the sum of the logits of the first token.
        """
        logits = in_slices(
            lambda tokens, types: network({"tokens": tokens, "types": types}),
            dense(self.tokens, pad_id),
            dense(self.types, 0),
        )
        width = tf.reduce_max(tf.concat([[0], self.windows.count], axis=0))
        at = self.before[:, None] + tf.range(width)
        at = tf.minimum(at, tf.shape(logits)[1] - 1)
        return tf.gather(logits, at, batch_dims=1), tf.reduce_sum(logits[:, 0], axis=-1)

    def places(
        self, logits: Any, none: Any, longest: int, no_answer: float, top: int
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Finds the best answers: `best_spans`, with the places of spans in code points."""
        first, last, probability, none = best_spans(
            logits[..., 0],
            logits[..., 1],
            none,
            self.windows,
            self.starts.row_lengths(),
            longest,
            tf.constant(no_answer, tf.float32),  # another number does not trace the function again
            top,
        )
        start, end = span_places(first, last, self.starts, self.ends)
        return start, end, probability, none


def read_contexts(
    tokenizer: Any,
    questions: Any,
    contexts: Any,
    length: int,
    overlap: int,
    locate: Callable = lambda tokenizer, texts: tokenizer.offsets(texts),
) -> Reading:
    """Tokenizes ``questions`` (B,) and ``contexts`` (B,) to windows of up to ``length`` tokens.

    A question is truncated to half of a window without its special tokens, so that there is always
    room for the context.

    Args:
        locate: finds the tokens of the contexts and their places, as `Tokenizer.offsets`.

    Raises:
        ValueError: ``length`` leaves no room for a context, or the tokenizer has no pairs.
    """
    free = length - tokenizer.num_pair_special()
    if free < 2:
        raise ValueError(f"a window must have room for a question and a context: {length} tokens")
    asked = tokenizer.encode(questions, add_special_tokens=False)
    return join_windows(tokenizer, asked, *locate(tokenizer, contexts), free, overlap)


@in_graph
def join_windows(tokenizer, asked, ids, starts, ends, free, overlap):
    """The `Reading` of questions ``asked`` (B, None); see `read_contexts`."""
    truncated = asked.row_lengths() > free // 2
    asked = tf.cast(asked, tf.int32)[:, : free // 2]
    room = free - tf.cast(asked.row_lengths(), tf.int32)
    windows = Windows.cut(ids.row_lengths(), room, overlap)
    asked = tf.gather(asked, windows.row)
    tokens, types = tokenizer.join_pairs(asked, windows.take(ids))
    special = len(tokenizer.prefix) + len(tokenizer.separator)
    before = tf.cast(asked.row_lengths(), tf.int32) + special
    return Reading(windows, tokens, types, before, starts, ends, truncated)


@in_graph
def best_spans(
    start: tf.Tensor,
    end: tf.Tensor,
    none: tf.Tensor,
    windows: Windows,
    lengths: tf.Tensor,
    longest: int,
    no_answer: tf.Tensor,
    top: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Finds the best spans of each of B contexts, over all of its windows.

    The score of a span is the sum of the logits of its first and last token; where several windows
    contain it, the largest one. That of no answer is the smallest of its windows (as in SQuAD's
    script of Devlin et al. 2019, section 4.3). Probabilities are the softmax over all spans of up
    to ``longest`` tokens and no answer.

    Args:
        start, end: logits (W, C) of the first and the last token of an answer, for each token of a
            window; values beyond its ``count`` are ignored.
        none: (W,) the score of no answer.
        lengths: (B,) the numbers of tokens of the contexts.
        no_answer: subtracted from the score of no answer before the spans are ranked.
        top: the maximum number of spans, K; fewer if the contexts have fewer.

    Returns:
        the first and the last token of the best spans, (B, K) each, -1 for no answer; their
        probabilities (B, K), -1 where there are fewer than K; the probability of no answer (B,).
    """
    lengths = tf.cast(lengths, tf.int32)
    batch, width = tf.size(lengths), tf.shape(start)[1]
    most = tf.reduce_max(tf.concat([[0], lengths], axis=0))
    limit = tf.minimum(longest, tf.maximum(width, 1))
    within = tf.range(width)
    last = within[:, None] + tf.range(limit)  # (C, L): the last token of spans from each token
    scores = start[:, :, None] + tf.gather(tf.pad(end, [[0, 0], [0, limit]]), last, axis=1)
    scores = tf.where(last < windows.count[:, None, None], scores, LOWEST)
    place = windows.row[:, None] * most + tf.minimum(windows.first[:, None] + within, most - 1)
    scores = tf.math.unsorted_segment_max(
        tf.reshape(scores, [-1, limit]), tf.reshape(place, [-1]), batch * most
    )
    scores = tf.reshape(tf.maximum(scores, LOWEST), [batch, most * limit])
    none = tf.math.unsorted_segment_min(none, windows.row, batch)[:, None]
    probabilities = tf.nn.softmax(tf.concat([scores, none], axis=1))
    # Of equal scores, `top_k` ranks the first one first: the earliest, shortest span.
    threshold = tf.clip_by_value(no_answer, LOWEST / 10, -LOWEST / 10)  # it may be infinite
    ranked = tf.concat([scores, none - threshold], axis=1)
    values, index = tf.math.top_k(ranked, tf.minimum(top, tf.shape(ranked)[1]))
    probability = tf.gather(probabilities, index, batch_dims=1)
    probability = tf.where(values > LOWEST, probability, -1.0)
    found = (index < most * limit) & (values > LOWEST)
    first, last = index // limit, index // limit + index % limit
    first, last = tf.where(found, first, -1), tf.where(found, last, -1)
    return first, last, probability, probabilities[:, -1]


@in_graph
def span_places(
    first: tf.Tensor, last: tf.Tensor, starts: tf.RaggedTensor, ends: tf.RaggedTensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The places (B, K), in code points, of spans from token ``first`` to ``last`` (B, K).

    They are 0 where a token is negative. ``starts`` and ``ends`` (B, None) are the tokens' places.
    """

    def place(values, index):
        flat = tf.concat([tf.cast(values.flat_values, tf.int32), [0]], axis=0)
        at = tf.cast(values.row_starts(), tf.int32)[:, None] + index
        return tf.gather(flat, tf.where(index < 0, tf.size(flat) - 1, at))

    return place(starts, first), place(ends, last)


def substrings(points: tf.RaggedTensor, row: Any, starts: Any, ends: Any) -> tf.Tensor:
    """The strings (N,) from ``starts`` to ``ends`` (N,) of the texts ``row`` (N,).

    ``points`` (B, None) are the texts' code points. (`tf.strings.substr` counts code points from
    the beginning of a text, which takes quadratic time for many spans.)
    """
    base = tf.gather(points.row_starts(), row)
    at = tf.ragged.range(base + tf.cast(starts, tf.int64), base + tf.cast(ends, tf.int64))
    return tf.strings.unicode_encode(tf.gather(points.flat_values, at), "UTF-8")


def code_points(texts: Any) -> tf.RaggedTensor:
    """The code points (B, None) of ``texts`` (B,); invalid UTF-8 becomes U+FFFD."""
    return tf.strings.unicode_decode(texts, "UTF-8")


def join_words(words: Sequence[str]) -> str:
    """The text of words. A space before the first one too: byte pairs of words begin with it."""
    return "".join(f" {word}" for word in words)


def word_of(words: Sequence[str], starts: Any) -> np.ndarray:
    """The index of the word of tokens that begin at ``starts`` (N,) in the text of `join_words`.

    The space before a word belongs to it.
    """
    first = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
    return np.searchsorted(first, starts, side="right") - 1


def begins_word(
    tokenizer: Any,
    points: tf.RaggedTensor,
    row: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
) -> tf.Tensor:
    """Whether each of N tokens begins a word (N,).

    Unless each token is a word (see `Tokenizer`), two tokens belong to one word if the text has
    only letters, digits, combining marks and characters of formatting from the end of the first to
    the beginning of the second, or if they share a character. A Chinese character is a word. A
    space that is a token belongs to the word after it.

    Args:
        points: the code points (B, None) of the texts.
        row, starts, ends: (N,) the text of each token, in order, and its place.
    """
    if tokenizer.token_is_word:
        return tf.ones_like(row, tf.bool)
    return begins_letters(points, row, starts, ends)


@in_graph
def begins_letters(points, row, starts, ends):
    unique, index = tf.unique(points.flat_values)
    characters = tf.strings.unicode_encode(unique[:, None], "UTF-8")
    joins = tf.strings.regex_full_match(characters, r"[\p{L}\p{N}\p{M}\p{Cf}]") | (unique == 0)
    joins &= ~tf.strings.regex_full_match(characters, r"\p{Han}")
    # The number of characters before each that separate words.
    apart = tf.cumsum(tf.cast(~tf.gather(joins, index), tf.int32))
    apart = tf.concat([[0], apart], axis=0)
    first = tf.concat([[True], row[1:] != row[:-1]], axis=0)[: tf.size(row)]
    begin, stop = (
        tf.where(first, 0, tf.concat([[0], x[:-1]], axis=0)[: tf.size(x)]) for x in (starts, ends)
    )
    base = tf.cast(tf.gather(points.row_starts(), row), tf.int32)
    upto = tf.minimum(base + starts + 1, tf.size(apart) - 1)
    between = tf.gather(apart, upto) - tf.gather(apart, base + tf.maximum(stop - 1, 0))
    # Byte pairs have such a space before letters that do not merge with it; it may be trimmed to 0.
    spaces = tf.concat([[0], tf.cumsum(tf.cast(points.flat_values == ord(" "), tf.int32))], axis=0)
    blank = tf.gather(spaces, base + stop) - tf.gather(spaces, base + begin) == stop - begin
    letter = tf.gather(spaces, upto) == tf.gather(spaces, base + starts)
    return first | ((between > 0) & (starts >= stop) & ~(blank & letter & (starts == stop)))


class Tags(NamedTuple):
    """The classes of a tagger, in the scheme BIO.

    Also the schemes IO ("PER", without prefixes), BIOES and BILOU: S and U begin and end a span, E
    and L end it.

    Attributes:
        labels: the labels of spans, without prefixes.
        label: for each class the index of its label; -1 for "O", outside of spans.
        begins, ends: whether a word of this class begins or ends a span.
    """

    labels: list[str]
    label: list[int]
    begins: list[bool]
    ends: list[bool]

    @classmethod
    def read(cls, names: Sequence[str]) -> "Tags":
        """Reads the names of classes: "O", "B-PER", "I-PER" ..."""
        pairs = [(n[0], n[2:]) if n[:2] in PREFIXES and n[2:] else ("", n) for n in names]
        labels = sorted({label for _, label in pairs} - {"O"})
        index = {label: i for i, label in enumerate(labels)}
        return cls(
            labels,
            [index.get(label, -1) for _, label in pairs],
            [prefix in ("B", "S", "U") for prefix, _ in pairs],
            [prefix in ("E", "L", "S", "U") for prefix, _ in pairs],
        )


PREFIXES = ("B-", "I-", "E-", "S-", "L-", "U-")


class Found(NamedTuple):
    """Spans that a tagger found, each (S,): see `find_spans`.

    ``row``, ``label`` (index in `Tags.labels`), ``start`` and ``end``, ``first`` and ``last``
    (words), and ``score``.
    """

    row: tf.Tensor
    label: tf.Tensor
    start: tf.Tensor
    end: tf.Tensor
    first: tf.Tensor
    last: tf.Tensor
    score: tf.Tensor


@in_graph
def find_spans(
    tags: Tags,
    classes: tf.Tensor,
    probabilities: tf.Tensor,
    row: tf.Tensor,
    word: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
) -> Found:
    """Joins tagged tokens to spans. A word has the class of its first token.

    A word begins a span if its class says so, if the word before it is outside, has another label
    or ends a span, or if a word without tokens is between them: I- without B- begins one.

    Args:
        classes, probabilities: (N,) of each token.
        row, word: (N,) the text of each token, and the number of its word in the text.
        starts, ends: (N,) its place.

    Returns:
        the spans in order. A score is the mean of the probabilities of the span's words.
    """
    new = tf.concat([[True], (row[1:] != row[:-1]) | (word[1:] != word[:-1])], axis=0)
    new = new[: tf.size(row)]
    segment = tf.cumsum(tf.cast(new, tf.int32)) - 1
    count = tf.reduce_sum(tf.cast(new, tf.int32))
    ends = tf.math.unsorted_segment_max(ends, segment, count)
    classes, probabilities, row, word, starts = (
        tf.boolean_mask(x, new) for x in (classes, probabilities, row, word, starts)
    )
    label = tf.gather(tf.constant(tags.label), classes)
    begins, stops = (tf.gather(tf.constant(x), classes) for x in (tags.begins, tags.ends))
    follows = (
        (row[1:] == row[:-1])
        & (word[1:] == word[:-1] + 1)
        & (label[1:] == label[:-1])
        & ~begins[1:]
        & ~stops[:-1]
    )
    inside = label >= 0
    new = inside & ~tf.concat([[False], follows], axis=0)[: tf.size(row)]
    segment = tf.boolean_mask(tf.cumsum(tf.cast(new, tf.int32)) - 1, inside)
    count = tf.reduce_sum(tf.cast(new, tf.int32))
    ends, last, score = (tf.boolean_mask(x, inside) for x in (ends, word, probabilities))
    row, label, start, first = (tf.boolean_mask(x, new) for x in (row, label, starts, word))
    return Found(
        row,
        label,
        start,
        tf.math.unsorted_segment_max(ends, segment, count),
        first,
        tf.math.unsorted_segment_max(last, segment, count),
        tf.math.unsorted_segment_mean(score, segment, count),
    )


def in_slices(function: Callable, *arrays: tf.Tensor) -> tf.Tensor:
    """Applies a network to ``arrays`` (W, ...) in slices of up to `SLICE` rows.

    The windows of a long text are as many as its length; all at once, they might not fit in
    memory. The function returns one float32 tensor with W rows.
    """
    count = tf.shape(arrays[0])[0]
    size = tf.clip_by_value(count, 1, SLICE)
    slices = tf.maximum(-(-count // size), 1)

    def cut(x):
        x = fill(x, slices * size)
        return tf.reshape(x, tf.concat([[slices, size], tf.shape(x)[1:]], axis=0))

    results = tf.map_fn(
        lambda parts: function(*parts),
        tuple(cut(x) for x in arrays),
        fn_output_signature=tf.float32,
        parallel_iterations=1,
    )
    shape = tf.concat([[slices * size], tf.shape(results)[2:]], axis=0)
    return tf.reshape(results, shape)[:count]


def tag_texts(
    tokenizer: Any,
    texts: tf.Tensor,
    tags: Tags,
    network: Callable,
    length: int,
    overlap: int,
    pad_id: int,
) -> dict[str, tf.Tensor]:
    """Tags ``texts`` (B,) in an export, and returns the spans as padded tensors (B, S).

    Args:
        network: tokens (W, T) -> (W, T, 2), see `TextEncoder.tag_tokens`.
    """
    ids, starts, ends = tokenizer.offsets(texts)
    windows, tokens = text_windows(tokenizer, ids, length, overlap)
    tagged = in_slices(network, dense(tokens, pad_id))
    kept = windows.kept()
    at = kept.value_rowids() * tf.shape(tagged, tf.int64)[1] + len(tokenizer.prefix)
    at += tf.cast(kept.flat_values, tf.int64)
    tagged = tf.gather(tf.reshape(tagged, [-1, 2]), at)
    row = tf.cast(starts.value_rowids(), tf.int32)
    starts, ends = (tf.cast(x.flat_values, tf.int32) for x in (starts, ends))
    points = code_points(texts)
    word = tf.cumsum(tf.cast(begins_word(tokenizer, points, row, starts, ends), tf.int32))
    classes = tf.cast(tagged[:, 0], tf.int32)
    found = find_spans(tags, classes, tagged[:, 1], row, word, starts, ends)
    parts = substrings(points, found.row, found.start, found.end)
    parts, starts = after_spaces(parts, found.start)
    values = {
        "labels": lookup(tags.labels or [""], found.label),
        "texts": parts,
        "starts": starts,
        "ends": found.end,
        "scores": found.score,
    }
    count = tf.size(texts, tf.int64)
    rows = tf.cast(found.row, tf.int64)
    return {
        name: dense(
            tf.RaggedTensor.from_value_rowids(x, rows, count, validate=False),
            "" if x.dtype == tf.string else 0,
        )
        for name, x in values.items()
    }


def answer_texts(
    contexts: tf.Tensor, start: tf.Tensor, end: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The parts (B,) of ``contexts`` (B,) from ``start`` to ``end`` (B,), in code points.

    Also returns where they start without spaces at their beginning, which are left out.
    """
    texts = substrings(code_points(contexts), tf.range(tf.size(contexts)), start, end)
    return after_spaces(texts, start)


def after_spaces(texts: tf.Tensor, starts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """``texts`` (N,) without spaces at their beginning, and where they start then.

    Tokens of ModernBERT begin with the space before a word. A text of spaces stays.
    """
    shorter = tf.strings.regex_replace(texts, "^ +([^ ])", r"\1")
    return shorter, starts + tf.strings.length(texts) - tf.strings.length(shorter)


def find(rows: tf.RaggedTensor, token: int) -> tf.RaggedTensor:
    """The positions (B, None) of a token in each of ``rows`` (B, None)."""
    at = tf.ragged.range(rows.row_lengths())
    return tf.ragged.boolean_mask(tf.cast(at, tf.int32), rows == token)


def padded_masks(
    positions: tf.RaggedTensor, filled: tf.Tensor, pieces: Sequence[str]
) -> dict[str, tf.Tensor]:
    """The outputs of an export of `TextEncoder.fill_mask`: (B, M, top), padded with "" and 0."""
    masks = tf.sequence_mask(positions.row_lengths(), tf.shape(filled)[1])[..., None]
    tokens = lookup(pieces, tf.cast(filled[:, :, 0], tf.int32))
    return {
        "tokens": tf.where(masks, tokens, ""),
        "probabilities": tf.where(masks, filled[:, :, 1], 0.0),
    }


def lookup(labels: Sequence[str], index: tf.Tensor) -> tf.Tensor:
    """The ``labels``, strings, of an ``index`` of any shape."""
    return tf.gather(tf.constant(labels), index)


def dense(rows: tf.RaggedTensor, value: Any) -> tf.Tensor:
    """``rows`` (B, None) as (B, T), padded with ``value``; T is at least 1."""
    longest = tf.maximum(rows.bounding_shape(axis=1, out_type=tf.int32), 1)
    return rows.to_tensor(value, shape=tf.stack([-1, longest]))
