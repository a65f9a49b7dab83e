"""Each check accepts the solution, knows the stub, and rejects known mistakes with a hint."""

import inspect
import math

import numpy as np
import pytest
from keras import ops

from polyhead.layers import MultiHeadAttention, PositionalEmbedding, Rotary, TransformerBlock
from polyhead.layers.positions import rotate
from polyhead.learn import checks, solutions
from polyhead.training import InverseSquareRoot, SmoothedCrossEntropy

EXERCISES = [name for name, check in vars(checks).items() if hasattr(check, "__wrapped__")]


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def attended(q, k, v, mask=True, scale=0.5, axis=-1):
    scores = np.einsum("thk,shk->hts", q, k) * scale
    return np.einsum("hts,shk->thk", softmax(np.where(mask, scores, -1e9), axis), v)


def masked_after_the_softmax(q, k, v, mask):
    weights = softmax(np.einsum("thk,shk->hts", q, k) / q.shape[-1] ** 0.5) * mask
    return np.einsum("hts,shk->thk", weights, v)


def project(x, w):
    return np.einsum("td,dhk->thk", x, w)


def split_before_projecting(x, wq, wk, wv, wo):
    _, heads, size = wq.shape
    total = 0
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        q, k, v = (x[:, own] @ w[own, h] for w in (wq, wk, wv))
        total = total + softmax(q @ k.T / size**0.5) @ v @ wo[h]
    return total


def scaled_by_the_width(x, wq, wk, wv, wo):
    q, k, v = (project(x, w) for w in (wq, wk, wv))
    return np.einsum("thk,hkd->td", attended(q, k, v, scale=x.shape[-1] ** -0.5), wo)


def concatenated_by_channel(x, wq, wk, wv, wo):
    q, k, v = (project(x, w) for w in (wq, wk, wv))
    heads = attended(q, k, v, scale=q.shape[-1] ** -0.5)
    return heads.transpose(0, 2, 1).reshape(len(x), -1) @ wo.reshape(-1, wo.shape[-1])


def table(positions, dim, exponent=2):
    angle = positions[:, None] / 10000 ** (exponent * np.arange(dim // 2) / dim)
    return np.sin(angle), np.cos(angle)


def interleave(a, b):
    return np.stack([a, b], -1).reshape(*a.shape[:-1], -1)


def standard_rotation(k, dim):
    """[[cos, -sin], [sin, cos]], as for pairs (cos, sin)."""
    return solutions.shift_matrix(k, dim).T


def rotate_neighbours(x, positions):
    rate = 10000.0 ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1])
    angle = positions[:, None, None] * rate
    a, b = x[..., ::2], x[..., 1::2]
    return interleave(a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle))


def rotate_halves_with_repeated_rates(x, positions):
    size = x.shape[-1]
    rate = np.repeat(10000.0 ** (-np.arange(0, size, 2) / size), 2)
    angle = positions[:, None, None] * rate
    turned = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1)
    return x * np.cos(angle) + turned * np.sin(angle)


def norm(x, gamma, beta, epsilon, axis=-1, ddof=0, outside=False):
    mean = x.mean(axis, keepdims=True)
    if outside:
        return (x - mean) / (x.std(axis, keepdims=True, ddof=ddof) + epsilon) * gamma + beta
    return (x - mean) / np.sqrt(x.var(axis, keepdims=True, ddof=ddof) + epsilon) * gamma + beta


def residual_of_the_normalized(x, norm_1, attention, norm_2, feed_forward):
    x = norm_1(x)
    x = x + attention(x)
    x = norm_2(x)
    return x + feed_forward(x)


def post_norm(x, norm_1, attention, norm_2, feed_forward):
    x = norm_1(x + attention(x))
    return norm_2(x + feed_forward(x))


def from_the_input(x, norm_1, attention, norm_2, feed_forward):
    return x + feed_forward(norm_2(x + attention(norm_1(x))))


def label_smoothing(labels, logits, e, others):
    """``others``: the target of all other tokens."""
    targets = np.full(logits.shape, others)
    targets[np.arange(len(labels)), labels] = 1 - e
    return -(targets * np.log(softmax(logits))).sum(-1).mean()


def best_of_each_row(scores, logs):
    return np.stack([np.arange(len(scores)), logs.argmax(1)], -1)


