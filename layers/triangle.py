"""Triangle updates of a pair representation, of AlphaFold 2's Evoformer and ESMFold's trunk."""

from typing import Any

import keras
from keras import ops

from .arguments import Tensor
from .axial import OPEN, AxialAttention, norm_layer, part


def pair_mask(mask: Tensor) -> Tensor:
    """A mask of residues (B, N) as a mask of pairs (B, N, N); a mask of pairs as it is."""
    if len(mask.shape) == 3:
        return mask
    return ops.logical_and(mask[:, :, None], mask[:, None, :])


@keras.saving.register_keras_serializable("polyhead")
class TriangleMultiplication(keras.layers.Layer):
    """Updates each pair of residues from the other two sides of all its triangles.

    (Jumper et al. 2021, supplement, algorithms 11 and 12.) With the normalized z,

        a = sigmoid(z W_1) * (z W_2),  b = sigmoid(z W_3) * (z W_4)
        x_ij = sum_k a_ik b_jk if outgoing, sum_k a_ki b_kj if incoming
        update_ij = sigmoid(z_ij W_5) * (norm(x_ij) W_6)

    Args:
        outgoing: whether the sides are the pairs (i, k) and (j, k), or (k, i) and (k, j).

    Call with ``z`` (B, N, N, C) for N residues; the result is the update (B, N, N, C), to which the
    caller adds z. ``mask`` is boolean, True = exists, and is a mask of residues (B, N) or of pairs
    (B, N, N). The result is undefined where it is False.

    The sums over k and their normalization are always computed in float32, because float16
    overflows there. Initially the update is 0.

    >>> tuple(TriangleMultiplication(outgoing=True)(np.ones((2, 5, 5, 16))).shape)
    (2, 5, 5, 16)
    """

    def __init__(self, outgoing: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.outgoing = outgoing

    def build(self, z_shape):
        width = z_shape[-1]

        def linear(name, **options):
            sizes = (None, width), (width,), (width, width), self.dtype_policy
            return part(name, "pd,dc->pc", *sizes, bias_axes="c", **options)

        self.norm = norm_layer("norm", width, self.dtype_policy)
        self.left, self.left_gate = linear("left"), linear("left_gate", **OPEN)
        self.right, self.right_gate = linear("right"), linear("right_gate", **OPEN)
        self.product_norm = norm_layer("product_norm", width, "float32")
        self.output_projection = linear("output", kernel_initializer="zeros")
        self.gate = linear("gate", **OPEN)

    def call(self, z, mask=None):
        shape, width = ops.shape(z), z.shape[-1]
        pairs = ops.reshape(self.norm(z), (-1, width))
        if mask is not None:
            mask = ops.cast(ops.reshape(pair_mask(mask), (1, -1)), "float32")

        def side(values, gate):
            x = ops.sigmoid(channels_first(gate, pairs)) * channels_first(values, pairs)
            x = ops.cast(x, "float32")
            return ops.reshape(x if mask is None else x * mask, (width, *shape[:3]))

        left, right = side(self.left, self.left_gate), side(self.right, self.right_gate)
        if self.outgoing:
            x = ops.matmul(left, ops.swapaxes(right, 2, 3))
        else:
            x = ops.matmul(ops.swapaxes(left, 2, 3), right)
        x = self.product_norm(ops.transpose(ops.reshape(x, (width, -1))))
        update = self.output_projection(ops.cast(x, self.compute_dtype))
        return ops.reshape(ops.sigmoid(self.gate(pairs)) * update, shape)

    def compute_mask(self, *args, **kwargs):
        return None


def channels_first(layer, pairs):
    """The output (C, P) of a `Projection` for ``pairs`` (P, D), as the product of sides needs it.

    Transposing (P, C) takes more time; on CPUs, XLA even computes the sigmoid in this order.
    """
    if not layer.is_whole or layer.adapter is not None:
        return ops.transpose(layer(pairs))
    return ops.einsum("dc,pd->cp", layer.kernel, pairs) + layer.bias[:, None]


@keras.saving.register_keras_serializable("polyhead")
class TriangleAttention(AxialAttention):
    """Gated self-attention within each row of pairs, biased by the third side of the triangle.

    (Jumper et al. 2021, supplement, algorithms 13 and 14.) The pair (i, j) attends to the pairs
    (i, k) with a bias computed from the pair (j, k).

    Args:
        num_heads: H.
        starting: whether rows are the pairs (i, j) of one i, those with the same starting residue,
            or of one j, with the same ending residue. For these, z is transposed.
        head_dim: K, the size of a head. Default: C / H.
        chunk: the maximum number of rows computed at once. It limits the memory of the scores to
            chunk H N^2 floats, and does not change the result. Default: all N rows. (In training
            it saves little: the backward pass needs the softmax of all rows.)

    Call with ``z`` (B, N, N, C) for N residues; the result is the update (B, N, N, C), to which the
    caller adds z. ``mask`` is boolean, True = exists, and is a mask of residues (B, N) or of pairs
    (B, N, N). The result is undefined where it is False.

    The softmax is always computed in float32. Initially the update is 0.

    Raises:
        ValueError: H does not divide C, and there is no ``head_dim``.

    >>> attention = TriangleAttention(num_heads=4, starting=True, chunk=2)
    >>> tuple(attention(np.ones((2, 5, 5, 16))).shape)
    (2, 5, 5, 16)
    """

    def __init__(
        self,
        num_heads: int,
        starting: bool,
        head_dim: int | None = None,
        chunk: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_heads, head_dim, chunk, **kwargs)
        self.starting = starting

    def build(self, z_shape):
        self.build_parts(z_shape[-1], z_shape[-1])

    def call(self, z, mask=None):
        if mask is not None:
            mask = pair_mask(mask)
        if not self.starting:
            z = ops.swapaxes(z, 1, 2)
            mask = mask if mask is None else ops.swapaxes(mask, 1, 2)
        z = self.norm(z)
        y = self.attend(z, mask, self.bias(z))
        return y if self.starting else ops.swapaxes(y, 1, 2)
