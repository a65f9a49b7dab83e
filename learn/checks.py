"""Checks of the exercises: one function per exercise.

    print(checks.attention(my_attention))

A check calls your function with small inputs and compares its results with NumPy's. It returns
"right", "not done yet" (the function returned None), or a hint that says what is wrong. Your
function gets NumPy arrays; it may return NumPy arrays, tensors, numbers or lists. Many hints are
for mistakes that were made in public code; `tests/learn/test_checks.py` has them.

B batch, T and S lengths, D width, H heads, K head size, V vocabulary, as in the library.
"""

import collections
import functools
import math

import numpy as np

RIGHT, NOT_DONE = "right", "not done yet"
MASKED = -1e9


class Hint(Exception):
    """Says what is wrong with an answer."""


def exercise(compare_answer):
    """Turns a function that raises hints into a check, which returns a message."""

    @functools.wraps(compare_answer)
    def check(function):
        try:
            compare_answer(functools.partial(call, function))
        except Hint as hint:
            return str(hint)
        return RIGHT

    return check


def call(function, *inputs):
    """The function's result as a NumPy array."""
    inputs = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
    try:
        result = function(*inputs)
        if result is None or result is Ellipsis:
            raise Hint(NOT_DONE)
        result = np.asarray(result)
    except Hint:
        raise
    except Exception as error:
        raise Hint(f"it raises {type(error).__name__}: {error}") from error
    if result.dtype == object:
        raise Hint("the result should be an array or a number")
    return result


def compare(got, want, mistakes, otherwise):
    """Raises the hint of the first of the ``mistakes`` (hint -> wrong result) that ``got`` is."""
    want = np.asarray(want)
    if want.dtype == bool and got.dtype != bool and got.shape == want.shape:
        raise Hint(f"a mask is boolean, True = may attend; this one is {got.dtype}")
    if is_close(got, want):
        return
    for hint, wrong in mistakes.items():
        if is_close(got, np.asarray(wrong)):
            raise Hint(hint)
    if got.shape != want.shape:
        raise Hint(f"the shape should be {want.shape}, not {got.shape}")
    if not np.isfinite(got.astype("float64")).all():
        raise Hint("the result has NaN or infinite values")
    raise Hint(otherwise)


def is_close(a, b):
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5)


def compare_cases(answer, cases, want, mistakes, otherwise):
    """Like `compare`, for a function of numbers, which is called with each of the ``cases``."""
    got = [answer(*case) for case in cases]
    if any(number.shape != () for number in got):
        raise Hint(f"the result should be one number, not an array of shape {got[0].shape}")
    wrong = {hint: [mistake(*case) for case in cases] for hint, mistake in mistakes.items()}
    compare(np.array(got), [want(*case) for case in cases], wrong, otherwise)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


# Part I: attention


@exercise
def lookup(answer):
    """``query`` (T, K), ``keys`` (S, K), ``values`` (S, D), sharpness -> a soft look-up (T, D)."""
    query, keys, values, sharpness = normal(4, 3), normal(5, 3, seed=1), normal(5, 2, seed=2), 3.0
    scores = query @ keys.T * sharpness
    compare(
        answer(query, keys, values, sharpness),
        softmax(scores) @ values,
        {
            "the weights of one query should sum to 1 over the keys: softmax over the last axis": (
                softmax(scores, 0) @ values
            ),
            "the scores are not multiplied by the sharpness": softmax(query @ keys.T) @ values,
            "the result should be a mean of all values; this picks the best key alone": (
                values[scores.argmax(1)]
            ),
            "the scores are not weights yet: apply the softmax": scores @ values,
        },
        "the result should be softmax(sharpness * query keys^T) values",
    )


def attend(query, key, value, mask, scale=None, axis=-1):
    scores = np.einsum("thk,shk->hts", query, key) * (scale or query.shape[-1] ** -0.5)
    return np.einsum("hts,shk->thk", softmax(np.where(mask, scores, MASKED), axis), value)


