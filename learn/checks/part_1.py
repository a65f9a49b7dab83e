"""Checks of the exercises on attention (part I)."""

import math

import numpy as np

from .exercise import compare, compare_cases, exercise, normal, softmax

MASKED = -1e9


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
