# %% [markdown]
# # Transformers, from attention to a served model
#
# You know linear algebra, Python and the basics of neural networks. After this notebook you
# understand self-attention and what it is good for, you have built a Transformer, and you have
# checked every part of it against a library that people train and serve with,
# [polyhead](../README.md).
#
# Most sections have five beats:
#
# 1. **Formula**, with the shape of each tensor,
# 2. **Build**: functions of at most 15 lines of `keras.ops`,
# 3. **Assert**: equal to the library's layer, up to rounding,
# 4. **Picture**,
# 5. **Exercise**: you write a function, and a check says "right" or what is wrong.
#
# The notebook runs from top to bottom on two CPU cores, without a network. You may begin at any
# part: its first cell has all that it needs. Derivations of all formulas are in
# `transformers.tex`, solutions of the exercises in `solutions.py`; `README.md` says how to install
# what you need.
#
# | part | sections |
# | --- | --- |
# | I. Attention | 1 to 7 |
# | II. Positions, block, gradients | 8 to 10 |
# | III. The Transformer | 11 to 14 |
# | IV. Families and applications | 15 to 20 |
# | V. Using it | 21 to 25 |
#
# **One letter, one meaning**, in all shapes:
#
# | letter | meaning |
# | --- | --- |
# | $B$ | batch: the number of examples |
# | $T$ | length of the sequence that asks: queries |
# | $S$ | length of the sequence that answers: keys and values; $S = T$ in self-attention |
# | $D$ | width of the model: the size of the vector at each position |
# | $H$ | number of heads |
# | $K$ | size of a head, usually $D / H$; papers write $d_k$ |
# | $V$ | size of the vocabulary |
#
# The paper is Vaswani et al. 2017, *Attention Is All You Need*, arXiv 1706.03762; "section 3.2"
# is a section of it.

# %% [markdown]
# # Part I. Attention

# %%
import math
import os

import polyhead  # first, because it hides TensorFlow's log lines
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import ops

from polyhead.layers import (
    MultiHeadAttention,
    TransformerBlock,
    attend,
    attention_weights,
    causal_mask,
    padding_mask,
)
from polyhead.learn import checks
from polyhead.learn.show import (
    array,
    assert_equal,
    heatmap,
    jacobian,
    normal,
    seconds,
    tensor,
)

FAST = "FAST" in os.environ  # shorter training, for tests
# To compile the step of a small model takes longer than its training.
STEP = dict(jit_compile=False, run_eagerly=FAST)
tf.get_logger().setLevel("ERROR")  # no notes on retracing
keras.utils.set_random_seed(0)


print("polyhead", polyhead.__version__)

# %% [markdown]
# ## 1. What attention is for
#
# ### Formula
# You have $S$ examples: at the place $k_s$ you measured the value $v_s$. What is the value at a
# new place $q$, the *query*? A plain average of all $v_s$ ignores where they were measured. A
# better answer weights near examples more:
#
# $$ y(q) = \sum_{s=1}^{S} w_s v_s, \qquad
# w_s = \frac{\exp(-(q - k_s)^2 / 2h^2)}{\sum_{r} \exp(-(q - k_r)^2 / 2h^2)} . $$
#
# This is kernel smoothing (Nadaraya 1964, Watson 1964), with the bandwidth $h$. The weights are a
# *softmax*: they are positive and sum to 1, so the result is a mean of values. Attention is the
# same idea with three changes: places are vectors, nearness is a dot product, and the network
# learns which vectors to compare.
#
# Shapes: queries $(T,)$, keys $(S,)$, values $(S, 1)$, weights $(T, S)$, result $(T, 1)$.
#
# ### Build


# %%
def kernel_mean(queries, keys, values, bandwidth):
    distance = queries[:, None] - keys  # (T, S)
    weights = ops.softmax(-(distance**2) / (2 * bandwidth**2), axis=-1)
    return ops.matmul(weights, values), weights


rng = np.random.default_rng(0)
places = np.sort(rng.uniform(0, 6, 30))
keys = tensor(places)
values = tensor(np.sin(places) + 0.2 * rng.normal(size=30))[:, None]
queries = tensor(np.linspace(0, 6, 121))
y, weights = kernel_mean(queries, keys, values, 0.3)

# %% [markdown]
# ### Assert
# Multiply out the square: $-(q - k)^2 / 2h^2 = q k / h^2 - k^2 / 2h^2 - q^2 / 2h^2$. The last term
# is the same for all keys, so the softmax ignores it. The first is a dot product times a *scale*,
# the second is a number per key, a *bias*. So kernel smoothing is attention: the library's
# `attend`, which takes queries `(B, T, H, K)`, here with one batch, one head of size 1.

# %%
h = 0.3
q, k, v = (ops.reshape(x, (1, -1, 1, 1)) for x in (queries, keys, values))
bias = ops.reshape(-(keys**2) / (2 * h**2), (1, 1, 1, -1))
attended = attend(q, k, v, bias=bias, scale=1 / h**2)
assert_equal(y, attended[0, :, 0], atol=1e-3)

# %% [markdown]
# ### Picture
# A small bandwidth trusts the nearest example alone, a large one averages everything. On the
# right: the weights of the query $q = 2$.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
left, right = axes
left.plot(keys, values, "k.", label="examples")
for bandwidth in (0.05, 0.3, 2.0):
    y, weights = kernel_mean(queries, keys, values, bandwidth)
    left.plot(queries, y, label=f"h = {bandwidth}")
    right.plot(keys, weights[40], ".-", label=f"h = {bandwidth}")
left.set_title("weighted means")
right.set_title("the weights of the query q = 2")
left.set(xlabel="place", ylabel="value")
right.set(xlabel="place of the key", ylabel="weight")
left.legend(fontsize=8)
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# Why is this better than reading from left to right? A recurrent network (RNN) passes what it
# read at position $s$ through $T - s$ steps before it can use it at position $T$, and each step
# multiplies by a matrix, so the signal shrinks or grows. Attention connects any two positions in
# one step. The picture shows how much the output at the last position depends on each input: the
# norm of $\partial y_T / \partial x_s$, at initialization.


# %%
def dependence(layer, length=40, width=16):
    """The norm of d y_T / d x_s for each s, divided by their sum."""
    x = normal(1, length, width, seed=1)
    last = jacobian(lambda x: layer(x)[0, -1], x)[:, 0]  # (D, S, D)
    norms = np.sqrt((last**2).sum(axis=(0, 2)))
    return norms / norms.sum()


rnn = keras.layers.SimpleRNN(16, return_sequences=True)
for name, layer in (("RNN", rnn), ("attention", MultiHeadAttention(4))):
    plt.semilogy(dependence(layer), ".-", label=name)
plt.title("dependence of the last output on the input at each position")
plt.xlabel("position s")
plt.ylabel("share of the gradient")
plt.legend()
plt.show()

# %% [markdown]
# The second difference is speed: an RNN's $T$ steps wait for each other, while all positions of
# attention are computed by the same products of matrices. Section 7 measures what this costs.
#
# ### Exercise 1
# A Python dictionary compares a query with each key, and returns the value of the equal one.
# Write a *soft* look-up: the scores are dot products times a sharpness; the result is a mean of
# all values. (With a large sharpness it picks the best key, as a dictionary does.) Replace the
# dots, and run the cell again.


# %%
def lookup(query, keys, values, sharpness):
    """query (T, K), keys (S, K), values (S, D) -> (T, D)"""
    ...


print("lookup:", checks.lookup(lookup))

# %% [markdown]
# ## 2. Self-attention: queries, keys, values
#
# ### Formula
# A sentence is a matrix $X$ $(T, D)$, a vector per word. In *self-attention* the words ask each
# other. Three learned matrices give each word three roles:
#
# | tensor | shape | role |
# | --- | --- | --- |
# | $Q = X W_Q$ | $(T, K)$ | what this word looks for |
# | $K = X W_K$ | $(S, K)$ | what this word offers to be found by |
# | $V = X W_V$ | $(S, K)$ | what this word says when it is found |
#
# $$ \mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{K}}\right) V, $$
#
# (section 3.2.1; in formulas the matrix of keys is $K$ too, and the number under the root is the
# size of a head). The scores $Q K^\top$ are $(T, S)$: a row per query. The softmax is taken over
# each row. A last matrix $W_O$ $(K, D)$ maps the result back to the width of the model.
#
# ### Build
# One head, with the library's projections, so that both have the same weights.
#
# Products are written as `einsum`, which names each axis by a letter. `"bthk,bshk->bhts"` says:
# multiply entries with equal letters, and sum over each letter that is missing on the right, here
# `k`. So it is $Q K^\top$, for every example `b` and head `h`. You need no transpose, and you can
# read the shapes off the letters. (The layers `query`, `key` and `value` are an einsum too,
# `"btd,dhk->bthk"`, plus a bias.)

# %%
words = "the cat sat because it was tired".split()
x = normal(1, len(words), 8, seed=2)  # B = 1, T = 7, D = 8
layer = MultiHeadAttention(num_heads=1)
layer.build(x.shape)

q, k, v = layer.query(x), layer.key(x), layer.value(x)  # (B, T, H, K)
scores = ops.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
weights = ops.softmax(scores, axis=-1)  # over the keys
heads = ops.einsum("bhts,bshk->bthk", weights, v)
y = layer.output_projection(heads)

# %% [markdown]
# ### Assert

# %%
assert_equal(weights, layer.attention_weights(x))
assert_equal(y, layer(x))

# %% [markdown]
# ### Picture
# The four steps for our sentence, with numbers: scores, a mask that hides the future (section 4),
# weights, and the output, which has a row per word again. Read a row of the weights as "the word on
# the left attends to the words below". The layer is not trained, so the numbers mean nothing yet:
# only the steps matter.

# %%
mask = causal_mask(len(words))
masked = ops.where(mask, scores, -1e9)[0, 0]
causal_weights = ops.softmax(masked, axis=-1)
output = ops.matmul(causal_weights, v[0, :, 0])
figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
heatmap(axes[0], scores[0, 0], "scores", words, words, ".1f")
shown = np.where(mask, array(masked), np.nan)
heatmap(axes[1], shown, "masked scores", words, words, ".1f")
heatmap(axes[2], causal_weights, "weights", words, words, ".2f")
heatmap(axes[3], output, "output", words, range(8), ".1f")
plt.show()

# %% [markdown]
# ### Exercise 2
# Attention by hand, with several heads and a mask. Heads do not mix: each is attention of its own
# (section 5). Where the mask is True, a query may attend to a key; elsewhere its score becomes
# -1e9 (section 4). Mistakes in public code: the scale is the width of the model, where it should
# be the size of a head; the mask is upside down; the softmax is over the wrong axis. The check
# knows them.


# %%
def attention(q, k, v, mask):
    """q, k, v (T, H, K), mask (T, T) -> (T, H, K)"""
    ...


print("attention:", checks.attention(attention))

# %% [markdown]
# ## 3. Why the square root
#
# ### Formula
# Let the components of a query and a key be independent, with mean 0 and variances $\sigma_q^2$
# and $\sigma_k^2$. Their dot product is a sum of $K$ independent products, so
#
# $$ \mathrm{Var}(q \cdot k) = K \sigma_q^2 \sigma_k^2 . $$
#
# Divided by $\sqrt{K}$, scores have the same spread for every size of a head. Why does the spread
# matter? Because of the softmax's derivative. For $p = \mathrm{softmax}(s)$,
#
# $$ \frac{\partial p_i}{\partial s_j} = p_i (\delta_{ij} - p_j),
# \qquad J = \mathrm{diag}(p) - p p^\top . $$
#
# If the scores are spread out, one $p_i$ is nearly 1 and the others nearly 0: then all entries of
# $J$ are nearly 0, and nothing is learned from the scores.
#
# For one query, the output is $o = \sum_s p_s v_s$, and the chain rule gives a formula that says
# what attention learns from: the covariance of values and keys under the weights $p$,
#
# $$ \frac{\partial o}{\partial q} = \frac{1}{\sqrt{K}}
# \sum_s p_s (v_s - \bar v)(k_s - \bar k)^\top, \qquad
# \bar v = \sum_s p_s v_s, \quad \bar k = \sum_s p_s k_s . $$
#
# ### Build

# %%
size = 8
q = normal(1, 1, 1, size)  # one query, six keys and values
k, v = (normal(1, 6, 1, size, seed=seed) for seed in (1, 2))
p = array(attention_weights(q, k)).reshape(-1)  # (S,)
key, value = array(k)[0, :, 0], array(v)[0, :, 0]  # (S, K)
softmax_jacobian_of_p = np.diag(p) - np.outer(p, p)
centered = value - p @ value, key - p @ key
covariance = np.einsum("s,sv,sk->vk", p, *centered)

# %% [markdown]
# ### Assert
# TensorFlow differentiates the library's `attend`, and knows nothing of our formulas.

# %%
s = tensor(np.log(p))  # scores whose softmax is p
assert_equal(jacobian(ops.softmax, s), softmax_jacobian_of_p)

of_q = jacobian(lambda q: attend(q, k, v), q).reshape(size, size)
assert_equal(of_q, covariance / math.sqrt(size))

# %% [markdown]
# ### Picture
# For queries and keys with variance 1, and 16 keys: the variance of the scores; the entropy of the
# weights (it is $\ln 16 = 2.8$ if all are equal, 0 if one is 1); the norm of the softmax's
# Jacobian. Without the root, the weights of large heads are nearly one-hot, and little of the
# gradient reaches the scores.

# %%
sizes = [2**i for i in range(1, 10)]
rows = {"divided by the root": [], "not divided": []}
for size in sizes:
    rng = np.random.default_rng(size)
    q, k = rng.normal(size=(300, 1, size)), rng.normal(size=(300, 16, size))
    products = (q * k).sum(-1)
    both = products / size**0.5, products
    for name, scores in zip(rows, both, strict=True):
        p = array(ops.softmax(scores, axis=-1))
        entropy = -(p * np.log(p + 1e-30)).sum(-1).mean()
        jacobians = p[:, :, None] * np.eye(16) - p[:, :, None] * p[:, None]
        norm = np.linalg.norm(jacobians, axis=(1, 2)).mean()
        rows[name].append((scores.var(), entropy, norm))

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
titles = "variance of the scores", "entropy of the weights", "norm of J"
for i, title in enumerate(titles):
    for name, row in rows.items():
        axes[i].semilogx(sizes, np.array(row)[:, i], ".-", label=name, base=2)
    axes[i].set_title(title)
    axes[i].set_xlabel("size of a head, K")
axes[0].set_yscale("log")
axes[0].legend(fontsize=8)
plt.show()
variances = np.array(rows["not divided"])[:, 0]
np.testing.assert_allclose(variances / sizes, 1, atol=0.25)
entropies, norms = (
    np.array(rows["divided by the root"])[:, i] for i in (1, 2)
)
assert np.ptp(entropies) < 0.1 and np.ptp(norms) < 0.03  # they stay level
assert rows["not divided"][-1][2] < norms[-1] / 2

# %% [markdown]
# ### Exercise 3
# The variance of $q \cdot k$ for components that do not have mean 0. (For independent $a$ and
# $b$: $\mathrm{Var}(ab) = E[a^2] E[b^2] - E[a]^2 E[b]^2$.)


# %%
def dot_variance(dim, mean_q, std_q, mean_k, std_k):
    """The variance of a sum of dim products."""
    ...


print("dot_variance:", checks.dot_variance(dot_variance))

# %% [markdown]
# ### Exercise 4
# The Jacobian of the softmax, from its result.


# %%
def softmax_jacobian(p):
    """p (S,) -> dp_i / ds_j (S, S)"""
    ...


print("softmax_jacobian:", checks.softmax_jacobian(softmax_jacobian))

# %% [markdown]
# ## 4. Masks
#
# ### Formula
# A *mask* says which keys a query may attend to. Here, as everywhere in the library, it is
# boolean, **True = may attend**, and it is applied to the scores, before the softmax:
#
# $$ s'_{ts} = s_{ts} \text{ if } M_{ts} \text{ else } -10^9 . $$
#
# A *causal* mask, $M_{ts} = (s \le t)$, keeps a decoder from seeing the words that it has to
# predict. A *padding* mask hides the tokens that fill up short sentences of a batch. Masks combine
# by "and". The number is finite on purpose: if all keys are masked, the softmax of equal numbers
# is the mean over all values, and not $0 / 0$.
#
# ### Build

# %%
length, pad_id = 6, 0
tokens = np.array([[7, 3, 5, 2, 0, 0]])  # two tokens of padding
query, key = ops.arange(length)[:, None], ops.arange(length)
causal = key <= query  # (T, S)
padding = ops.not_equal(tokens, pad_id)[:, None, None]  # (B, 1, 1, S)
both = ops.logical_and(causal, padding)  # (B, 1, T, S)

# %% [markdown]
# ### Assert
# Equal to the library's masks, and, what they are for: the future cannot change the past; padding
# changes nothing.

# %%
assert_equal(causal, causal_mask(length))
assert_equal(padding, padding_mask(tokens, pad_id))

x, other = normal(1, length, 8), normal(1, length, 8, seed=1)
layer = MultiHeadAttention(num_heads=2, causal=True)
changed = ops.concatenate([x[:, :4], other[:, 4:]], axis=1)
assert_equal(layer(x)[:, :4], layer(changed)[:, :4])

layer = MultiHeadAttention(num_heads=2)
assert_equal(layer(x, mask=padding)[:, :4], layer(x[:, :4]))

q, k, v = (normal(1, 3, 1, 4, seed=seed) for seed in range(3))
nothing = np.zeros((3, 3), bool)
mean = ops.mean(v, axis=1, keepdims=True)
assert_equal(attend(q, k, v, nothing), ops.repeat(mean, 3, axis=1))

# %% [markdown]
# ### Picture
# Four masks (blue = may attend), and what the causal one does to the gradients: the norm of
# $\partial y_t / \partial x_s$ is lower-triangular.

# %%
layer = MultiHeadAttention(num_heads=2, causal=True)
of_x = jacobian(layer, x)[0, :, :, 0]  # (T, D, S, D)
norms = np.sqrt((of_x**2).sum(axis=(1, 3)))
assert np.allclose(norms, np.tril(norms))