@exercise
def attention(answer):
    """``q``, ``k``, ``v`` (T, H, K), ``mask`` (T, T) -> attention by hand (T, H, K)."""
    q, k, v = 2 * normal(3, 5, 2, 4)
    mask = np.tril(np.ones((5, 5), bool))
    weights = softmax(np.einsum("thk,shk->hts", q, k) / 2)
    got = answer(q, k, v, mask)
    mistakes = {
        "the mask is upside down: True = may attend": attend(q, k, v, ~mask),
        "the mask is not used": attend(q, k, v, True),
        "a row of weights does not sum to 1: apply the mask before the softmax, as -1e9": (
            np.einsum("hts,shk->thk", weights * mask, v)
        ),
        "softmax over the queries: the weights of one query should sum to 1 over the keys": (
            attend(q, k, v, mask, axis=1)
        ),
        "scaled by sqrt(D), the width of all heads: a score is a sum of K products, "
        "so divide by sqrt(K)": attend(q, k, v, mask, 8**-0.5),
        "divided by K: the standard deviation of a score is sqrt(K)": attend(q, k, v, mask, 1 / 4),
        "the scores are not scaled: divide by sqrt(K)": attend(q, k, v, mask, 1.0),
    }
    want = attend(q, k, v, mask)
    otherwise = "position 0 may attend to itself alone, so its output is v[0]: look at the mask"
    if got.shape == want.shape and np.allclose(got[0], v[0], atol=1e-5):
        otherwise = "the mask is right, but the weights are not: look at the scores and the softmax"
    compare(got, want, mistakes, otherwise)


@exercise
def dot_variance(answer):
    """K, mean and standard deviation of q's and of k's components -> the variance of q . k."""
    compare_cases(
        answer,
        [(64, 0.0, 1.0, 0.0, 1.0), (64, 0.0, 2.0, 0.0, 3.0), (10, 1.0, 2.0, -0.5, 3.0)],
        lambda d, m, s, n, t: d * (s * s * t * t + m * m * t * t + n * n * s * s),
        {
            "a standard deviation is not a variance: square it": lambda d, m, s, n, t: d * s * t,
            "right for means of 0 only: E[(q k)^2] - E[q k]^2 has two more terms": (
                lambda d, m, s, n, t: d * s * s * t * t
            ),
            "this is the mean of (q k)^2: subtract the square of the mean of q k": (
                lambda d, m, s, n, t: d * (s * s + m * m) * (t * t + n * n)
            ),
            "this is the standard deviation, not the variance": lambda d, m, s, n, t: math.sqrt(
                d * (s * s * t * t + m * m * t * t + n * n * s * s)
            ),
        },
        "the variance is a sum over the K components: begin with the variance of one product",
    )


@exercise
def softmax_jacobian(answer):
    """``p`` (S,), the softmax of s -> the Jacobian dp_i / ds_j (S, S)."""
    p = softmax(normal(6))
    right = np.diag(p) - np.outer(p, p)
    compare(
        answer(p),
        right,
        {
            "the diagonal alone: p_i depends on all scores, since they share a denominator": (
                np.diag(p * (1 - p))
            ),
            "the sign is wrong: a larger score increases its own weight": -right,
            "each row should sum to 0, since the weights always sum to 1: subtract p p^T": (
                np.diag(p) + np.outer(p, p)
            ),
        },
        "dp_i / ds_j = p_i (1 - p_i) for i = j; what is it for i != j?",
    )


@exercise
def sliding_window(answer):
    """T, window -> a causal mask (T, T): each query sees ``window`` keys, its own included."""
    length, window = 6, 3
    q, k = np.arange(length)[:, None], np.arange(length)
    right = (k <= q) & (k > q - window)
    compare(
        answer(length, window),
        right,
        {
            "the mask is upside down: True = may attend": ~right,
            "one position too many: the window includes the position itself": (
                (k <= q) & (k >= q - window)
            ),
            "position 0 attends to the future: the mask is not causal": np.abs(q - k) < window,
            "the window is not used: position 5 should not attend to position 0": k <= q,
            "queries and keys are swapped: row t is the query t": right.T,
        },
        "row t should be True for the keys t - window + 1 to t",
    )


@exercise
def packed_mask(answer):
    """``texts`` (T,), the number of each token's text -> a causal mask (T, T) within the texts."""
    texts = np.array([1, 1, 1, 2, 2, 3])
    same, causal = texts[:, None] == texts, np.tril(np.ones((6, 6), bool))
    compare(
        answer(texts),
        same & causal,
        {
            "the mask is upside down: True = may attend": ~(same & causal),
            "a token attends to later tokens of its text: the mask is not causal": same,
            "token 3, the first of text 2, attends to text 1: compare the numbers of the texts": (
                causal
            ),
            "the two conditions are joined by or: both must hold": same | causal,
        },
        "query t may attend to key s if s <= t and both belong to the same text",
    )


