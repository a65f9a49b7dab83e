"""The equations of learn/transformers.tex, asserted against the library.

Each test names the equations that it asserts by their labels. The text names the test in its margin
by ``\\tested{...}`` after the label. The last tests here keep both in step.
"""

import itertools
import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from polyhead import ESM, GPT, GPTConfig, ViT, ViTConfig
from polyhead.data import Characters, WordPieces, masked_batches
from polyhead.layers import (
    InvariantPointAttention,
    KeyValueCache,
    MultiHeadAttention,
    PatchEmbedding,
    PositionalEmbedding,
    RMSNorm,
    Rotary,
    TransformerBlock,
    TriangleMultiplication,
    attend,
    attention_weights,
)
from polyhead.layers.frames import apply, compose, from_points, from_quaternion, invert_apply
from polyhead.learn import show
from polyhead.training import InverseSquareRoot, SmoothedCrossEntropy, bleu, fape
from polyhead.training.global_loss import GlobalLoss, share
from polyhead.zoo.decoding import Sampling, Search
from polyhead.zoo.decoding.sampling import filter_logits

TEXT = Path(__file__).parents[2] / "learn" / "transformers.tex"
EQUATIONS = {}  # label -> the test that asserts it

B, T, S, D, H, K = 2, 5, 7, 12, 3, 4


def equation(label):
    def mark(test):
        assert label not in EQUATIONS, label
        EQUATIONS[label] = test.__name__
        return test

    return mark


def array(x):
    return ops.convert_to_numpy(x)


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def randomize(layer):
    """Gives all weights random values, also biases and those of norms."""
    for i, v in enumerate(layer.weights):
        v.assign(random_array(*v.shape, seed=100 + i) / 2)
    return layer


def attention(**options):
    layer = MultiHeadAttention(H, **options)
    layer.build((B, T, D), (B, S, D))
    return randomize(layer)


def kernels(layer):
    """W^Q, W^K, W^V, each (H, D, K), and W^O (H, K, D)."""
    maps = layer.query, layer.key, layer.value
    return [np.moveaxis(array(m.kernel), 1, 0) for m in maps] + [
        array(layer.output_projection.kernel)
    ]


def head(*arrays):
    """Arrays (T, K) of one head of one sequence -> (1, T, 1, K)."""
    return [np.asarray(x, "float32")[None, :, None, :] for x in arrays]


def gradients(function, *inputs):
    """The result of ``function``, and the gradients of its sum by variables and arrays."""
    inputs = [x if isinstance(x, tf.Tensor) else ops.convert_to_tensor(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(function(*inputs))
    return [array(g) for g in tape.gradient(loss, inputs)]


def jacobian(function, x):
    """d function(x) / d x, both as vectors."""
    x = tf.constant(x)
    return show.jacobian(function, x).reshape(-1, tf.size(x))


def close(x, y, atol=2e-5):
    np.testing.assert_allclose(array(x), array(y), rtol=1e-4, atol=atol)


# 1. Notation and one rule


@equation("eq:product")
def test_gradient_of_a_product():
    layer, x, upstream = attention(), random_array(B, T, D), random_array(B, T, D, seed=1)
    heads = attend(layer.query(x), layer.key(x), layer.value(x))
    output = layer.output_projection
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) * upstream)
    of_kernel = tape.gradient(loss, output.kernel.value)
    (of_heads,) = gradients(lambda heads: output(heads) * upstream, heads)
    a, b, y = array(heads).reshape(B, T, D), array(output.kernel).reshape(D, D), upstream
    close(of_heads, (y @ b.T).reshape(B, T, H, K))
    close(of_kernel, sum(a[i].T @ y[i] for i in range(B)).reshape(H, K, D))


# 2. Attention


@equation("eq:attention")
def test_attention():
    layer, x, memory = attention(), random_array(B, T, D), random_array(B, S, D, seed=1)
    wq, wk, wv, wo = kernels(layer)
    bq, bk, bv = (array(m.bias) for m in (layer.query, layer.key, layer.value))
    expected = np.zeros((B, T, D)) + array(layer.output_projection.bias)
    for b, h in itertools.product(range(B), range(H)):
        q, k, v = x[b] @ wq[h] + bq[h], memory[b] @ wk[h] + bk[h], memory[b] @ wv[h] + bv[h]
        weights = softmax(q @ k.T / math.sqrt(K))
        close(layer.attention_weights(x, memory)[b, h], weights)
        expected[b] += weights @ v @ wo[h]
    close(layer(x, memory), expected)


@equation("eq:smoother")
def test_kernel_smoother():
    q, k, v = random_array(1, K), random_array(S, K, seed=1), random_array(S, K, seed=2)
    kernel = np.exp(-((q - k) ** 2).sum(1) / (2 * math.sqrt(K)))
    weight = np.exp((k**2).sum(1) / (2 * math.sqrt(K))) * kernel
    close(attend(*head(q, k, v))[0, 0, 0], weight @ v / weight.sum())
    k /= np.linalg.norm(k, axis=1, keepdims=True)
    kernel = np.exp(-((q - k) ** 2).sum(1) / (2 * math.sqrt(K)))
    close(attend(*head(q, k, v))[0, 0, 0], kernel @ v / kernel.sum())


@equation("eq:hull")
def test_convex_hull():
    q, k, v = 3 * random_array(T, K), random_array(S, K, seed=1), random_array(S, K, seed=2)
    o, u = array(attend(*head(q, k, v)))[0, :, 0], random_array(K, 9, seed=3)
    assert ((v @ u).min(0) - 1e-5 <= o @ u).all() and (o @ u <= (v @ u).max(0) + 1e-5).all()
    longest = np.linalg.norm(v, axis=1).max()
    assert (np.linalg.norm(o, axis=1) <= longest + 1e-5).all()


def scores(q, k):
    """The layer's scores of one query and one key in each row, both (B, K).

    Beside a second key, zero, whose score is 0, a key has the weight sigmoid(score).
    """
    keys = np.stack([k, np.zeros_like(k)], axis=1)[:, :, None]
    weights = array(attention_weights(q[:, None, None], keys))[:, 0, 0]
    return np.log(weights[:, 0] / weights[:, 1])