figure, axes = plt.subplots(1, 5, figsize=(14, 3.4), layout="constrained")
masks = {
    "causal": causal,
    "padding": np.repeat(padding[0, 0], length, 0),
    "both": both[0, 0],
    "window of 3": causal_mask(length, window=3),
    "norm of dy_t / dx_s": norms,
}
places = range(length)
for axis, (title, matrix) in zip(axes, masks.items(), strict=True):
    heatmap(axis, matrix, title, places, places)
    axis.set_xlabel("key s")
axes[0].set_ylabel("query t")
plt.show()

# %% [markdown]
# ### Exercise 5
# A sliding window, as in Mistral (Jiang et al. 2023, arXiv 2310.06825): each position attends to
# the last `window` positions, itself included.


# %%
def sliding_window(length, window):
    """A boolean mask (T, T), True = may attend."""
    ...


print("sliding_window:", checks.sliding_window(sliding_window))

# %% [markdown]
# ### Exercise 6
# To waste no computation on padding, short texts are packed into one row, one after the other.
# Given the number of the text that each token belongs to, make a causal mask in which no token
# sees another text.


# %%
def packed_mask(texts):
    """texts (T,), for example [1, 1, 1, 2, 2, 3] -> a boolean mask (T, T)"""
    ...


print("packed_mask:", checks.packed_mask(packed_mask))

# %% [markdown]
# ## 5. Several heads
#
# ### Formula
# One softmax gives one mean. A word may have to look at two places for two reasons, so $H$ heads
# attend separately, each with its own projections of size $K = D / H$ (section 3.2.2):
#
# $$ \mathrm{MultiHead}(X) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_H) W_O
# = \sum_{h=1}^{H} A_h X W_V^h W_O^h, $$
#
# where $A_h$ $(T, S)$ are the weights of head $h$, and $W_O^h$ $(K, D)$ are the rows of $W_O$ that
# belong to it. The right side says more than the left: heads do not interact, their results are
# *added*; and each head moves information through the matrix $W_V^h W_O^h$ $(D, D)$, whose rank is
# at most $K$.
#
# ### Build

# %%
x = normal(1, 5, 8)
layer = MultiHeadAttention(num_heads=4, use_bias=False)
layer.build(x.shape)


def head(x, h):
    parts = layer.query, layer.key, layer.value  # kernels (D, H, K)
    wq, wk, wv = (array(part.kernel)[:, h] for part in parts)
    q, k, v = (ops.matmul(x, w) for w in (wq, wk, wv))  # (B, T, K)
    scores = ops.einsum("btk,bsk->bts", q, k) / math.sqrt(k.shape[-1])
    return ops.matmul(ops.softmax(scores, axis=-1), v)


wo = array(layer.output_projection.kernel)  # (H, K, D)
each = [ops.matmul(head(x, h), wo[h]) for h in range(4)]  # (B, T, D)

# %% [markdown]
# ### Assert

# %%
assert_equal(sum(each), layer(x))
joined = ops.concatenate([head(x, h) for h in range(4)], axis=-1)
assert_equal(ops.matmul(joined, wo.reshape(8, 8)), layer(x))
for h in range(4):
    moved = array(layer.value.kernel)[:, h] @ wo[h]
    assert np.linalg.matrix_rank(moved) == 2  # K = 8 / 4

# %% [markdown]
# ### Picture
# Two heads, trained on a task that needs two: the output at each position is the token before it
# *and* the token after it. Tokens and positions are one-hot vectors. A single head has to take the
# mean of both neighbours, and cannot say which is which. Of two heads, one looks back and the other
# ahead (at the end where its neighbour is missing, it spreads its weights), and the error with
# either head removed shows that both are needed.


# %%
def neighbours(count, length=8, vocab_size=6):
    """x (B, T, V + T) and the tokens before and after, y (B, T, 2 V)."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (count, length))
    one_hot = np.eye(vocab_size, dtype="float32")[tokens]
    places = np.tile(np.eye(length, dtype="float32"), (count, 1, 1))
    before, after = np.zeros_like(one_hot), np.zeros_like(one_hot)
    before[:, 1:], after[:, :-1] = one_hot[:, :-1], one_hot[:, 1:]
    x = np.concatenate([one_hot, places], axis=-1)
    return x, np.concatenate([before, after], axis=-1)


# %%
def train(num_heads, epochs=1 if FAST else 30):
    keras.utils.set_random_seed(1)
    inputs, layer = keras.Input((8, 14)), MultiHeadAttention(num_heads)
    outputs = keras.layers.Dense(12)(layer(inputs))
    model = keras.Model(inputs, outputs)
    adam = keras.optimizers.Adam(0.01)
    model.compile(adam, "mean_squared_error", **STEP)
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    return model, layer


# %%
x, y = neighbours(128 if FAST else 2048)
losses = {}
for num_heads, name in ((1, "1 head"), (2, "2 heads")):
    model, layer = train(num_heads)
    losses[name] = model.evaluate(x, y, verbose=0)
kernel = array(layer.output_projection.kernel)
for h in range(2):  # what is each head worth?
    without = kernel.copy()
    without[h] = 0
    layer.output_projection.kernel.assign(without)
    losses[f"head {h}\nremoved"] = model.evaluate(x, y, verbose=0)
layer.output_projection.kernel.assign(kernel)
assert FAST or losses["2 heads"] < losses["1 head"] / 5

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
mean = ops.mean(layer.attention_weights(x[:200]), axis=0)
for h in range(2):
    heatmap(axes[h], mean[h], f"mean weights of head {h}", range(8), range(8))
    axes[h].set(xlabel="key s", ylabel="query t")
axes[2].bar(losses.keys(), losses.values())
axes[2].set_title("mean squared error")
axes[2].tick_params(axis="x", labelsize=8)
plt.show()

# %% [markdown]
# ### Exercise 7
# Self-attention with several heads, from its kernels. A mistake in public code: it
# splits `x` into $H$ parts *before* projecting, so that a head sees only $K$ of the $D$ channels.
# This is another function, with fewer parameters.


# %%
def multi_head(x, wq, wk, wv, wo):
    """x (T, D), wq, wk, wv (D, H, K), wo (H, K, D) -> (T, D)"""
    ...


print("multi_head:", checks.multi_head(multi_head))

# %% [markdown]
# ## 6. Cross-attention
#
# ### Formula
# Nothing says that queries and keys come from the same sequence. A translator's decoder, which
# writes German, asks the encoder's output, the *memory* $M$ $(S, D)$ of the English sentence:
#
# $$ Q = X W_Q \ (T, K), \qquad K = M W_K,\ V = M W_V \ (S, K), $$
#
# and the weights are a rectangle $(T, S)$. Keys and values depend on the memory alone, so a decoder
# computes them once per sentence, and not at each step: in the library, `layer.project(memory)`.
#
# ### Build

# %%
x, memory = normal(1, 4, 8), normal(1, 6, 8, seed=1)
layer = MultiHeadAttention(num_heads=2)
layer.build(x.shape, memory.shape)

q = layer.query(x)  # (B, T, H, K)
k, v = layer.key(memory), layer.value(memory)  # (B, S, H, K)
scores = ops.einsum("bthk,bshk->bhts", q, k) / math.sqrt(k.shape[-1])
weights = ops.softmax(scores, axis=-1)
heads = ops.einsum("bhts,bshk->bthk", weights, v)
y = layer.output_projection(heads)

# %% [markdown]
# ### Assert
# The memory is a set: its order changes nothing. (What order means is the subject of section 8.)

# %%
assert_equal(y, layer(x, memory))
assert_equal(y, layer(x, layer.project(memory)))
shuffled = ops.take(memory, np.array([3, 0, 5, 1, 4, 2]), axis=1)
assert_equal(y, layer(x, shuffled))

# %% [markdown]
# ### Picture
# If words and their translations had equal vectors, dot products would find them: this is the
# *alignment* that a trained translator learns (section 13 draws a real one). Here every word has a
# random vector that it shares with its translation; no training.

# %%
german = "heute schläft der alte Mann".split()
english = "the old man sleeps today".split()
concepts = normal(5, 32, seed=3)
source = ops.take(concepts, np.array([4, 3, 0, 1, 2]), axis=0)
q, k = (ops.reshape(c, (1, -1, 1, 32)) for c in (concepts, source))
figure, axis = plt.subplots(figsize=(4, 3.4), layout="constrained")
aligned = attention_weights(q, k)[0, 0]
heatmap(axis, aligned, "English asks German", english, german, ".2f")
plt.show()

# %% [markdown]
# ### Exercise 8
# Cross-attention from its kernels. Which of the two gives the queries?


# %%
def cross_attention(x, memory, wq, wk, wv, wo):
    """x (T, D), memory (S, D), kernels of exercise 7 -> (T, D)"""
    ...


print("cross_attention:", checks.cross_attention(cross_attention))

# %% [markdown]
# ## 7. What attention costs
#
# ### Formula
# Count two operations per multiply-add. For a sequence of length $T$, one block costs
#
# | part | FLOPs |
# | --- | --- |
# | four projections, $W_Q, W_K, W_V, W_O$ | $4 \cdot 2 T D^2$ |
# | $Q K^\top$, and weights times $V$ | $2 \cdot 2 T^2 D$ |
# | feed-forward network of hidden width $F$ (section 9) | $2 \cdot 2 T D F$ |
#
# $$ 8 T D^2 + 4 T^2 D + 4 T D F . $$
#
# The term with $T^2$ is the largest only if $T > \max(2D, F)$: with $D = 512$, $F = 2048$, from
# 2,048 tokens on. Compared with other layers (section 4 of
# the paper; operations and steps of one layer, and the path through as many as it needs):
#
# | layer | operations | steps that wait for each other | path between two positions |
# | --- | --- | --- | --- |
# | self-attention | $O(T^2 D)$ | $O(1)$ | $O(1)$ |
# | recurrent | $O(T D^2)$ | $O(T)$ | $O(T)$ |
# | convolution of width $w$ | $O(w T D^2)$ | $O(1)$ | $O(T / w)$; dilated: $O(\log_w T)$ |
#
# ### Build


# %%
def count_flops(length, dim, intermediate_dim):
    """A product of matrices (m, k) and (k, n) has m k n multiply-adds."""
    products = [
        *[(length, dim, dim)] * 4,  # W_Q, W_K, W_V, W_O
        (length, dim, length),  # scores, all heads together
        (length, length, dim),  # weights times values
        (length, dim, intermediate_dim),
        (length, intermediate_dim, dim),
    ]
    return 2 * sum(math.prod(sizes) for sizes in products)


# %% [markdown]
# ### Assert
# TensorFlow's profiler counts all operations of the library's block: the formula has the products
# of matrices, the rest (softmax, norms, biases) is a few percent.

# %%
length, dim, intermediate_dim = 128, 64, 256
block = TransformerBlock(num_heads=4, intermediate_dim=intermediate_dim)
block.build((1, length, dim))
signature = tf.TensorSpec((1, length, dim))
run = tf.function(lambda x: block(x), autograph=False)
graph = run.get_concrete_function(signature).graph
profiler = tf.compat.v1.profiler
options = profiler.ProfileOptionBuilder.float_operation()
options = profiler.ProfileOptionBuilder(options).with_empty_output().build()
counted = profiler.profile(graph, options=options).total_float_ops
ratio = counted / count_flops(length, dim, intermediate_dim)
print(f"profiler / formula: {ratio:.3f}")
assert 1 <= ratio < 1.1

# %% [markdown]
# ### Picture
# Measured: the time of one layer against the length, on both axes logarithmic, so a power of $T$
# is a line and its slope is the exponent. For short lengths, and for the convolution at all of
# these, it is mostly the overhead of a call. On the right, the RNN's slope is about 1, and
# attention's approaches 2.

# %% tags=["measured"]
lengths = [128, 256] if FAST else [128, 256, 512, 1024, 2048]
layers = {
    "attention": MultiHeadAttention(num_heads=4),
    "RNN": keras.layers.SimpleRNN(64, return_sequences=True),
    "convolution": keras.layers.Conv1D(64, 3, padding="same"),
}
for name, layer in layers.items():
    times = []
    for length in lengths:
        x = normal(1, length, 64)
        layer(x)  # creates its weights
        run = tf.function(lambda x, f=layer: f(x), autograph=False)
        times.append(seconds(lambda f=run, x=x: array(f(x))))
    plt.loglog(lengths, np.multiply(times, 1000), ".-", label=name)
plt.xticks(lengths, lengths)
plt.minorticks_off()
plt.xlabel("length T")
plt.ylabel("milliseconds")
plt.title("time of one layer, D = 64")
plt.legend()
plt.show()

# %% [markdown]
# ### Exercise 9
# The weights are the largest tensor of attention. How many bytes do they need? (For
# $T = S = 100{,}000$, 12 heads and 4 bytes per number it is 480 GB, for one example. This is why
# long contexts use windows, or kernels that never store the weights: FlashAttention, Dao et al.
# 2022, arXiv 2205.14135.)


# %%
def weights_bytes(batch, heads, length, source_length, size):
    """size: bytes per number"""
    ...


print("weights_bytes:", checks.weights_bytes(weights_bytes))

# %% [markdown]
# ### Exercise 10
# The FLOPs of a block, from the formula. Then answer for yourself: at which length do the two
# products of $T \times T$ cost as much as all others?


# %%
def block_flops(length, dim, intermediate_dim):
    """FLOPs of one block, 2 per multiply-add"""
    ...


print("block_flops:", checks.block_flops(block_flops))

# %% [markdown]
# # Part II. Positions, block, gradients

# %%
import math
import os

import polyhead  # first, because it hides TensorFlow's log lines
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import ops

from polyhead.layers import (
    FeedForward,
    MultiHeadAttention,
    PositionalEmbedding,
    RelativeBias,
    RMSNorm,
    Rotary,
    TokenEmbedding,
    TransformerBlock,
)
from polyhead.layers.positions import rotate
from polyhead.learn import checks, solutions
from polyhead.learn.show import array, assert_equal, heatmap, normal, tensor

FAST = "FAST" in os.environ  # shorter training, for tests
# To compile the step of a small model takes longer than its training.
STEP = dict(jit_compile=False, run_eagerly=FAST)
keras.utils.set_random_seed(0)


# %% [markdown]
# ## 8. Positions
#
# ### Formula: why they are needed
# Nothing in attention depends on the order of the words. Let $P$ be a permutation matrix; then
#
# $$ f(P X) = P f(X) : $$
#
# permuted words give the same outputs, permuted. (The scores become $P S P^\top$, the softmax works
# row by row, and $P^\top P = I$.) "Dog bites man" and "man bites dog" would be the same. So a
# Transformer needs to know where each word stands. There are two ways: add something to $X$
# (sinusoids, learned vectors), or change the scores (rotary, ALiBi, relative biases).

# %%
x = normal(1, 7, 16)
order = np.array([3, 1, 0, 6, 5, 2, 4])
layer = MultiHeadAttention(num_heads=4)
permuted = layer(ops.take(x, order, axis=1))
assert_equal(permuted, ops.take(layer(x), order, axis=1))

encode = PositionalEmbedding("sinusoidal")
permuted = layer(encode(ops.take(x, order, axis=1)))
difference = permuted - ops.take(layer(encode(x)), order, axis=1)
assert float(ops.max(ops.abs(difference))) > 0.1  # now the order counts

# %% [markdown]
# ### Formula: sinusoids
# The paper (section 3.5) adds to the word at position $p$ the vector
#
# $$ \mathrm{PE}(p, 2i) = \sin(\omega_i p), \qquad \mathrm{PE}(p, 2i + 1) = \cos(\omega_i p),
# \qquad \omega_i = 10000^{-2i/D}, $$
#
# $D / 2$ clock hands: the first turns by one radian per word, the last by nearly $1/10000$. They
# are chosen because a shift by $k$ is a *rotation*, the same one at every position:
#
# $$ \mathrm{PE}(p + k) = R_k \, \mathrm{PE}(p), \qquad
# \begin{pmatrix} \sin \omega (p + k) \\ \cos \omega (p + k) \end{pmatrix} =
# \begin{pmatrix} \cos \omega k & \sin \omega k \\ -\sin \omega k & \cos \omega k \end{pmatrix}
# \begin{pmatrix} \sin \omega p \\ \cos \omega p \end{pmatrix} , $$
#
# so a linear layer can compute "three words before". Two consequences: every $\mathrm{PE}(p)$ has
# the squared norm $D / 2$, and $\mathrm{PE}(p) \cdot \mathrm{PE}(q)$ depends on $p - q$ alone.
#
# ### Build
# One position at a time, as in the paper. (You will write the table without a loop.)


# %%
def encoding(position, dim):
    waves = []
    for i in range(dim // 2):
        angle = position / 10000 ** (2 * i / dim)
        waves += [math.sin(angle), math.cos(angle)]
    return np.array(waves)


by_hand = np.array([encoding(position, 16) for position in range(50)])

# %% [markdown]
# ### Assert
# Adding to zeros shows the library's table. Some implementations put all sines first, and then all
# cosines (Marian; the library's `interleaved=False`): the channels are permuted. A model learns
# either, but its weights fit only one.

# %%
zeros = np.zeros((1, 50, 16), "float32")
table = array(PositionalEmbedding("sinusoidal")(zeros))[0]
assert_equal(by_hand.astype("float32"), table)

halves = array(PositionalEmbedding(interleaved=False)(zeros))[0]
assert_equal(np.concatenate([table[:, ::2], table[:, 1::2]], 1), halves)

gram = table @ table.T
np.testing.assert_allclose(np.diag(gram), 16 / 2, rtol=1e-5)
assert max(np.ptp(np.diag(gram, k)) for k in range(50)) < 1e-3

# %% [markdown]
# ### Picture
# The table as an image; its Gram matrix, which is constant along each diagonal, as it depends on
# the distance alone; and three of the clock hands (cosine to the right, sine upwards) at positions
# 0 to 7.

# %%
wide = array(PositionalEmbedding()(np.zeros((1, 60, 64), "float32")))[0]
figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), layout="constrained")
heatmap(axes[0], wide, "PE: red is -1, blue is 1", cmap="RdBu")
axes[0].set(xlabel="channels 0 to 63", ylabel="positions 0 to 59")
heatmap(axes[1], wide @ wide.T, "PE(p) . PE(q): dark is large")
axes[1].set(xlabel="position q", ylabel="position p")
for row, i in enumerate((0, 4, 8)):
    sine, cosine = wide[:8, 2 * i], wide[:8, 2 * i + 1]
    place = np.arange(8) * 2.5
    level = np.full(8, -2.5 * row)
    axes[2].quiver(place, level, cosine, sine, scale=20, width=0.006)
    axes[2].text(-4, -2.5 * row, f"pair {i}", va="center")
axes[2].set(xlim=(-5, 20), ylim=(-7, 2), xticks=[], yticks=[])
axes[2].set_title("clock hands at positions 0 to 7", fontsize=10)
plt.show()

# %% [markdown]
# ### Exercise 11
# The table of sinusoids for many positions, without a loop over them. Mistakes in public code: sine
# and cosine are swapped; formula and code disagree about the order of the channels.


# %%
def sinusoids(positions, dim):
    """positions (T,) -> (T, D), sines and cosines alternate"""
    ...


print("sinusoids:", checks.sinusoids(sinusoids))

# %% [markdown]
# ### Exercise 12
# The matrix $R_k$, with $\mathrm{PE}(p + k) = R_k \, \mathrm{PE}(p)$. Mind the signs: the sine
# stands first in each pair.


# %%
def shift_matrix(k, dim):
    """R (D, D)"""
    ...


print("shift_matrix:", checks.shift_matrix(shift_matrix))

# %% [markdown]
# ### Exercise 13
# A checkpoint has sines and cosines in halves, your table alternates. Find the order of channels
# with `alternating[:, order] == halves`.


# %%
def halves_order(dim):
    """The order (D,), integers."""
    ...


print("halves_order:", checks.halves_order(halves_order))

# %% [markdown]
# ### Learned positions
# The simplest way: a table of weights with a row per position, as in GPT-2 and BERT. Build it in
# one line. Beyond its length it has no rows, and the library says so.

# %%
learned = PositionalEmbedding("learned", max_length=10)
x = normal(1, 7, 16)
learned.build(x.shape)
assert_equal(x + array(learned.embeddings)[:7], learned(x))
try:
    learned(normal(1, 11, 16))
except ValueError as error:
    assert "at most 10 positions: 11" in str(error)

# %% [markdown]
# ### Formula: rotary positions (RoPE)
# Su et al. 2021 (arXiv 2104.09864) do not add: they *rotate* queries and keys, each pair $i$ of
# channels of a head by the angle $\omega_i p$, where $\omega_i = 10000^{-2i/K}$. A rotation keeps
# dot products if both vectors turn by the same angle, so only the difference counts:
#
# $$ \langle R_m q, R_n k \rangle = \langle q, R_{n-m} k \rangle . $$
#
# Values are not rotated. Which channels are a pair? In the paper, neighbours $(2i, 2i + 1)$; in
# most published checkpoints, and here, $i$ and $i + K/2$.
#
# ### Build
# A pair is a complex number, and rotating multiplies it by $e^{\mathrm{i} \omega p}$.


# %%
def rotated(x, positions):
    """x (T, H, K)"""
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    rate = 10000.0 ** (-np.arange(half) / half)
    z = z * np.exp(1j * positions[:, None, None] * rate)
    return np.concatenate([z.real, z.imag], axis=-1)


positions = np.arange(30)
q, k = (array(normal(1, 30, 4, 16, seed=seed)) for seed in (0, 1))

# %% [markdown]
# ### Assert
# Equal to the library's; and with one query and one key everywhere, the scores (T, S) are
# constant along each diagonal.

# %%
angles = Rotary(head_dim=16)(positions)
assert_equal(rotated(q[0], positions).astype("float32"), rotate(q, angles)[0])

same_q, same_k = (np.repeat(v[:, :1], 30, axis=1) for v in (q, k))
pair = (rotate(tensor(v), angles) for v in (same_q, same_k))
scores = array(ops.einsum("bthk,bshk->bhts", *pair))[0, 0]
assert max(np.ptp(np.diag(scores, d)) for d in range(-29, 30)) < 1e-3

# %% [markdown]
# ### Picture
# The score of a query and an equal key at a distance: at close positions all pairs agree; at far
# ones the slow pairs only.

# %%
far = np.arange(200)
for size in (16, 64):
    one = np.ones((1, 200, 1, size), "float32") / size**0.5
    turned = array(rotate(tensor(one), Rotary(head_dim=size)(far)))
    plt.plot(far, (one * turned).sum(-1)[0, :, 0], label=f"K = {size}")
plt.xlabel("distance")
plt.ylabel("score")
plt.title("score of equal queries and keys, rotated")
plt.legend()
plt.show()

# %% [markdown]
# ### Exercise 14
# The same with real numbers, in the library's convention: pair $i$ is channels $i$ and $i + K/2$.
# Public implementations mixed the two: pairs of one convention, rates of the other.


# %%
def rotary(x, positions):
    """x (T, H, K), positions (T,) -> (T, H, K)"""
    ...


print("rotary:", checks.rotary(rotary))

# %% [markdown]
# ### Formula: biases of the scores (ALiBi, T5)
# Press et al. 2021 (ALiBi, arXiv 2108.12409) subtract from each score a penalty that grows with
# the distance, with a slope per head: $s_{ts} - m_h (t - s)$, where $m_h = 2^{-8h/H}$. T5 (Raffel
# et al. 2019, arXiv 1910.10683) *learns* a number per head and distance; large distances share
# one. Both are a `bias` $(1, H, T, S)$, added before the softmax.
#
# ### Build
# Two heads, with slopes of our choice.

# %%
length = 6
distance = np.arange(length)[:, None] - np.arange(length)  # t - s
slopes = np.array([1.0, 0.1], "float32")[:, None, None]
bias = tensor(-slopes * distance)[None]  # (1, H, T, S)

x = normal(1, length, 8)
layer = MultiHeadAttention(num_heads=2, causal=True)
layer.build(x.shape)
q, k = layer.query(x), layer.key(x)
scores = ops.einsum("bthk,bshk->bhts", q, k) / 2 + bias  # sqrt(K) = 2
weights = ops.softmax(ops.where(distance >= 0, scores, -1e9), axis=-1)

# %% [markdown]
# ### Assert

# %%
assert_equal(weights, layer.attention_weights(x, bias=bias))
heads = ops.einsum("bhts,bshk->bthk", weights, layer.value(x))
assert_equal(layer.output_projection(heads), layer(x, bias=bias))

relative = RelativeBias(num_heads=2)
learned_bias = relative(np.arange(length), np.arange(length))
rows = array(relative.embeddings)[relative.buckets(-distance)]
assert_equal(rows.transpose(2, 0, 1)[None], learned_bias)

# %% [markdown]
# ### Picture
# The weights of equal scores under two slopes of ALiBi, and T5's buckets: a number of its own for
# each near distance, shared ones for far distances.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
past = np.where(distance >= 0, array(bias)[0], -1e9)
for head in range(2):
    title = f"slope {slopes[head, 0, 0]:.1f}"
    weights = ops.softmax(past[head], axis=-1)
    heatmap(axes[head], weights, title, range(6), range(6), ".2f")
    axes[head].set(xlabel="key s", ylabel="query t")
far = np.arange(-150, 151)
axes[2].plot(far, relative.buckets(far), ".", markersize=3)
axes[2].set_title("T5's bucket of each distance", fontsize=10)
axes[2].set(xlabel="distance s - t", ylabel="bucket")
plt.show()

# %% [markdown]
# ### Exercise 15
# ALiBi's bias, with its slopes. Keys after the query do not matter: a causal mask hides them.


# %%
def alibi(length, num_heads):
    """The bias (H, T, T)."""
    ...


print("alibi:", checks.alibi(alibi))

# %% [markdown]
# ### An experiment: twice the length
# One causal block learns to repeat the token of two positions before, in sequences of 16 tokens.
# Then it reads sequences of 32. Five ways to tell it the position, all else equal.


# %%
class Copier(keras.Model):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.tokens = TokenEmbedding(vocab_size=8, dim=64)
        if kind in ("learned", "sinusoidal"):
            self.positions = PositionalEmbedding(kind, max_length=32)
        if kind == "rotary":
            self.rotary = Rotary(head_dim=16)
        self.block = TransformerBlock(4, 128, causal=True)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5)

    def call(self, tokens):
        x, length = self.tokens(tokens), tokens.shape[1]
        rotary = bias = None
        if self.kind in ("learned", "sinusoidal"):
            x = self.positions(x)
        elif self.kind == "rotary":
            rotary = self.rotary(np.arange(length))
        elif self.kind == "ALiBi":
            bias = tensor(solutions.alibi(length, 4))[None]
        x = self.block(x, rotary=rotary, bias=bias)
        return self.tokens.logits(self.norm(x))


# %% [markdown]
# The data, and the accuracy on sequences of any length:


# %%
def copies(count, length, seed):
    """Tokens, the tokens two before, and weights: 0 for the first two."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 8, (count, length))
    weights = np.ones((count, length), "float32")
    weights[:, :2] = 0
    return tokens, np.roll(tokens, 2, axis=1), weights