def head_sum(x, memory, wq, wk, wv, wo, scale=None):
    q, k, v = (np.einsum("td,dhk->thk", a, w) for a, w in ((x, wq), (memory, wk), (memory, wv)))
    return np.einsum("thk,hkd->td", attend(q, k, v, True, scale), wo)


def kernels(width=6, heads=2, size=3):
    wq, wk, wv = normal(3, width, heads, size, seed=1)
    return wq, wk, wv, normal(heads, size, width, seed=2)


@exercise
def multi_head(answer):
    """``x`` (T, D), ``wq``, ``wk``, ``wv`` (D, H, K), ``wo`` (H, K, D) -> self-attention (T, D)."""
    x, (wq, wk, wv, wo) = normal(4, 6), kernels()
    split = x.reshape(4, 2, 3)
    own = [
        np.einsum("thc,hck->thk", split, w.reshape(2, 3, 2, 3)[[0, 1], :, [0, 1]])
        for w in (wq, wk, wv)
    ]
    q, k, v = (np.einsum("td,dhk->thk", x, w) for w in (wq, wk, wv))
    heads = attend(q, k, v, True)
    compare(
        answer(x, wq, wk, wv, wo),
        head_sum(x, x, wq, wk, wv, wo),
        {
            "x is split before it is projected: each head should see all D channels of x": (
                np.einsum("thk,hkd->td", attend(*own, True), wo)
            ),
            "scaled by sqrt(D): a score is a sum of K products, so divide by sqrt(K)": (
                head_sum(x, x, wq, wk, wv, wo, 6**-0.5)
            ),
            "the scores are not scaled: divide by sqrt(K)": head_sum(x, x, wq, wk, wv, wo, 1.0),
            "the result should be projected by wo": heads.reshape(4, 6),
            "heads and channels are mixed: concatenate heads in the order of wo's axes (H, K)": (
                heads.transpose(0, 2, 1).reshape(4, 6) @ wo.reshape(6, 6)
            ),
        },
        "project x to q, k, v of each head, attend, and sum head h times wo[h] over the heads",
    )


@exercise
def cross_attention(answer):
    """``x`` (T, D), ``memory`` (S, D), the kernels of `multi_head` -> cross-attention (T, D)."""
    x, memory, (wq, wk, wv, wo) = normal(4, 6), normal(5, 6, seed=3), kernels()
    q = np.einsum("sd,dhk->shk", memory, wq)
    k, v = (np.einsum("td,dhk->thk", x, w) for w in (wk, wv))
    swapped = np.einsum("thk,hkd->td", attend(q, k, v, True), wo)
    compare(
        answer(x, memory, wq, wk, wv, wo),
        head_sum(x, memory, wq, wk, wv, wo),
        {
            "the roles are swapped: x asks, so x gives the queries": swapped,
            "the memory is not used: keys and values come from it": (
                head_sum(x, x, wq, wk, wv, wo)
            ),
            "x is not used: the queries come from it": head_sum(memory, memory, wq, wk, wv, wo),
        },
        "queries come from x; keys and values come from the memory",
    )


@exercise
def weights_bytes(answer):
    """B, H, T, S, bytes per number -> the memory of the attention weights in bytes."""
    compare_cases(
        answer,
        [(1, 1, 2, 3, 4), (8, 12, 1024, 1024, 2), (1, 12, 100_000, 100_000, 4)],
        lambda b, h, t, s, size: b * h * t * s * size,
        {
            "each head has its own weights": lambda b, h, t, s, size: b * t * s * size,
            "each query has a weight for each key: T S, not T + S": (
                lambda b, h, t, s, size: b * h * (t + s) * size
            ),
            "this is the number of weights: multiply by the bytes of one": (
                lambda b, h, t, s, size: b * h * t * s
            ),
        },
        "the weights have the shape (B, H, T, S)",
    )


