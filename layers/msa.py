"""Attention within an alignment, and its effect on pairs, of AlphaFold 2's Evoformer."""

from typing import Any

import keras
from keras import ops

from .attend import masked_softmax
from .axial import OPEN, AxialAttention, head_size, map_chunks, norm_layer, part
from .parts import built


@keras.saving.register_keras_serializable("polyhead")
class MSARowAttention(AxialAttention):
    """Gated self-attention within each row of an alignment, biased by pairs of residues.

    (Jumper et al. 2021, supplement, algorithm 7.) In each sequence of the alignment, residue i
    attends to residue j with a bias computed from the pair (i, j).

    Args:
        num_heads: H.
        head_dim: K, the size of a head. Default: D / H.
        chunk: the maximum number of rows computed at once. It limits the memory of the scores to
            chunk H N^2 floats, and does not change the result. Default: all S rows.

    Call with ``m`` (B, S, N, D), an alignment of S sequences to N residues, and ``z``
    (B, N, N, C); the result is the update (B, S, N, D), to which the caller adds m. ``mask``
    (B, S, N) is boolean, True = exists. The result is undefined where it is False.

    The softmax is always computed in float32. Initially the update is 0.

    Raises:
        ValueError: H does not divide D, and there is no ``head_dim``.

    >>> attention = MSARowAttention(num_heads=4)
    >>> tuple(attention(np.ones((2, 3, 5, 32)), np.ones((2, 5, 5, 16))).shape)
    (2, 3, 5, 32)
    """

    def build(self, m_shape, z_shape):
        self.bias_norm = norm_layer("bias_norm", z_shape[-1], self.dtype_policy)
        self.build_parts(m_shape[-1], z_shape[-1])

    def call(self, m, z, mask=None):
        return self.attend(self.norm(m), mask, self.bias(self.bias_norm(z)))


@keras.saving.register_keras_serializable("polyhead")
class MSAColumnAttention(AxialAttention):
    """Gated self-attention within each column of an alignment.

    (Jumper et al. 2021, supplement, algorithm 8.) A sequence attends to the residues that the other
    sequences have in the same column.

    Args:
        num_heads: H.
        head_dim: K, the size of a head. Default: D / H.
        chunk: the maximum number of columns computed at once. It limits the memory of the scores
            to chunk H S^2 floats, and does not change the result. Default: all N columns.

    Call with ``m`` (B, S, N, D), an alignment of S sequences to N residues; the result is the
    update (B, S, N, D), to which the caller adds m. ``mask`` (B, S, N) is boolean, True = exists.
    The result is undefined where it is False.

    The softmax is always computed in float32. Initially the update is 0.

    Raises:
        ValueError: H does not divide D, and there is no ``head_dim``.

    >>> tuple(MSAColumnAttention(num_heads=4)(np.ones((2, 3, 5, 32))).shape)
    (2, 3, 5, 32)
    """

    def build(self, m_shape):
        self.build_parts(m_shape[-1])

    def call(self, m, mask=None):
        mask = mask if mask is None else ops.swapaxes(mask, 1, 2)
        return ops.swapaxes(self.attend(self.norm(ops.swapaxes(m, 1, 2)), mask), 1, 2)


