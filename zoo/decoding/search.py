"""Greedy search, beam search and sampling, given one step of a decoder."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from keras import ops

from ...layers.arguments import plain_fields
from .sampling import IMPOSSIBLE, check_finite, mark_tokens

MOST_BEAMS = 1024
LONGEST_NGRAM = 100  # the graph has a comparison for each of its tokens


@dataclass(frozen=True)
class Search:
    """Settings of greedy and beam search.

    Args:
        num_beams: K, the beam width, at most 1,024; 1 is greedy search.
        length_penalty: an exponent a: the score of a hypothesis of n tokens (its end token
            included) is its log-probability divided by penalty(n). 0 is no penalty; greedy search
            has none.
        penalty: "power", n^a, as in Hugging Face's library; or "gnmt", ((5 + n) / 6)^a
            (Wu et al. 2016, arXiv 1609.08144, equation 14).
        early_stopping: when to stop after K hypotheses have ended. True: immediately. False: when
            no unfinished hypothesis has a better score, at its current length, than the worst of
            the K. "never": when none can reach a better score by its maximum length.
        max_new_tokens: maximum number of tokens, the end token included; None: the model's limit.
        min_new_tokens: minimum number of tokens before the end token or a stop token.
        forced_begin: the first generated token; None for any.
        forced_end: force the end token at ``max_new_tokens``.
        no_repeat_ngram_size: n-grams of this size occur at most once in prompt and continuation; 0
            disables the rule.
        banned: sequences of tokens that are never generated; a prompt may have their beginning.
        renormalized: renormalize the probabilities after removing banned tokens.
        stop_tokens: tokens that end a sequence, beside the end token.

    Raises:
        ValueError: an argument is out of range.

    >>> search = polyhead.Search(num_beams=5, length_penalty=0.6)
    >>> search.max_new_tokens is None
    True
    >>> config = polyhead.TransformerConfig(search=search)  # the model's default
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    penalty: str = "power"
    early_stopping: bool | str = False
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    forced_begin: int | None = None
    forced_end: bool = False
    no_repeat_ngram_size: int = 0
    banned: tuple[tuple[int, ...], ...] = ()
    renormalized: bool = False
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self):
        plain_fields(self)
        for name in ("num_beams", "max_new_tokens"):
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and (name, value) != ("max_new_tokens", None):
                raise ValueError(f"{name} must be a positive integer: {value!r}")
        least, size = self.min_new_tokens, self.no_repeat_ngram_size
        if type(least) is not int or not 0 <= least < 2**31:
            raise ValueError(f"min_new_tokens must be a non-negative integer: {least!r}")
        if type(size) is not int or not 0 <= size <= LONGEST_NGRAM:
            raise ValueError(
                f"no_repeat_ngram_size must be an integer from 0 to {LONGEST_NGRAM}: {size!r}"
            )
        begin = self.forced_begin
        if begin is not None and (type(begin) is not int or not 0 <= begin < 2**31):
            raise ValueError(f"forced_begin must be a token, or None: {begin!r}")
        if self.num_beams > MOST_BEAMS:
            raise ValueError(f"num_beams must be at most {MOST_BEAMS}: {self.num_beams}")
        check_finite("length_penalty", self.length_penalty)
        if self.penalty not in ("power", "gnmt"):
            raise ValueError(f"penalty must be 'power' or 'gnmt': {self.penalty!r}")
        if self.early_stopping != "never" and type(self.early_stopping) is not bool:
            raise ValueError(
                f"early_stopping must be False, True or 'never': {self.early_stopping!r}"
            )
        for name in ("forced_end", "renormalized"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False: {getattr(self, name)!r}")
        lists = (list, tuple)
        sound = isinstance(self.banned, lists) and all(
            isinstance(tokens, lists) and tokens for tokens in self.banned
        )
        if not sound or not all(
            type(t) is int and 0 <= t < 2**31 for ts in self.banned for t in ts
        ):
            raise ValueError(f"banned must be sequences of tokens: {self.banned!r}")
        banned = tuple(tuple(tokens) for tokens in self.banned)
        object.__setattr__(self, "banned", banned)
        if not isinstance(self.stop_tokens, lists) or not all(
            type(t) is int and 0 <= t < 2**31 for t in self.stop_tokens
        ):
            raise ValueError(f"stop_tokens must be tokens: {self.stop_tokens!r}")
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))

    def within(self, vocab_size: int, max_new_tokens: int) -> "Search":
        """Limits ``max_new_tokens`` to what a model supports.

        Raises:
            ValueError: the beam width is larger than the vocabulary, or a token is not in it.
        """
        begin = () if self.forced_begin is None else (self.forced_begin,)
        tokens = {"forced_begin": begin, "stop_tokens": self.stop_tokens}
        tokens["banned"] = [token for sequence in self.banned for token in sequence]
        for name, given in tokens.items():
            if max(given, default=0) >= vocab_size:
                raise ValueError(
                    f"{name} must have tokens below the vocabulary's size, {vocab_size}: "
                    f"{max(given)}"
                )
        if self.num_beams > vocab_size:
            raise ValueError(
                f"num_beams must be at most the vocabulary's size, {vocab_size}: {self.num_beams}"
            )
        if self.max_new_tokens is None or self.max_new_tokens <= max_new_tokens:
            return self
        return dataclasses.replace(self, max_new_tokens=max_new_tokens)

    def normalize_score(self, score: Any, tokens: Any) -> Any:
        """The length-normalized score of a hypothesis with this log-probability and length."""
        if self.num_beams == 1 or self.length_penalty == 0:
            return score
        tokens = ops.cast(tokens, "float32")
        return (
            score / (tokens if self.penalty == "power" else (5 + tokens) / 6) ** self.length_penalty
        )


