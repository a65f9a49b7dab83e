"""Checks of the exercises on families and applications (part IV)."""

import math

import numpy as np

from .exercise import compare, compare_cases, exercise, ngrams, normal, softmax


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
def contact_scores(answer):
    """``weights`` (N, N) of attention -> scores of contacts (N, N): symmetric, with APC."""
    weights = softmax(2 * normal(5, 5))

    def corrected(x):
        return x - x.sum(1, keepdims=True) * x.sum(0, keepdims=True) / x.sum()

    both = weights + weights.T
    rows, columns = both.sum(1, keepdims=True), both.sum(0, keepdims=True)
    compare(
        answer(weights),
        corrected(both),
        {
            "it is not symmetric: add the transpose first": corrected(weights),
            "the correction (APC) is missing": both,
            "it is not corrected: subtract the product of the sums of row and column, divided by "
            "the sum of all": both - rows * columns,
            "means instead of sums: the product of the means of row and column is divided by the "
            "mean of all, and not by the sum": (both - rows * columns / 25 / both.sum()),
            "the sum of the whole matrix is that of the attention before it was made symmetric": (
                both - rows * columns / weights.sum()
            ),
            "half of it: F is the sum of the matrix and its transpose": corrected(both / 2),
        },
        "F = A + A^T, minus (sum of row i) (sum of column j) / (sum of all)",
    )


@exercise
def triangle_product(answer):
    """``a``, ``b`` (N, N, C) -> the sums over the triangles of each pair (N, N, C), outgoing."""
    a, b = normal(2, 4, 4, 3)
    compare(
        answer(a, b),
        np.einsum("ikc,jkc->ijc", a, b),
        {
            "these are incoming edges, (k, i) and (k, j): outgoing ones begin at i and at j": (
                np.einsum("kic,kjc->ijc", a, b)
            ),
            "a product of matrices, (i, k) and (k, j): the second side is (j, k)": (
                np.einsum("ikc,kjc->ijc", a, b)
            ),
            "i and j are exchanged: the side from i is that of a": (
                np.einsum("ikc,jkc->jic", a, b)
            ),
            "the channels are summed: each one has its own sum over k": (
                np.einsum("ikc,jkd->ijc", a, b)
            ),
            "it is the mean over k: take the sum": np.einsum("ikc,jkc->ijc", a, b) / 4,
        },
        "x[i, j, c] = sum over k of a[i, k, c] b[j, k, c]",
    )


@exercise
def fape(answer):
    """Frames (N, 3, 3) and (N, 3) and points (N, 3), predicted and true -> the FAPE, a number."""

    def frames(seed):
        rotation = np.linalg.qr(normal(5, 3, 3, seed=seed))[0]
        rotation = rotation * np.linalg.det(rotation)[:, None, None]
        return rotation, normal(5, 3, seed=seed + 1), 6 * normal(5, 3, seed=seed + 2)

    def places(rotation, origin, x):
        return np.einsum("iba,ijb->ija", rotation, x - origin[:, None])

    def error(change=lambda d: np.minimum(d, 10), places=places):
        apart = places(*frames(0)) - places(*frames(3))
        return change(np.sqrt((apart**2).sum(-1))).mean() / 10

    compare(
        answer(*frames(0), *frames(3)),
        error(),
        {
            "errors are not limited to 10 angstroms": error(lambda d: d),
            "in angstroms: divide by 10": 10 * error(),
            "the rotation is not inverted: multiply by its transpose": (
                error(places=lambda r, t, x: np.einsum("iab,ijb->ija", r, x - t[:, None]))
            ),
            "the origin is subtracted after the rotation: subtract it first": (
                error(places=lambda r, t, x: np.einsum("iba,jb->ija", r, x) - t[:, None])
            ),
            "the mean of squares: take the root of each error": (
                error(lambda d: np.minimum(d**2, 100))
            ),
            "each point is seen from its own frame only: compare all pairs of frame and point": (
                error(lambda d: np.minimum(np.diagonal(d), 10))
            ),
        },
        "the mean over all frames i and points j of min(|R_i^T (x_j - t_i) - ...|, 10) / 10",
    )