@exercise
def block_flops(answer):
    """T, D, F (width of the hidden layer) -> the FLOPs of one block, 2 per multiply-add."""
    compare_cases(
        answer,
        [(3, 5, 7), (128, 64, 256), (1024, 768, 3072)],
        lambda t, d, f: 8 * t * d * d + 4 * t * t * d + 4 * t * d * f,
        {
            "a multiply-add is two operations": lambda t, d, f: (
                4 * t * d * d + 2 * t * t * d + 2 * t * d * f
            ),
            "Q K^T and the product with V are missing: they cost 2 T^2 D each": (
                lambda t, d, f: 8 * t * d * d + 4 * t * d * f
            ),
            "only one of Q K^T and the product with V is counted": lambda t, d, f: (
                8 * t * d * d + 2 * t * t * d + 4 * t * d * f
            ),
            "the output projection is missing: there are four projections": lambda t, d, f: (
                6 * t * d * d + 4 * t * t * d + 4 * t * d * f
            ),
        },
        "count the products of matrices: four projections, two with T x T, two of the "
        "feed-forward network",
    )


# Part II: positions, block, gradients


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


# Part III: the Transformer


@exercise
def block_parameters(answer):
    """D, F, cross (True: a decoder's block) -> the number of parameters of a block."""

    def count(d, f, cross, bias=1, norm=2, ffn_bias=1):
        attentions = (1 + cross) * 4 * (d * d + bias * d)
        return attentions + 2 * d * f + ffn_bias * (f + d) + (2 + cross) * norm * d

    compare_cases(
        answer,
        [(16, 32, False), (16, 32, True), (512, 2048, True)],
        count,
        {
            "the biases are missing": lambda *c: count(*c, bias=0, ffn_bias=0),
            "the biases of the attention's projections are missing": lambda *c: count(*c, bias=0),
            "the norms are missing": lambda *c: count(*c, norm=0),
            "a norm has two vectors, gamma and beta": lambda *c: count(*c, norm=1),
            "a decoder's block has a second attention and its norm": (
                lambda d, f, cross: count(d, f, False)
            ),
            "the cross-attention has its own norm": lambda d, f, cross: (
                count(d, f, cross) - 2 * d * cross
            ),
        },
        "count four projections per attention, two of the feed-forward network, and the norms",
    )


@exercise
def smoothed_loss(answer):
    """``labels`` (T,), ``logits`` (T, V), smoothing e -> the mean loss per token, a number."""
    labels, logits, e = np.array([1, 0, 3]), 2 * normal(3, 5), 0.2
    logs = np.log(softmax(logits))
    chosen = logs[np.arange(3), labels]
    others = logs.sum(-1) - chosen
    size = logits.shape[-1]
    compare(
        answer(labels, logits, e),
        -((1 - e) * chosen + e * logs.mean(-1)).mean(),
        {
            "e is spread over the V - 1 other tokens: the library, as the paper of Szegedy et al., "
            "spreads it over all V": -((1 - e) * chosen + e / (size - 1) * others).mean(),
            "the targets do not sum to 1: the label's is 1 - e + e / V": (
                -((1 - e) * chosen + e / size * others).mean()
            ),
            "the smoothing is not used": -chosen.mean(),
            "each of the V tokens has the target e / V, not e": (
                -((1 - e) * chosen + e * logs.sum(-1)).mean()
            ),
            "this is the sum over the tokens: take their mean": (
                -((1 - e) * chosen + e * logs.mean(-1)).sum()
            ),
        },
        "the loss is -(1 - e) log p(label) - e / V sum_v log p(v)",
    )


@exercise
def warmup_rate(answer):
    """step, D, warm-up steps -> the learning rate of section 5.3."""
    compare_cases(
        answer,
        [(1, 512, 4000), (4000, 512, 4000), (16000, 512, 4000), (100, 64, 50)],
        lambda s, d, w: d**-0.5 * min(s**-0.5, s * w**-1.5),
        {
            "the larger of the two is taken: the rate should grow first, then fall": (
                lambda s, d, w: d**-0.5 * max(s**-0.5, s * w**-1.5)
            ),
            "the factor D^-0.5 is missing": lambda s, d, w: min(s**-0.5, s * w**-1.5),
            "the two parts should meet at the end of the warm-up: the exponent is -1.5": (
                lambda s, d, w: d**-0.5 * min(s**-0.5, s * w**-0.5)
            ),
        },
        "D^-0.5 min(step^-0.5, step warmup^-1.5)",
    )