def largest(total):
    order = np.argsort(-total, axis=None)[: len(total)]
    return np.stack(np.unravel_index(order, total.shape), -1)


def nucleus(probabilities, keep):
    order = np.argsort(-probabilities)
    mask = np.zeros(len(order), bool)
    mask[order] = keep(np.cumsum(probabilities[order]))
    return mask


def product(layers):
    total = np.eye(layers.shape[-1])
    for layer in layers:
        total = layer @ total
    return total


def column_by_column(image, p):
    height, width, channels = image.shape
    squares = image.reshape(height // p, p, width // p, p, channels)
    return squares.transpose(2, 0, 1, 3, 4).reshape(-1, p * p * channels)


def rotated_before_it_is_moved(*predicted_and_true):
    local = [
        np.einsum("iba,jb->ija", rotation, x) - origin[:, None]
        for rotation, origin, x in (predicted_and_true[:3], predicted_and_true[3:])
    ]
    return np.minimum(np.linalg.norm(local[0] - local[1], axis=-1), 10).mean() / 10


S = solutions

# Mistakes, each with a word of its hint. Those with a source were made in public code.
MISTAKES = {
    "lookup": [
        (lambda q, k, v, c: softmax(q @ k.T * c, 0) @ v, "over the keys"),
        (lambda q, k, v, c: softmax(q @ k.T) @ v, "sharpness"),
        (lambda q, k, v, c: v[(q @ k.T).argmax(1)], "mean of all values"),
    ],
    "attention": [
        # github.com/karpathy/ng-video-lecture, pull request 6; train-llm-from-scratch, issue 3
        (lambda q, k, v, m: attended(q, k, v, m, 8**-0.5), "sqrt(D)"),
        # github.com/tensorflow/text, issue 894
        (lambda q, k, v, m: attended(q, k, v, ~m), "upside down"),
        (lambda q, k, v, m: attended(q, k, v, m, axis=1), "over the queries"),
        (lambda q, k, v, m: attended(q, k, v, m, 1 / 4), "divided by K"),
        (lambda q, k, v, m: attended(q, k, v, m, 1), "not scaled"),
        (masked_after_the_softmax, "before the softmax"),
    ],
    "dot_variance": [
        # github.com/phlippe/uvadlc_notebooks, issue 56
        (lambda d, m, s, n, t: d * s * t, "square it"),
        (lambda d, m, s, n, t: d * s**2 * t**2, "means of 0"),
        (lambda d, m, s, n, t: d * (s**2 + m**2) * (t**2 + n**2), "subtract"),
    ],
    "softmax_jacobian": [
        (lambda p: np.diag(p * (1 - p)), "denominator"),
        (lambda p: np.outer(p, p) - np.diag(p), "sign"),
        (lambda p: np.diag(p) + np.outer(p, p), "sum to 0"),
    ],
    "sliding_window": [
        (lambda t, w: ~np.array(S.sliding_window(t, w)), "upside down"),
        (lambda t, w: S.sliding_window(t, w + 1), "too many"),
        (lambda t, w: abs(np.arange(t)[:, None] - np.arange(t)) < w, "future"),
        (lambda t, w: np.array(S.sliding_window(t, w)).astype(int), "boolean"),
    ],
    "packed_mask": [
        (lambda x: ~np.array(S.packed_mask(x)), "upside down"),
        (lambda x: x[:, None] == x, "not causal"),
        (lambda x: np.tril(np.ones((len(x), len(x)), bool)), "attends to text 1"),
    ],
    "multi_head": [
        # github.com/MarcoMeter/episodic-transformer-memory-ppo, issue 22
        (split_before_projecting, "before it is projected"),
        # github.com/aladdinpersson/Machine-Learning-Collection, issue 159
        (scaled_by_the_width, "sqrt(D)"),
        (concatenated_by_channel, "order of wo's axes"),
    ],
    "cross_attention": [
        (lambda x, m, *w: S.cross_attention(x, x, *w), "memory is not used"),
        (lambda x, m, *w: S.cross_attention(m, m, *w), "x is not used"),
        (lambda x, m, *w: S.cross_attention(m, x, *w), "swapped"),
    ],
    "weights_bytes": [
        (lambda b, h, t, s, size: b * t * s * size, "each head"),
        (lambda b, h, t, s, size: b * h * (t + s) * size, "T + S"),
        (lambda b, h, t, s, size: b * h * t * s, "bytes of one"),
    ],
    "block_flops": [
        (lambda t, d, f: S.block_flops(t, d, f) // 2, "two operations"),
        (lambda t, d, f: 8 * t * d * d + 4 * t * d * f, "missing"),
        (lambda t, d, f: S.block_flops(t, d, f) - 2 * t * t * d, "only one"),
    ],
    "sinusoids": [
        # github.com/tensorflow/text, issue 1122: the text alternates, the code concatenates
        (lambda p, d: np.concatenate(table(p, d), -1), "alternate"),
        (lambda p, d: interleave(*table(p, d)[::-1]), "swapped"),
        (lambda p, d: interleave(*table(p, d, 1)), "exponent"),
    ],
    "shift_matrix": [
        (standard_rotation, "moves back"),
        (lambda k, d: np.kron(np.eye(d // 2), S.shift_matrix(k, 2)), "same rate"),
        (lambda k, d: S.shift_matrix(1, d), "not by k"),
    ],
    "halves_order": [
        (lambda d: np.argsort(S.halves_order(d)), "inverse"),
        (lambda d: np.roll(S.halves_order(d), d // 2), "cosines come first"),
    ],
    "rotary": [
        # github.com/labmlai/annotated_deep_learning_paper_implementations, issue 256
        (rotate_neighbours, "neighbours (2i, 2i + 1)"),
        (rotate_halves_with_repeated_rates, "tiled"),
        (lambda x, p: S.rotary(x, -p), "other way"),
    ],
    "alibi": [
        (lambda t, h: -S.alibi(t, h), "sign"),
        (lambda t, h: S.alibi(t, h) * 2 ** (8 / h), "slopes start"),
        (lambda t, h: np.repeat(S.alibi(t, h)[:1], h, 0), "same slope"),
    ],
    "layer_norm": [
        # github.com/harvardnlp/annotated-transformer, issues 13 and 92
        (lambda x, g, b, e: norm(x, g, b, e, ddof=1, outside=True), "D - 1"),
        (lambda x, g, b, e: norm(x, g, b, e, ddof=1), "D - 1"),
        (lambda x, g, b, e: norm(x, g, b, e, outside=True), "standard deviation"),
        (lambda x, g, b, e: norm(x, g, b, e, axis=0), "batch"),
    ],
    "layer_norm_gradient": [
        (lambda x, g: g / x.std(-1, keepdims=True), "constants"),
        (
            lambda x, g: (g - g.mean(-1, keepdims=True)) / x.std(-1, keepdims=True),
            "standard deviation depends",
        ),
        (lambda x, g: np.array(S.layer_norm_gradient(x, g)) * x.std(-1, keepdims=True), "divide"),
    ],
    "pre_norm_block": [
        # github.com/pytorch/pytorch, issue 61165
        (residual_of_the_normalized, "added to the normalized x"),
        (post_norm, "post-norm"),
        (from_the_input, "block's input"),
    ],
    "block_parameters": [
        (lambda d, f, c: S.block_parameters(d, f, c) - 4 * (1 + c) * d, "biases"),
        (lambda d, f, c: S.block_parameters(d, f, c) - (2 + c) * 2 * d, "norms are missing"),
        (lambda d, f, c: S.block_parameters(d, f, False), "second attention"),
    ],
    "smoothed_loss": [
        # github.com/harvardnlp/annotated-transformer, issue 109
        (lambda y, z, e: label_smoothing(y, z, e, e / (z.shape[-1] - 1)), "V - 1"),
        (lambda y, z, e: label_smoothing(y, z, e, e / z.shape[-1]), "sum to 1"),
        (lambda y, z, e: S.smoothed_loss(y, z, 0.0), "not used"),
    ],
    "warmup_rate": [
        (lambda s, d, w: d**-0.5 * max(s**-0.5, s * w**-1.5), "larger"),
        (lambda s, d, w: min(s**-0.5, s * w**-1.5), "missing"),
    ],
    "brevity_penalty": [
        (lambda c, r: S.brevity_penalty(r, c), "swapped"),
        (lambda c, r: math.exp(1 - r / c), "at most 1"),
        (lambda c, r: min(1, c / r), "ratio"),
    ],
    "clipped_precision": [
        (lambda a, b, n: sum(w in b for w in a) / len(a) if n == 1 else 0.4, "as often"),
        (lambda a, b, n: S.clipped_precision(b, a, n), "recall"),
    ],
    "beam_step": [
        (best_of_each_row, "best token of each row"),
        (lambda scores, logs: largest(logs), "scores of the rows"),
        (lambda scores, logs: largest(np.exp(scores)[:, None] + np.exp(logs)), "logarithms"),
    ],
    "top_p": [
        (lambda x, p: nucleus(x, lambda total: total <= p), "too few"),
        (lambda x, p: x >= p, "single probabilities"),
        (lambda x, p: np.cumsum(x) - x < p, "not sorted"),
    ],
    "bits_per_byte": [
        (lambda loss, tokens, size: loss * tokens / size, "nats"),
        (lambda loss, tokens, size: loss / math.log(2), "per token"),
    ],
    "cache_bytes": [
        (lambda n, b, s, g, k, size: n * b * s * g * k * size, "twice"),
        (lambda n, b, s, g, k, size: 2 * b * s * g * k * size, "each layer"),
    ],
    "best_span": [
        (lambda a, b, n: [a.argmax(), b.argmax()], "before the start"),
        (lambda a, b, n: S.best_span(a, b, n + 1), "N + 1"),
        (lambda a, b, n: S.best_span(a, b, len(a)), "too long"),
    ],
    "rouge_1": [
        (lambda a, b: S.clipped_precision(a, b, 1), "precision"),
        (lambda a, b: S.clipped_precision(b, a, 1), "recall"),
    ],
    "patches": [
        (lambda x, p: x.reshape(-1, p * p * x.shape[-1]), "without a transpose"),
        (column_by_column, "second patch"),
    ],
    "rollout": [
        (lambda a: product((a[::-1] + np.eye(len(a[0]))) / 2), "reversed"),
        (lambda a: product(a), "residual"),
    ],
    "contact_scores": [
        (lambda a: a + a.T, "APC"),
        (lambda a: a - a.sum(1, keepdims=True) * a.sum(0) / a.sum(), "transpose"),
        (lambda a: np.array(S.contact_scores(a)) / 2, "half"),
    ],
    "triangle_product": [
        (lambda a, b: np.einsum("kic,kjc->ijc", a, b), "incoming"),
        (lambda a, b: np.einsum("ikc,kjc->ijc", a, b), "product of matrices"),
        (lambda a, b: np.einsum("ikc,jkd->ijc", a, b), "channels"),
    ],
    "fape": [
        (lambda r, t, *x: S.fape(r.swapaxes(1, 2), t, x[0], x[1].swapaxes(1, 2), *x[2:]), "invert"),
        (lambda *x: 10 * np.array(S.fape(*x)), "divide by 10"),
        (rotated_before_it_is_moved, "after the rotation"),
    ],
    "lora": [
        (lambda x, w, a, b, alpha: x @ (w + a @ b * alpha), "divided by the rank"),
        (lambda x, w, a, b, alpha: x @ a @ b * alpha / 2, "frozen kernel is missing"),
    ],
    "lora_parameters": [
        (lambda d, h, k, r: d * r * h * k, "two matrices"),
        (lambda d, h, k, r: r * (d + k), "all heads"),
    ],
    "global_mean": [
        # the mean of means, as data-parallel training with a plain all-reduce has it
        (lambda sums, counts: (sums / counts).mean(), "replicas' means"),
        (lambda sums, counts: sums.mean(), "number of replicas"),
    ],
}


def test_every_exercise_has_a_solution_and_two_mistakes():
    functions = {k for k, f in inspect.getmembers(solutions, inspect.isfunction)}
    assert functions == set(EXERCISES) == set(MISTAKES)
    assert len(EXERCISES) >= 22 and all(len(found) >= 2 for found in MISTAKES.values())


@pytest.mark.parametrize("name", EXERCISES)
def test_a_check_accepts_the_solution_and_knows_the_stub(name):
    check = getattr(checks, name)
    assert check(getattr(solutions, name)) == checks.RIGHT
    assert check(lambda *inputs: None) == checks.NOT_DONE
    assert check(lambda *inputs: ...) == checks.NOT_DONE


@pytest.mark.parametrize("name", EXERCISES)
def test_a_check_rejects_mistakes_with_a_hint(name):
    for mistake, hint in MISTAKES[name]:
        message = getattr(checks, name)(mistake)
        assert message not in (checks.RIGHT, checks.NOT_DONE) and hint in message, (hint, message)


@pytest.mark.parametrize("name", EXERCISES)
def test_a_check_explains_results_that_it_does_not_know(name):
    check = getattr(checks, name)
    assert "raises ZeroDivisionError" in check(lambda *inputs: 1 / 0)
    assert check(lambda *inputs: np.full((1, 2, 3), 0.123)) not in (checks.RIGHT, checks.NOT_DONE)
    assert "array or a number" in check(lambda *inputs: object())


def test_inputs_of_a_check_are_copies():
    def spoil(x, w, a, b, alpha):
        a *= 0
        return solutions.lora(x, w, a, b, alpha)

    assert checks.lora(spoil) != checks.RIGHT and checks.lora(solutions.lora) == checks.RIGHT


# The solutions are what the library computes.


def array(x):
    return ops.convert_to_numpy(x)


def test_solutions_equal_the_library_s_attention():
    x, memory = np.random.normal(size=(2, 1, 5, 6)).astype("float32")
    layer = MultiHeadAttention(2, use_bias=False)
    maps = layer.build(x.shape) or [layer.query, layer.key, layer.value, layer.output_projection]
    kernels = [array(part.kernel) for part in maps]
    np.testing.assert_allclose(
        array(solutions.multi_head(x[0], *kernels)), array(layer(x))[0], atol=1e-5
    )
    np.testing.assert_allclose(
        array(solutions.cross_attention(x[0], memory[0], *kernels)),
        array(layer(x, memory))[0],
        atol=1e-5,
    )


def test_solutions_equal_the_library_s_positions():
    positions = np.arange(7)
    want = array(PositionalEmbedding()(np.zeros((1, 7, 8), "float32")))[0]
    np.testing.assert_allclose(array(solutions.sinusoids(positions, 8)), want, atol=1e-5)
    halves = PositionalEmbedding(interleaved=False)(np.zeros((1, 7, 8), "float32"))
    np.testing.assert_allclose(want[:, solutions.halves_order(8)], array(halves)[0], atol=1e-6)
    np.testing.assert_allclose(want[:-2] @ solutions.shift_matrix(2, 8).T, want[2:], atol=1e-5)
    x = np.random.normal(size=(1, 7, 2, 8)).astype("float32")
    want = array(rotate(x, Rotary(8)(positions)))[0]
    np.testing.assert_allclose(array(solutions.rotary(x[0], positions)), want, atol=1e-5)


def test_solutions_equal_the_library_s_counts_loss_and_schedule():
    for cross in (False, True):
        block = TransformerBlock(4, 32, cross=cross)
        block.build((None, None, 16), (None, None, 16) if cross else None)
        assert block.count_params() == solutions.block_parameters(16, 32, cross)
    labels, logits = np.array([1, 0, 3]), np.random.normal(size=(3, 5)).astype("float32")
    loss = SmoothedCrossEntropy(0.2)(labels[None], logits[None])
    assert float(loss) == pytest.approx(float(solutions.smoothed_loss(labels, logits, 0.2)), 1e-5)
    schedule = InverseSquareRoot.of_width(64, 50)
    for step in (1, 49, 50, 200):  # Keras counts steps from 0
        want = solutions.warmup_rate(step, 64, 50)
        assert float(schedule(step - 1)) == pytest.approx(want, rel=1e-5)


def test_solutions_equal_the_library_s_proteins():
    from polyhead.training import fape

    def frames(seed):
        rng = np.random.default_rng(seed)
        rotation = np.linalg.qr(rng.normal(size=(5, 3, 3)))[0]
        return rotation, *rng.normal(0, 8, size=(2, 5, 3))

    (r, t, x), (true_r, true_t, true_x) = (
        [part.astype("float32") for part in frames(seed)] for seed in (0, 1)
    )
    mask = np.ones(5, bool)
    want = fape((r, t), x, (true_r, true_t), true_x, mask, mask, epsilon=0.0)
    assert float(solutions.fape(r, t, x, true_r, true_t, true_x)) == pytest.approx(
        float(want), 1e-5
    )