def accuracy(model, length):
    tokens, targets, _ = copies(256, length, seed=1)
    predicted = array(model(tokens)).argmax(-1)
    return (predicted == targets)[:, 2:].mean()


# %% [markdown]
# Training, in each of the five ways, with the same data and the same seed:

# %%
results = {}
tokens, targets, weights = copies(128 if FAST else 6400, 16, seed=0)
kinds = ("none", "learned", "sinusoidal", "ALiBi", "rotary")
for kind in kinds[3:] if FAST else kinds:
    keras.utils.set_random_seed(0)
    model = Copier(kind)
    model(tokens[:1])  # creates its weights
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    adam = keras.optimizers.Adam(0.003)
    model.compile(adam, loss, **STEP)
    data = dict(x=tokens, y=targets, sample_weight=weights)
    model.fit(**data, batch_size=64, epochs=1 if FAST else 6, verbose=0)
    results[kind] = accuracy(model, 16), accuracy(model, 32)

# %%
at = np.arange(len(results))
for i, length in enumerate((16, 32)):
    heights = [result[i] for result in results.values()]
    plt.bar(at + 0.4 * i, heights, width=0.4, label=f"length {length}")
plt.xticks(at + 0.2, results)
plt.axhline(1 / 8, color="gray", linewidth=0.5)
plt.title("accuracy; trained on length 16; the line is guessing")
plt.ylim(0, 1.25)
plt.legend(loc="upper left", ncols=2)
plt.show()
if not FAST:
    for kind in ("learned", "sinusoidal", "rotary"):
        assert results[kind][0] > 2 * results["none"][0]
    for kind in ("none", "learned", "sinusoidal"):
        assert results["rotary"][1] > results[kind][1] + 0.1
    print({kind: np.round(both, 2).tolist() for kind, both in results.items()})

# %% [markdown]
# Read it like this. *None*: a causal mask alone tells a block little about distances. *Learned*
# positions 16 to 31 were never trained, so the second half of a long sequence is read wrongly.
# *Sinusoids* can be shifted by a linear map, but nothing forces a model to learn that map: it saw
# positions 0 to 15 only, and is hardly better. *Rotary* scores depend on differences of positions
# alone, and the difference 2 was trained; some is lost, because long sequences have twice as
# many keys, at differences that were never trained. *ALiBi* prefers near tokens over far ones,
# equally at every position; with fixed slopes no head points at one exact distance, so it is less
# accurate than rotary positions at either length. In large models the picture is less simple
# (Press et al. 2021; Peng et al. 2023, arXiv 2309.00071), but the reasons are these.

# %% [markdown]
# ## 9. Feed-forward network, normalization, residual
#
# ### Formula
# The other half of a block works on each position by itself (section 3.3):
#
# $$ \mathrm{FFN}(x) = \max(0, x W_1 + b_1) W_2 + b_2, \qquad
# W_1: (D, F), \quad W_2: (F, D), $$
#
# with $F = 4 D$ in the paper. It has twice as many weights as attention.
#
# *Layer normalization* (Ba et al. 2016, arXiv 1607.06450) centers each position's vector and
# divides it by its standard deviation, over its $D$ channels:
#
# $$ \hat x = \frac{x - \bar x}{\sqrt{\sigma^2 + \epsilon}}, \qquad
# y = \gamma \odot \hat x + \beta . $$
#
# As geometry: project $x$ onto the plane orthogonal to $(1, \dots, 1)$, and scale the result to the
# length $\sqrt D$. So $5 x$ has the same result as $x$: a norm makes a network indifferent to the
# scale of what comes before. Its backward pass follows: with $g = \partial L / \partial \hat x$,
#
# $$ \frac{\partial L}{\partial x} = \frac{1}{\sigma}
# \left( g - \bar g - \hat x \, \overline{g \odot \hat x} \right), $$
#
# the part of $g$ that is orthogonal to both directions that do not matter, $(1, \dots, 1)$ and
# $\hat x$; a bar is the mean over channels. RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), used
# by Llama and T5, omits the centering: $x / \sqrt{\overline{x^2} + \epsilon}$.
#
# ### Build

# %%
x = normal(2, 5, 16)
layer = FeedForward(intermediate_dim=64)
layer.build(x.shape)
parts = layer.expand, layer.contract
(w1, b1), (w2, b2) = ([array(w) for w in part.weights] for part in parts)
feed_forward = ops.matmul(ops.relu(ops.matmul(x, w1) + b1), w2) + b2

centered = x - ops.mean(x, axis=-1, keepdims=True)
length = ops.sqrt(ops.sum(centered**2, axis=-1, keepdims=True))
x_hat = math.sqrt(16) * centered / length  # epsilon = 0
rms = x / ops.sqrt(ops.mean(x**2, axis=-1, keepdims=True) + 1e-6)

# %% [markdown]
# ### Assert
# And what TensorFlow's gradient says of the library's norm.

# %%
assert_equal(feed_forward, layer(x))
norm = keras.layers.LayerNormalization(epsilon=1e-8)
assert_equal(x_hat, norm(x), atol=1e-4)
assert_equal(norm(5 * x), norm(x), atol=1e-4)
assert_equal(rms, RMSNorm(epsilon=1e-6)(x))

g = normal(2, 5, 16, seed=1)
with tf.GradientTape() as tape:
    tape.watch(x)
    loss = ops.sum(norm(x) * g)
gradient = tape.gradient(loss, x)
along = ops.mean(g * x_hat, axis=-1, keepdims=True)
sigma = ops.std(x, axis=-1, keepdims=True)
ours = (g - ops.mean(g, axis=-1, keepdims=True) - x_hat * along) / sigma
assert_equal(ours, gradient, atol=1e-4)

# %% [markdown]
# ### Picture
# A *residual connection* adds each sublayer's result to its input, $x + f(x)$, so that the
# identity is the easiest function to learn. Where does the norm go? *Post-norm*,
# $\mathrm{norm}(x + f(x))$, as in the paper, or *pre-norm*, $x + f(\mathrm{norm}(x))$, as in GPT-2.
# With pre-norm nothing stops the sum from growing: this is the norm of the vectors after each of
# 24 blocks, at initialization. (A sum of $L$ independent vectors of equal length has a length
# proportional to $\sqrt L$.)

# %%
depth = 4 if FAST else 24
for order in ("pre", "post"):
    keras.utils.set_random_seed(0)
    x, norms = normal(4, 16, 64), []
    for _ in range(depth):
        x = TransformerBlock(4, 128, order=order)(x)
        norms.append(float(ops.mean(ops.norm(x, axis=-1))))
    plt.plot(range(1, depth + 1), norms, ".-", label=f"{order}-norm")
    if order == "pre":
        root = norms[-1] * np.sqrt(np.arange(1, depth + 1) / depth)
        plt.plot(
            range(1, depth + 1), root, "k:", label="proportional to sqrt(L)"
        )
plt.xlabel("number of blocks, L")
plt.title("mean norm of the vectors, D = 64")
plt.legend()
plt.show()

# %% [markdown]
# ### Exercise 16
# Layer normalization. Mistakes in public code: the variance is divided by $D - 1$ (the default of
# PyTorch's `std`); epsilon is added to the standard deviation, where it should be under the root.


# %%
def layer_norm(x, gamma, beta, epsilon):
    """x (B, T, D) -> (B, T, D)"""
    ...


print("layer_norm:", checks.layer_norm(layer_norm))

# %% [markdown]
# ### Exercise 17
# The backward pass of layer normalization, for $\gamma = 1$, $\beta = 0$, $\epsilon = 0$.


# %%
def layer_norm_gradient(x, gradient):
    """x, dL / dx_hat (T, D) -> dL / dx (T, D)"""
    ...


said = checks.layer_norm_gradient(layer_norm_gradient)
print("layer_norm_gradient:", said)

# %% [markdown]
# ## 10. Gradients through many blocks: pre-norm and post-norm
#
# ### Formula
# Xiong et al. 2020 (arXiv 2002.04745, theorem 1) compare the gradients of the *last* block's
# weights at initialization, for a stack of $L$ blocks:
#
# $$ \text{post-norm: } O(1), \qquad \text{pre-norm: } O(1 / \sqrt L) . $$
#
# The reason is in the last picture: with pre-norm, the vectors that reach the final norm have
# length proportional to $\sqrt L$, and a norm divides the gradient by the length of its input
# (section 9: the factor $1 / \sigma$). With post-norm they always have length $\sqrt D$. It is
# often told as "post-norm's lower layers get no gradient". The theorem says something else: its
# *top* layers get large gradients however deep the stack is. Hence the warm-up of section 12.
#
# ### Build
# A block with the weights of the library's, both ways.


# %%
def block_by_hand(x, block, order):
    sublayers = (
        (block.attention, block.attention_norm),
        (block.feed_forward, block.feed_forward_norm),
    )
    for sublayer, norm in sublayers:
        if order == "pre":
            x = x + sublayer(norm(x))
        else:
            x = norm(x + sublayer(x))
    return x


# %% [markdown]
# ### Assert

# %%
x = normal(2, 5, 16)
for order in ("pre", "post"):
    block = TransformerBlock(4, 32, order=order)
    block.build(x.shape)
    assert_equal(block_by_hand(x, block, order), block(x))

# %% [markdown]
# ### Picture
# Measured: the gradient norm of the last block's first feed-forward matrix, for stacks of 2 to 24
# blocks, with the mean over five seeds. The loss is a random linear function of the output.