@equation("eq:variance")
@pytest.mark.parametrize("size", [4, 64])
def test_variance(size):
    normal = random_array(2, 40000, size)
    z = scores(*normal)
    assert z.var() == pytest.approx(1, rel=0.04)
    (mean_q, sd_q), (mean_k, sd_k) = (0.2, 0.7), (-0.4, 0.9)
    z = scores(mean_q + sd_q * normal[0], mean_k + sd_k * normal[1])
    expected = sd_q**2 * sd_k**2 + sd_q**2 * mean_k**2 + mean_q**2 * sd_k**2
    assert z.var() == pytest.approx(expected, rel=0.04)
    assert z.mean() == pytest.approx(math.sqrt(size) * mean_q * mean_k, abs=0.02)


def biased_softmax(z):
    """The layer's softmax of the scores ``z`` (S,), given as a bias."""
    zero = np.zeros((1, 1, 1, K), "float32"), np.zeros((1, z.shape[0], 1, K), "float32")
    return attention_weights(*zero, bias=z[None, None, None])[0, 0, 0]


@equation("eq:jacobian")
def test_jacobian():
    z, x = random_array(S), random_array(S, seed=1)
    p, j = array(biased_softmax(z)), jacobian(biased_softmax, z)
    close(j, np.diag(p) - np.outer(p, p), 1e-6)
    close(j @ np.ones(S), np.zeros(S), 1e-6)
    close(x @ j @ x, p @ x**2 - (p @ x) ** 2, 1e-6)


@equation("eq:jacobian-norm")
def test_jacobian_norm():
    for scale in (0.1, 1, 3, 10):
        z = scale * random_array(S)
        p, j = array(biased_softmax(z)), jacobian(biased_softmax, z)
        assert np.linalg.norm(j, 2) <= min(0.5, 1 - p @ p) + 1e-6
    equal = jacobian(biased_softmax, np.zeros(2, "float32"))
    assert np.linalg.norm(equal, 2) == pytest.approx(0.5)


@equation("eq:mask")
def test_mask():
    layer, x, memory = attention(), random_array(B, T, D), random_array(B, S, D, seed=1)
    mask = np.random.default_rng(2).random((B, H, T, S)) < 0.5
    mask[:, :, 0] = False
    mask[:, :, 1:, 0] = True
    free, masked = (array(layer.attention_weights(x, memory, mask=m)) for m in (None, mask))
    allowed = free * mask
    close(masked[:, :, 1:], (allowed / np.maximum(allowed.sum(-1, keepdims=True), 1e-9))[:, :, 1:])
    assert masked[:, :, 1:][~mask[:, :, 1:]].max() == 0
    close(masked[:, :, 0], np.full((B, H, S), 1 / S))


# 3. The backward pass


def backward():
    """One head's arrays, the weights, and the gradients through `attend`, by name."""
    given = random_array(T, K), random_array(S, K, seed=1), random_array(S, K, seed=2)
    upstream = random_array(T, K, seed=3)
    zero, weights = np.zeros((1, 1, T, S), "float32"), []

    def output(q, k, v, on_scores, on_weights):
        def add(a):  # what is added to the weights has their gradient
            weights.append(a)
            return a + on_weights

        return attend(q, k, v, bias=on_scores, dropout=add) * upstream[None, :, None]

    q, k, v, z, a = gradients(output, *head(*given), zero, zero)
    of = dict(q=q[0, :, 0], k=k[0, :, 0], v=v[0, :, 0], z=z[0, 0], a=a[0, 0], o=upstream)
    return *given, array(weights[0])[0, 0], of


@equation("eq:back-av")
def test_backward_values():
    _, _, v, a, of = backward()
    close(of["a"], of["o"] @ v.T)
    close(of["v"], a.T @ of["o"])


@equation("eq:back-z")
def test_backward_scores():
    _, _, v, a, of = backward()
    delta = (a * of["a"]).sum(1)
    close(delta, (a @ v * of["o"]).sum(1))
    close(of["z"], a * (of["a"] - delta[:, None]))


@equation("eq:back-qk")
def test_backward_queries_and_keys():
    q, k, _, _, of = backward()
    close(of["q"], of["z"] @ k / math.sqrt(K))
    close(of["k"], of["z"].T @ q / math.sqrt(K))


def head_gradients(layer, x, upstream):
    """The gradients of each head's output, queries, keys and values, (B, T, H, K)."""
    of_heads = np.einsum("btd,hkd->bthk", upstream, array(layer.output_projection.kernel))
    inner = layer.query(x), layer.key(x), layer.value(x)
    return of_heads, *gradients(lambda q, k, v: attend(q, k, v) * of_heads, *inner)


@equation("eq:back-weights")
def test_backward_weights():
    layer, x, upstream = attention(), random_array(B, T, D), random_array(B, T, D, seed=1)
    maps = layer.query, layer.key, layer.value
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        loss = tf.reduce_sum(layer(tensor) * upstream)
    *of_kernels, of_x = tape.gradient(loss, [*(m.kernel.value for m in maps), tensor])
    _, *inner = head_gradients(layer, x, upstream)
    for of_kernel, of_head in zip(of_kernels, inner, strict=True):
        for h in range(H):
            close(array(of_kernel)[:, h], sum(x[b].T @ of_head[b, :, h] for b in range(B)))
    by_head = (
        g[:, :, h] @ w[h].T
        for g, w in zip(inner, kernels(layer)[:3], strict=True)
        for h in range(H)
    )
    close(of_x, sum(by_head))


@equation("eq:biases")
def test_biases():
    layer, x, upstream = attention(), random_array(B, T, D), random_array(B, T, D, seed=1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) * upstream)
    of_key, of_value = tape.gradient(loss, [layer.key.bias.value, layer.value.bias.value])
    close(of_key, np.zeros((H, K)))
    close(of_value, head_gradients(layer, x, upstream)[0].sum((0, 1)))


@equation("eq:covariance")
def test_covariance():
    q, k, v = random_array(1, K), random_array(S, K, seed=1), random_array(S, K, seed=2)
    _, keys, values = head(q, k, v)
    derivative = jacobian(lambda q: attend(q[None, :, None], keys, values), q)
    p = array(attention_weights(*head(q, k)))[0, 0, 0]
    covariance = np.einsum("s,si,sj->ij", p, v, k) - np.outer(p @ v, p @ k)
    close(derivative, covariance / math.sqrt(K))


