"""Checks of the exercises on the Transformer (part III)."""

import math

import numpy as np

from .exercise import compare, compare_cases, exercise, ngrams, normal, softmax


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