# %%
def last_gradients(order, depths, seed):
    """The gradient norm in the last block of L blocks, for L in depths."""
    keras.utils.set_random_seed(seed)
    h, weights = (
        normal(4, 16, 64, seed=seed),
        normal(4, 16, 64, seed=100 + seed),
    )
    final = keras.layers.LayerNormalization(epsilon=1e-5)
    norms = []
    for depth in range(1, max(depths) + 1):
        block = TransformerBlock(4, 128, order=order)
        block.build(h.shape)
        with tf.GradientTape() as tape:
            h = block(h)
            y = final(h) if order == "pre" else h
            loss = ops.mean(y * weights)
        if depth in depths:  # here the stack may end
            kernel = block.feed_forward.expand.kernel.value
            norms.append(float(tf.norm(tape.gradient(loss, kernel))))
    return norms


# %%
depths = [2, 6] if FAST else [2, 6, 12, 24]
seeds = range(1 if FAST else 5)
means = {}
for order in ("pre", "post"):
    of_seeds = [last_gradients(order, depths, seed) for seed in seeds]
    means[order] = np.mean(of_seeds, axis=0)
    plt.loglog(depths, means[order], ".-", label=f"{order}-norm")
start = means["pre"][0]
theory = [start * (depths[0] / depth) ** 0.5 for depth in depths]
plt.loglog(depths, theory, "k:", label="proportional to 1 / sqrt(L)")
plt.xticks(depths, depths)
plt.yticks([0.02, 0.04, 0.08], [0.02, 0.04, 0.08])
plt.minorticks_off()
plt.xlabel("number of blocks, L")
plt.title("gradient norm in the last block, mean of five seeds")
plt.legend()
plt.show()

exponent = {
    order: np.polyfit(np.log(depths), np.log(values), 1)[0]
    for order, values in means.items()
}
for order, value in exponent.items():
    print(f"{order}-norm: proportional to L^{value:.2f}")
if not FAST:
    assert -0.6 < exponent["pre"] < -0.4
    assert -0.15 < exponent["post"] < 0.15
    assert means["post"][-1] > 3 * means["pre"][-1]

# %% [markdown]
# ### Exercise 18
# A pre-norm block from its parts. A mistake in public code, in large libraries too: the
# residual connection starts at the *normalized* x. Then nothing carries $x$ itself through the
# stack.


# %%
def pre_norm_block(x, norm_1, attention, norm_2, feed_forward):
    """x (T, D); the others are functions of (T, D)"""
    ...


print("pre_norm_block:", checks.pre_norm_block(pre_norm_block))

# %% [markdown]
# # Part III. The Transformer

# %%
import collections
import math
import os

import polyhead  # first, because it hides TensorFlow's log lines
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import ops

from polyhead.data import Subwords, read_split, translation_batches
from polyhead.learn import checks, solutions
from polyhead.learn.show import array, assert_equal, heatmap
from polyhead.recipes.translation import find_data
from polyhead.training import InverseSquareRoot, SmoothedCrossEntropy, bleu
from polyhead.zoo import Transformer, TransformerConfig

FAST = "FAST" in os.environ  # shorter training, for tests
# To compile the step of a small model takes longer than its training.
STEP = dict(jit_compile=False, run_eagerly=FAST)
keras.utils.set_random_seed(0)

# %% [markdown]
# ## 11. Encoder and decoder: the whole model
#
# ### Formula
# Figure 1 of the paper. The *encoder* reads the source, all words at once; the *decoder* writes
# the target, a word at a time, and asks the encoder's result, the memory $M$, in each block:
#
# | | encoder block | decoder block |
# | --- | --- | --- |
# | 1 | self-attention, padding masked | self-attention, causal |
# | 2 | | cross-attention to $M$, padding masked |
# | 3 | feed-forward network | feed-forward network |
#
# Each sublayer has a residual connection and a norm. Both begin with token embeddings, scaled by
# $\sqrt D$, plus positions. The decoder ends with logits $x E^\top$ $(T, V)$, where $E$ $(V, D)$ is
# the same matrix that embeds the tokens (section 3.4): a token is likely if its embedding is
# similar to the decoder's output.
#
# ### Build
# All of it by hand: functions of tensors and of a dictionary `w`, which maps the path of each
# weight to its array. Pre-norm, as in the library's small preset. First what works on each position
# by itself:


# %%
def linear(equation, x, w, path):
    return ops.einsum(equation, x, w[f"{path}/kernel"]) + w[f"{path}/bias"]


def normalize(x, w, path):
    mean = ops.mean(x, axis=-1, keepdims=True)
    variance = ops.var(x, axis=-1, keepdims=True)
    x_hat = (x - mean) / ops.sqrt(variance + 1e-5)
    return x_hat * w[f"{path}/gamma"] + w[f"{path}/beta"]


def feed_forward(x, w, path):
    hidden = ops.relu(linear("btd,df->btf", x, w, f"{path}/expand"))
    return linear("btf,fd->btd", hidden, w, f"{path}/contract")


# %% [markdown]
# Attention, in which `x` asks and `memory` answers; in self-attention they are the same:


# %%
def attend_by_hand(x, memory, mask, w, path):
    q = linear("btd,dhk->bthk", x, w, f"{path}/query")
    k = linear("bsd,dhk->bshk", memory, w, f"{path}/key")
    v = linear("bsd,dhk->bshk", memory, w, f"{path}/value")
    scores = ops.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
    weights = ops.softmax(ops.where(mask, scores, -1e9), axis=-1)
    heads = ops.einsum("bhts,bshk->bthk", weights, v)
    return linear("bthk,hkd->btd", heads, w, f"{path}/output")


# %% [markdown]
# A block, with cross-attention if there is a memory:


# %%
def block_by_hand(x, mask, w, path, memory=None, memory_mask=None):
    y = normalize(x, w, f"{path}/attention_norm")
    x = x + attend_by_hand(y, y, mask, w, f"{path}/attention")
    if memory is not None:
        y = normalize(x, w, f"{path}/cross_attention_norm")
        cross = f"{path}/cross_attention"
        x = x + attend_by_hand(y, memory, memory_mask, w, cross)
    y = normalize(x, w, f"{path}/feed_forward_norm")
    return x + feed_forward(y, w, f"{path}/feed_forward")


# %% [markdown]
# And the model: embeddings, the stack of the encoder, the stack of the decoder.


# %%
def embed(tokens, w):
    table = w["tokens/embeddings"]  # (V, D)
    positions = solutions.sinusoids(np.arange(tokens.shape[1]), table.shape[1])
    x = ops.take(table, tokens, axis=0) * math.sqrt(table.shape[1])
    return x + ops.cast(positions, "float32")


def encode(source, padding, w, num_layers):
    x = embed(source, w)
    for i in range(num_layers):
        x = block_by_hand(x, padding, w, f"encoder_{i}")
    return normalize(x, w, "encoder_norm")


# %%
def transformer(source, target, w, num_layers):
    padding = ops.not_equal(source, 0)[:, None, None]  # (B, 1, 1, S)
    memory = encode(source, padding, w, num_layers)
    causal = np.tril(np.ones((target.shape[1], target.shape[1]), bool))
    x = embed(target, w)
    for i in range(num_layers):
        x = block_by_hand(x, causal, w, f"decoder_{i}", memory, padding)
    x = normalize(x, w, "decoder_norm")
    return ops.einsum("btd,vd->btv", x, w["tokens/embeddings"])


# %% [markdown]
# ### Assert
# The library's model, with its own random weights, gives the same logits $(B, T, V)$: about 50
# lines are a whole Transformer.

# %%
model = Transformer.preset("tiny", vocab_size=50)
w = {v.path: array(v) for v in model.weights if v.trainable}
source = np.array([[5, 7, 9, 2, 0, 0], [8, 8, 3, 4, 6, 2]])
target = np.array([[1, 4, 11, 30], [1, 7, 5, 9]])
logits = transformer(source, target, w, model.config.num_layers)
assert_equal(logits, model({"source": source, "target": target}), atol=1e-3)

# %% [markdown]
# ### Picture
# Where the parameters of the paper's base model are: 63.1 million with 37,000 tokens (the paper's
# table 3 says 65 million).

# %%
sizes = collections.Counter()
for path, shape in Transformer.shapes(TransformerConfig()):
    stack, part = path.split("/")[:2]  # such as decoder_3, attention_norm
    part = "norms" if "norm" in part else part.replace("_", " ")
    name = f"{stack.split('_')[0]}: {part}"
    sizes[name] += math.prod(shape) / 1e6
names, counts = zip(*sizes.most_common(), strict=True)
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.barh(names[::-1], counts[::-1])
axis.set_title(f"{sum(counts):.1f} million parameters")
axis.set_xlabel("million parameters")
axis.tick_params(labelsize=8)
plt.show()
assert round(sum(counts), 1) == 63.1

# %% [markdown]
# ### Exercise 19
# The parameters of one block, as a function of $D$, $F$ and whether it has cross-attention. Then
# count the base model by hand: 37,000 tokens, 6 and 6 blocks, $D = 512$, $F = 2048$.


# %%
def block_parameters(dim, intermediate_dim, cross):
    """Attention and feed-forward with biases, a norm per sublayer."""
    ...


print("block_parameters:", checks.block_parameters(block_parameters))

# %% [markdown]
# ## 12. How it is trained: loss, schedule, score
#
# ### Formula
# *Teacher forcing*: the decoder reads the true target, shifted by one, and predicts at each
# position the next token. All positions are trained at once, because the causal mask hides the
# answer. With labels $y_t$ and predicted probabilities $p_t$, *label smoothing* (section 5.4)
# trains towards $1 - e + e / V$ for the label and $e / V$ for each other token:
#
# $$ L = - \frac 1 T \sum_t \left[ (1 - e) \log p_t(y_t) + \frac e V \sum_v \log p_t(v) \right] . $$
#
# The best prediction is therefore not certainty: the minimum is at $p(y) = 1 - e + e / V$. (Texts
# often give it as $1 - e$. That would be right if the label had no part of the $e$ that is spread.)
#
# The *learning rate* (section 5.3) grows linearly for some steps, then falls:
#
# $$ D^{-1/2} \min(n^{-1/2}, \ n \, w^{-3/2}), $$
#
# at step $n$, with $w$ steps of warm-up. The *score* of translations is BLEU (Papineni et al.
# 2002): the geometric mean of the precisions $P_n$ of 1- to 4-grams over a corpus, where no n-gram
# counts more often than the reference has it, times a penalty for short translations of total
# length $c$, with references of total length $r$:
#
# $$ \mathrm{BLEU} = 100 \, \min(1, e^{1 - r / c}) \, (P_1 P_2 P_3 P_4)^{1/4} . $$
#
# ### Build


# %%
def loss_by_hand(labels, logits, smoothing):
    size = logits.shape[-1]
    targets = (1 - smoothing) * np.eye(size)[labels] + smoothing / size
    log_probs = ops.log_softmax(logits, axis=-1)  # (B, T, V)
    total = ops.sum(ops.cast(targets, "float32") * log_probs, axis=-1)
    return -ops.mean(total)


# %%
def bleu_by_hand(hypotheses, references):
    pairs = [(h.split(), r.split()) for h, r in zip(hypotheses, references)]
    precisions = []
    for n in range(1, 5):
        common = total = 0
        for words, reference in pairs:
            count = len(words) - n + 1
            if count > 0:
                clipped = solutions.clipped_precision(words, reference, n)
                common, total = common + clipped * count, total + count
        precisions.append(common / total)
    c, r = (sum(map(len, texts)) for texts in zip(*pairs))
    return 100 * min(1, math.exp(1 - r / c)) * np.prod(precisions) ** 0.25


# %% [markdown]
# ### Assert
# And the optimum of the library's smoothed loss, measured by following its gradient, for $V = 7$
# and $e = 0.1$: it is $1 - 0.1 + 0.1 / 7$, and not $0.9$.

# %%
rng = np.random.default_rng(0)
labels = rng.integers(0, 7, (2, 5))
logits = rng.normal(size=(2, 5, 7)).astype("float32")
own = loss_by_hand(labels, logits, 0.1)
assert_equal(own, SmoothedCrossEntropy(0.1)(labels, logits))

hypotheses = ["the cat sat on the red mat", "a dog runs in the garden"]
references = ["the cat sat on a red mat", "a dog runs in the big garden"]
score = bleu(hypotheses, references, tokenize="none").score
assert abs(bleu_by_hand(hypotheses, references) - score) < 1e-6

free = tf.Variable(np.zeros((1, 1, 7), "float32"))  # logits of a token
loss = SmoothedCrossEntropy(0.1)
for _ in range(50):
    with tf.GradientTape() as tape:
        value = loss(np.array([[3]]), tf.identity(free))  # label 3
    free.assign_sub(4 * tape.gradient(value, free))
p = array(ops.softmax(free))[0, 0]
print(f"optimum {p[3]:.5f}, 1 - e + e / V = {1 - 0.1 + 0.1 / 7:.5f}")
assert abs(p[3] - (1 - 0.1 + 0.1 / 7)) < 1e-5

# %% [markdown]
# ### Picture
# Three schedules: a wider model learns at a lower rate, and a longer warm-up has a lower peak. On
# the right, the loss against the probability of the label, when all other tokens share the rest:
# with smoothing, the best probability is below 1.

# %%
steps = np.arange(1, 20001, 50)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
left, right = axes
for dim, warmup in ((512, 4000), (512, 8000), (256, 4000)):
    schedule = InverseSquareRoot.of_width(dim, warmup)
    left.plot(steps, schedule(steps), label=f"D = {dim}, w = {warmup}")
left.set_title("learning rate")
left.set_xlabel("step n")
left.legend(fontsize=8)
certain = np.linspace(0.5, 0.9999, 500)  # p of the label, rest uniform
for e in (0.0, 0.1, 0.2):
    rest = 6 * e / 7 * np.log((1 - certain) / 6)
    loss = -(1 - 6 * e / 7) * np.log(certain) - rest
    right.plot(certain, loss, label=f"e = {e}")
    right.axvline(1 - e + e / 7, color="gray", linewidth=0.5)
right.set_title("loss for V = 7; gray lines: 1 - e + e / V")
right.set_xlabel("p(label)")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# ### Exercise 20
# The smoothed loss, without making the targets $(T, V)$. Public code spreads $e$ over the $V - 1$
# other tokens, or lets the targets sum to something other than 1.


# %%
def smoothed_loss(labels, logits, smoothing):
    """labels (T,), logits (T, V) -> the mean loss per token"""
    ...


print("smoothed_loss:", checks.smoothed_loss(smoothed_loss))

# %% [markdown]
# ### Exercise 21
# The learning rate of section 5.3, from the formula above.


# %%
def warmup_rate(step, dim, warmup):
    """The rate at a step, counted from 1."""
    ...


print("warmup_rate:", checks.warmup_rate(warmup_rate))

# %% [markdown]
# ### Exercise 22
# BLEU's penalty for short translations.


# %%
def brevity_penalty(candidate_length, reference_length):
    """A number in (0, 1]."""
    ...


print("brevity_penalty:", checks.brevity_penalty(brevity_penalty))

# %% [markdown]
# ### Exercise 23
# BLEU's clipped precision. ("the the the the the cat" has one right *the* for each that the
# reference has.)


# %%
def clipped_precision(candidate, reference, n):
    """candidate, reference: lists of words"""
    ...


print("clipped_precision:", checks.clipped_precision(clipped_precision))

# %% [markdown]
# ## 13. A translator
#
# The library has a corpus of 4,000 English sentences with German translations, made by a grammar.
# It is small, but not trivial: articles and adjectives have three genders and three cases, verbs
# move to the end of subordinate clauses, and no test sentence occurs in the training data.

# %%
folder = find_data("sample")
train, val, test = (
    read_split(folder, split, "en", "de") for split in ("train", "val", "test")
)
assert not set(train.sources) & set(test.sources)
for english, german in zip(train.sources[:3], train.targets[:3]):
    print(english, "|", german)
tokenizer = Subwords.train(train.sources + train.targets, vocab_size=500)
print(tokenizer.pieces(np.asarray(tokenizer.encode(train.sources[:1])[0])))

# %% [markdown]
# Rare words are cut into *subwords*, so that 500 tokens are enough to write everything; `▁` marks
# the beginning of a word.
#
# ### Build
# The model is the paper's with pre-norm, and small: 2 and 2 blocks of width 128 (the paper has 6
# and 6 of width 512). `translation_batches` puts sentences of similar length into a batch; each
# batch is a source, a target, and the target shifted by one as the label. `fit` is Keras's; the
# model's default loss is the smoothed cross-entropy of section 12, with $e = 0.1$.

# %%
keras.utils.set_random_seed(0)
model = Transformer.preset("tiny", tokenizer, num_layers=2, dropout=0.1)
rate = InverseSquareRoot.of_width(128, warmup=200)
adam = keras.optimizers.Adam(rate, beta_1=0.9, beta_2=0.98, epsilon=1e-9)
model.compile(adam, **STEP)
pairs = val if FAST else train
batches = translation_batches(pairs, tokenizer, tokens=2048, buckets=2)
history = model.fit(batches, epochs=1 if FAST else 6, verbose=0)
inputs, labels, _ = next(iter(batches))
rows = inputs["source"], inputs["target"], labels
for name, ids in zip(("source", "target", "labels"), rows):
    print(name, *tokenizer.pieces(array(ids[0]), target=name != "source"))

# %% [markdown]
# ### Assert
# On sentences that the model has never seen. A BLEU of 100 would be the reference translations,
# word by word. Do you find the model's mistakes?

# %%
count = 1 if FAST else 100
translated = model.translate(test.sources[:count])
for source, text in zip(test.sources[:5], translated):
    print(f"{source}\n    {text}")
score = bleu(translated, test.targets[:count]).score
print(f"BLEU {score:.1f}")
assert FAST or score > 85, score

# %% [markdown]
# ### Picture
# The loss, and the cross-attention of one translation: which English tokens each German token was
# read from. Most words point to their English word; the later pieces of a word often do not.
# Nobody told the model: there are no alignments in the data. (With label smoothing the loss does
# not approach 0.)

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
left, right = axes
left.plot(range(1, len(history.epoch) + 1), history.history["loss"], "o-")
left.set(title="loss by epoch", xlabel="epoch")
found = model.attention(test.sources[0], translated[0])
mean = found.weights[-1].mean(axis=0)  # over the heads of the last block
heatmap(right, mean, "cross-attention", found.target, found.source)
right.set(xlabel="English (key)", ylabel="German (query)")
plt.show()

