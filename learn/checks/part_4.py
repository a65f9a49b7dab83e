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