GREEDY = Search()


class Found(NamedTuple):
    """The result of a search: K hypotheses per sequence, the best first.

    ``tokens`` (B, K, L): each hypothesis with its end token, then padding; ``score`` (B, K);
    ``complete`` (B,): False if the search has not ended within L tokens.
    """

    tokens: Any
    score: Any
    complete: Any


def is_possible(score):
    """Whether ``score`` is that of a possible hypothesis, not `IMPOSSIBLE` or a sum with it."""
    return score > IMPOSSIBLE / 2


class State(NamedTuple):
    """The state of a search after ``index`` tokens, for B sequences with K hypotheses each.

    Of unfinished hypotheses: ``current`` (B K, 1) their last tokens, ``tokens`` (B, K, L) all
    tokens, ``score`` (B, K) the log-probabilities. Of the best that have ended: ``ended``
    (B, K, L) the tokens, ``best`` (B, K) the scores. ``done`` (B,): the sequences whose search has
    ended.
    """

    index: Any
    current: Any
    tokens: Any
    score: Any
    ended: Any
    best: Any
    done: Any
    caches: Any

    @property
    def found(self):
        return Found(self.ended, self.best, self.done)


def begin(current, caches, limit, length, pad_id, beams=1):
    """The `State` before the first token.

    Args:
        current: (B,) the first token of each sequence, which is not in the caches yet.
        caches: a list of `KeyValueCache`s of B K rows; the K hypotheses of a sequence are adjacent.
        limit: (B,) the maximum number of tokens of each sequence, its end token included.
        length: L, the maximum of any sequence.
    """
    batch = ops.shape(limit)[0]
    empty = ops.full((batch, beams, length), pad_id, "int32")
    first = ops.where(ops.arange(beams) == 0, 0.0, IMPOSSIBLE)[None, :]
    return State(
        ops.zeros((), "int32"),
        ops.repeat(ops.cast(current, "int32")[:, None], beams, axis=0),
        empty,
        ops.broadcast_to(first, (batch, beams)),
        empty,
        ops.where(limit[:, None] <= 0, first, IMPOSSIBLE),  # limit 0: the empty sequence
        limit <= 0,
        caches,
    )


def lengthen(state, more, pad_id):
    """The `State` with room for ``more`` tokens, a tensor: shapes must be dynamic (exports)."""

    def pad(x, axis, value):
        shape = [*ops.shape(x)[:axis], more, *ops.shape(x)[axis + 1 :]]
        return ops.concatenate([x, ops.full(shape, value, x.dtype)], axis=axis)

    caches = [type(c)(pad(c.key, 1, 0), pad(c.value, 1, 0), c.index) for c in state.caches]
    tokens, ended = pad(state.tokens, 2, pad_id), pad(state.ended, 2, pad_id)
    return state._replace(tokens=tokens, ended=ended, caches=caches)