@equation("eq:by-hand")
def test_by_hand():
    log3 = math.log(3)
    q, k, v = head([[1], [0]], [[0], [log3]], [[0], [4]])
    zero = np.zeros((1, 1, 2, 2), "float32")
    of_q, of_k, of_v, of_z = gradients(lambda q, k, v, z: attend(q, k, v, bias=z), q, k, v, zero)
    close(attention_weights(q, k)[0, 0], [[1 / 4, 3 / 4], [1 / 2, 1 / 2]])
    close(attend(q, k, v).numpy().ravel(), [3, 2])
    close(of_z[0, 0], [[-3 / 4, 3 / 4], [-1, 1]])
    close(of_q.ravel(), [3 / 4 * log3, log3])
    close(of_k.ravel(), [-3 / 4, 3 / 4])
    close(of_v.ravel(), [3 / 4, 5 / 4])


# 4. Symmetries


@equation("eq:equivariance")
def test_equivariance():
    layer, x, memory = attention(), random_array(B, T, D), random_array(B, S, D, seed=1)
    order, other = np.array([3, 1, 0, 4, 2]), np.array([6, 2, 3, 0, 1, 5, 4])
    close(layer(x[:, order]), array(layer(x))[:, order])
    close(layer(x[:, order], memory), array(layer(x, memory))[:, order])
    close(layer(x, memory[:, other]), layer(x, memory))
    positions = PositionalEmbedding()  # with positions, order matters
    there, back = layer(positions(x[:, order])), array(layer(positions(x)))[:, order]
    assert np.abs(array(there) - back).max() > 0.01


@equation("eq:causal")
def test_causal():
    blocks = [TransformerBlock(H, 16, causal=True) for _ in range(2)]

    def stack(x):
        for block in blocks:
            x = block(x)
        return x

    x = random_array(1, T, D)
    stack(x)
    for block in blocks:
        randomize(block)
    derivative = np.abs(jacobian(stack, x).reshape(T, D, T, D)).max((1, 3))
    assert derivative[np.triu_indices(T, 1)].max() == 0
    assert derivative[np.tril_indices(T)].min() > 1e-4


@equation("eq:heads")
def test_heads_are_a_sum():
    layer = attention(use_bias=False, output_bias=True)
    x, memory = random_array(B, T, D), random_array(B, S, D, seed=1)
    wq, wk, wv, wo = kernels(layer)
    total = np.zeros((B, T, D)) + array(layer.output_projection.bias)
    for h in range(H):
        looks, writes = wq[h] @ wk[h].T, wv[h] @ wo[h]
        assert np.linalg.matrix_rank(looks) == np.linalg.matrix_rank(writes) == K
        weights = softmax(x @ looks @ np.swapaxes(memory, 1, 2) / math.sqrt(K))
        total += weights @ memory @ writes
    close(layer(x, memory), total, 1e-4)


@equation("eq:gauge")
def test_factors_are_not_unique():
    layer, x = attention(use_bias=False), random_array(B, T, D)
    before = array(layer(x))
    c, other = (np.eye(K) + random_array(K, K, seed=seed) / 4 for seed in (5, 6))
    change = {
        layer.query: lambda w: np.einsum("dhk,kj->dhj", w, c),
        layer.key: lambda w: np.einsum("dhk,jk->dhj", w, np.linalg.inv(c)),
        layer.value: lambda w: np.einsum("dhk,kj->dhj", w, other),
        layer.output_projection: lambda w: np.einsum("jk,hkd->hjd", np.linalg.inv(other), w),
    }
    for part, new in change.items():
        part.kernel.assign(new(array(part.kernel)))
    close(layer(x), before, 1e-4)


# 5. Positions


def table(length=50, dim=16, start=0, **options):
    """The positional encodings (T, D) that the layer adds."""
    zeros = np.zeros((1, length, dim), "float32")
    return array(PositionalEmbedding(**options)(zeros, start=start))[0]


@equation("eq:sinusoids")
def test_sinusoids():
    angle = np.arange(50)[:, None] * 10000.0 ** (-np.arange(0, 16, 2) / 16)
    close(table()[:, 0::2], np.sin(angle))
    close(table()[:, 1::2], np.cos(angle))


@equation("eq:shift")
def test_shift_is_a_rotation():
    n, rotation = 7, np.zeros((16, 16))
    for i in range(8):
        angle = n * 10000.0 ** (-2 * i / 16)
        cosine, sine = math.cos(angle), math.sin(angle)
        rotation[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[cosine, sine], [-sine, cosine]]
    close(table() @ rotation.T, table(start=n))


@equation("eq:gram")
def test_gram():
    distance = np.arange(50)[:, None] - np.arange(50)
    rates = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    close(table() @ table().T, np.cos(distance[..., None] * rates).sum(-1))
    close((table() ** 2).sum(1), np.full(50, 16 / 2))


@equation("eq:halves")
def test_halves_are_a_permutation():
    permutation, i = np.zeros((16, 16)), np.arange(8)
    permutation[i, 2 * i] = permutation[i + 8, 2 * i + 1] = 1
    close(table() @ permutation.T, table(interleaved=False))