@exercise
def brevity_penalty(answer):
    """Length of the candidate, of the reference -> BLEU's brevity penalty."""
    compare_cases(
        answer,
        [(8, 10), (10, 10), (12, 10), (1, 3)],
        lambda c, r: 1.0 if c >= r else math.exp(1 - r / c),
        {
            "the lengths are swapped: a short candidate is penalized": (
                lambda c, r: 1.0 if r >= c else math.exp(1 - c / r)
            ),
            "a long candidate gets more than 1: the penalty is at most 1": (
                lambda c, r: math.exp(1 - r / c)
            ),
            "this is the ratio of the lengths: BLEU has exp(1 - reference / candidate)": (
                lambda c, r: min(1.0, c / r)
            ),
        },
        "1 if the candidate is not shorter, exp(1 - reference / candidate) otherwise",
    )


def ngrams(words, n):
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


@exercise
def clipped_precision(answer):
    """candidate, reference (lists of words), n -> BLEU's modified n-gram precision."""
    the = ["the"] * 5 + ["cat"]
    cat = "the cat sat on the mat".split()
    cases = [(the, cat, 1), ("the cat on the red mat".split(), cat, 2), (cat[:4], cat, 1)]

    def common(a, b, n):
        return sum((ngrams(a, n) & ngrams(b, n)).values())

    compare_cases(
        answer,
        cases,
        lambda a, b, n: common(a, b, n) / (len(a) - n + 1),
        {
            "a word counts as often as the candidate repeats it: count it at most as often as the "
            "reference has it": lambda a, b, n: (
                sum(c for g, c in ngrams(a, n).items() if g in ngrams(b, n)) / (len(a) - n + 1)
            ),
            "divided by the n-grams of the reference: this is recall, not precision": (
                lambda a, b, n: common(a, b, n) / (len(b) - n + 1)
            ),
            "repeated n-grams are counted once: count them with their number": lambda a, b, n: (
                len(set(ngrams(a, n)) & set(ngrams(b, n))) / len(ngrams(a, n))
            ),
        },
        "clip the count of each n-gram to the reference's, sum, divide by the candidate's n-grams",
    )


@exercise
def beam_step(answer):
    """``scores`` (N,), ``log_probs`` (N, V) -> (row, token) of the N best continuations (N, 2)."""
    scores = np.array([-0.5, -2.0, -0.7], "float32")
    probabilities = np.array(
        [[0.4, 0.3, 0.2, 0.1], [0.9, 0.04, 0.03, 0.03], [0.1, 0.6, 0.1, 0.2]], "float32"
    )
    logs = np.log(probabilities)

    def best(total):
        order = np.argsort(-total, axis=None)[:3]
        return np.stack(np.unravel_index(order, total.shape), -1)

    compare(
        answer(scores, logs),
        best(scores[:, None] + logs),
        {
            "the scores of the rows are missing: a continuation's score is the row's plus its "
            "token's": best(logs),
            "the best token of each row: the N best may all continue the same row": (
                np.stack([np.arange(3), logs.argmax(1)], -1)
            ),
            "the N worst: higher log-probabilities are better": best(-(scores[:, None] + logs)),
            "probabilities are multiplied, so it is their logarithms that are added": (
                best(np.exp(scores)[:, None] + probabilities)
            ),
        },
        "add the scores to the log-probabilities, and take the N largest of all N V, best first",
    )


# Part IV: families and applications


@exercise
def top_p(answer):
    """``probabilities`` (V,), p -> a mask (V,): the smallest set of top tokens that sums to p."""
    probabilities, p = np.array([0.08, 0.4, 0.12, 0.25, 0.15], "float32"), 0.55

    def keep(values, test):
        order = np.argsort(-values)
        kept = np.zeros(values.shape, bool)
        kept[order] = test(np.cumsum(values[order]), values[order])
        return kept

    compare(
        answer(probabilities, p),
        keep(probabilities, lambda total, own: total - own < p),
        {
            "one token too few: the set should sum to at least p": (
                keep(probabilities, lambda total, own: total <= p)
            ),
            "p is compared with single probabilities: compare it with their cumulative sum": (
                probabilities >= p
            ),
            "summed from the smallest probability: sort them in descending order": (
                keep(-probabilities, lambda total, own: own - total < p)
            ),
            "the probabilities are not sorted before they are summed": (
                np.cumsum(probabilities) - probabilities < p
            ),
            "the order is not undone: the mask belongs to the sorted probabilities": (
                np.array([True, True, False, False, False])
            ),
        },
        "sort, sum, keep a token if those before it sum to less than p, and undo the order",
    )