def advance(
    step, state, limit, end_id, search=GREEDY, sampler=None, until=None, prompt=None, least=None
):
    """Continues a `State` until all sequences are done, or have ``until`` tokens.

    Beam search as in Hugging Face's library: each step ranks the (1 + E) K most likely
    continuations of K hypotheses, where E tokens end a sequence. Those of the first K that end are
    set aside; the K best that do not end are continued. With one beam this is greedy search or,
    with a ``sampler``, sampling.

    Args:
        step: ``(tokens (B K, 1), caches) -> (logits (B K, 1, V), caches)``; it reads and extends
            the caches.
        limit: as for `begin`.
        end_id: the token that ends a sequence, beside those of ``search``.
        search: a `Search`.
        sampler: a `Sampler` that chooses the tokens; for one beam.
        prompt: tokens (B, P) that precede those of the state, with -1 as padding on the left.
        least: (B,) the minimum number of tokens of each sequence, instead of that of ``search``.
    """
    beams = search.num_beams
    batch, _, length = ops.shape(state.tokens)
    until = length if until is None else ops.minimum(until, length)
    position = ops.arange(length)
    rows = ops.arange(batch)[:, None] * beams

    def keep(kept, *tensors):
        """Gathers the candidates ``kept`` (B, K) from ``tensors`` (B, C, ...)."""
        return [
            ops.take_along_axis(
                x, ops.reshape(kept, (-1, beams, *[1] * (len(x.shape) - 2))), axis=1
            )
            for x in tensors
        ]

    # Enough for all beams to continue, even if the best candidates are the end tokens of each.
    wide = (1 + len({end_id, *search.stop_tokens})) * beams

    def is_end(token):
        return functools.reduce(
            ops.logical_or, [token == end for end in (end_id, *search.stop_tokens)]
        )

    def is_unfinished(index, current, tokens, score, ended, best, done, caches):
        return ops.logical_and(index < until, ops.logical_not(ops.all(done)))

    def extend(index, current, tokens, score, ended, best, done, caches):
        logits, caches = step(current, caches)
        logits = ops.reshape(ops.cast(logits[:, 0], "float32"), (-1, beams, logits.shape[-1]))
        last = index + 1 >= limit
        logits, lost = constrain(logits, tokens, index, last)
        # V is large: log-probabilities are computed for the candidates only, and their normalizer,
        # a logsumexp, reuses the largest logit.
        if sampler is None:
            gain, token = ops.top_k(logits, min(wide, logits.shape[-1]))
            most = ops.max(gain, axis=-1, keepdims=True)  # a slice would hide the top_k from XLA
        else:
            token = sampler(logits[:, 0], tokens[:, 0], index)[:, None, None]
            gain = ops.take_along_axis(logits, token, axis=-1)
            most = ops.max(logits, axis=-1, keepdims=True)
        rest = most + ops.log(ops.sum(ops.exp(logits - most), axis=-1, keepdims=True))
        normalizer = ops.logsumexp(ops.concatenate([rest, *lost], axis=-1), -1, keepdims=True)
        total = score[..., None] + (gain - normalizer)
        total, candidate = ops.top_k(flatten(total), min(wide, beams * gain.shape[-1]))
        parent = candidate // gain.shape[-1]
        token = ops.take_along_axis(flatten(token), candidate, axis=1)
        longer = ops.take_along_axis(tokens, parent[..., None], axis=1)
        longer = ops.where(position == index, token[..., None], longer)
        ends = ops.logical_or(is_end(token), last[:, None])

        # Hypotheses that end ...
        enters = ops.logical_and(ends, ops.arange(total.shape[-1]) < beams)
        enters = ops.logical_and(enters, ops.logical_not(done)[:, None])
        enters = ops.logical_and(enters, is_possible(total))
        entering = ops.where(enters, search.normalize_score(total, index + 1), IMPOSSIBLE)
        best, kept = ops.top_k(ops.concatenate([best, entering], axis=1), beams)
        [ended] = keep(kept, ops.concatenate([ended, longer], axis=1))

        # ... and those that continue.
        score, kept = ops.top_k(ops.where(ends, IMPOSSIBLE, total), beams)
        tokens, current, parent = keep(kept, longer, token, parent)
        if beams > 1:
            parents = ops.reshape(rows + parent, (-1,))
            caches = [cache.take(parents) for cache in caches]
        done = ops.logical_or(done, last)
        done = ops.logical_or(done, is_decided(score[:, 0], best[:, -1], index + 1))
        current = ops.reshape(current, (-1, 1))
        return index + 1, current, tokens, score, ended, best, done, caches

    def constrain(logits, tokens, index, last):
        """Removes the tokens that the search forbids from ``logits`` (B, K, V).

        Also returns their log-masses, a list of (B, K, 1), which still count in the normalizer.
        """
        token = ops.arange(logits.shape[-1])
        lost = []

        def forbid(logits, forbidden):
            rest = ops.where(forbidden, logits, IMPOSSIBLE)
            lost.append(ops.logsumexp(rest, axis=-1, keepdims=True))
            return ops.where(forbidden, IMPOSSIBLE, logits)

        whole = tokens
        if prompt is not None and (search.no_repeat_ngram_size or search.banned):
            whole = ops.repeat(prompt[:, None], beams, axis=1)
            whole = ops.concatenate([whole, tokens], axis=-1)
        count = ops.shape(whole)[-1] - length + index
        place = ops.arange(ops.shape(whole)[-1])
        if search.no_repeat_ngram_size:
            logits = forbid(logits, find_repeats(whole, count, search.no_repeat_ngram_size, logits))
        if search.min_new_tokens or least is not None:
            early = index < (search.min_new_tokens if least is None else least[:, None, None])
            logits = forbid(logits, ops.logical_and(is_end(token), early))
        for *before, banned in search.banned:
            matched = ops.full((1, 1), True)
            for back, expected in enumerate(reversed(before), start=1):
                at = ops.sum(ops.where(place == count - back, whole, 0), axis=-1)
                matched = ops.logical_and(matched, ops.logical_and(at == expected, count >= back))
            matched = matched[..., None]
            lost.append(ops.where(matched, logits[..., banned : banned + 1], IMPOSSIBLE))
            logits = ops.where(ops.logical_and(matched, token == banned), IMPOSSIBLE, logits)
        if search.renormalized:
            lost = []
        forced = []
        if search.forced_begin is not None:
            forced.append((index == 0, search.forced_begin))
        if search.forced_end:
            forced.append((last[:, None, None], end_id))
        for now, forced_token in forced:
            only = ops.where(token == forced_token, 0.0, IMPOSSIBLE)
            logits = ops.where(now, only, logits)
            lost = [ops.where(now, IMPOSSIBLE, x) for x in lost]
        return logits, lost

    def flatten(x):
        """``x`` (B, K, C) -> (B, K C)."""
        return ops.reshape(x, (-1, beams * x.shape[-1]))

    def is_decided(score, worst, tokens):
        """Whether no hypothesis with ``score`` can replace the one with the score ``worst``."""
        full = is_possible(worst)
        if search.early_stopping is True or beams == 1:
            return full
        longest = search.early_stopping == "never" and search.length_penalty > 0
        best = search.normalize_score(score, limit if longest else tokens)
        return ops.logical_and(full, best <= worst)

    return State(*ops.while_loop(is_unfinished, extend, tuple(state)))