# %% [markdown]
# ### Exercise
# No check here: teach it a rule of your own. Change the corpus (`polyhead.data.grammar` made it;
# `train` is two lists of strings), for example put every German adjective after its noun, train
# again, and look at the alignment.

# %% [markdown]
# ## 14. Search
#
# ### Formula
# The model gives the probability of each next token. The probability of a translation is their
# product, and its score a sum of logarithms,
#
# $$ \log p(y \mid x) = \sum_t \log p(y_t \mid y_{<t}, x) . $$
#
# *Greedy* search takes the best token at each step; the best sentence may begin with a second-best
# token. For example, if the first token is *a* with probability 0.6 or *b* with 0.4, and the best
# continuation has 0.5 after *a* and 0.9 after *b*, then greedy search finds $0.6 \cdot 0.5 = 0.30$,
# and misses $0.4 \cdot 0.9 = 0.36$. *Beam* search keeps the $N$ best beginnings: each is continued
# by all $V$ tokens, and of the $N V$ results the $N$ best are kept.
#
# ### Build
# For one sentence, and without a cache of keys and values. (The library's search compiles to one
# graph, keeps the cache, and has many settings.) One step takes the best `count` of all
# continuations:

# %%
START, END = 1, 2  # the tokens that begin and end a translation


def next_log_probs(model, source, rows):
    source = np.repeat(source, len(rows), axis=0)
    tokens = {"source": source, "target": np.array(rows)}
    return array(ops.log_softmax(model(tokens)[:, -1], axis=-1))


def continuations(rows, scores, log_probs, count):
    total = scores[:, None] + log_probs  # (N, V)
    best = np.argsort(-total, axis=None)[:count]
    pairs = zip(*np.unravel_index(best, total.shape))
    return [
        ([*rows[row], int(token)], total[row, token]) for row, token in pairs
    ]


# %% [markdown]
# At most $N$ of the best $2N$ continuations end, because each beginning has one end token, so at
# least $N$ are left to continue. Finished translations are compared by their score *per token*: a
# sum of logarithms would prefer short ones.


# %%
def score_per_token(found):
    tokens, score = found
    return score / (len(tokens) - 1)


def beam_search(model, source, num_beams, max_tokens=40):
    rows, scores, ended = [[START]], np.zeros(1), []
    while len(ended) < num_beams and len(rows[0]) < max_tokens:
        logs = next_log_probs(model, source, rows)
        found = continuations(rows, scores, logs, 2 * num_beams)
        ended += [f for f in found[:num_beams] if f[0][-1] == END]
        unfinished = [f for f in found if f[0][-1] != END][:num_beams]
        rows, scores = zip(*unfinished)
        scores = np.array(scores)
    return max(ended or unfinished, key=score_per_token)


# %% [markdown]
# ### Assert
# With one beam this is greedy search, and gives what the library's greedy search gives. With four
# beams, the score per token is as good or better for these sentences. (In general it need not be:
# the beginning of the greedy translation may not be among the best four.)


# %%
def decode(tokens):
    ids = np.array([tokens[1:]], "int32")
    return np.asarray(tokenizer.decode(ids))[0].decode()


for i in range(1 if FAST else 3):
    source = np.asarray(tokenizer.encode(test.sources[i : i + 1]).to_tensor())
    greedy = beam_search(model, source, 1, 5 if FAST else 40)
    best = beam_search(model, source, 4, 5 if FAST else 40)
    if not FAST:  # after little training, translations may not end
        assert decode(greedy[0]) == translated[i]
        assert abs(greedy[1] - translated[i].score) < 0.01
        assert score_per_token(best) >= score_per_token(greedy) - 1e-3
        pair = score_per_token(greedy), score_per_token(best)
        print("score per token, greedy {:.4f}, 4 beams {:.4f}".format(*pair))

# %% [markdown]
# ### Picture
# The probabilities of the three best tokens at each step of a greedy translation. Most of the best
# have about 0.9, not 1, although the model is right: this is what label smoothing asks for. Where
# the best has less, the model hesitates.

# %%
source = np.asarray(tokenizer.encode(test.sources[:1]).to_tensor())
row, columns = [START], []
while row[-1] != END and len(row) < (5 if FAST else 30):
    p = np.exp(next_log_probs(model, source, [row])[0])
    columns.append(np.sort(p)[:-4:-1])
    row.append(int(p.argmax()))
figure, axis = plt.subplots(figsize=(10, 2.4))
pieces = tokenizer.pieces(np.array(row[1:]), target=True)
heatmap(
    axis,
    np.array(columns).T,
    "probabilities",
    ("1st", "2nd", "3rd"),
    pieces,
    ".2f",
)
plt.show()

# %% [markdown]
# ### Exercise 24
# One step of beam search: from the scores of $N$ beginnings and the log-probabilities of their
# continuations, the rows and tokens of the $N$ best. (They may all continue the same row.)


# %%
def beam_step(scores, log_probs):
    """scores (N,), log_probs (N, V) -> (row, token) of the best, (N, 2)"""
    ...


print("beam_step:", checks.beam_step(beam_step))

# %% [markdown]
# # Part IV. Families and applications

# %%
import functools
import math
import os

import polyhead  # first, because it hides TensorFlow's log lines
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

from polyhead.data import (
    Characters,
    LabelledImages,
    Question,
    Subwords,
    Summaries,
    WordPieces,
    image_batches,
    masked_batches,
    question_batches,
    read_split,
    structure_batches,
    summary_batches,
    text_batches,
)
from polyhead.data.facts import PLACES, World
from polyhead.layers import (
    FeedForward,
    InvariantPointAttention,
    KeyValueCache,
    MultiHeadAttention,
    PatchEmbedding,
    TriangleMultiplication,
    attend,
    causal_mask,
)
from polyhead.layers.frames import from_points, from_quaternion
from polyhead.learn import checks, solutions
from polyhead.learn.show import (
    array,
    assert_equal,
    bright_shapes,
    draw_chain,
    heatmap,
    ideal_protein,
    normal,
    optimizer,
    plddt_colors,
    tensor,
)
from polyhead.recipes.translation import find_data
from polyhead.training import Muon, fape, lddt, rmsd, superpose
from polyhead.zoo import BERT, ESM, GPT, T5, ESMFold, ModernBERT, ViT
from polyhead.zoo.decoding.sampling import filter_logits, gumbel_noise

FAST = "FAST" in os.environ  # shorter training, for tests
# To compile the step of a small model takes longer than its training.
STEP = dict(jit_compile=False, run_eagerly=FAST)
METHOD = keras.optimizers.Adam if FAST else Muon  # Adam's step is faster
keras.utils.set_random_seed(0)
corpus = read_split(find_data("sample"), "train", "en", "de")


# %% [markdown]
# ## 15. GPT: generating text
#
# ### Formula
# Leave out the encoder, keep the causal self-attention, and train on text alone: at each position
# predict the next token. By the chain rule this is a model of whole texts,
#
# $$ p(y) = \prod_t p(y_t \mid y_{<t}), \qquad
# L = -\frac 1 T \sum_t \log p(y_t \mid y_{<t}) . $$
#
# $e^L$ is the *perplexity*: as uncertain as a die with that many sides. Models with different
# tokens are compared in *bits per byte*, $L \cdot T / (\ln 2 \cdot \text{bytes})$.
#
# To write, sample a token from $p$, append it, repeat. The distribution is changed first: a
# *temperature* $\tau$ divides the logits; *top-k* keeps the $k$ most likely tokens, *top-p* the
# smallest set that has the probability $p$ together, *min-p* those with at least this fraction of
# the top token's probability.
#
# ### Build
# GPT from the library's layers: pre-norm blocks, learned positions; the same matrix embeds tokens
# and gives logits. Then sampling: adding Gumbel noise, $-\log(-\log u)$ for uniform $u$, to the
# logits and taking the largest is the same as sampling from their softmax (Gumbel 1954).


# %%
def gpt(model, tokens):
    x = model.positions(model.tokens(tokens))
    mask = causal_mask(tokens.shape[1])
    for block in model.blocks:
        x = block(x, mask=mask)
    return model.tokens.logits(model.norm(x))


def sample(logits, count, seed=0):
    rng = np.random.default_rng(seed)
    u = rng.uniform(size=(count, len(logits)))
    return np.argmax(logits - np.log(-np.log(u)), axis=-1)


# %% [markdown]
# ### Assert

# %%
tokenizer = Characters.train(corpus.sources)
model = GPT.preset("char-small", tokenizer, num_layers=2)
tokens = np.array([[5, 1, 8, 3, 3, 9]])
assert_equal(gpt(model, tokens), model(tokens), atol=1e-4)

logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5], "float32")
p = array(ops.softmax(logits))
counts = np.bincount(sample(logits, 20000), minlength=5) / 20000
np.testing.assert_allclose(counts, p, atol=0.02)
noise = array(gumbel_noise(np.arange(20000), 0, 5))  # the library's
drawn = np.argmax(logits + noise, axis=-1)
frequencies = np.bincount(drawn, minlength=5) / 20000
np.testing.assert_allclose(frequencies, p, atol=0.02)

kept = array(filter_logits(tensor(logits)[None], top_p=tensor([0.8])))[0]
assert_equal(kept > -1e6, solutions.top_p(p, 0.8))

# %% [markdown]
# Train it on the English half of the corpus, character by character. The optimizer, *Muon* (Jordan
# et al. 2024), makes the update of each matrix orthogonal, and usually needs fewer updates than
# Adam; its learning rate rises first, then falls to 0.

# %%
keras.utils.set_random_seed(0)
model = GPT.preset("char-small", tokenizer, num_layers=2)
texts = corpus.sources[:30] if FAST else corpus.sources
batches = text_batches(texts, tokenizer, length=64, batch_size=32)
epochs = 1 if FAST else 2
muon = optimizer(METHOD, 5e-3, epochs * len(batches))
model.compile(muon, **STEP)
model.fit(batches, epochs=epochs, verbose=0)
for temperature in (0.3, 0.8, 1.5):
    settings = dict(max_new_tokens=60, temperature=temperature, seed=1)
    text = model.generate("The old ", **settings)
    print(f"temperature {temperature}: The old {text!s}")

# %% [markdown]
# ### Picture
# The next character after "The old " under three temperatures.

# %%
prompt = np.asarray(tokenizer.encode(["The old "]).to_tensor())
logits = array(model(prompt))[0, -1]
top = np.argsort(-logits)[:10]
names = [tokenizer.pieces(np.array([token]))[0] for token in top]
for i, temperature in enumerate((0.3, 0.8, 1.5)):
    p = array(ops.softmax(logits / temperature))[top]
    label = f"temperature {temperature}"
    plt.bar(np.arange(10) + 0.27 * i, p, width=0.27, label=label)
plt.xticks(np.arange(10) + 0.27, names)
plt.title('p(next character | "The old ")')
plt.legend()
plt.show()

# %% [markdown]
# ### Exercise 25
# Top-p by hand. A frequent mistake keeps one token too few: the set must have *at least* the
# probability $p$.


# %%
def top_p(probabilities, p):
    """probabilities (V,), not sorted -> a boolean mask (V,)"""
    ...


print("top_p:", checks.top_p(top_p))

# %% [markdown]
# ### Exercise 26
# Bits per byte.


# %%
def bits_per_byte(loss, tokens, size):
    """loss: nats per token; size: bytes of the text"""
    ...


print("bits_per_byte:", checks.bits_per_byte(bits_per_byte))

# %% [markdown]
# ## 16. The cache of keys and values
#
# ### Formula
# To write token $t$, a decoder needs the query of position $t$ alone, but keys and values of all
# positions before it. These do not change (the past does not see the future), so they are kept:
# each step computes one row of each projection. By induction over the blocks the result is the
# same. The cost of a step falls from $O(t D^2 + t^2 D)$ to $O(D^2 + t D)$; the memory is
#
# $$ 2 \cdot L \cdot B \cdot S \cdot G \cdot K \text{ numbers}, $$
#
# for $L$ layers and $G$ heads of keys and values. Here $G = H$. In *grouped-query attention*
# (Ainslie et al. 2023, arXiv 2305.13245) several heads of queries share one head of keys and
# values.
#
# ### Build, and assert

# %%
x = normal(2, 9, 16)
layer = MultiHeadAttention(num_heads=4, causal=True)
whole = layer(x)
cache = KeyValueCache.empty(2, 9, 4, 4, "float32")  # B, S, G, K
steps = []
for t in range(9):
    y, cache = layer(x[:, t : t + 1], cache=cache)
    steps.append(y)
assert_equal(ops.concatenate(steps, axis=1), whole)

# %% [markdown]
# ### Picture
# FLOPs to write the token at position $t$, for a block of GPT-2 small, from the formula of section
# 7: all positions again, or one with a cache.

# %%
at = np.arange(1, 1025)
again = solutions.block_flops(at, 768, 3072)
cached = 8 * 768**2 + 4 * at * 768 + 4 * 768 * 3072
plt.loglog(at, again, label="everything again")
plt.loglog(at, cached, label="with a cache")
plt.xlabel("position")
plt.title("FLOPs per token and block")
plt.legend()
plt.show()

# %% [markdown]
# ### Exercise 27
# The bytes of the cache. For GPT-2 XL (48 layers, 25 heads of 64), 1,024 tokens and 4 bytes per
# number it is 629 MB: for one text!


# %%
def cache_bytes(layers, batch, length, kv_heads, head_dim, size):
    """size: bytes per number"""
    ...


print("cache_bytes:", checks.cache_bytes(cache_bytes))

# %% [markdown]
# ## 17. BERT: reading with both eyes
#
# ### Formula
# Leave out the decoder instead. An encoder sees words on both sides, so it cannot be trained to
# predict the next one. BERT (Devlin et al. 2018) predicts *hidden* words: 15% of the tokens are
# chosen; of these 80% are replaced by [MASK], 10% by a random token, 10% stay; the loss is the
# cross-entropy at the chosen positions. (Texts that the model is used for have no [MASK], so it
# must also learn from tokens that are not replaced.)
#
# To answer questions, the model reads a question and a text, the *context*. Two vectors give each
# token a score as the first and as the last of the answer; the answer is the span of the context
# with the largest sum. The first token, [CLS], stands for "no answer".
#
# ### Build
# The network is a stack of post-norm blocks without a causal mask.


# %%
def bert(model, tokens):
    x = model.tokens(tokens) + model.types(np.zeros_like(tokens))
    x = model.embeddings_norm(model.positions(x))
    for block in model.blocks:
        x = block(x)
    return x


# %% [markdown]
# ### Assert
# Equal to the library's model without a head, for tokens without padding.

# %%
model = BERT.preset("bert-tiny", vocab_size=50)
tokens = np.array([[2, 7, 9, 30, 3]])
assert_equal(bert(model, tokens), model.features(tokens), atol=1e-4)

# %% [markdown]
# BERT was trained with a million updates. We have a minute, so we change two things. *ModernBERT*
# (Warner et al. 2024) has rotary positions (section 8): to look at the previous word is one
# pattern, and not one for each position. And attention starts where training usually leads: with
# nearly equal $W_Q$ and $W_K$, words attend to the same and to similar words (*mimetic*
# initialization, Trockman & Kolter 2023). Without the loop below, the loss of the first model that
# we train is 3.6 at its end, instead of 1.9.


# %%
def small_encoder(tokenizer, head, length):
    size = dict(num_layers=2, dim=64, intermediate_dim=128, num_heads=4)
    size |= dict(max_length=length, global_every=1, theta=1000.0)
    model = ModernBERT.preset("base", tokenizer, head=head, **size)
    for block in model.blocks:
        block.attention.initialize_mimetic()
    return model


# %% [markdown]
# Train it on the German half of the corpus to fill blanks. The form of a German article depends on
# the gender of the noun *after* it, which a GPT cannot see. Like ModernBERT we hide 30%.

# %%
keras.utils.set_random_seed(0)
tokenizer = WordPieces.train(corpus.targets, vocab_size=400, lowercase=False)
model = small_encoder(tokenizer, "tokens", 32)
german = corpus.targets[:64] if FAST else corpus.targets
batches = masked_batches(german, tokenizer, length=32, batch_size=64, rate=0.3)
epochs = 1 if FAST else 12
muon = optimizer(METHOD, 5e-3, epochs * len(batches))
model.compile(muon, **STEP)
losses = model.fit(batches, epochs=epochs, verbose=0).history["loss"]

nouns = ("Frau", "Hund", "Kind")  # feminine, masculine, neuter
texts = [f"Hier schläft [MASK] {noun}." for noun in nouns]
found = model.fill_mask(texts, top=tokenizer.vocab_size)
filled = [{word.label: word.probability for word in words} for words in found]
for text, words in zip(texts, found):
    print(text, [f"{w.label} {w.probability:.2f}" for w in words[:3]])
feminine = [words["die"] + words["eine"] for words in filled]
assert FAST or feminine[0] > 10 * max(feminine[1:]), feminine

# %% [markdown]
# ### Picture
# The loss, and the articles that the model expects before each noun: *die, eine* only with the
# feminine *Frau*, *das* only with the neuter *Kind*. (*dem, einem* are the dative of both masculine
# and neuter nouns; they have the right gender, but the wrong case. The case depends on the verb.)

# %%
articles = "die eine das der den dem ein einem".split()
p = [[words[article] for article in articles] for words in filled]
figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 3), layout="constrained"
)
left.plot(range(1, epochs + 1), losses, ".-")
left.set_xlabel("epoch")
left.set_title("masked-token loss by epoch", fontsize=10)
heatmap(right, p, "p(article | noun)", nouns, articles, ".2f")
plt.show()

# %% [markdown]
# **Questions.** The persons and places are those of the library's sample facts (`data/samples`).
# A context has one to three facts about a person. Some questions are about another fact, so the
# context has no answer: the model must also learn when to say nothing.

# %%
QUESTIONS = {
    "Where was {} born?": "was born in {}",
    "Where did {} study?": "studied in {}",
    "Where did {} work?": "worked in {}",
    "Where did {} die?": "died in {}",
}


def write_question(world):
    name = world.person()
    asked = world.random.sample(sorted(QUESTIONS), 4)
    count = world.random.randint(1, 3)
    places = world.random.sample(PLACES.split("|"), count)
    facts = [QUESTIONS[q].format(p) for q, p in zip(asked, places)]
    context = f"{name} {' and '.join(facts)}."
    i = world.random.randint(0, count)  # the last one has no answer
    answers = [(place, context.index(place)) for place in places[i : i + 1]]
    return Question("", asked[i].format(name), context, tuple(answers))


