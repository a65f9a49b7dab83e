"""Sampling: filters of the distribution, and the choice of a token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from ...layers.arguments import plain_fields
from ...layers.dropout import mix, random_bits

IMPOSSIBLE = -1e9  # the log-probability of impossible sequences; finite, so that sums are not NaN
LARGEST = float(np.finfo("float32").max)


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling: how the next token is chosen from the model's distribution.

    The repetition penalty is applied first, then the temperature, then the filters. The next token
    is sampled from those that the filters keep.

    Args:
        temperature: divides the logits; 0 is greedy: the most likely token.
        top_k: keep the k most likely tokens, and those that tie with the last of them (Fan et al.
            2018, arXiv 1805.04833). 0 or None keeps all tokens.
        top_p: nucleus sampling: keep the smallest set of most likely tokens with at least this
            total probability (Holtzman et al. 2020, arXiv 1904.09751).
        min_p: keep tokens with at least this fraction of the top token's probability (Nguyen et
            al. 2024, arXiv 2407.01082).
        repetition_penalty: divides the positive logits of tokens that occurred before, in the
            prompt or the continuation, and multiplies negative ones (Keskar et al. 2019, arXiv
            1909.05858).

    Raises:
        ValueError: an argument is out of range.

    >>> polyhead.Sampling(temperature=0.8, top_p=0.95).is_greedy
    False
    >>> config = polyhead.GPTConfig(sampling=polyhead.Sampling(top_k=40))  # the model's default
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        plain_fields(self)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if not (value is None and name in ("top_p", "min_p")):
                check_finite(name, value)
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative: {self.temperature}")
        if self.top_k is not None and (type(self.top_k) is not int or not 0 <= self.top_k < 2**31):
            raise ValueError(
                f"top_k must be a non-negative integer, or None: {self.top_k!r} (0 and None keep "
                "all tokens)"
            )
        object.__setattr__(self, "top_k", self.top_k or None)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1]: {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1]: {self.min_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be positive: {self.repetition_penalty}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature == 0 and self.repetition_penalty == 1

    def sampler(self, seeds: Sequence[int]) -> "Sampler | None":
        """The `Sampler` of a batch with one seed per row; None for greedy decoding."""
        if self.is_greedy:
            return None

        def rows(value, dtype="float32"):
            return None if value is None else np.full(len(seeds), value, dtype)

        return Sampler(
            np.array([seed % 2**31 for seed in seeds], "int32"),
            rows(self.temperature),
            rows(self.top_k, "int32"),
            rows(self.top_p),
            rows(self.min_p),
            None if self.repetition_penalty == 1 else rows(self.repetition_penalty),
        )


class Sampler(NamedTuple):
    """The `Sampling` settings of each row of a batch: tensors (B,), or None if unused by all rows.

    The tokens of a row depend only on its ``seed`` (int32) and settings: not on the other rows,
    and (up to rounding) not on backend, compiler or machine. ``seen`` is the prompt (B, P), whose
    tokens the repetition penalty counts too.
    """

    seed: Any
    temperature: Any
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    seen: Any = None

    def __call__(self, logits, tokens, index):
        """Chooses the token (B,) at ``index``.

        Args:
            logits: (B, V).
            tokens: (B, N); those from ``index`` on are ignored.
        """
        if self.repetition_penalty is not None:
            before = ops.arange(ops.shape(tokens)[1]) < index
            tokens = ops.where(before, tokens, self.seen[:, -1:])
            tokens = ops.concatenate([self.seen, tokens], axis=1)
            penalty = self.repetition_penalty[:, None]
            changed = ops.where(logits < 0, logits * penalty, logits / penalty)
            logits = ops.where(mark_tokens(tokens, logits), changed, logits)
        # Greedy rows are divided too, which does not change their most likely token.
        scaled = logits / ops.maximum(self.temperature, 1e-4)[:, None]
        scaled = filter_logits(scaled, self.top_k, self.top_p, self.min_p)
        noise = gumbel_noise(self.seed, index, logits.shape[-1])
        random = ops.argmax(scaled + noise, axis=-1)
        chosen = ops.where(self.temperature > 0, random, ops.argmax(logits, axis=-1))
        return ops.cast(chosen, "int32")


def check_finite(name, value):
    """Raises a ValueError unless ``value`` is a number in the range of float32."""
    if type(value) not in (int, float) or not abs(value) <= LARGEST:
        raise ValueError(f"{name} must be a number: {value!r:.100}")


def mark_tokens(tokens, logits):
    """The mask (B, V), like ``logits``, of the tokens that occur in ``tokens`` (B, N)."""
    row = ops.broadcast_to(ops.arange(ops.shape(tokens)[0])[:, None], ops.shape(tokens))
    at = ops.reshape(ops.stack([row, tokens], axis=-1), (-1, 2))
    found = ops.scatter_update(ops.zeros_like(logits), at, ops.ones_like(at[:, 0], logits.dtype))
    return found > 0


def filter_logits(logits, top_k=None, top_p=None, min_p=None):
    """Sets the ``logits`` (B, V) that the filters of `Sampling` remove to `IMPOSSIBLE`.

    The settings are tensors (B,), or None; a ``top_k`` of 0 keeps all tokens.
    """
    most = ops.max(logits, axis=-1, keepdims=True)
    if top_k is not None:
        every = ops.shape(logits)[-1]
        count = ops.where(top_k > 0, ops.minimum(top_k, every), every)[:, None]
        passing = mask_top(
            logits,
            lambda kept: ops.sum(ops.cast(kept, "int32"), axis=-1, keepdims=True) >= count,
        )
        logits = ops.where(passing, logits, IMPOSSIBLE)
    if top_p is not None:
        mass = ops.exp(logits - most)
        needed = top_p[:, None] * ops.sum(mass, axis=-1, keepdims=True)
        passing = mask_top(
            logits,
            lambda kept: ops.sum(ops.where(kept, mass, 0.0), axis=-1, keepdims=True) >= needed,
        )
        logits = ops.where(passing, logits, IMPOSSIBLE)
    if min_p is not None:
        # With fast math, log(0) may be finite; a min_p of 0 must keep all tokens.
        share = ops.log(ops.maximum(min_p, 1e-30))[:, None]
        logits = ops.where(logits >= most + share, logits, IMPOSSIBLE)
    return logits


def mask_top(logits, enough):
    """The mask (B, V) of the smallest set of largest ``logits`` (B, V) that is ``enough``.

    ``enough`` maps a mask to booleans (B, 1) and is monotonic: it stays true if a mask grows. The
    smallest kept logit is found by bisection over the bits of floats: 32 sums over the vocabulary,
    which is faster than sorting.
    """
    bits = ops.view(ops.cast(logits, "float32"), "int32")
    key = ops.where(bits < 0, ops.bitwise_xor(bits, np.int32(0x7FFFFFFF)), bits)

    def halve(_, bounds):
        low, high = bounds  # enough(key >= low) holds, enough(key >= high) does not
        half = ops.bitwise_and(ops.bitwise_and(low, high), np.int32(1))
        middle = ops.right_shift(low, np.int32(1)) + ops.right_shift(high, np.int32(1)) + half
        holds = enough(key >= middle)
        return ops.where(holds, middle, low), ops.where(holds, high, middle)

    low = ops.full_like(key[:, :1], -(2**31))
    low, _ = ops.fori_loop(0, 32, halve, (low, ops.full_like(low, 2**31 - 1)))
    return key >= low


def gumbel_noise(seed, index, size):
    """Gumbel noise (B, ``size``) of ``seed`` (B,): the argmax of logits plus noise is a sample.

    -log(-log(u)) with u uniform in (0, 1), computed from 1 - u for precision near u = 1
    (Gumbel 1954).
    """
    step = ops.cast(index, "uint32") + np.uint32(1)
    first = mix(ops.cast(seed, "uint32"))[:, None]  # decorrelates similar seeds
    bits = random_bits(ops.arange(size), first, step)
    uniform = (ops.cast(bits, "float32") + 0.5) * 2.0**-32
    return -ops.log(-ops.log1p(-ops.minimum(uniform, 1 - 2.0**-24)))