@keras.saving.register_keras_serializable("polyhead")
class MSAGlobalColumnAttention(keras.layers.Layer):
    """Attention within each column of an alignment, by one query for all sequences.

    (Jumper et al. 2021, supplement, algorithm 19.) The query of a column is computed from the mean
    of its sequences, and all heads share their keys and values. So memory grows as S, not as S^2,
    and the alignment can have thousands of sequences. Only the gate depends on the sequence.

    Args:
        num_heads: H.
        head_dim: K, the size of a head. Default: D / H.

    Call with ``m`` (B, S, N, D), an alignment of S sequences to N residues; the result is the
    update (B, S, N, D), to which the caller adds m. ``mask`` (B, S, N) is boolean, True = exists.
    The result is undefined where it is False.

    The mean and the softmax are always computed in float32. Initially the update is 0.

    Raises:
        ValueError: H does not divide D, and there is no ``head_dim``.

    >>> tuple(MSAGlobalColumnAttention(num_heads=4)(np.ones((2, 3, 5, 32))).shape)
    (2, 3, 5, 32)
    """

    def __init__(self, num_heads: int, head_dim: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim

    def build(self, m_shape):
        width, heads, dtype = m_shape[-1], self.num_heads, self.dtype_policy
        size = self.head_dim = head_size(width, heads, self.head_dim)
        rows, shape, inner = (None, None, None, width), (None, None, heads, size), heads * size
        self.norm = norm_layer("norm", width, dtype)
        fans = width, inner
        self.query = part("query", "bnd,dhk->bnhk", rows[1:], shape[1:], fans, dtype)
        self.key, self.value = (
            part(name, "bsnd,dk->bsnk", rows, (None, None, size), (width, size), dtype)
            for name in ("key", "value")
        )
        self.gate = part(
            "gate", "bsnd,dhk->bsnhk", rows, shape, fans, dtype, bias_axes="hk", **OPEN
        )
        self.output_projection = part(
            "output",
            "bsnhk,hkd->bsnd",
            (None, *shape),
            (None, None, width),
            (inner, width),
            dtype,
            bias_axes="d",
            kernel_initializer="zeros",
        )

    def call(self, m, mask=None):
        m = self.norm(m)
        mean = masked_mean(ops.cast(m, "float32"), mask)
        query = self.query(ops.cast(mean, self.compute_dtype)) * self.head_dim**-0.5
        scores = ops.cast(ops.einsum("bnhk,bsnk->bnhs", query, self.key(m)), "float32")
        if mask is not None:
            mask = ops.swapaxes(mask, 1, 2)[:, :, None]
        weights = ops.cast(masked_softmax(scores, mask), self.compute_dtype)
        heads = ops.einsum("bnhs,bsnk->bnhk", weights, self.value(m))
        return self.output_projection(ops.sigmoid(self.gate(m)) * heads[:, None])

    def compute_mask(self, *args, **kwargs):
        return None


def masked_mean(m, mask):
    """The mean (B, N, D) of the rows of ``m`` (B, S, N, D) where ``mask`` is True."""
    if mask is None:
        return ops.mean(m, axis=1)
    mask = ops.cast(mask, m.dtype)
    total = ops.einsum("bsn,bsnd->bnd", mask, m)
    return total / ops.maximum(ops.sum(mask, axis=1), 1)[..., None]


@keras.saving.register_keras_serializable("polyhead")
class OuterProductMean(keras.layers.Layer):
    """Updates each pair of residues by the mean product of their columns in an alignment.

    (Jumper et al. 2021, supplement, algorithm 10.) With the normalized m, the sums over the
    sequences s in which both residues exist, and n the number of these,

        a = m W_1,  b = m W_2
        update_ij = (sum_s (a_si outer b_sj) W_3 + c) / (n + 0.001)

    as in AlphaFold's code: the bias c is divided too.

    Args:
        pair_dim: C, the width of a pair.
        intermediate_dim: the width of a and b.
        chunk: the maximum number of residues i computed at once. It limits the memory of the outer
            products to chunk N intermediate_dim^2 floats, and does not change the result. Default:
            all N residues.

    Call with ``m`` (B, S, N, D), an alignment of S sequences to N residues; the result is the
    update (B, N, N, C), to which the caller adds the pairs. ``mask`` (B, S, N) is boolean, True =
    exists.

    Sums, their projection and the mean are always computed in float32. Initially the update is 0.

    >>> tuple(OuterProductMean(pair_dim=16, intermediate_dim=8)(np.ones((2, 3, 5, 32))).shape)
    (2, 5, 5, 16)
    """

    def __init__(
        self, pair_dim: int, intermediate_dim: int = 32, chunk: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.pair_dim = pair_dim
        self.intermediate_dim = intermediate_dim
        self.chunk = chunk

    def build(self, m_shape):
        width, inner = m_shape[-1], self.intermediate_dim
        self.norm = norm_layer("norm", width, self.dtype_policy)
        self.left, self.right = (
            built(keras.layers.Dense(inner, dtype=self.dtype_policy, name=name), (None, width))
            for name in ("left", "right")
        )
        self.output_projection = part(
            "output",
            "bijcd,cdz->bijz",
            (None, None, None, inner, inner),
            (None, None, self.pair_dim),
            (inner**2, self.pair_dim),
            "float32",
            bias_axes="z",
            kernel_initializer="zeros",
        )

    def call(self, m, mask=None):
        x = self.norm(m)
        left, right = (ops.cast(f(x), "float32") for f in (self.left, self.right))
        if mask is None:
            count = ops.cast(ops.shape(m)[1], "float32")
        else:
            mask = ops.cast(mask, "float32")
            left, right = left * mask[..., None], right * mask[..., None]
            count = ops.einsum("bsi,bsj->bij", mask, mask)[..., None]

        def products(left, _):
            outer = ops.einsum("bisc,bsjd->bijcd", left, right)
            return self.output_projection(outer)

        update = map_chunks(products, self.chunk, ops.swapaxes(left, 1, 2))
        return ops.cast(update / (count + 1e-3), self.compute_dtype)

    def compute_mask(self, *args, **kwargs):
        return None