@exercise
def bits_per_byte(answer):
    """Loss in nats per token, number of tokens, number of bytes -> bits per byte."""
    compare_cases(
        answer,
        [(2.0, 100, 400), (1.5, 10, 10), (3.0, 50, 230)],
        lambda loss, tokens, size: loss * tokens / (size * math.log(2)),
        {
            "this is in nats: divide by ln 2": lambda loss, tokens, size: loss * tokens / size,
            "this is bits per token: multiply by tokens / bytes": (
                lambda loss, tokens, size: loss / math.log(2)
            ),
            "the ratio is upside down: a byte is a part of a token": (
                lambda loss, tokens, size: loss * size / (tokens * math.log(2))
            ),
            "nats to bits: divide by ln 2, do not multiply": (
                lambda loss, tokens, size: loss * tokens / size * math.log(2)
            ),
        },
        "the loss of the whole text in bits, divided by its bytes",
    )


@exercise
def cache_bytes(answer):
    """Layers L, B, S, heads of keys and values G, K, bytes per number -> bytes of the cache."""
    compare_cases(
        answer,
        [(2, 1, 10, 3, 4, 4), (48, 1, 1024, 25, 64, 2)],
        lambda n, b, s, g, k, size: 2 * n * b * s * g * k * size,
        {
            "keys and values are both kept: twice as much": lambda *sizes: math.prod(sizes),
            "each layer has its own cache": lambda n, b, s, g, k, size: 2 * b * s * g * k * size,
            "the heads are missing": lambda n, b, s, g, k, size: 2 * n * b * s * k * size,
        },
        "each layer keeps keys and values, both (B, S, G, K)",
    )


@exercise
def best_span(answer):
    """``start``, ``end`` (T,) scores, N -> (first, last) of the best span of at most N tokens."""
    start = np.array([-2.0, -1.0, 3.0, 2.0, 0.3, 0.2, 0.0], "float32")
    end = np.array([0.2, 4.0, 0.1, 0.6, 2.0, 0.1, 2.6], "float32")
    first, last = np.arange(7)[:, None], np.arange(7)

    def best(allowed):
        total = np.where(allowed, start[:, None] + end, -np.inf)
        return np.unravel_index(total.argmax(), total.shape)

    compare(
        answer(start, end, 2),
        best((first <= last) & (last - first < 2)),
        {
            "the end is before the start: they cannot be chosen independently": (
                [start.argmax(), end.argmax()]
            ),
            "the span is too long: at most N tokens, first and last included": (
                best(first <= last)
            ),
            "the span has N + 1 tokens: first and last are both included": (
                best((first <= last) & (last - first <= 2))
            ),
            "the end is chosen after the best start: compare the sums of all pairs": (
                [2, 2 + end[2:4].argmax()]
            ),
        },
        "the pair first <= last < first + N with the largest start[first] + end[last]",
    )


@exercise
def rouge_1(answer):
    """candidate, reference (lists of words) -> the F1 of their common words, ROUGE-1."""
    cases = [
        ("the the cat".split(), "the cat sat on the mat".split()),
        ("a b c d".split(), "b d e".split()),
        (["x"], "y z".split()),
    ]

    def common(a, b):
        return sum((ngrams(a, 1) & ngrams(b, 1)).values())

    compare_cases(
        answer,
        cases,
        lambda a, b: 2 * common(a, b) / (len(a) + len(b)),
        {
            "this is the precision: F1 joins it with the recall": (
                lambda a, b: common(a, b) / len(a)
            ),
            "this is the recall: F1 joins it with the precision": (
                lambda a, b: common(a, b) / len(b)
            ),
            "repeated words are counted once: count them with their number": lambda a, b: (
                2 * len(set(a) & set(b)) / (len(set(a)) + len(set(b)))
            ),
        },
        "2 precision recall / (precision + recall), and 0 where no word is common",
    )


