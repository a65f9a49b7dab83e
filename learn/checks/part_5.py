"""Checks of the exercises on using models (part V)."""

import numpy as np

from .exercise import compare, compare_cases, exercise, normal


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
