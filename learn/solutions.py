"""Solutions of the exercises. Try each exercise first: `checks` gives hints.

B batch, T and S lengths, D width, H heads, K head size, V vocabulary, as in the library.
"""

import collections
import math

import numpy as np
from keras import ops

# Part I: attention


def lookup(query, keys, values, sharpness):
    scores = sharpness * ops.einsum("tk,sk->ts", query, keys)
    return ops.softmax(scores, axis=-1) @ values


def attention(q, k, v, mask):
    scores = ops.einsum("thk,shk->hts", q, k) / q.shape[-1] ** 0.5
    weights = ops.softmax(ops.where(mask, scores, -1e9), axis=-1)
    return ops.einsum("hts,shk->thk", weights, v)


def dot_variance(dim, mean_q, std_q, mean_k, std_k):
    # Var(q k) = E[q^2] E[k^2] - E[q]^2 E[k]^2, and the K products are independent.
    one = (mean_q**2 + std_q**2) * (mean_k**2 + std_k**2) - mean_q**2 * mean_k**2
    return dim * one


def softmax_jacobian(p):
    return ops.diag(p) - ops.outer(p, p)


def sliding_window(length, window):
    query, key = ops.arange(length)[:, None], ops.arange(length)
    return ops.logical_and(key <= query, key > query - window)


def packed_mask(texts):
    position = ops.arange(len(texts))
    same = ops.equal(texts[:, None], texts[None, :])
    return ops.logical_and(same, position[None, :] <= position[:, None])


def multi_head(x, wq, wk, wv, wo):
    return cross_attention(x, x, wq, wk, wv, wo)


def cross_attention(x, memory, wq, wk, wv, wo):
    q = ops.einsum("td,dhk->thk", x, wq)
    k = ops.einsum("sd,dhk->shk", memory, wk)
    v = ops.einsum("sd,dhk->shk", memory, wv)
    scores = ops.einsum("thk,shk->hts", q, k) / q.shape[-1] ** 0.5
    heads = ops.einsum("hts,shk->thk", ops.softmax(scores, axis=-1), v)
    return ops.einsum("thk,hkd->td", heads, wo)


def weights_bytes(batch, heads, length, source_length, size):
    return batch * heads * length * source_length * size


def block_flops(length, dim, intermediate_dim):
    projections = 4 * 2 * length * dim * dim
    scores_and_values = 2 * 2 * length * length * dim
    return projections + scores_and_values + 2 * 2 * length * dim * intermediate_dim


# Part II: positions, block, gradients


def sinusoids(positions, dim):
    rate = 10000.0 ** (-np.arange(0, dim, 2) / dim)
    angle = positions[:, None] * rate
    waves = ops.stack([ops.sin(angle), ops.cos(angle)], axis=-1)
    return ops.reshape(waves, (len(positions), dim))


def shift_matrix(k, dim):
    matrix = np.zeros((dim, dim))
    for i in range(0, dim, 2):
        angle = k / 10000 ** (i / dim)
        cosine, sine = math.cos(angle), math.sin(angle)
        matrix[i : i + 2, i : i + 2] = [[cosine, sine], [-sine, cosine]]
    return matrix


def halves_order(dim):
    return np.concatenate([np.arange(0, dim, 2), np.arange(1, dim, 2)])


def rotary(x, positions):
    half = x.shape[-1] // 2
    rate = 10000.0 ** (-np.arange(half) / half)
    angle = positions[:, None, None] * rate
    cosine, sine = np.cos(angle), np.sin(angle)
    first, second = x[..., :half], x[..., half:]
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return ops.concatenate(rotated, axis=-1)


def alibi(length, num_heads):
    slope = 2.0 ** (-8 * np.arange(1, num_heads + 1) / num_heads)
    distance = np.arange(length)[:, None] - np.arange(length)
    return -slope[:, None, None] * distance


def layer_norm(x, gamma, beta, epsilon):
    mean = ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return (x - mean) / ops.sqrt(variance + epsilon) * gamma + beta


def layer_norm_gradient(x, gradient):
    mean = ops.mean(x, axis=-1, keepdims=True)
    deviation = ops.sqrt(ops.mean((x - mean) ** 2, axis=-1, keepdims=True))
    x_hat = (x - mean) / deviation
    along = ops.mean(gradient * x_hat, axis=-1, keepdims=True)
    return (gradient - ops.mean(gradient, axis=-1, keepdims=True) - x_hat * along) / deviation


