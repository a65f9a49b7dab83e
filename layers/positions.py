"""Positional encodings: sinusoidal, learned, rotary, and relative biases."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("polyhead")
class PositionalEmbedding(keras.layers.Layer):
    """Adds positional encodings (Vaswani et al. 2017, section 3.5).

    Args:
        kind: "sinusoidal", PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos(same),
            for any length; or "learned", a vector for each of ``max_length`` positions.
        interleaved: True alternates sines and cosines, as in the paper. False puts the sines in the
            first half of the vector and the cosines in the second, as in Marian (Junczys-Dowmunt
            2018).
        max_length: the number of learned positions.

    Call with ``x`` (B, T, D), whose first position is ``start``, a number or (B, 1), one for each
    row; the result is (B, T, D). Where start is a tensor, positions out of range, those of
    padding, get the nearest learned position. ``positions`` (B, T) replace start, start + 1, ...

    Raises:
        ValueError: an unknown kind; an odd D with sinusoids; learned positions without
            ``max_length``; with an integer ``start``, a position out of range.

    >>> tuple(PositionalEmbedding("sinusoidal")(np.zeros((2, 5, 64))).shape)
    (2, 5, 64)
    """

    def __init__(
        self,
        kind: str = "sinusoidal",
        max_length: int | None = None,
        interleaved: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if kind not in ("sinusoidal", "learned"):
            raise ValueError(f"kind must be 'sinusoidal' or 'learned': {kind!r}")
        if kind == "learned" and not max_length:
            raise ValueError(f"learned positions need a max_length: {max_length}")
        self.kind = kind
        self.max_length = max_length
        self.interleaved = interleaved

    def build(self, x_shape):
        width = x_shape[-1]
        if self.kind == "learned":
            self.embeddings = self.add_weight(
                name="embeddings",
                shape=(self.max_length, width),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
            )
        elif width % 2:
            raise ValueError(f"sinusoids come in pairs, so the width must be even: {width}")

    def call(self, x, start=0, positions=None):
        length, known = x.shape[1], positions is None and isinstance(start, int)
        if self.kind == "learned" and length and known and start + length > self.max_length:
            raise ValueError(f"at most {self.max_length} positions: {start + length}")
        if positions is None:
            positions = ops.arange(ops.shape(x)[1]) + start
        if self.kind == "learned":
            if not known:
                positions = ops.clip(positions, 0, self.max_length - 1)
            table = ops.take(self.embeddings, positions, axis=0)
        else:
            table = sinusoids(positions, x.shape[-1], self.interleaved)
        return x + ops.cast(table, x.dtype)


def sinusoids(positions, dim, interleaved=True):
    """``positions`` (..., T) -> sines and cosines (..., T, D) in float32, alternating or not."""
    channel = ops.arange(0, dim, 2, dtype="float32")
    rate = ops.exp(channel * (-math.log(10000.0) / dim))
    angle = ops.cast(positions, "float32")[..., None] * rate
    waves = ops.stack([ops.sin(angle), ops.cos(angle)], axis=-1 if interleaved else -2)
    return ops.reshape(waves, (*ops.shape(positions), dim))


@keras.saving.register_keras_serializable("polyhead")
class Rotary(keras.layers.Layer):
    """The rotations of rotary positional embeddings (RoPE: Su et al. 2021, section 3.2).

    (arXiv 2104.09864.) Each head has R / 2 pairs of channels; pair i is rotated by the angle
    position * theta^(-2i/R). It consists of channel i of the first half and channel i of the second
    half, as in published checkpoints. A model computes the rotations once, and passes them to each
    attention layer.

    Args:
        head_dim: K, the size of a head.
        theta: the base of the wavelengths.
        kind: how wavelengths are multiplied, for texts longer than those of pretraining:

            - "default": by 1;
            - "linear": by ``factor`` (Gemma 3);
            - "llama3": by ``factor`` if longer than L / ``low``, by 1 if shorter than L / ``high``,
              by interpolation between these (Llama 3.1);
            - "yarn": by ``factor`` if fewer than ``low`` wavelengths fit in L, by 1 if more than
              ``high`` fit, by interpolation between these (Peng et al. 2023, arXiv 2309.00071,
              section 3.2; Qwen 2 and 3);
            - "longrope": the i-th by ``long_factors[i]`` if any position is L or more, otherwise by
              ``short_factors[i]`` (Ding et al. 2024, arXiv 2402.13753; Phi 3).
        factor: see ``kind``; for "longrope", the maximum length divided by L.
        original_length: L, the maximum length in pretraining, in tokens.
        low, high: limits of "llama3" (1 and 4 in Llama 3.1) and of "yarn" (1 and 32 in the paper).
        short_factors, long_factors: for "longrope", R / 2 numbers each.
        scale: multiplies sines and cosines. Default: 1; for "yarn" and "longrope" the paper's
            function of ``factor``.
        fraction: R / K, the fraction of a head's channels that is rotated.

    Call with ``positions`` (B, T) or (T,), integers; the result is the pair of cosines and sines,
    each (B, T, 1, R / 2) or (T, 1, R / 2), in the compute dtype. Angles are computed in float32,
    because in bfloat16 the positions 8190 and 8191 are equal.

    Raises:
        ValueError: an unknown kind, or a setting that the kind needs is missing.

    >>> from polyhead.layers import MultiHeadAttention
    >>> rotary = Rotary(head_dim=8, theta=500_000.0)(np.arange(5))
    >>> y = MultiHeadAttention(num_heads=8)(np.ones((2, 5, 64)), rotary=rotary)
    >>> tuple(y.shape)
    (2, 5, 64)
    """

    NEEDS = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "original_length", "low", "high"),
        "yarn": ("factor", "original_length", "low", "high"),
        "longrope": ("factor", "original_length", "short_factors", "long_factors"),
    }

    def __init__(
        self,
        head_dim: int,
        theta: float = 10_000.0,
        kind: str = "default",
        factor: float | None = None,
        original_length: int | None = None,
        low: float | None = None,
        high: float | None = None,
        short_factors: Sequence[float] | None = None,
        long_factors: Sequence[float] | None = None,
        scale: float | None = None,
        fraction: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.autocast = False
        settings = dict(
            factor=factor, original_length=original_length, low=low, high=high,
            short_factors=short_factors, long_factors=long_factors,
        )  # fmt: skip
        if kind not in self.NEEDS:
            raise ValueError(f"kind must be one of {', '.join(self.NEEDS)}: {kind!r}")
        if missing := [name for name in self.NEEDS[kind] if settings[name] is None]:
            raise ValueError(f"rotary positions of kind {kind!r} need {', '.join(missing)}")
        self.original_length = original_length
        size = int(head_dim * fraction)
        # Radians per position (R / 2,), in float32 as in the reference.
        rates = 1 / np.float32(theta) ** (np.arange(0, size, 2, "float32") / np.float32(size))
        self.rates, self.long_rates = rates, None
        self.scale = 1.0
        if kind == "linear":
            self.rates = rates / factor
        elif kind == "llama3":
            turns = original_length * rates / (2 * math.pi)
            self.rates = blend(rates, factor, (turns - low) / (high - low))
        elif kind == "yarn":
            first, last = (
                size * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
                for turns in (high, low)
            )
            first, last = max(math.floor(first), 0), min(math.ceil(last), size - 1)
            index = np.arange(size // 2)
            self.rates = blend(rates, factor, 1 - (index - first) / max(last - first, 0.001))
            self.scale = 0.1 * math.log(max(factor, 1.0)) + 1.0
        elif kind == "longrope":
            self.rates = rates / np.float32(short_factors)
            self.long_rates = rates / np.float32(long_factors)
            self.scale = math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original_length))
        if scale is not None:
            self.scale = scale

    def call(self, positions):
        rates = np.float32(self.rates)
        if self.long_rates is not None:
            is_long = ops.max(positions) >= self.original_length
            rates = ops.where(is_long, np.float32(self.long_rates), rates)
        angles = ops.cast(positions, "float32")[..., None, None] * rates
        return tuple(
            ops.cast(wave(angles) * self.scale, self.compute_dtype) for wave in (ops.cos, ops.sin)
        )


def blend(rates, factor, share):
    """The mean of ``rates``, weighted by ``share`` clipped to [0, 1], and of ``rates / factor``."""
    share = np.clip(share, 0, 1)
    return share * rates + (1 - share) * rates / factor


def rotate(x, rotary):
    """Rotates ``x`` (B, T, H, K) by the result of a `Rotary`, except its channels from R on."""
    cosine, sine = (ops.cast(wave, x.dtype) for wave in rotary)
    half, size = cosine.shape[-1], x.shape[-1]
    ends = [half] if 2 * half == size else [half, 2 * half]
    first, second, *rest = ops.split(x, ends, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return ops.concatenate([*rotated, *rest], axis=-1)


@keras.saving.register_keras_serializable("polyhead")
class RelativeBias(keras.layers.Layer):
    """A learned bias of attention scores per distance from query to key, as in T5.

    (Raffel et al. 2019, arXiv 1910.10683, section 2.1.) Each small distance has its own bucket;
    larger distances share buckets of logarithmically increasing size.

    Args:
        num_heads: H.
        num_buckets: the number of buckets.
        max_distance: this distance and all larger ones share the last bucket.
        bidirectional: half of the buckets are for keys after the query, as in an encoder. If False,
            such keys count as distance 0.

    Call with the positions of ``queries`` (T,) and of ``keys`` (S,); the result is a bias
    (1, H, T, S) in float32, which all layers of a stack share.

    >>> tuple(RelativeBias(8)(np.arange(5), np.arange(7)).shape)
    (1, 8, 5, 7)
    """

    def __init__(
        self,
        num_heads: int,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional

    def build(self, queries_shape=None, keys_shape=None):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.num_buckets, self.num_heads),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            autocast=False,
        )

    def call(self, queries, keys):
        most = self.max_distance
        distance = ops.clip(ops.expand_dims(keys, 0) - ops.expand_dims(queries, 1), -most, most)
        bucket = ops.take(self.buckets(np.arange(-most, most + 1)), distance + most, axis=0)
        return ops.transpose(ops.take(self.embeddings, bucket, axis=0), (2, 0, 1))[None]

    def buckets(self, distance: np.ndarray) -> np.ndarray:
        """The bucket of each ``distance``, key - query; NumPy integers."""
        count, offset = self.num_buckets, 0
        if self.bidirectional:
            count //= 2
            offset = count * (distance > 0)
            distance = abs(distance)
        else:
            distance = np.maximum(-distance, 0)
        near = count // 2
        # In float32, as in the reference: rounding decides at the border of two buckets.
        far = np.log(np.float32(np.maximum(distance, 1)) / near)
        far = far / np.float32(math.log(self.max_distance / near)) * (count - near)
        far = np.minimum(near + far.astype("int32"), count - 1)
        return (offset + np.where(distance < near, distance, far)).astype("int32")