@equation("eq:rope")
def test_rotary():
    layer, x, positions = attention(), random_array(1, T, D), np.array([0, 1, 5, 6, 11])
    weights = array(layer.attention_weights(x, rotary=Rotary(K)(positions)))
    q, k = (array(m(x)) for m in (layer.query, layer.key))
    q, k = (y[..., : K // 2] + 1j * y[..., K // 2 :] for y in (q, k))  # pairs are halves
    distance = positions[:, None] - positions
    turn = np.exp(1j * distance[..., None] * 10000.0 ** (-np.arange(0, K, 2) / K))
    expected = np.einsum("bthi,bshi,tsi->bhts", q, k.conj(), turn).real / math.sqrt(K)
    close(weights, softmax(expected))
    shifted = layer.attention_weights(x, rotary=Rotary(K)(positions + 100))
    close(weights, shifted, 1e-4)


@equation("eq:alibi")
def test_alibi():
    layer, x, slope = attention(causal=True), random_array(1, T, D), 0.3
    for part in (layer.query.kernel, layer.query.bias):
        part.assign(np.zeros(part.shape))  # all scores are equal
    t, s = np.arange(T)[:, None], np.arange(T)
    weights = array(layer.attention_weights(x, bias=(-slope * (t - s)).astype("float32")))
    decay = math.exp(-slope)
    expected = np.where(s <= t, (1 - decay) * decay ** (t - s) / (1 - decay ** (t + 1.0)), 0)
    close(weights[0, 0], expected)


# 6. The block


def layer_norm():
    """A block's norm, an input whose variance is near epsilon, and the statistics of the text."""
    block = TransformerBlock(H, 16)
    block.build((None, None, D))
    norm, x = randomize(block).attention_norm, 0.005 * random_array(B, T, D)
    centered = x - x.mean(-1, keepdims=True)
    sigma = np.sqrt(norm.epsilon + (centered**2).mean(-1, keepdims=True))
    return norm, x, centered, sigma


def norm_gradients(norm, x):
    """The gradient of the input and g, that of the normalized input."""
    upstream = random_array(*x.shape, seed=9)
    (of_x,) = gradients(lambda x: norm(x) * upstream, x)
    return of_x, array(norm.gamma) * upstream


@equation("eq:layer-norm")
def test_layer_norm():
    norm, x, centered, sigma = layer_norm()
    close(norm(x), array(norm.gamma) * centered / sigma + array(norm.beta))


@equation("eq:norm-back")
def test_layer_norm_backward():
    norm, x, centered, sigma = layer_norm()
    (of_x, g), unit = norm_gradients(norm, x), centered / sigma
    projected = g - g.mean(-1, keepdims=True) - unit * (unit * g).mean(-1, keepdims=True)
    close(of_x * sigma, projected)


@equation("eq:norm-orthogonal")
def test_layer_norm_orthogonal():
    norm, x, centered, sigma = layer_norm()
    of_x, g = norm_gradients(norm, x)
    close((of_x * sigma).sum(-1), np.zeros((B, T)))
    expected = norm.epsilon / sigma[..., 0] ** 2 * (centered / sigma * g).sum(-1)
    close((of_x * centered).sum(-1), expected)


@equation("eq:rms")
def test_rms_norm():
    norm, x = RMSNorm(), random_array(B, T, D)
    norm.build(x.shape)
    of_x, g = norm_gradients(randomize(norm), x)
    root = np.sqrt(norm.epsilon + (x**2).mean(-1, keepdims=True))
    close(norm(x), array(norm.gamma) * x / root)
    close(of_x, (g - x / root * (x / root * g).mean(-1, keepdims=True)) / root)


@equation("eq:residual")
@pytest.mark.parametrize("order", ["pre", "post"])
def test_residual_jacobians(order):
    block, x = TransformerBlock(2, 8, order=order), random_array(1, 3, 4)
    block.build(x.shape)
    randomize(block)
    total, y = np.eye(12), tf.constant(x)
    for f, norm in (
        (block.attention, block.attention_norm),
        (block.feed_forward, block.feed_forward_norm),
    ):
        if order == "pre":
            factor = np.eye(12) + jacobian(f, norm(y)) @ jacobian(norm, y)
            y = y + f(norm(y))
        else:
            factor = jacobian(norm, y + f(y)) @ (np.eye(12) + jacobian(f, y))
            y = norm(y + f(y))
        total = factor @ total
    close(block(x), y)
    close(jacobian(block, x), total, 1e-4)


def measure_depth(order, layers, seed):
    """The variance of the last hidden state, and the norm of the last sublayer's gradient."""
    keras.utils.set_random_seed(seed)
    blocks = [TransformerBlock(4, 128, order=order) for _ in range(layers // 2)]
    last = keras.layers.LayerNormalization() if order == "pre" else keras.layers.Identity()
    x, upstream = (random_array(2, 16, 64, seed=100 * seed + i) for i in range(2))
    for block in blocks[:-1]:
        x = block(x)
    with tf.GradientTape() as tape:
        y = blocks[-1](x)
        loss = tf.reduce_sum(last(y) * upstream)
    gradient = tape.gradient(loss, blocks[-1].feed_forward.contract.kernel.value)
    return float(np.var(array(y))), float(np.linalg.norm(array(gradient)))


@equation("eq:depth")
@pytest.mark.slow
def test_depth():
    def measure(order, layers):
        return np.mean([measure_depth(order, layers, seed) for seed in range(1, 4)], axis=0)

    (short, near), (long, far) = measure("pre", 8), measure("pre", 32)
    assert far * math.sqrt(long) == pytest.approx(near * math.sqrt(short), rel=0.15)
    # The inputs have the variance 1. Growth is a little faster than linear (see the text).
    assert 3.5 < (long - 1) / (short - 1) < 7
    assert far / near == pytest.approx(math.sqrt(8 / 32), rel=0.25)
    (_, near), (_, far) = measure("post", 8), measure("post", 32)
    assert far / near == pytest.approx(1, rel=0.2)


# 7. What it costs


def count_block(dim, inner, cross=False):
    block = 4 * (dim**2 + dim) + 2 * dim * inner + inner + dim + 4 * dim
    return block + (4 * (dim**2 + dim) + 2 * dim if cross else 0)


@equation("eq:parameters")
def test_parameters():
    for cross in (False, True):
        block = TransformerBlock(8, 2048, cross=cross)
        block.build((None, None, 512), (None, None, 512) if cross else None)
        assert block.count_params() == count_block(512, 2048, cross)


@equation("eq:gpt-parameters")
def test_gpt_parameters():
    for vocab, length, dim, layers in ((50257, 1024, 768, 12), (50, 32, 24, 3)):
        config = GPTConfig(
            vocab_size=vocab, max_length=length, dim=dim, num_layers=layers, end_id=0
        )
        count = (vocab + length) * dim + layers * (12 * dim**2 + 13 * dim) + 2 * dim
        assert GPT.count_parameters(config) == count
    assert GPT.count_parameters(GPT.PRESETS["gpt2"]) == 124_439_808


def count_flops(function, *shape):
    """The operations that TensorFlow's profiler counts in the graph of ``function``."""
    profiler = tf.compat.v1.profiler
    graph = tf.function(lambda x: function(x)).get_concrete_function(tf.TensorSpec(shape)).graph
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    options = options.with_empty_output().build()
    return profiler.profile(graph, options=options).total_float_ops


@equation("eq:flops")
def test_flops():
    length, dim, inner = 128, 64, 256
    block = TransformerBlock(4, inner)
    block.build((None, None, dim))
    expected = 8 * length * dim**2 + 4 * length**2 * dim + 4 * length * dim * inner
    # The rest is softmax, norms, biases and residuals.
    assert 1 <= count_flops(block, 1, length, dim) / expected < 1.06
    length = 2 * dim + inner
    assert 4 * length**2 * dim == 8 * length * dim**2 + 4 * length * dim * inner


@equation("eq:training-flops")
def test_training_flops():
    length, dim, inner = 64, 64, 256
    block = TransformerBlock(4, inner)
    block.build((None, None, dim))

    def train(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(block(x))
        return tape.gradient(loss, [x, *(v.value for v in block.trainable_variables)])

    matrices = sum(math.prod(v.shape) for v in block.trainable_variables if v.name == "kernel")
    assert matrices == 4 * dim**2 + 2 * dim * inner
    expected = length * (6 * matrices + 12 * length * dim)
    assert 1 <= count_flops(train, 1, length, dim) / expected < 1.1


@equation("eq:cache-bytes")
def test_cache_bytes():
    layers, groups = 4, 2
    caches = [KeyValueCache.empty(1, T, groups, K, "float16") for _ in range(layers)]
    held = sum(array(c.key).nbytes + array(c.value).nbytes for c in caches)
    assert held == 2 * layers * T * groups * K * 2
    layer, x = attention(num_kv_heads=1), random_array(1, T, D)
    _, cache = layer(x, cache=KeyValueCache.empty(1, T, 1, K, "float32"))
    assert array(cache.key).nbytes + array(cache.value).nbytes == 2 * T * 1 * K * 4


# 8. Objectives


def loss_of_one(loss, label, logits):
    return loss(np.array([[label]]), logits[None, None])


@equation("eq:cross-entropy")
def test_cross_entropy():
    logits, label, loss = random_array(7), 3, SmoothedCrossEntropy(0.0)
    value = loss_of_one(loss, label, logits)
    close(value, math.log(np.exp(logits).sum()) - logits[label])
    (of_logits,) = gradients(lambda z: loss_of_one(loss, label, z), logits)
    close(of_logits, softmax(logits) - np.eye(7)[label])


@equation("eq:perplexity")
def test_perplexity():
    text = "né ré"  # 5 characters, 7 bytes
    tokenizer = Characters.train([text])
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, max_length=8, num_layers=1, dim=24, end_id=0
    )
    model = GPT(config, tokenizer)
    model.tokens.embeddings.assign(np.zeros(model.tokens.embeddings.shape))  # all logits are 0
    score = model.score(text)
    loss = -score.log_likelihood / score.tokens
    assert math.exp(loss) == pytest.approx(config.vocab_size)
    bits = loss / math.log(2) * score.tokens / len(text.encode())
    assert bits == pytest.approx(math.log2(config.vocab_size) * 5 / 7)


@equation("eq:smoothing")
def test_label_smoothing():
    size, smoothing, label = 7, 0.1, 3
    loss = SmoothedCrossEntropy(smoothing)
    target = np.full(size, smoothing / size)
    target[label] += 1 - smoothing
    best = np.log(target).astype("float32")
    (of_logits,) = gradients(lambda z: loss_of_one(loss, label, z), best)
    close(of_logits, np.zeros(size), 1e-6)
    floor = -(target * np.log(target)).sum()
    close(loss_of_one(loss, label, best), floor)
    logits = random_array(size)
    (of_logits,) = gradients(lambda z: loss_of_one(loss, label, z), logits)
    close(of_logits, softmax(logits) - target)
    folklore = np.full(size, smoothing / (size - 1), "float32")  # an optimum of 1 - smoothing
    folklore[label] = 1 - smoothing
    for other in (logits, np.log(folklore)):
        assert float(loss_of_one(loss, label, other)) > floor + 1e-4


@equation("eq:warmup")
def test_warm_up():
    dim, warmup = 64, 50
    schedule = InverseSquareRoot.of_width(dim, warmup)
    rates = np.array([float(schedule(n - 1)) for n in range(1, 201)])  # Keras counts from 0
    n = np.arange(1.0, 201)
    close(rates, dim**-0.5 * np.minimum(n**-0.5, n * warmup**-1.5), 1e-7)
    assert rates.argmax() + 1 == warmup
    assert rates.max() == pytest.approx((dim * warmup) ** -0.5)


def ngrams(words, n):
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return {gram: grams.count(gram) for gram in grams}


@equation("eq:bleu")
def test_bleu():
    pairs = [
        ("the old dog runs in the park", "the old dog runs in the green park today"),
        ("a a child sees a cat on it", "a child sees a cat on the roof"),
    ]
    found, total = np.zeros(4), np.zeros(4)
    for hypothesis, reference in pairs:
        for n in range(4):
            of, ours = (ngrams(text.split(), n + 1) for text in (reference, hypothesis))
            found[n] += sum(min(count, of.get(gram, 0)) for gram, count in ours.items())
            total[n] += sum(ours.values())
    c, r = (sum(len(text.split()) for text in texts) for texts in zip(*pairs, strict=True))
    expected = min(1, math.exp(1 - r / c)) * (found / total).prod() ** 0.25
    assert c < r and (found < total).any()
    score = bleu([hypothesis for hypothesis, _ in pairs], [reference for _, reference in pairs])
    assert score.score == pytest.approx(100 * expected)
    short = bleu(["a dog runs in the"], ["a dog runs in the park"])
    assert short.score == pytest.approx(100 * math.exp(1 - 6 / 5))  # the exercise


# 9. Decoding


@equation("eq:cache")
def test_cache():
    layer, x = attention(causal=True), random_array(B, T, D)
    full, cache = array(layer(x)), KeyValueCache.empty(B, T, H, K, "float32")
    for t in range(T):
        y, cache = layer(x[:, t : t + 1], cache=cache)
        close(y[:, 0], full[:, t])
        k, v = array(cache.key)[:, : t + 1], array(cache.value)[:, : t + 1]
        q = array(layer.query(x[:, t : t + 1]))[:, 0]
        weights = softmax(np.einsum("bhk,bshk->bhs", q, k) / math.sqrt(K))
        heads = np.einsum("bhs,bshk->bhk", weights, v)
        close(layer.output_projection(heads[:, None])[:, 0], full[:, t])


@equation("eq:beam")
def test_beam_score():
    for alpha, n in itertools.product((0.0, 0.6, 1.0), (1, 4, 6)):
        power = Search(num_beams=4, length_penalty=alpha).normalize_score(-4.5, n)
        gnmt = Search(num_beams=4, length_penalty=alpha, penalty="gnmt").normalize_score(-4.5, n)
        assert float(power) == pytest.approx(-4.5 / n**alpha)
        assert float(gnmt) == pytest.approx(-4.5 / ((5 + n) / 6) ** alpha)


@equation("eq:gumbel")
def test_gumbel():
    logits, temperature, number = random_array(6), 0.7, 40000
    sampler = Sampling(temperature=temperature).sampler(range(number))
    rows = np.broadcast_to(logits, (number, 6)).copy()
    tokens = array(sampler(rows, np.zeros((number, 1), "int32"), 0))
    share_of = np.bincount(tokens, minlength=6) / number
    close(share_of, softmax(logits / temperature), 0.01)


@equation("eq:entropy")
def test_temperature():
    z, temperature = random_array(9), 0.8
    query, keys = np.ones((1, 1, 1, 1), "float32"), z[None, :, None, None]

    def entropy(temperature):
        p = attention_weights(query, keys, scale=1 / temperature)
        return -ops.sum(p * ops.log(p))

    (slope,) = gradients(entropy, np.float32(temperature))
    p = softmax(z / temperature)
    close(slope, (p @ z**2 - (p @ z) ** 2) / temperature**3, 1e-4)
    assert slope > 0


@equation("eq:nucleus")
def test_nucleus():
    logits, top_p = random_array(1, 12), 0.75
    kept = filter_logits(logits, top_p=np.array([top_p], "float32"))
    p, q = softmax(logits)[0], softmax(array(kept))[0]
    order = np.argsort(-p)
    nucleus = order[: np.searchsorted(p[order].cumsum(), top_p) + 1]
    mass = p[nucleus].sum()
    assert mass >= top_p > mass - p[nucleus].min()
    assert set(np.flatnonzero(q)) == set(nucleus)
    close(q[nucleus], p[nucleus] / mass)
    distance = np.abs(p - q).sum() / 2
    assert distance == pytest.approx(1 - mass, abs=1e-6) and distance <= 1 - top_p


# 10. Families


@equation("eq:chain")
def test_chain_rule():
    config = GPTConfig(vocab_size=4, max_length=8, num_layers=1, dim=24, end_id=0, dropout=0.0)
    model = GPT(config)
    randomize(model)
    texts = np.array(list(itertools.product(range(4), repeat=3)), "int32")
    start = np.zeros((len(texts), 1), "int32")
    logits = array(model(np.concatenate([start, texts[:, :-1]], axis=1)))
    steps = np.log(softmax(logits)[np.arange(len(texts))[:, None], np.arange(3), texts])
    whole = array(model.log_likelihood(texts, np.full(len(texts), 3, "int32")))
    close(whole, steps.sum(1))
    assert np.exp(whole).sum() == pytest.approx(1, abs=1e-4)
    for t in range(3):  # each factor depends on earlier tokens only
        shorter = array(
            model.log_likelihood(texts[:, : t + 1], np.full(len(texts), t + 1, "int32"))
        )
        close(shorter, steps[:, : t + 1].sum(1))


@equation("eq:masking")
def test_masking():
    words = [f"{a}{b}" for a in "abc" for b in "xyz"]
    tokenizer = WordPieces.train([" ".join(words * 3)], vocab_size=30)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 2000)) for _ in range(40)]
    changed = total = hidden = 0
    options = dict(batch_size=64, shuffle=False)  # the masks depend on the seed alone
    batches = (masked_batches(texts, tokenizer, **options, seed=seed) for seed in range(8))
    for inputs, labels, weight in itertools.chain.from_iterable(batches):
        tokens = np.take_along_axis(inputs["tokens"].numpy(), inputs["positions"].numpy(), axis=1)
        real = weight.numpy() > 0
        changed += (tokens != labels.numpy())[real].sum()
        hidden += (tokens == tokenizer.mask_id)[real].sum()
        total += real.sum()
    special = {*tokenizer.prefix, *tokenizer.suffix, tokenizer.pad_id, tokenizer.mask_id}
    ordinary = tokenizer.vocab_size - len(special)
    assert 1 / ordinary > 0.04  # so that leaving it out is an error of more than 0.004
    assert hidden / total == pytest.approx(0.8, abs=0.005)
    assert changed / total == pytest.approx(0.8 + 0.1 * (1 - 1 / ordinary), abs=0.004)


@equation("eq:patches")
def test_patches_are_a_convolution():
    size, images = 4, random_array(2, 8, 12, 3)
    patches = PatchEmbedding(size, D)
    patches(images)
    randomize(patches)
    kernel, bias = array(patches.projection.kernel), array(patches.projection.bias)
    convolution = keras.layers.Conv2D(D, size, strides=size)
    convolution.build(images.shape)
    convolution.set_weights([kernel.reshape(size, size, 3, D), bias])
    close(patches(images), array(convolution(images)).reshape(2, 6, D))
    corner = np.einsum("ijk,ijkd->d", images[0, 4:8, 8:12], kernel.reshape(size, size, 3, D)) + bias
    close(patches(images)[0, 5], corner)


@equation("eq:rollout")
def test_rollout():
    config = ViTConfig(
        image_size=8, patch_size=4, num_classes=2, num_layers=3, dim=12, intermediate_dim=16,
        num_heads=3,
    )  # fmt: skip
    model, images = ViT(config), random_array(1, 8, 8, 3)
    randomize(model)
    x, rolled = model.embed(images), np.eye(5)
    for block in model.blocks:
        weights = array(block.attention.attention_weights(block.attention_norm(x)))[0].mean(0)
        rolled, x = (np.eye(5) + weights) / 2 @ rolled, block(x)
    assert rolled.min() >= 0
    close(rolled.sum(1), np.ones(5))
    shares = rolled[0, 1:] / rolled[0, 1:].sum()
    close(model.rollout(images)[0], shares.reshape(2, 2))


@equation("eq:pair-bias")
def test_pair_bias():
    layer, x = attention(), random_array(1, T, D)
    bias, upstream = random_array(1, 1, T, T, seed=2), random_array(1, T, D, seed=1)
    plain, biased = (array(layer.attention_weights(x, bias=b)) for b in (None, bias))
    factor = np.exp(bias) * plain
    close(biased, factor / factor.sum(-1, keepdims=True))
    (of_bias,) = gradients(lambda b: layer(x, bias=b) * upstream, bias)
    of_heads = np.einsum("btd,hkd->bthk", upstream, array(layer.output_projection.kernel))
    of_weights = np.einsum("bthk,bshk->bhts", of_heads, array(layer.value(x)))
    delta = (biased * of_weights).sum(-1, keepdims=True)
    of_scores = biased * (of_weights - delta)
    close(of_bias, of_scores.sum(1, keepdims=True))  # one bias for all heads


@equation("eq:apc")
def test_contacts():
    size = dict(num_layers=1, dim=16, intermediate_dim=16, num_heads=2)
    model = ESM.preset("esm2-t6-8m", **size)
    weight = random_array(2, 1)
    model.contact_map.kernel.assign(weight)
    tokens = model.tokenizer.encode(["MKTAYIAK"]).to_tensor()
    x, rotary = model.hidden_states(tokens)[0], model.rotary(np.arange(10))
    x = model.blocks[0].attention_norm(x)
    weights = array(model.blocks[0].attention.attention_weights(x, rotary=rotary))
    weights = weights[0, :, 1:-1, 1:-1]
    scores = weights + weights.swapaxes(1, 2)
    rows, columns = scores.sum(2, keepdims=True), scores.sum(1, keepdims=True)
    corrected = scores - rows * columns / scores.sum((1, 2), keepdims=True)
    close(corrected.sum(2), 0 * rows[:, :, 0])
    logits = (corrected * weight[:, :, None]).sum(0)
    close(model.contacts("MKTAYIAK"), 1 / (1 + np.exp(-logits)))
    # A matrix of rank one is explained entirely.
    one = np.outer(*[np.arange(1.0, 6)] * 2)
    close(one - one.sum(1, keepdims=True) * one.sum(0) / one.sum(), 0 * one)


@equation("eq:triangle")
def test_triangle_multiplication():
    layer, z, linear = TriangleMultiplication(outgoing=True), random_array(T, T, 4), {}
    layer.build((1, T, T, 4))
    layer.output_projection.kernel.assign(random_array(4, 4))
    x = array(layer.norm(z))
    for name in ("left", "left_gate", "right", "right_gate", "gate"):
        part = getattr(layer, name)
        linear[name] = x @ array(part.kernel) + array(part.bias)
        if "gate" in name:
            linear[name] = 1 / (1 + np.exp(-linear[name]))
    a, b = (linear[side] * linear[f"{side}_gate"] for side in ("left", "right"))
    product = array(layer.product_norm(np.einsum("ikc,jkc->ijc", a, b)))
    close(layer(z[None])[0], linear["gate"] * (product @ array(layer.output_projection.kernel)))
    a, b, upstream = a[..., 0], b[..., 0], random_array(T, T, seed=3)
    of_a, of_b = gradients(lambda a, b: tf.einsum("ik,jk->ij", a, b) * upstream, a, b)
    close(of_a, upstream @ b)
    close(of_b, upstream.T @ a)
    # The bounds of a side by the other two.
    points = random_array(T, 3)
    d = np.linalg.norm(points[:, None] - points, axis=-1)
    assert (abs(d[:, None] - d) <= d[..., None] + 1e-6).all()
    assert (d[..., None] <= d[:, None] + d + 1e-6).all()


def rigid_motion(rotation, translation):
    """Frames (B, N) that a rotation of space and a shift have moved, as a function of frames."""
    turn = from_quaternion(np.float32([0.9, 0.3, -0.2, 0.5]))
    motion = turn[None, None], np.float32([[[4, -3, 2]]])
    return compose(motion, (rotation, translation))


def some_frames(seed=0):
    return from_quaternion(random_array(1, T, 4, seed=seed)), random_array(1, T, 3, seed=seed + 1)


@equation("eq:rigid")
def test_rigid_motion():
    frames, points = some_frames(), random_array(1, T, 3, seed=7)
    moved = rigid_motion(*frames)
    moved_points = rigid_motion(frames[0], points)[1]
    close(invert_apply(moved, moved_points), invert_apply(frames, points))
    q, k = random_array(2, 1, T, 3, seed=9)
    apart, moved_apart = (
        ops.norm(apply(x, q)[:, :, None] - apply(x, k)[:, None], axis=-1) for x in (frames, moved)
    )
    close(moved_apart, apart)
    layer, s, z = (
        InvariantPointAttention(2, 4, 3, 3),
        random_array(1, T, 8),
        random_array(1, T, T, 4),
    )
    layer.build(s.shape, z.shape)
    layer.output_projection.kernel.assign(random_array(*layer.output_projection.kernel.shape))
    close(layer(s, z, moved), layer(s, z, frames), 1e-4)
    assert np.abs(array(layer(s, z, (frames[0], 2 * frames[1])) - layer(s, z, frames))).max() > 0.1


@equation("eq:fape")
def test_frame_aligned_point_error():
    frames, true = some_frames(), some_frames(3)
    points, true_points = 6 * random_array(2, 1, T, 3, seed=5)
    mask = np.ones((1, T), bool)

    def error(frames, points, true=true, true_points=true_points):
        return float(fape(frames, points, true, true_points, mask, mask, epsilon=0.0)[0])

    def places(frames, points):
        frames = [array(x)[0] for x in frames]
        return np.einsum("iba,ijb->ija", frames[0], array(points)[0] - frames[1][:, None])

    apart = np.linalg.norm(places(frames, points) - places(true, true_points), axis=-1)
    assert (apart > 10).any() and (apart < 10).any()
    assert error(frames, points) == pytest.approx(np.minimum(apart, 10).mean() / 10, rel=1e-5)
    moved = rigid_motion(*frames), rigid_motion(frames[0], points)[1]
    assert error(*moved) == pytest.approx(error(frames, points), rel=1e-4)
    same = rigid_motion(*true), rigid_motion(true[0], true_points)[1]
    assert error(*same) < 1e-5
    # A mirror image, whose frames are built from its atoms, has the same distances.
    n, ca, c = 3 * random_array(3, 1, T, 3, seed=8)
    mirror = np.float32([1, 1, -1])
    frames, mirrored = from_points(n, ca, c), from_points(n * mirror, ca * mirror, c * mirror)
    assert error(mirrored, ca * mirror, frames, ca) > 0.1
    local, flipped = places(frames, ca), places(mirrored, ca * mirror)
    close(flipped, local * [1, 1, -1], 1e-4)


@equation("eq:lora")
def test_lora():
    layer, x, rank, alpha = attention(use_bias=False), random_array(B, T, D), 2, 6
    before, factor = array(layer(x)), alpha / rank
    layer.enable_lora(rank, alpha)
    adapter, upstream = layer.query.adapter, random_array(B, T, H, K, seed=1)
    close(layer(x), before)  # B is zero
    down, up = array(adapter.down), random_array(rank, H * K, seed=2)

    def adapter_gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer.query(x) * upstream)
        return tape.gradient(loss, [adapter.down.value, adapter.up.value])

    assert not np.any(array(adapter_gradients()[0]))
    adapter.up.assign(up.reshape(rank, H, K))
    of_down, of_up = adapter_gradients()
    rows, of_rows = x.reshape(-1, D), upstream.reshape(-1, H * K)
    close(of_down, factor * rows.T @ of_rows @ up.T, 1e-4)
    close(array(of_up).reshape(rank, -1), factor * down.T @ rows.T @ of_rows, 1e-4)
    assert sum(math.prod(v.shape) for v in adapter.weights) == rank * (D + H * K)
    kernel, adapted = array(layer.query.kernel), array(layer(x))
    layer.query.merge()
    close(layer.query.kernel, kernel + factor * (down @ up).reshape(D, H, K))
    close(layer(x), adapted, 1e-4)
    assert np.abs(adapted - before).max() > 0.01