def pre_norm_block(x, norm_1, attention, norm_2, feed_forward):
    x = x + attention(norm_1(x))
    return x + feed_forward(norm_2(x))


# Part III: the Transformer


def block_parameters(dim, intermediate_dim, cross):
    attention = 4 * (dim * dim + dim)
    feed_forward = 2 * dim * intermediate_dim + intermediate_dim + dim
    norm = 2 * dim
    return attention + feed_forward + 2 * norm + (attention + norm if cross else 0)


def smoothed_loss(labels, logits, smoothing):
    log_probs = ops.log_softmax(logits, axis=-1)
    chosen = ops.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    uniform = ops.mean(log_probs, axis=-1)
    return -ops.mean((1 - smoothing) * chosen + smoothing * uniform)


def warmup_rate(step, dim, warmup):
    return dim**-0.5 * min(step**-0.5, step * warmup**-1.5)


def brevity_penalty(candidate_length, reference_length):
    return math.exp(min(0.0, 1 - reference_length / candidate_length))


def clipped_precision(candidate, reference, n):
    def count(words):
        grams = (tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        return collections.Counter(grams)

    clipped = count(candidate) & count(reference)  # the smaller of both counts
    return sum(clipped.values()) / (len(candidate) - n + 1)


def beam_step(scores, log_probs):
    total = ops.reshape(scores[:, None] + log_probs, (-1,))
    best = ops.top_k(total, len(scores))[1]
    return ops.stack([best // log_probs.shape[1], best % log_probs.shape[1]], axis=-1)


# Part IV: families and applications


def top_p(probabilities, p):
    order = np.argsort(-probabilities)
    top = probabilities[order]
    mask = np.zeros(len(order), bool)
    mask[order] = np.cumsum(top) - top < p  # the sum of those before it
    return mask


def bits_per_byte(loss, tokens, size):
    return loss / math.log(2) * tokens / size


def cache_bytes(layers, batch, length, kv_heads, head_dim, size):
    return 2 * layers * batch * length * kv_heads * head_dim * size


def best_span(start, end, max_tokens):
    first, last = np.arange(len(start))[:, None], np.arange(len(end))
    allowed = (first <= last) & (last < first + max_tokens)
    total = np.where(allowed, start[:, None] + end, -np.inf)
    return divmod(int(np.argmax(total)), len(end))


def rouge_1(candidate, reference):
    common = collections.Counter(candidate) & collections.Counter(reference)
    return 2 * sum(common.values()) / (len(candidate) + len(reference))


def patches(image, size):
    height, width, channels = image.shape
    squares = ops.reshape(image, (height // size, size, width // size, size, channels))
    return ops.reshape(ops.transpose(squares, (0, 2, 1, 3, 4)), (-1, size * size * channels))


def rollout(weights):
    total = ops.eye(weights.shape[-1])
    for layer in weights:
        total = (layer + ops.eye(weights.shape[-1])) / 2 @ total
    return total


def contact_scores(weights):
    both = weights + ops.transpose(weights)
    rows, columns = ops.sum(both, axis=1, keepdims=True), ops.sum(both, axis=0, keepdims=True)
    return both - rows * columns / ops.sum(both)


def triangle_product(a, b):
    return ops.einsum("ikc,jkc->ijc", a, b)


def fape(rotation, origin, x, true_rotation, true_origin, true_x):
    def places(rotation, origin, x):
        return ops.einsum("iba,ijb->ija", rotation, x[None] - origin[:, None])  # R^T (x - t)

    apart = places(rotation, origin, x) - places(true_rotation, true_origin, true_x)
    errors = ops.sqrt(ops.sum(apart**2, axis=-1))
    return ops.mean(ops.minimum(errors, 10.0)) / 10


# Part V: using it


def lora(x, w, a, b, alpha):
    return x @ w + (x @ a) @ b * (alpha / a.shape[1])


def lora_parameters(dim, num_heads, head_dim, rank):
    return rank * (dim + num_heads * head_dim)


def global_mean(sums, counts):
    return sum(sums) / sum(counts)