# %%
train, test = World(seed=1), World(seed=2)
train = [write_question(train) for _ in range(32 if FAST else 9600)]
known = {question.context for question in train}
test = [write_question(test) for _ in range(40 if FAST else 400)]
test = [question for question in test if question.context not in known]

# %%
keras.utils.set_random_seed(0)
texts = [f"{q.question} {q.context}" for q in train[:600]]
tokenizer = WordPieces.train(texts, vocab_size=300)
reader = small_encoder(tokenizer, "spans", 48)
batches = question_batches(
    train, tokenizer, batch_size=32, max_length=48, overlap=8, buckets=1
)
epochs = 1 if FAST else 3
muon = optimizer(METHOD, 5e-3, epochs * len(batches))
reader.compile(muon, **STEP)
history = reader.fit(batches, epochs=epochs, verbose=0)

# %% [markdown]
# The answer has its place in the context, and is "" if there is none. As in SQuAD's evaluation, an
# answer is right if it is exactly the expected one.

# %%
questions = [q.question for q in test]
contexts = [q.context for q in test]
found = reader.answer(questions, contexts)
right = [
    a.text == "".join(t for t, _ in q.answers) for a, q in zip(found, test)
]
print(f"right: {sum(right)} of {len(test)} questions")
assert FAST or np.mean(right) > 0.9
unanswerable = [q.answers for q in test].index(())
for i in (0, 1, unanswerable):
    answer = found[i]
    place = f"characters {answer.start} to {answer.end}: {answer.text}"
    print(f"\n{contexts[i]}\n{questions[i]}")
    print(place if answer.text else "No answer.")
    assert contexts[i][answer.start : answer.end] == answer.text

# %% [markdown]
# The scores of all spans of the first context: row and column are the first and the last token.

# %%
tokens, _ = tokenizer.encode_pairs(questions[:1], contexts[:1], 48)
tokens = np.asarray(tokens.to_tensor())
pieces = tokenizer.pieces(tokens[0])
begin = pieces.index("[SEP]") + 1  # of the context
start, end = array(reader(tokens))[0, begin:-1].T
pair = start[:, None] + end
pair[np.tril_indices(len(pair), -1)] = np.nan  # the last before the first
figure, axes = plt.subplots(figsize=(5.5, 5))
names = pieces[begin:-1]
heatmap(axes, pair, f"start + end: {questions[0]}", names, names)
axes.set(xlabel="last token", ylabel="first token")
plt.show()

# %% [markdown]
# `polyhead train answering` does the same with data of your own in the format of SQuAD, and a
# pretrained model.
#
# ### Exercise 28
# The best span of at most $N$ tokens. To take the best first and the best last token independently
# is a mistake: the answer may end before it begins.


# %%
def best_span(start, end, max_tokens):
    """start, end (T,) -> (first, last), both included"""
    ...


print("best_span:", checks.best_span(best_span))

# %% [markdown]
# ## 18. Summarization
#
# A summary is a translation into fewer words: an encoder-decoder, trained on texts with their
# summaries. BART (Lewis et al. 2019) is the Transformer of the paper with learned positions and
# GELU; T5 (Raffel et al. 2019) has no positions but a bias of the scores per distance, as in
# section 8. We train a small T5 on texts of our own: news from a town, where one sentence matters.
# The model must find it among others with the same words, and add the name of the town from
# another sentence.
#
# ### Formula
# ROUGE (Lin 2004) compares the n-grams of a candidate with those of a reference. With $c$ common
# words (counted with their number), precision is $c$ / words of the candidate, recall is $c$ /
# words of the reference, and ROUGE-1 is
#
# $$ F_1 = \frac{2 \cdot \text{precision} \cdot \text{recall}}
# {\text{precision} + \text{recall}} . $$
#
# ### Build
# T5 from the library's layers. All blocks of a stack share one bias; scores are not divided by
# $\sqrt K$, and there is no other position.


# %%
def t5(model, source, target):
    places = np.arange(source.shape[1])
    bias = model.encoder_bias(places, places)
    x = model.tokens(source)
    for block in model.encoder:
        x = block(x, bias=bias)
    memory = model.encoder_norm(x)
    places = np.arange(target.shape[1])
    bias, mask = model.decoder_bias(places, places), causal_mask(len(places))
    y = model.tokens(target)
    for block in model.decoder:
        y = block(y, memory=memory, mask=mask, bias=bias)
    return model.head.logits(model.decoder_norm(y))


# %% [markdown]
# A grammar of reports. The three routine sentences have random words; what happened is in the
# fourth. Their order is random too.

# %%
WORDS = dict(
    place="Accra Bergen Kyoto Lima Oslo Porto Quito Turin".split(),
    day="Monday Tuesday Wednesday Thursday Friday".split(),
    thing="bridge harbour library museum school tower".split(),
    event="closed flooded opened painted repaired sold".split(),
)
ROUTINE = (
    "On {day} a group from {place} saw the {thing}.",
    "The {thing} is older than that of {place}.",
    "The market in {place} is on {day}.",
)


def some_words(rng):
    return {kind: rng.choice(words) for kind, words in WORDS.items()}


def write_report(rng):
    fact = some_words(rng)
    lines = [line.format(**some_words(rng)) for line in ROUTINE]
    lines.append("On {day} the {thing} was {event}.".format(**fact))
    report = ["News from {place}.".format(**fact), *rng.permutation(lines)]
    summary = "{thing} in {place} {event} on {day}".format(**fact)
    return " ".join(report), summary


# %% [markdown]
# The model is tested on summaries that do not occur in the training data.

# %%
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
pairs = [write_report(rng) for _ in range(40 if FAST else 1000)]
known = {summary for _, summary in pairs}
tests = [write_report(rng) for _ in range(40 if FAST else 400)]
tests = [pair for pair in tests if pair[1] not in known]
print("\n".join(pairs[0]))

# %%
texts = Summaries([text for text, _ in pairs], [[x] for _, x in pairs])
tokenizer = Subwords.train(texts.texts, vocab_size=400, exact=False)
size = dict(dim=64, intermediate_dim=128, head_dim=16, dropout=0.0)
model = T5.preset("t5-tiny", tokenizer, **size)
batches = summary_batches(texts, tokenizer, tokens=1024, buckets=1)
epochs = 1 if FAST else 10
muon = optimizer(METHOD, 5e-3, epochs * len(batches))
model.compile(muon, **STEP)
history = model.fit(batches, epochs=epochs, verbose=0)

# %% [markdown]
# ### Assert
# The function above equals the library's model. A baseline is to copy the first $n$ sentences,
# *lead-n*: strong for newspapers, whose writers begin with what matters, and weak for these
# reports. A high score of the model shows that it learned this small language, with one phrasing
# for each fact, and nothing about newspapers. The scores equal those of the library rouge_score.

# %%
reports, references = map(list, zip(*tests))
source = tokenizer.encode(reports[:1]).to_tensor()
target = tokenizer.encode(references[:1]).to_tensor()
model_logits = model({"source": source, "target": target})
assert_equal(t5(model, source, target), model_logits)

written = [str(summary) for summary in model.summarize(reports)]


def rouge(candidates):
    pairs = zip(candidates, references)
    pairs = [(c.replace(".", "").lower(), r.lower()) for c, r in pairs]
    pairs = [(c.split(), r.split()) for c, r in pairs]
    found = np.mean([solutions.rouge_1(*pair) for pair in pairs])
    library = polyhead.training.rouge(
        candidates, [[r] for r in references], stemmer=False
    )
    assert np.isclose(100 * found, library.rouge1)
    return found


scores = {"model": rouge(written)}
for n in (1, 2, 5):
    leads = [". ".join(report.split(". ")[:n]) for report in reports]
    scores[f"lead-{n}"] = rouge(leads)
assert FAST or scores["model"] > 0.9 > 2 * scores["lead-2"], scores
for name, score in scores.items():
    print(f"{name:7} {score:.2f}")
print(reports[0].replace(". ", ".\n"), "\n->", written[0])

# %% [markdown]
# ### Picture
# The scores, and where a summary was read: each row is a token of the summary, and shows which
# tokens of the report the decoder attends to when it writes it (mean over heads, last layer). Not
# every row points to the word that it copies: the encoder has mixed the words of a sentence, so
# another of its tokens may carry the word too.

# %%
figure, (left, right) = plt.subplots(
    1, 2, figsize=(13, 3.8), width_ratios=(1, 4), layout="constrained"
)
left.bar(scores.keys(), scores.values())
left.set_title("ROUGE-1", fontsize=10)
left.tick_params(axis="x", rotation=60)
found = model.attention(reports[0], written[0])
mean = found.weights[-1].mean(axis=0)
heatmap(right, mean, "cross-attention", found.target, found.source)
plt.show()

# %% [markdown]
# ### Exercise 29
# ROUGE-1 by hand. *the the cat* and *the cat sat* have two words in common, since the second *the*
# has no partner. Without a common word the result is 0.


# %%
def rouge_1(candidate, reference):
    """Lists of words -> F1, a number"""
    ...


print("rouge_1:", checks.rouge_1(rouge_1))

# %% [markdown]
# ## 19. ViT: images
#
# ### Formula
# An image is a sequence of patches (Dosovitskiy et al. 2020). A patch of $P \times P$ pixels with
# $C$ channels is a vector of $P^2 C$ numbers; a matrix $E$ $(P^2 C, D)$ maps it to the width of the
# model. That is a convolution whose stride is as large as its kernel. Add positions, apply an
# encoder, and take the mean over the patches (or an extra token) as the image's vector.
#
# What did it look at? *Attention rollout* (Abnar & Zuidema 2020) multiplies the weights of all
# layers, each mixed with the identity for its residual connection:
#
# $$ R = \prod_{l} \tfrac 1 2 (A_l + I), \qquad \text{the last layer leftmost}. $$
#
# Rows of each factor sum to 1, so those of $R$ do.
#
# ### Build, and assert

# %%
image = tensor(np.random.default_rng(0).uniform(size=(1, 8, 12, 3)))
layer = PatchEmbedding(patch_size=4, dim=16)
embedded = layer(image)  # (B, Y / P * X / P, D)
kernel, bias = (array(w) for w in layer.projection.weights)
kernel = kernel.reshape(4, 4, 3, 16)
convolved = ops.conv(image, kernel, strides=4, data_format="channels_last")
assert_equal(ops.reshape(convolved, (1, 6, 16)) + bias, embedded)
by_hand = ops.matmul(solutions.patches(image[0], 4), kernel.reshape(48, 16))
assert_equal(by_hand + bias, embedded[0])

# %% [markdown]
# Train a small one on five kinds of shapes, which the library draws with random size, place, angle
# and colours. From few images a ViT learns slowly, since nothing tells it that neighbouring
# patches belong together. So we help: images show how much a pixel differs from the corner
# (bright shapes on black, whatever their colours were), and each is there in four directions.

# %%
KINDS = ("circle", "cross", "ring", "stripes", "triangle")
train, test = (bright_shapes(split, KINDS) for split in ("train", "test"))
turned = [np.rot90(train.images, k, axes=(1, 2)) for k in range(4)]
labels = np.tile(train.labels, 4)
train = LabelledImages(np.concatenate(turned), labels, KINDS)
print(len(train), "images for training,", len(test), "for the test")

# %% [markdown]
# Patches of 8 pixels make a sequence of 16. The model is told the number of channels (1, grey) and
# the names of the classes.

# %%
keras.utils.set_random_seed(0)
size = dict(patch_size=8, channels=1, dim=64, intermediate_dim=128)
size |= dict(num_layers=3, num_classes=len(KINDS), class_names=KINDS)
model = ViT.preset("nano-4", **size)
images = train[np.arange(0, len(train), 150 if FAST else 1)]
batches = image_batches(images, (32, 32), batch_size=32, channels=1)
epochs = 1 if FAST else 2
muon = optimizer(METHOD, 4e-3, epochs * len(batches))
model.compile(muon, **STEP)
history = model.fit(batches, epochs=epochs, verbose=0)

# %% [markdown]
# ### Assert
# It classifies images that it has not seen, and rollout by hand is the library's.

# %%
predicted = model.classify(list(test.images))
right = [p.label == KINDS[i] for p, i in zip(predicted, test.labels)]
accuracy = np.mean(right)
print(f"accuracy on the test images: {accuracy:.2f}; guessing: 0.20")
assert FAST or accuracy > 0.9, accuracy


# %%
def rollout_by_hand(model, images):
    x, layers = model.embed(images), []
    for block in model.blocks:
        y = block.attention_norm(x)
        weights = ops.mean(block.attention.attention_weights(y), axis=1)
        layers.append(array(weights)[0])  # (T, T), the mean over heads
        x = block(x)
    shares = array(solutions.rollout(np.array(layers))).mean(axis=0)
    return (shares / shares.sum()).reshape(4, 4)  # the grid of patches


pixels = test.images[:1].astype("float32")
assert_equal(rollout_by_hand(model, pixels), model.rollout(pixels)[0])

# %% [markdown]
# ### Picture
# Images of the test set with the model's answers, and below the share of each patch in the answer.

# %%
figure, axes = plt.subplots(2, 8, figsize=(13, 3.6), layout="constrained")
for i in range(8):
    axes[0, i].imshow(test.images[i], cmap="gray")
    axes[0, i].set_title(predicted[i].label, fontsize=9)
    axes[1, i].imshow(model.attention(test.images[i]), cmap="Blues")
for axis in axes.flat:
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ### Exercise 30
# Cut an image into patches, row by row. A reshape alone is not enough: it cuts rows of pixels.


# %%
def patches(image, size):
    """image (Y, X, C) -> (Y / P * X / P, P * P * C)"""
    ...


print("patches:", checks.patches(patches))

# %% [markdown]
# ### Exercise 31
# Attention rollout. Which layer stands on the left?


# %%
def rollout(weights):
    """weights (L, T, T), a matrix per layer, the first one first -> (T, T)"""
    ...


print("rollout:", checks.rollout(rollout))

# %% [markdown]
# ## 20. Proteins
#
# A protein is a chain of $N$ residues, of 20 kinds, that folds. Its sequence decides its shape.
# Two models read it. *ESM-2* (Lin et al. 2022) is the BERT of section 17 with rotary positions:
# tokens are residues, and it learns to fill hidden ones. *ESMFold* (the same paper) adds to ESM-2
# the parts of AlphaFold 2 (Jumper et al. 2021) that turn features of residues into coordinates.
# The library has both. Published weights need a network, so we train small ones, on proteins that
# we make up: what you see here is how the parts work, not what trained models know. $C$ is the
# width of a vector per pair of residues.
#
# ### Formula: contacts from attention
# Two residues are in *contact* if their CB atoms are closer than 8 angstroms. To fill a hidden
# residue, it helps to look at those it touches: in evolution, if one of two changes, so does often
# the other. So attention finds contacts, though no structure was ever shown to it (Rao et al.
# 2020, bioRxiv 2020.12.15.422761). A head gives a matrix $A$ $(N, N)$; contacts are symmetric, so
# take $F = A + A^\top$. Some residues get attention from everywhere. What a row and a column have
# in any case is subtracted (*average product correction*, APC, Dunn et al. 2008):
#
# $$ \hat F_{ij} = F_{ij} - \frac{\sum_k F_{ik} \sum_k F_{kj}}{\sum_{kl} F_{kl}}, \qquad
# p_{ij} = \mathrm{sigmoid}\Big( \beta + \sum_h w_h \hat F^h_{ij} \Big) . $$
#
# The second formula, a logistic regression with a weight per head of all layers, is the only part
# that has to see structures; a few proteins are enough.
#
# ### Build

# %%
AMINO_ACIDS = list("ARNDCQEGHILKMFPSTWYV")


def apc(weights):
    """Attention (..., N, N) -> scores of contacts (..., N, N)"""
    both = weights + np.swapaxes(weights, -1, -2)
    rows = both.sum(-1, keepdims=True)
    total = rows.sum(-2, keepdims=True)
    return both - rows * np.swapaxes(rows, -1, -2) / total


def attention_maps(model, proteins):
    """(B, heads of all layers, N, N), without the tokens at both ends"""
    tokens = model.tokenizer.encode(proteins).to_tensor()
    rotary = model.rotary(np.arange(tokens.shape[1]))
    maps = []
    for block, x in zip(model.blocks, model.hidden_states(tokens)):
        x = block.attention_norm(x)
        maps.append(block.attention.attention_weights(x, rotary=rotary))
    return array(ops.concatenate(maps, axis=1))[:, :, 1:-1, 1:-1]


# %% [markdown]
# A family of proteins with one fold: a *hairpin* of 20 residues. Residue 0 touches residue 19, 1
# touches 18, and so on; the six in the middle are the loop. At each place evolution allows four
# residues. The residue at a place decides which one its partner is; everything else is random.

# %%
rng = np.random.default_rng(0)
allowed = np.array([rng.permutation(AMINO_ACIDS)[:4] for _ in range(20)])
touching = np.zeros((20, 20), bool)
for i in range(7):
    touching[i, 19 - i] = touching[19 - i, i] = True


def write_protein(rng):
    choice = rng.integers(0, 4, 20)
    choice[13:] = choice[6::-1]  # the partners of 6, 5, ... 0
    return "".join(allowed[np.arange(20), choice])


train = [write_protein(rng) for _ in range(64 if FAST else 2048)]
test = [write_protein(rng) for _ in range(100)]
print("\n".join(train[:3]))

# %% [markdown]
# An ESM with two layers fills hidden residues; it sees sequences, and nothing else.

# %%
keras.utils.set_random_seed(0)
size = dict(num_layers=2, dim=64, intermediate_dim=128, num_heads=4)
esm = ESM.preset("esm2-t6-8m", max_length=22, theta=100.0, **size)
batches = masked_batches(train, esm.tokenizer, 22, 32, pack=False)
epochs = 1 if FAST else 8
esm.compile(optimizer(METHOD, 5e-3, epochs * len(batches)), **STEP)
losses = esm.fit(batches, epochs=epochs, verbose=0).history["loss"]
print(f"loss: {losses[0]:.2f} in epoch 1, {losses[-1]:.2f} in the last")


# %% [markdown]
# The regression, fitted to 20 proteins by Newton's method. There are 8 heads, so 9 numbers.