# 11. Devices and precision


@equation("eq:global-mean")
def test_global_mean():
    loss, logits = SmoothedCrossEntropy(0.0), random_array(2, 1, 8, 5)
    labels, counts = np.random.default_rng(1).integers(5, size=(2, 1, 8)), (3, 8)
    weights = np.stack([np.arange(8)[None] < n for n in counts]).astype("float32")
    totals = np.array([2, sum(counts)], "float32")  # of sequences, and of tokens

    def part(i, logits):
        """Device i's part of the loss, as `training.Model` computes it."""
        losses = GlobalLoss(loss)
        with losses.over(tf.constant(1.0), tf.constant(totals)):
            value = losses(labels[i], logits, weights[i])
        return value * share(tf.constant(1.0), totals[0])

    means = [float(loss(labels[i], logits[i], weights[i])) for i in range(2)]
    parts = [float(part(i, logits[i])) for i in range(2)]
    assert sum(parts) == pytest.approx((3 * means[0] + 8 * means[1]) / 11, abs=1e-5)
    assert abs(sum(parts) - np.mean(means)) > 0.01
    for i in range(2):
        (of_mean,) = gradients(lambda z, i=i: loss(labels[i], z, weights[i]), logits[i])
        (of_part,) = gradients(lambda z, i=i: part(i, z), logits[i])
        close(of_part, counts[i] / 11 * of_mean)