def find_repeats(tokens, count, size, logits):
    """The mask (B, K, V) of the tokens that would repeat an n-gram of ``size`` tokens.

    Args:
        tokens: (B, K, N), the first ``count`` valid; -1 is padding on the left.
        logits: (B, K, V).
    """
    vocab_size = logits.shape[-1]
    tokens = ops.pad(tokens, [(0, 0), (0, 0), (size, 0)], constant_values=-1)
    count = count + size
    position = ops.arange(ops.shape(tokens)[-1])
    starts = ops.shape(tokens)[-1] - size + 1
    # Whether the first ``size`` - 1 tokens of each n-gram equal the last ones of the sequence.
    matched = position[:starts] + size <= count
    matched = ops.logical_and(matched, tokens[..., :starts] >= 0)
    for i in range(size - 1):
        last = ops.where(position == count - size + 1 + i, tokens, 0)
        last = ops.sum(last, axis=-1, keepdims=True)
        matched = ops.logical_and(matched, tokens[..., i : starts + i] == last)
    # The token V, beyond the vocabulary, means none.
    found = ops.where(matched, tokens[..., size - 1 :], vocab_size)
    wide = ops.reshape(ops.pad(logits, [(0, 0), (0, 0), (0, 1)]), (-1, vocab_size + 1))
    found = mark_tokens(ops.reshape(found, (-1, starts)), wide)[:, :vocab_size]
    return ops.reshape(found, (-1, *logits.shape[1:]))