@exercise
def patches(answer):
    """``image`` (Y, X, C), P -> its patches (Y / P * X / P, P * P * C), row by row."""
    image, p = normal(4, 6, 2), 2
    squares = image.reshape(2, p, 3, p, 2)
    compare(
        answer(image, p),
        squares.transpose(0, 2, 1, 3, 4).reshape(6, -1),
        {
            "reshaped without a transpose: a row of the result is not a square of the image": (
                image.reshape(6, -1)
            ),
            "column by column: the second patch is to the right of the first": (
                squares.transpose(2, 0, 1, 3, 4).reshape(6, -1)
            ),
            "within a patch, pixels are column by column": (
                squares.transpose(0, 2, 3, 1, 4).reshape(6, -1)
            ),
            "the channels come first: they are the last axis of a pixel": (
                squares.transpose(0, 2, 4, 1, 3).reshape(6, -1)
            ),
        },
        "reshape to (Y / P, P, X / P, P, C), bring the two P together, reshape again",
    )


@exercise
def rollout(answer):
    """``weights`` (L, T, T) of L layers -> their rollout (T, T), with half of each residual."""
    weights = softmax(normal(3, 4, 4))
    first, second, third = (weights + np.eye(4)) / 2
    compare(
        answer(weights),
        third @ second @ first,
        {
            "the order is reversed: the last layer is the leftmost factor": first @ second @ third,
            "the residual connection is missing: use (A + I) / 2": (
                weights[2] @ weights[1] @ weights[0]
            ),
            "a row sums to 8: divide A + I by 2": 8 * third @ second @ first,
            "the layers are averaged: multiply them": (first + second + third) / 3,
        },
        "the product of (A_l + I) / 2 over the layers, the last one leftmost",
    )


@exercise
def distances(answer):
    """``coordinates`` (N, 3) -> the distances (N, N) between all pairs of residues."""
    x = normal(5, 3)
    difference = x[:, None] - x
    compare(
        answer(x),
        np.sqrt((difference**2).sum(-1)),
        {
            "these are squared distances: take the square root": (difference**2).sum(-1),
            "the sum of absolute differences changes when the protein is rotated: use the "
            "Euclidean distance": np.abs(difference).sum(-1),
            "dot products change when the protein is moved: subtract the coordinates": x @ x.T,
        },
        "sqrt(sum over the three axes of (x_i - x_j)^2)",
    )


# Part V: using it


@exercise
def lora(answer):
    """``x`` (T, D), ``w`` (D, K), ``a`` (D, r), ``b`` (r, K), alpha -> x (W + A B alpha / r)."""
    x, w, a, b, alpha = normal(3, 6), normal(6, 4, seed=1), normal(6, 2), normal(2, 4), 6.0
    compare(
        answer(x, w, a, b, alpha),
        x @ (w + a @ b * alpha / 2),
        {
            "alpha is not divided by the rank": x @ (w + a @ b * alpha),
            "alpha is not used": x @ (w + a @ b),
            "the frozen kernel is missing: the adapter is added to it": x @ (a @ b * alpha / 2),
            "alpha scales the frozen kernel too": x @ (w + a @ b) * alpha / 2,
        },
        "x W + x A B alpha / r, where r is the rank",
    )


@exercise
def lora_parameters(answer):
    """D, H, K, r -> the number of parameters of one adapter: A (D, r) and B (r, H, K)."""
    compare_cases(
        answer,
        [(6, 2, 3, 1), (512, 8, 64, 4), (100, 4, 10, 8)],
        lambda d, h, k, r: r * (d + h * k),
        {
            "this is the frozen kernel's": lambda d, h, k, r: d * h * k,
            "A and B are two matrices: add their sizes": lambda d, h, k, r: r * d * h * k,
            "B gives all heads: H K columns, not K": lambda d, h, k, r: r * (d + k),
            "only one of A and B is counted": lambda d, h, k, r: r * d,
        },
        "A has D r numbers, B has r H K",
    )


@exercise
def global_mean(answer):
    """``sums``, ``counts`` (R,) of R replicas' losses and tokens -> the mean loss per token."""
    sums, counts = np.array([30.0, 2.0, 8.0]), np.array([10, 1, 2])
    means = sums / counts
    compare(
        answer(sums, counts),
        sums.sum() / counts.sum(),
        {
            "the mean of the replicas' means: replicas with few tokens count too much": (
                means.mean()
            ),
            "this is the sum of the replicas' means": means.sum(),
            "divided by the number of replicas: divide by the number of tokens": sums.mean(),
        },
        "the sum of all losses, divided by the number of all tokens",
    )