# %%
def logistic_regression(x, y, penalty=1e-3):
    """x (M, F), y (M,) boolean -> weights (F,), bias (1,)"""
    x = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
    w = np.zeros(x.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ w))
        slope = x.T @ (y - p) - penalty * w
        curvature = (x.T * (p * (1 - p))) @ x + penalty * np.eye(len(w))
        w = w + np.linalg.solve(curvature, slope)
    return w[:-1], w[-1:]


i, j = np.triu_indices(20, 4)  # pairs at least 4 apart in the chain
known = apc(attention_maps(esm, train[:20]))[:, :, i, j]
known = np.moveaxis(known, 1, -1).reshape(-1, 8)
weights, bias = logistic_regression(known, np.tile(touching[i, j], 20))

# %% [markdown]
# ### Assert
# With these numbers as its regression, the library's `contacts` is our formula. Then the
# *precision* on proteins that were in neither training: of the 7 pairs with the highest scores,
# how many are contacts?

# %%
esm.contact_map.kernel.assign(weights[:, None])
esm.contact_map.bias.assign(bias)
maps = attention_maps(esm, test)
logits = np.einsum("bhij,h->bij", apc(maps), weights) + bias
contacts = esm.contacts(test)
assert_equal(1 / (1 + np.exp(-logits)), contacts, atol=1e-4)


def precision(scores):
    top = np.argsort(-scores[:, i, j], axis=1)[:, :7]
    return touching[i, j][top].mean()


symmetric = maps + np.swapaxes(maps, -1, -2)
results = {
    "guessing": touching[i, j].mean(),
    "mean of the heads": precision(maps.mean(1)),
    "symmetric": precision(symmetric.mean(1)),
    "symmetric, with APC": precision(apc(maps).mean(1)),
    "regression": precision(contacts),
}
for name, value in results.items():
    print(f"{name:20} {value:.2f}")
assert FAST or results["regression"] > 0.6, results

# %% [markdown]
# ### Picture
# The true contacts, the mean attention over all heads and 100 proteins, the same with APC, and the
# predicted contacts of one protein, without pairs less than 4 apart. ESM was told no pair: it found
# them, because a hidden residue cannot be filled without its partner. The regression was told, but
# it has only 9 numbers, and without it the precision is nearly as high. The diagonals from the top
# left to the bottom right are attention at a fixed distance in the chain. In this run the mean of
# the heads is already good, and APC adds little to the precision.
#
# All proteins here have one fold, so this does not show that contacts of *another* fold would be
# found: for that, ESM-2 was trained on tens of millions of sequences.

# %%
apart = abs(np.arange(20)[:, None] - np.arange(20))
panels = {
    "true contacts": touching,
    "mean attention": maps.mean((0, 1)),
    "symmetric, with APC": np.maximum(apc(maps).mean((0, 1)), 0),
    "contacts of one protein": contacts[0] * (apart >= 4),
}
figure, axes = plt.subplots(1, 4, figsize=(13, 4), layout="constrained")
for axis, (title, panel) in zip(axes, panels.items()):
    heatmap(axis, panel, title)
    axis.set_box_aspect(1)
    axis.set_xlabel("residue")
axes[0].set_ylabel("residue")
plt.show()

# %% [markdown]
# ### Exercise 32
# The scores of contacts from the attention of one head.


# %%
def contact_scores(weights):
    """weights (N, N) -> symmetric, with APC, (N, N)"""
    ...


print("contact_scores:", checks.contact_scores(contact_scores))

# %% [markdown]
# ### Formula: pairs and triangles
# What a folding model believes about *pairs* of residues is a tensor $z$ $(N, N, C)$. It enters the
# attention of residues as a bias of the scores, one number per head (AlphaFold 2, supplement,
# algorithm 7):
#
# $$ \mathrm{softmax}\left( \frac{Q K^\top}{\sqrt K} + b(z) \right) V . $$
#
# But not every $z$ is possible. If $i$ is near $k$, and $k$ near $j$, then $i$ cannot be far from
# $j$: all distances satisfy, for each third residue $k$,
#
# $$ |d_{ik} - d_{jk}| \le d_{ij} \le d_{ik} + d_{jk} . $$
#
# So a pair must hear from the other two sides of all its triangles. *Triangle multiplication*
# (algorithms 11 and 12) does that for each channel $c$, with $a$, $b$ gated projections of $z$:
#
# $$ x_{ijc} = \sum_k a_{ikc}\, b_{jkc} \ \ (\text{outgoing}), \qquad
# x_{ijc} = \sum_k a_{kic}\, b_{kjc} \ \ (\text{incoming}). $$
#
# *Triangle attention* (algorithms 13 and 14) lets the pair $ij$ attend to the pairs $ik$, biased by
# the third side $jk$.
#
# ### Build, and assert
# The pair bias, and the outgoing multiplication with the weights of the library's layer.

# %%
bias = normal(1, 1, 9, 9)
q, k, v = (normal(1, 9, 1, 8, seed=seed) for seed in range(3))
scores = ops.einsum("bthk,bshk->bhts", q, k) / math.sqrt(8) + bias
heads = ops.einsum("bhts,bshk->bthk", ops.softmax(scores, axis=-1), v)
assert_equal(attend(q, k, v, bias=bias), heads)


# %%
def triangle_multiplication(layer, z):
    def linear(part, x):
        return x @ part.kernel + part.bias

    x = layer.norm(z)  # (N, N, C)
    a = ops.sigmoid(linear(layer.left_gate, x)) * linear(layer.left, x)
    b = ops.sigmoid(linear(layer.right_gate, x)) * linear(layer.right, x)
    product = layer.product_norm(ops.einsum("ikc,jkc->ijc", a, b))
    gate = ops.sigmoid(linear(layer.gate, x))
    return gate * linear(layer.output_projection, product)


layer, z = TriangleMultiplication(outgoing=True), normal(9, 9, 4)
layer.build((1, 9, 9, 4))
layer.output_projection.kernel.assign(normal(4, 4))  # it begins as 0
assert_equal(triangle_multiplication(layer, z), layer(z[None])[0], atol=1e-4)

# %% [markdown]
# ### An experiment: unknown distances
# Twelve random points; half of their distances are known. What are the others? The triangle
# inequality alone gives bounds. A network gets a vector per pair, the distance if it is known.
# First it updates each pair from itself only, then with one triangle multiplication too.


# %%
def write_distances(rng, count):
    points = rng.normal(0, 3, (count, 12, 3))
    apart = points[:, :, None] - points[:, None]
    distance = np.sqrt((apart**2).sum(-1))
    known = np.triu(rng.uniform(size=distance.shape) < 0.5, 1)
    known = known | np.swapaxes(known, 1, 2) | np.eye(12, dtype=bool)
    return distance, known


def triangle_bounds(distance, known):
    """The least and the greatest length that the known sides allow."""
    sides = np.where(known, distance, np.nan)
    first, second = sides[:, :, None, :], sides[:, None, :, :]  # ik, jk
    low = np.nan_to_num(abs(first - second)).max(-1)
    high = np.nan_to_num(first + second, nan=np.inf).min(-1)
    return low, high


def features(distance, known):
    """(B, N, N, 32): how near the distance is to 0, 0.65 ... 19.5, or 0."""
    bumps = np.exp(-((distance[..., None] - 0.65 * np.arange(31)) ** 2) / 2)
    both = np.concatenate([bumps, np.ones_like(bumps[..., :1])], axis=-1)
    return (both * known[..., None]).astype("float32")


class PairNetwork(keras.Model):
    def __init__(self, triangles):
        super().__init__()
        self.first = keras.layers.Dense(32)
        self.triangle = TriangleMultiplication(True) if triangles else None
        self.norm = keras.layers.LayerNormalization()
        self.feed_forward = FeedForward(64)
        self.last = keras.layers.Dense(1, bias_initializer="ones")

    def call(self, x):
        z = self.first(x)
        if self.triangle is not None:
            z = z + self.triangle(z)
        z = z + self.feed_forward(self.norm(z))
        length = self.last(z)  # the same for ij and ji
        return 3 * (length + ops.swapaxes(length, 1, 2))


# %% [markdown]
# The error is that of the unknown distances, for points that were not trained on. A triangle is
# impossible if one side is longer than the other two together.

# %%
rng = np.random.default_rng(0)
distance, known = write_distances(rng, 64 if FAST else 1024)
unseen, given = write_distances(rng, 200)


def train_pairs(triangles, epochs=1 if FAST else 8):
    keras.utils.set_random_seed(0)
    network = PairNetwork(triangles)
    updates = epochs * len(distance) // 32
    adam = optimizer(keras.optimizers.Adam, 5e-3, updates)
    network.compile(adam, "mae", **STEP)
    settings = dict(batch_size=32, epochs=epochs, verbose=0)
    settings["sample_weight"] = (~known).astype("float32")
    network.fit(features(distance, known), distance[..., None], **settings)
    return array(network(features(unseen, given)))[..., 0]


def impossible(guess):
    """The share of impossible triangles, among those with an unknown side."""
    d, points = np.where(given, unseen, guess), range(unseen.shape[1])
    triples = [(i, j, k) for k in points for j in range(k) for i in range(j)]
    i, j, k = np.array(triples).T
    sides = np.stack([d[:, i, j], d[:, i, k], d[:, j, k]])
    wrong = 2 * sides.max(0) > sides.sum(0)
    return wrong[~(given[:, i, j] & given[:, i, k] & given[:, j, k])].mean()


low, high = triangle_bounds(unseen, given)
assert (low <= unseen + 1e-6).all() and (unseen <= high + 1e-6).all()
middle = np.where(np.isfinite(high), (low + high) / 2, unseen.mean())
guesses = {
    "the mean": np.full_like(unseen, unseen[~given].mean()),
    "middle of the bounds": middle,
    "each pair alone": train_pairs(False),
    "with a triangle": train_pairs(True),
}
errors = {how: abs(x - unseen)[~given].mean() for how, x in guesses.items()}
for how, x in guesses.items():
    print(f"{how:20} error {errors[how]:.2f}, impossible {impossible(x):.2%}")
assert FAST or errors["with a triangle"] < 0.8 * errors["each pair alone"]

# %% [markdown]
# ### Picture
# Guessed against true distances. A pair that cannot see other pairs can only make one guess,
# whatever it learns. (The line in the first panel is pairs without an upper bound: there, the guess
# is the mean.)

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for axis, how in zip(axes, list(guesses)[1:]):
    axis.plot(unseen[~given], guesses[how][~given], ".", markersize=1)
    axis.plot([0, 16], [0, 16], color="black", linewidth=0.8)
    axis.set(xlim=(0, 16), ylim=(0, 16), xlabel="true distance")
    axis.set_title(how, fontsize=10)
axes[0].set_ylabel("guess")
plt.show()

# %% [markdown]
# ### Exercise 33
# The sum over triangles of the *outgoing* multiplication. Which index is summed, and which side
# comes from $b$?


# %%
def triangle_product(a, b):
    """a, b (N, N, C) -> (N, N, C)"""
    ...


print("triangle_product:", checks.triangle_product(triangle_product))

# %% [markdown]
# ### Formula: distances, frames, and their loss
# Coordinates must not enter a network as they are: a protein that is rotated and moved is the same
# protein. Distances do not change with it. But a mirror image has the same distances too, and it
# is another protein: all residues but glycine are left-handed. So each residue gets a *frame*,
# from its atoms N, CA and C: a rotation $R_i$ and an origin $t_i$. Seen from residue $i$, a point
# $x$ of space has the place $R_i^\top (x - t_i)$. If the whole protein moves, $x \to Qx + s$, then
# $R_i \to Q R_i$ and $t_i \to Q t_i + s$, and
#
# $$ (Q R_i)^\top (Qx + s - Q t_i - s) = R_i^\top Q^\top Q (x - t_i) = R_i^\top (x - t_i) . $$
#
# Two parts of AlphaFold 2 use this. *Invariant point attention* (algorithm 22): each head of each
# residue places query points $q_{ip}$ and key points $k_{jp}$ in its frame, and the scores have the
# term
#
# $$ - \gamma \sum_p \| (R_i q_{ip} + t_i) - (R_j k_{jp} + t_j) \|^2 . $$
#
# And the loss, the *frame aligned point error* (FAPE, algorithm 28), in units of 10 angstroms,
# where $x_j$ are the predicted CA atoms and a star marks the truth:
#
# $$ \frac{1}{10 N^2} \sum_{ij} \min\left( \| R_i^\top (x_j - t_i) -
# R_i^{*\top} (x_j^* - t_i^*) \|, \, 10 \right) . $$
#
# ### Build
# A protein of our own: a chain is described by two angles per residue, the *torsions* $\phi$ and
# $\psi$, because lengths and angles of bonds hardly vary. $(-60°, -45°)$ repeated is an alpha
# helix. Here are two helices of 11 residues with a turn of 4 between them; the angles of the turn
# were found by trying, so that the second helix comes back along the first.

# %%
TURN = np.array([(-95, 130), (-95, -15), (-100, 150), (65, 35)])
helix = np.tile((-60, -45), (11, 1))
phi, psi = np.concatenate([helix, TURN, helix]).T
protein = ideal_protein("SPEELLKKALEGNPDPELARKALELA", phi, psi)
n, ca, c = (tensor(protein.positions[:, atom]) for atom in range(3))


# %%
def make_frames(n, ca, c):
    x = (c - ca) / ops.norm(c - ca, axis=-1, keepdims=True)
    y = n - ca
    y = y - ops.sum(x * y, axis=-1, keepdims=True) * x
    y = y / ops.norm(y, axis=-1, keepdims=True)
    axes = [x, y, ops.cross(x, y)]  # the last one makes it right-handed
    return ops.stack(axes, axis=-1), ca


# %% [markdown]
# ### Assert
# The frames and the loss are the library's.

# %%
rotation, origin = make_frames(n, ca, c)
for by_hand, found in zip((rotation, origin), from_points(n, ca, c)):
    assert_equal(by_hand, found)
every = np.ones(len(protein), bool)


def frame_error(x, y):
    """The FAPE of atoms N, CA, C from those of the truth, by the library."""
    x, y = make_frames(*x), make_frames(*y)
    return float(fape(x, x[1], y, y[1], every, every, epsilon=0.0))


wrong = [x + 2 * normal(len(protein), 3, seed=7) for x in (n, ca, c)]
frames = *make_frames(*wrong), wrong[1], rotation, origin, ca
found = frame_error(wrong, (n, ca, c))
assert_equal(solutions.fape(*map(array, frames)), tensor(found))

# %% [markdown]
# Rotate and move the protein: invariant point attention gives the same update, for random weights
# and features of residues.

# %%
layer = InvariantPointAttention(
    2, head_dim=8, query_points=4, value_points=4
)
s, z = normal(1, 26, 16), normal(1, 26, 26, 8, seed=1)
layer.build(s.shape, z.shape)
shape = layer.output_projection.kernel.shape
layer.output_projection.kernel.assign(normal(*shape))  # it begins as 0


def update(n, ca, c):
    rotation, origin = make_frames(n, ca, c)
    return layer(s, z, (rotation[None], origin[None] / 10))


def move(x):
    return x @ ops.transpose(turn) + tensor([20.0, -5.0, 8.0])


turn = from_quaternion(normal(4, seed=3))
assert_equal(update(*map(move, (n, ca, c))), update(n, ca, c), atol=1e-3)

# %% [markdown]
# What do the measures say? *lDDT* is the share of distances below 15 angstroms that are right, from
# 0 to 100: the mean of the shares within 0.5, 1, 2 and 4 angstroms. RMSD is the root mean square
# distance of CA atoms after the best rotation and shift.

# %%
changes = {
    "moved": move,
    "mirrored": lambda x: x * tensor([1, 1, -1]),
    "noise": lambda x: x + 0.5 * normal(*x.shape, seed=5),
}


def distances(x):
    return np.sqrt(((x[:, None] - x) ** 2).sum(-1))


table = {}
for name, change in changes.items():
    moved = [change(x) for x in (n, ca, c)]
    pair = array(moved[1]), array(ca)
    apart = abs(distances(pair[0]) - distances(pair[1])).max()
    loss = frame_error(moved, (n, ca, c))
    table[name] = apart, lddt(*pair), rmsd(*pair), loss
    print(
        "{:9} distances {:.2f}, lDDT {:5.1f}, RMSD {:.2f}, FAPE {:.3f}".format(
            name, *table[name]
        )
    )
assert table["moved"][3] < 1e-3 and table["mirrored"][1] > 99.9
assert table["mirrored"][3] > 5 * table["noise"][3]

# %% [markdown]
# The mirror image has all distances right and lDDT 100, but the FAPE of a bad prediction: seen from
# a frame, up and down are exchanged. A loss of distances alone would accept it.
#
# ### Picture
# The protein, its mirror image, and its distances (dark is near). The helices of the first wind
# like a common screw, those of the second the other way. In the last panel, the dark band along the
# diagonal is the neighbours in the chain, and the spots on the other diagonal are the two helices
# side by side.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
center = array(ca).mean(0)
view = np.linalg.svd(array(ca) - center)[2].T  # the longest axis is x
view[:, 2] *= np.linalg.det(view)  # a rotation, not a reflection
tilt = array(from_quaternion(tensor([1.0, 0.1, 0.3, 0.0])))
view = view @ tilt
seen = (array(ca) - center) @ view
draw_chain(axes[0], seen, "tab:blue", "the protein")
draw_chain(axes[1], seen * [-1, 1, 1], "tab:orange", "its mirror image")
heatmap(axes[2], distances(seen), "distance in angstroms", cmap="Blues_r")
axes[2].set_box_aspect(1)
axes[2].set(xlabel="residue", ylabel="residue")
plt.show()

# %% [markdown]
# ### Exercise 34
# FAPE by hand, limited to 10 angstroms and in units of 10.


# %%
def fape_by_hand(rotation, origin, x, true_rotation, true_origin, true_x):
    """rotation (N, 3, 3), axes as columns; origin, x (N, 3) -> a number"""
    ...


print("fape:", checks.fape(fape_by_hand))

# %% [markdown]
# ### Fold it
# ESMFold in small: an embedding of the sequence; two blocks that update features of residues by
# attention with a pair bias, and features of pairs by triangles; and the *structure module*, which
# starts with all frames at the origin and moves them four times by invariant point attention. Its
# loss is the sum of the FAPE of the backbone, that of all atoms, and four smaller ones: torsions,
# distances, and two of how sure it is. It predicts its own lDDT, the *pLDDT*, and its error in each
# frame.
#
# It trains on one protein, the one above. So it can only learn this one by heart; what we test is
# whether sequence and losses are enough to find the shape.

