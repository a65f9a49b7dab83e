"""Checks of the exercises on positions, blocks and gradients (part II)."""

import math

import numpy as np

from .exercise import Hint, compare, exercise, normal


def table(positions, dim, exponent=2.0):
    i = np.arange(dim // 2)
    angle = np.asarray(positions, "float64")[:, None] * 10000.0 ** (-exponent * i / dim)
    return np.sin(angle), np.cos(angle)


def alternate(first, second):
    return np.stack([first, second], -1).reshape(*first.shape[:-1], -1)


@exercise
def sinusoids(answer):
    """``positions`` (T,), D -> the table of sinusoids (T, D) of section 3.5, alternating."""
    positions, dim = np.arange(7), 8
    sine, cosine = table(positions, dim)
    compare(
        answer(positions, dim),
        alternate(sine, cosine),
        {
            "sine and cosine are swapped: channel 2i is the sine": alternate(cosine, sine),
            "the sines come first, then the cosines: in the paper they alternate": (
                np.concatenate([sine, cosine], -1)
            ),
            "the exponent is i / D: pair i has the exponent 2i / D": (
                alternate(*table(positions, dim, 1.0))
            ),
            "the rates grow: divide the position by 10000^(2i/D)": (
                alternate(*table(positions, dim, -2.0))
            ),
        },
        "row 0 should be 0, 1, 0, 1, ..., and channel 0 should be sin(position)",
    )


def shift(k, dim, sign=1.0):
    matrix = np.zeros((dim, dim))
    for i in range(dim // 2):
        a = k * 10000.0 ** (-2 * i / dim)
        c, s = math.cos(a), sign * math.sin(a)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[c, s], [-s, c]]
    return matrix


@exercise
def shift_matrix(answer):
    """k, D -> R (D, D) with PE(p + k) = R PE(p) for every position p (sinusoids alternate)."""
    k, dim = 3, 8
    one = shift(k, dim)
    same_rate = np.kron(np.eye(dim // 2), one[:2, :2])
    compare(
        answer(k, dim),
        one,
        {
            "this moves back: sin(a + b) = sin a cos b + cos a sin b, so sin b stands in row 0 "
            "with a plus": shift(k, dim, -1.0),
            "all pairs turn at the same rate: pair i turns by k / 10000^(2i/D)": same_rate,
            "this turns by one position, not by k": shift(1, dim),
        },
        "a pair (sin a, cos a) becomes (sin(a + b), cos(a + b)): write it as a 2 x 2 matrix",
    )


@exercise
def halves_order(answer):
    """D -> the order (D,) with alternating[:, order] = sines in the first half, then cosines."""
    dim = 8
    order = np.concatenate([np.arange(0, dim, 2), np.arange(1, dim, 2)])
    compare(
        answer(dim),
        order,
        {
            "this is the inverse: it makes halves alternate": np.argsort(order),
            "the cosines come first: channel 2i of the alternating table is the sine": (
                np.concatenate([order[dim // 2 :], order[: dim // 2]])
            ),
            "the order is unchanged": np.arange(dim),
        },
        "position j of the order is the alternating table's channel that moves to j",
    )


def rotate(x, positions, rates, neighbours=False, sign=1.0):
    angle = positions[:, None, None] * rates
    c, s = np.cos(angle), sign * np.sin(angle)
    half = x.shape[-1] // 2
    a, b = (x[..., ::2], x[..., 1::2]) if neighbours else (x[..., :half], x[..., half:])
    first, second = a * c - b * s, b * c + a * s
    return alternate(first, second) if neighbours else np.concatenate([first, second], -1)


@exercise
def rotary(answer):
    """``x`` (T, H, K), ``positions`` (T,) -> x rotated: pair i is channels i and i + K / 2."""
    x, positions = normal(5, 2, 8), np.arange(5) + 2
    rates = 10000.0 ** (-2 * np.arange(4) / 8)
    right = rotate(x, positions, rates)
    repeated = np.repeat(10000.0 ** (-2 * np.arange(2) / 8), 2)
    other = np.repeat(rates, 2)
    turned = np.concatenate([-x[..., 4:], x[..., :4]], -1)
    angle = positions[:, None, None] * other
    compare(
        answer(x, positions),
        right,
        {
            "the pairs are neighbours (2i, 2i + 1), as in the paper; here, as in published "
            "checkpoints, pair i is channels i and i + K / 2": (
                rotate(x, positions, rates, neighbours=True)
            ),
            "pairs of halves with the rates of neighbours: both channels of a pair need the same "
            "rate, so the rates are tiled, not repeated": (
                x * np.cos(angle) + turned * np.sin(angle)
            ),
            "two pairs share a rate: there are K / 2 rates": rotate(x, positions, repeated),
            "it rotates the other way: the first channel is a cos - b sin": (
                rotate(x, positions, rates, sign=-1.0)
            ),
            "the rates are those of i / K: pair i turns by position / 10000^(2i/K)": (
                rotate(x, positions, 10000.0 ** (-np.arange(4) / 8))
            ),
        },
        "the length of every pair should stay the same: rotate (a, b) to "
        "(a cos - b sin, b cos + a sin)",
    )


@exercise
def alibi(answer):
    """T, H (a power of 2) -> ALiBi's bias (H, T, T), for keys s up to the query t."""
    length, heads = 5, 4
    distance = np.arange(length)[:, None] - np.arange(length)
    past = distance >= 0
    slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)[:, None, None]
    got = answer(length, heads)
    if got.shape != (heads, length, length):
        raise Hint(f"the shape should be {(heads, length, length)}, not {got.shape}")
    compare(
        np.where(past, got, 0.0),  # a causal mask hides the others
        np.where(past, -slopes * distance, 0.0),
        {
            "the sign is wrong: keys that are far away should get lower scores": (
                np.where(past, slopes * distance, 0.0)
            ),
            "the slopes start at 1: head 1 of H has the slope 2^(-8/H)": (
                np.where(past, -slopes * 2 ** (8 / heads) * distance, 0.0)
            ),
            "all heads have the same slope": (
                np.where(past, -slopes[:1] * distance + 0 * slopes, 0.0)
            ),
            "the penalty grows with the square of the distance: it should be linear": (
                np.where(past, -slopes * distance**2, 0.0)
            ),
        },
        "the bias of head h is -2^(-8h/H) (t - s), h = 1 to H",
    )


def normalized(x, epsilon=0.0, axis=-1, ddof=0):
    centered = x - x.mean(axis, keepdims=True)
    return centered / np.sqrt(x.var(axis, keepdims=True, ddof=ddof) + epsilon)


@exercise
def layer_norm(answer):
    """``x`` (B, T, D), ``gamma``, ``beta`` (D,), epsilon -> the normalized x (B, T, D)."""
    x, gamma, beta, epsilon = 3 * normal(2, 3, 4) + 1, normal(4, seed=1), normal(4, seed=2), 0.1
    deviation = x.std(-1, keepdims=True)
    centered = x - x.mean(-1, keepdims=True)
    compare(
        answer(x, gamma, beta, epsilon),
        normalized(x, epsilon) * gamma + beta,
        {
            "the variance divides by D - 1: layer normalization divides by D": (
                normalized(x, epsilon, ddof=1) * gamma + beta
            ),
            "epsilon is added to the standard deviation: add it to the variance": (
                centered / (deviation + epsilon) * gamma + beta
            ),
            "both of D - 1 and epsilon beside the standard deviation: divide by D, and add epsilon "
            "to the variance": (
                centered / (x.std(-1, ddof=1, keepdims=True) + epsilon) * gamma + beta
            ),
            "the mean is over the positions too: each position has its own, over the last axis": (
                normalized(x, epsilon, axis=(1, 2)) * gamma + beta
            ),
            "the mean is over the batch, as in batch normalization: use the last axis": (
                normalized(x, epsilon, axis=0) * gamma + beta
            ),
            "it divides by the variance: take its square root": (
                centered / (deviation**2 + epsilon) * gamma + beta
            ),
        },
        "subtract the mean of the last axis, divide by sqrt(variance + epsilon), then gamma, beta",
    )


@exercise
def layer_norm_gradient(answer):
    """``x``, ``gradient`` (T, D), dL / dx_hat -> dL / dx (T, D), for gamma 1 and epsilon 0."""
    x, g = 2 * normal(3, 5), normal(3, 5, seed=1)
    y, deviation = normalized(x), x.std(-1, keepdims=True)
    centered = g - g.mean(-1, keepdims=True)
    projected = y * (g * y).mean(-1, keepdims=True)
    compare(
        answer(x, g),
        (centered - projected) / deviation,
        {
            "the standard deviation depends on x too: subtract x_hat mean(g x_hat)": (
                centered / deviation
            ),
            "the mean depends on x too: subtract mean(g)": (g - projected) / deviation,
            "mean and standard deviation are treated as constants": g / deviation,
            "divide by the standard deviation: a larger x changes x_hat less": (
                centered - projected
            ),
            "the mean of g x_hat is a sum here: divide it by D": (
                (centered - y * (g * y).sum(-1, keepdims=True)) / deviation
            ),
        },
        "the gradient should be orthogonal to x_hat and to (1, ..., 1)",
    )


@exercise
def pre_norm_block(answer):
    """``x``, norm_1, attention, norm_2, feed_forward (functions) -> a pre-norm block's output."""
    x, a, f = 2 * normal(3, 4) + 1, normal(4, 4, seed=1), normal(4, 4, seed=2)
    scale = np.array([0.5, 1.5, 2.0, 1.0], "float32")

    def norm_1(x):
        return normalized(np.asarray(x))

    def norm_2(x):
        return normalized(np.asarray(x)) * scale

    def attention(x):
        return np.asarray(x) @ a

    def feed_forward(x):
        return np.asarray(x) @ f

    y = x + attention(norm_1(x))
    bad = norm_1(x) + attention(norm_1(x))
    post = norm_1(x + attention(x))
    compare(
        answer(x, norm_1, attention, norm_2, feed_forward),
        y + feed_forward(norm_2(y)),
        {
            "the residual is added to the normalized x: add it to x itself": (
                norm_2(bad) + feed_forward(norm_2(bad))
            ),
            "this is post-norm, norm(x + f(x)): normalize the input of f instead": (
                norm_2(post + feed_forward(post))
            ),
            "the second sublayer is added to the block's input: add it to the first one's output": (
                x + feed_forward(norm_2(y))
            ),
            "the norms are missing": x + attention(x) + feed_forward(x + attention(x)),
            "the residual connections are missing": feed_forward(norm_2(attention(norm_1(x)))),
            "both sublayers get the block's input: the second one continues the first": (
                y + feed_forward(norm_2(x))
            ),
        },
        "y = x + attention(norm_1(x)), then y + feed_forward(norm_2(y))",
    )