@equation("eq:parts")
def test_softmax_in_parts():
    q, k, v = random_array(T, K), random_array(S, K, seed=1), random_array(S, K, seed=2)
    total, weighted = 0, 0
    for part in (slice(0, 3), slice(3, S)):
        o = array(attend(*head(q, k[part], v[part])))[0, :, 0]
        d = np.exp(q @ k[part].T / math.sqrt(K)).sum(1, keepdims=True)
        total, weighted = total + d, weighted + d * o
    close(attend(*head(q, k, v))[0, :, 0], weighted / total)


@equation("eq:rounding")
def test_rounding():
    positions = np.arange(8150, 8200)
    cosine, _ = Rotary(8, dtype="mixed_bfloat16")(positions)
    assert cosine.dtype == "bfloat16"
    exact = np.cos(positions)  # the first pair turns by one radian per position
    error = np.abs(array(ops.cast(cosine, "float32"))[:, 0, 0] - exact)
    assert error.max() <= 2.0**-9 + 1e-6
    rounded = array(ops.cast(ops.cast(positions, "bfloat16"), "float32"))
    assert set(rounded - 8192) <= {-32.0, 0.0} and np.abs(rounded - positions).max() == 16
    # A query without keys gets the mean also in float16.
    q, k, v = (ops.cast(x, "float16") for x in head(np.ones((1, K)), *random_array(2, S, K)))
    assert np.finfo("float16").max == 65504
    mean = attend(q, k, v, mask=np.zeros((1, S), bool))
    assert mean.dtype == "float16"
    close(ops.cast(mean, "float32")[0, 0, 0], array(v)[0, :, 0].mean(0), 2e-3)