# %%
keras.utils.set_random_seed(0)
fold = ESMFold.preset("fold-tiny")
every_so_often = 1 if FAST else 20
updates = every_so_often if FAST else 200
clipped = functools.partial(METHOD, global_clipnorm=1.0)
fold.compile(optimizer(clipped, 5e-3, updates), **STEP)
history = []


def measure(epoch, logs=None):
    found = fold.fold(protein.sequence)
    pair = found.positions[:, 1], protein.positions[:, 1]
    history.append((lddt(*pair), found.plddt.mean(), rmsd(*pair)))


fold.fit(
    structure_batches([protein], start=0),
    steps_per_epoch=every_so_often,
    epochs=updates // every_so_often,
    callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=measure)],
    verbose=0,
)
folded = fold.fold(protein.sequence)
print(
    "lDDT {:.1f}, pLDDT {:.1f}, RMSD {:.2f} angstroms".format(*history[-1])
)
assert FAST or history[-1][0] > 85 and history[-1][2] < 1.5, history[-1]

# %% [markdown]
# ### Picture
# How the prediction improves. First lDDT rises, which counts the distances below 15 angstroms;
# then RMSD falls, when the helices find their places side by side. pLDDT follows lDDT, but late:
# it is one of the small losses, and was taught by predictions that were worse. Right, the
# prediction after the best rotation and shift, in the colors of AlphaFold's database (light blue is
# a pLDDT above 70, yellow above 50), and the truth. Below, pLDDT of each residue, and the error
# that the model expects for each pair.

# %%
figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
steps = every_so_often * np.arange(1, len(history) + 1)
true_lddt, plddt, distance = np.array(history).T
axes[0].plot(steps, true_lddt, "o-", label="lDDT", markersize=3)
axes[0].plot(steps, plddt, "o-", label="pLDDT", markersize=3)
axes[0].set(ylim=(0, 100), xlabel="updates")
axes[0].legend()
axes[1].plot(steps, distance, "o-", color="tab:green", markersize=3)
axes[1].set(ylim=(0, None), xlabel="updates")
axes[1].set_title("RMSD in angstroms", fontsize=10)
placed = superpose(folded.positions[:, 1], protein.positions[:, 1])
placed = (placed - center) @ view
draw_chain(axes[2], placed, plddt_colors(folded.plddt), "prediction")
draw_chain(axes[3], seen, "lightgray", "truth")
plt.show()

# %%
folded.plot()

# %% [markdown]
# The same in three dimensions. It turns, and follows the mouse; a site that does not run scripts,
# as GitHub, shows nothing here.

# %%
folded.view()

# %% [markdown]
# How sure is the model of a sequence that it has never seen? Its own, backwards:

# %%
other = fold.fold(protein.sequence[::-1])
pair = other.positions[:, 1], protein.positions[:, 1]
print(f"pLDDT {other.plddt.mean():.1f}, RMSD {rmsd(*pair):.2f} angstroms")

# %% [markdown]
# It is as sure as before, though it knows nothing of this one. A confidence is worth something only
# for inputs like those it was trained on.

# %% [markdown]
# # Part V. Using it

# %%
import json
import math
import os
import subprocess
import sys
import tempfile

import polyhead  # first, because it hides TensorFlow's log lines
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import ops

from polyhead.data import (
    LabelledImages,
    WordPieces,
    image_batches,
    read_images,
)
from polyhead.layers import MultiHeadAttention
from polyhead.learn import checks
from polyhead.learn.show import (
    array,
    assert_equal,
    bright_shapes,
    optimizer,
)
from polyhead.training import Muon
from polyhead.zoo import BERT, ViT

FAST = "FAST" in os.environ  # shorter training, for tests
# To compile the step of a small model takes longer than its training.
STEP = dict(jit_compile=False, run_eagerly=FAST)
METHOD = keras.optimizers.Adam if FAST else Muon  # Adam's step is faster
keras.utils.set_random_seed(0)
folder = tempfile.mkdtemp()


# %% [markdown]
# ## 21. Apply a pretrained model
#
# `polyhead.load(name)` loads a model: from a folder, or from the Hugging Face hub by its name, as
# `polyhead.load("sentence-transformers/all-MiniLM-L6-v2")`. That needs a network, so the notebook
# first trains and saves a model of its own, the ViT of section 19 for five kinds of shapes. The
# call is the same.
#
# ### Build

# %%
KINDS = ("circle", "cross", "ring", "stripes", "triangle")
images, val = (bright_shapes(split, KINDS) for split in ("train", "val"))
turned = [np.rot90(images.images, k, axes=(1, 2)) for k in range(4)]
labels = np.tile(images.labels, 4)
images = LabelledImages(np.concatenate(turned), labels, KINDS)
if FAST:
    images = images[np.arange(0, len(images), 150)]

# %%
size = dict(patch_size=8, channels=1, dim=64, intermediate_dim=128)
size |= dict(num_layers=3, num_classes=len(KINDS), class_names=KINDS)
model = ViT.preset("nano-4", **size)
batches = image_batches(images, (32, 32), batch_size=32, channels=1)
model.compile(optimizer(METHOD, 4e-3, len(batches)), **STEP)
model.fit(batches, epochs=1, verbose=0)
model.save_pretrained(f"{folder}/shapes")

# %% [markdown]
# ### Assert
# The loaded model is the saved one: class, configuration, weights, answers.

# %%
pretrained = polyhead.load(f"{folder}/shapes")
assert type(pretrained) is ViT and pretrained.config == model.config
pixels = val.images[:4].astype("float32")
assert_equal(pretrained(pixels), model(pixels))

# %% [markdown]
# ### Picture
# Four images that it has not seen, with the most likely labels of each.

# %%
found = pretrained.classify(list(val.images[:4]), top=3)
figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
for axis, image, labels in zip(axes, val.images, found):
    axis.imshow(image, cmap="gray")
    lines = [f"{label} {p:.2f}" for label, p in labels]
    axis.set_title("\n".join(lines), fontsize=9)
    axis.set_axis_off()
plt.show()

# %% [markdown]
# A pretrained model of text, if you have the folder of the published *all-MiniLM-L6-v2*, which
# embeds sentences: set `MINILM` to its path and run the cell again.

# %%
MINILM = os.environ.get("MINILM")  # or a path: "all-MiniLM-L6-v2"
if MINILM:
    sentences = polyhead.load(MINILM)
    others = ["An animal is in a hurry.", "It rains."]
    print(sentences.similarity("A dog runs.", others))
else:
    print("MINILM is not set")

# %% [markdown]
# The other kinds of models, one line each (see `docs/guide.md`):
#
# | call | answers |
# | --- | --- |
# | `model.translate("A dog runs.")` | a sentence |
# | `model.generate("Once upon a time", temperature=0.8)` | a continuation |
# | `model.classify("cat.jpg")`, `model.classify("A wonderful film.")` | a label |
# | `model.embed(["A dog runs."])`, `model.similarity(a, b)` | vectors, numbers |
# | `model.answer("Where was Ada born?", context)` | a part of the context |
# | `model.fill_mask("I am [MASK] hungry.")` | words |
#
# ## 22. Fine-tune it on your data
#
# ### Formula
# A pretrained model knows what your task shares with its own. There are three ways to adapt it to a
# few examples: train a new *head* and freeze the rest; train *everything*, with a small learning
# rate; or add *low-rank adapters* (LoRA, Hu et al. 2021, arXiv 2106.09685) to frozen projections,
#
# $$ x \left( W + \frac{\alpha}{r} A B \right), \qquad A: (D, r), \quad B: (r, H K), $$
#
# with $r (D + H K)$ parameters instead of $D H K$. $B$ is zero at first, so training begins at the
# pretrained model. Afterwards $\frac{\alpha}{r} A B$ is added to $W$: the adapted model costs what
# it did before.
#
# ### Build, and assert
# The adapter by hand, with weights of the library's; and merged = not merged.

# %%
x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(1, 5, 16)))
x = ops.cast(x, "float32")
layer = MultiHeadAttention(num_heads=4)
layer.build(x.shape)
plain = layer.query(x)
layer.enable_lora(rank=2, alpha=6)
adapter = layer.query.adapter
assert_equal(layer.query(x), plain)  # B is zero
up = np.random.default_rng(1).normal(size=adapter.up.shape)
adapter.up.assign(up.astype("float32"))
down, up = array(adapter.down), array(adapter.up)
low_rank = ops.einsum("btd,dr,rhk->bthk", x, down, up) * (6 / 2)
adapted = layer.query(x)
assert_equal(adapted, plain + low_rank)
layer.query.merge()
assert_equal(layer.query(x), adapted)

# %% [markdown]
# **Your data**: set `MY_DATA` to a folder of images with a folder per class (at least two classes,
# some dozen images each), and run the cells of this section again. They become grey, with 32 x 32
# pixels, which is what our small model reads. Without `MY_DATA` the new task is three kinds of
# shapes that the pretrained model has never seen, with 10 examples of each.

# %%
MY_DATA = None  # or a path: "photos"

if MY_DATA is None:
    kinds = ("diamond", "square", "waves")
    few, new = (bright_shapes(split, kinds) for split in ("val", "test"))
    few = few[np.arange(30)]
else:
    every = read_images(MY_DATA)
    order = np.random.default_rng(0).permutation(len(every))
    few, new = every[order[len(order) // 5 :]], every[order[: len(order) // 5]]
settings = dict(batch_size=30, channels=1)
batches = image_batches(few, (32, 32), **settings)
others = image_batches(new, (32, 32), shuffle=False, **settings)


# %% [markdown]
# Three ways to adapt the model, and for comparison the same network from scratch. LoRA freezes
# everything but the adapters; the new head is trained too.


# %%
def adapted_model(how):
    if how == "scratch":
        names = dict(num_classes=len(few.classes), class_names=few.classes)
        return ViT.preset("nano-4", **(size | names))
    model = pretrained.adapt(class_names=few.classes)
    if how == "head":
        model.freeze("^(?!head/)")  # all paths but the head's
    elif how == "LoRA":
        model.enable_lora(rank=4)  # the head is trained too
    return model


# %%
def fine_tune(how, peak, epochs=1 if FAST else 60):
    """Accuracy on new images, and the number of trained parameters."""
    keras.utils.set_random_seed(0)
    model = adapted_model(how)
    updates = epochs * len(batches)
    adam = optimizer(keras.optimizers.Adam, peak, updates)
    model.compile(adam, metrics=["accuracy"], **STEP)
    model.fit(batches, epochs=epochs, verbose=0)
    _, accuracy = model.evaluate(others, verbose=0)
    count = sum(math.prod(v.shape) for v in model.trainable_variables)
    return accuracy, count


peaks = {"head": 1e-2, "LoRA": 1e-2, "all": 2e-3, "scratch": 2e-3}
results = {how: fine_tune(how, peak) for how, peak in peaks.items()}
for how, (accuracy, count) in results.items():
    print(f"{how:8} {count:7,} trained parameters, accuracy {accuracy:.2f}")

# %% [markdown]
# ### Picture
# Accuracy on images that were not trained on, against the number of trained parameters.

# %%
for how, (accuracy, count) in results.items():
    plt.semilogx(count, accuracy, "o", label=how)
plt.axhline(1 / len(few.classes), color="gray", linewidth=0.5)
plt.xlabel("trained parameters")
plt.ylim(0, 1)
plt.title("accuracy after fine-tuning; the line is guessing")
plt.legend(loc="lower left")
plt.show()

# %% [markdown]
# In this run, with 10 examples per class, training fewer weights is better: few weights cannot
# memorize 30 images. But differences of a few points are noise. That the model from scratch is
# worst is not: the other three share what the pretrained model knows about shapes. Try all 150
# examples (delete the line with `np.arange(30)`): the differences shrink.

# %%
best = max(results[how][0] for how in ("head", "LoRA", "all"))
assert FAST or MY_DATA or best > results["scratch"][0] + 0.1, results

# %% [markdown]
# ### Exercise 35
# LoRA by hand. Is alpha divided by the rank?


# %%
def lora(x, w, a, b, alpha):
    """x (T, D), w (D, K), a (D, r), b (r, K) -> (T, K)"""
    ...


print("lora:", checks.lora(lora))

# %% [markdown]
# ### Exercise 36
# How many parameters has an adapter of a projection $(D, H, K)$?


# %%
def lora_parameters(dim, num_heads, head_dim, rank):
    """A (D, r) and B (r, H, K)"""
    ...


print("lora_parameters:", checks.lora_parameters(lora_parameters))

# %% [markdown]
# ## 23. Several devices
#
# ### Formula
# *Data parallelism*: each of $R$ devices has a copy of the model and a part of the batch, and the
# gradients are averaged. For sentences, this is easy to get wrong. If device $i$ has $n_i$ tokens
# with the total loss $s_i$, the loss of the batch is
#
# $$ \frac{\sum_i s_i}{\sum_i n_i}, \qquad \text{and not} \qquad
# \frac 1 R \sum_i \frac{s_i}{n_i}, $$
#
# since a device with few tokens would count as much as one with many. The library computes the
# first, so training on one device or several gives the same weights.
#
# ### Build, and assert
# Two "devices" on this machine's CPU, in a process of its own, because devices are set up before
# TensorFlow starts. The rows have different lengths, so the two means differ.

# %%
program = """
from polyhead.training import strategy
two, one = (strategy(n, say=lambda line: None) for n in (2, 1))
import json, keras, numpy as np
from polyhead.zoo import GPT
rng = np.random.default_rng(0)
x = rng.integers(1, 66, (8, 16))
weight = (np.arange(16) < rng.integers(2, 17, (8, 1))).astype("float32")
losses = []
for devices in one, two:
    keras.utils.set_random_seed(0)
    with devices.scope():
        model = GPT.preset("char-small", num_layers=1)
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    history = model.fit(x, x, sample_weight=weight, epochs=5, verbose=0)
    losses.append(history.history["loss"])
print(json.dumps(losses))
"""
command = [sys.executable, "-c", program]
done = subprocess.run(command, capture_output=True, text=True)
assert done.returncode == 0, done.stderr[-2000:]
losses = dict(zip((1, 2), json.loads(done.stdout.splitlines()[-1])))
np.testing.assert_allclose(losses[1], losses[2], rtol=1e-4)

# %% [markdown]
# ### Picture
# The losses of one device and of two are the same.

# %%
for (devices, values), style in zip(losses.items(), ("-", "o")):
    plt.plot(range(1, 6), values, style, label=f"devices: {devices}")
plt.xticks(range(1, 6))
plt.xlabel("epoch")
plt.title("loss")
plt.legend()
plt.show()

# %% [markdown]
# ### Exercise 37
# The loss per token of a batch, from what each device computed.


# %%
def global_mean(sums, counts):
    """sums of losses (R,), numbers of tokens (R,) -> a number"""
    ...


print("global_mean:", checks.global_mean(global_mean))

# %% [markdown]
# ## 24. Export and serve
#
# A program that serves users should not need Python, nor this library. `export` writes a
# *SavedModel* for TensorFlow Serving: the network with everything before and after it, so bytes of
# an image go in and labels come out (for texts: strings in, strings out).
#
# ### Build

# %%
version = pretrained.export(f"{folder}/export", top=3)
print(version.name, sorted(path.name for path in version.iterdir()))

# %% [markdown]
# ### Assert
# We query the export through the C++ code that the server uses, in a process without TensorFlow's
# Python, and compare with the model. The bytes of an image file go in, strings and probabilities
# come out.

# %%
photo = f"{folder}/photo.png"
keras.utils.save_img(photo, val.images[0], scale=False)
loader = [sys.executable, "-m", "polyhead.serving.loader"]
command = [*loader, str(version), photo]
done = subprocess.run(command, capture_output=True, text=True)
assert done.returncode == 0, done.stderr[-2000:]
answer = json.loads(done.stdout)
print(answer["labels"])
here = pretrained.classify(photo, top=3)
assert np.ravel(answer["labels"]).tolist() == [x.label for x in here]
assert_equal(np.ravel(answer["probabilities"]), [x.probability for x in here])

# %% [markdown]
# A model of texts takes strings: its tokenizer is part of the export. Here a small BERT with random
# weights, and TensorFlow's own loader, which knows nothing of polyhead.

# %%
texts = ["A dog runs.", "It rains."]
tokenizer = WordPieces.train(texts * 9, vocab_size=60)
encoder = BERT.preset("bert-tiny", tokenizer, num_layers=1)
version = encoder.export(f"{folder}/encoder")
served = tf.saved_model.load(str(version)).signatures["embed"]
vectors = served(text=tf.constant(texts))["embedding"]
print(vectors.shape)
assert_equal(vectors, encoder.embed(texts), atol=1e-4)

# %% [markdown]
# The server itself runs in Docker (`docs/serving.md` has the commands) and is queried by HTTP:
#
#     POST /v1/models/classification:predict
#     {"instances": [{"image_bytes": {"b64": "iVBORw0KGgo..."}}]}
#
# ## 25. What it cost, and what next
#
# Training costs about $6 N$ FLOPs per token for $N$ parameters: 2 in the forward pass (a
# multiply-add per parameter), 4 in the backward pass (gradients with respect to inputs and to
# weights).

# %%
models = {
    "translator, section 13": (0.73e6, 4000 * 12 * 6),  # 6 epochs
    "GPT, section 15": (0.41e6, 221_000 * 2),
    "GPT-3 (arXiv 2005.14165)": (175e9, 300e9),
}
for name, (parameters, tokens) in models.items():
    print(f"{name:26} {6 * parameters * tokens:.0e} FLOPs")

# %% [markdown]
# Five projects, one for each thing that you can do now:
#
# 1. *Understand*: take the weights of a trained translator, and find the heads that attend to the
#    previous word (section 5). Set them to zero. What breaks?
# 2. *Build*: write a decoder with grouped-query attention and rotary positions, and compare its
#    output with `TransformerBlock`'s (section 11 for parts).
# 3. *Apply*: search a folder of your notes with `model.embed` and `model.search`.
# 4. *Fine-tune*: your own images or texts, with a held-out part that you look at once.
# 5. *Positions*: repeat the experiment of section 8 with another task: reverse, sort, count.