# The text and the tests


def read_text():
    return re.sub(r"(?<!\\)%.*", "", TEXT.read_text())


def test_the_text_names_the_tests_of_its_equations():
    named = re.findall(r"\\label\{(eq:[^}]+)\}\\tested\{([^}]+)\}", read_text())
    labels = [label for label, _ in named]
    assert len(set(labels)) == len(labels)
    assert dict(named) == EQUATIONS
    assert read_text().count(r"\tested{") == len(named), r"\tested must follow \label"


def test_each_equation_has_a_label_and_each_reference_exists():
    text = read_text()
    labels = re.findall(r"\\label\{([^}]+)\}", text)
    assert len(set(labels)) == len(labels)
    referred = set(re.findall(r"\\(?:eq)?ref\{([^}#]+)\}", text))
    assert referred <= set(labels), referred - set(labels)
    begun = text.count(r"\begin{equation}") + 3 * text.count(r"\begin{align}")
    assert begun == sum(label.startswith("eq:") for label in labels)
    cited = {key for keys in re.findall(r"\\cite\{([^}]+)\}", text) for key in keys.split(",")}
    assert cited == set(re.findall(r"\\bibitem\{([^}]+)\}", text))


def test_each_exercise_has_an_answer():
    text = read_text()
    exercises = re.findall(r"\\begin\{exercise\}\\label\{([^}]+)\}", text)
    assert len(exercises) == text.count(r"\begin{exercise}") >= 25
    assert re.findall(r"\\answer\{([^}#]+)\}", text) == exercises
