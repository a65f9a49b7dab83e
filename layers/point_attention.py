"""Invariant point attention, of the structure module of AlphaFold 2 and ESMFold."""

import math
from typing import Any

import keras
from keras import ops

from .attend import masked_softmax
from .frames import apply, invert_apply
from .projection import leading_shape, projection


@keras.saving.register_keras_serializable("polyhead")
class InvariantPointAttention(keras.layers.Layer):
    """Self-attention of residues by features, pairs, and distances of points in their frames.

    (Jumper et al. 2021, supplement, algorithm 22.) Each residue places points in its frame. The
    score of residues i and j is, per head,

        sqrt(1/3) (q_i . k_j / sqrt(K) + b_ij) - sqrt(1/(54 P)) softplus(w) sum_p |q_ip - k_jp|^2

    and the output is a projection of the attended values, of the attended points in the frame of
    residue i, of their distances from its origin, and of the attended pairs. So it does not change
    if all frames are rotated and translated together.

    Args:
        num_heads: H.
        head_dim: K, the size of a head.
        query_points: P, the number of points of queries and keys, per head.
        value_points: the number of points of values, per head.

    Call with ``s`` (B, N, D) for N residues, ``z`` (B, N, N, C) and ``frames``, a pair of rotations
    (B, N, 3, 3) and translations (B, N, 3); see `frames`. Their unit is the caller's: 10 angstroms
    in AlphaFold 2. The result is the update (B, N, D), to which the caller adds s. ``mask`` (B, N)
    is boolean, True = exists; the result is undefined where it is False.

    Everything is computed in float32, and only the result is cast to the compute dtype. Initially
    the update is 0.

    >>> from polyhead.layers.frames import identity
    >>> attention = InvariantPointAttention(2, head_dim=8, query_points=4, value_points=8)
    >>> tuple(attention(np.ones((1, 5, 32)), np.ones((1, 5, 5, 16)), identity((1, 5))).shape)
    (1, 5, 32)
    """

    def __init__(
        self, num_heads: int, head_dim: int, query_points: int, value_points: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.query_points = query_points
        self.value_points = value_points
        self.autocast = False

    def build(self, s_shape, z_shape):
        width, pair_width, heads = s_shape[-1], z_shape[-1], self.num_heads

        def part(name, equation, x_width, shape, bias_axes):
            layer = projection(
                equation,
                output_shape=shape,
                bias_axes=bias_axes,
                fan_in=x_width,
                fan_out=math.prod(size for size in shape if size),
                dtype="float32",
                name=name,
            )
            layer.build((None,) * len(equation.split(",")[0][:-1]) + (x_width,))
            return layer

        def features(name):
            return part(name, "btd,dhk->bthk", width, (None, heads, self.head_dim), "hk")

        def points(name, count):
            return part(name, "btd,dhpx->bthpx", width, (None, heads, count, 3), "hpx")

        self.query, self.key, self.value = map(features, ("query", "key", "value"))
        self.point_query = points("point_query", self.query_points)
        self.point_key = points("point_key", self.query_points)
        self.point_value = points("point_value", self.value_points)
        self.pair_bias = part("pair_bias", "btsc,ch->btsh", pair_width, (None, None, heads), "h")
        self.point_weight = self.add_weight(
            name="point_weight",
            shape=(heads,),
            initializer=keras.initializers.Constant(math.log(math.e - 1)),  # softplus gives 1
            dtype="float32",
            autocast=False,
        )
        self.output_projection = keras.layers.Dense(
            width, kernel_initializer="zeros", dtype="float32", name="output"
        )
        inner = heads * (self.head_dim + 4 * self.value_points + pair_width)
        self.output_projection.build((None, None, inner))

    def call(self, s, z, frames, mask=None):
        s, z, rotation, translation = (ops.cast(x, "float32") for x in (s, z, *frames))
        translation = translation - center(translation, mask)
        frames = rotation[:, :, None, None], translation[:, :, None, None]
        scores = self._scores(s, z, frames)
        weights = masked_softmax(scores, mask if mask is None else mask[:, None, None])

        heads = ops.einsum("bhts,bshk->bthk", weights, self.value(s))
        points = apply(frames, self.point_value(s))
        points = invert_apply(frames, ops.einsum("bhts,bshpx->bthpx", weights, points))
        distances = ops.sqrt(ops.sum(ops.square(points), axis=-1) + 1e-8)
        pairs = ops.einsum("bhts,btsc->bthc", weights, z)
        points = ops.moveaxis(points, -1, 2)  # in the order of published weights
        features = [
            ops.reshape(x, (*leading_shape(s), math.prod(x.shape[2:])))
            for x in (heads, points, distances, pairs)
        ]
        update = self.output_projection(ops.concatenate(features, axis=-1))
        return ops.cast(update, self.compute_dtype)

    def _scores(self, s, z, frames):
        """The scores (B, H, N, N)."""
        query, key = self.query(s) * self.head_dim**-0.5, self.key(s)
        bias = ops.transpose(self.pair_bias(z), (0, 3, 1, 2))
        scores = ops.einsum("bthk,bshk->bhts", query, key) + bias
        # The sum of |q - k|^2 = |q|^2 + |k|^2 - 2 q.k, without a tensor of all differences.
        query, key = apply(frames, self.point_query(s)), apply(frames, self.point_key(s))
        squares = [ops.einsum("bthpx,bthpx->bht", x, x) for x in (query, key)]
        distances = squares[0][..., :, None] + squares[1][..., None, :]
        distances = distances - 2 * ops.einsum("bthpx,bshpx->bhts", query, key)
        weight = ops.softplus(self.point_weight) * math.sqrt(1 / (54 * self.query_points))
        return math.sqrt(1 / 3) * scores - weight[:, None, None] * distances

    def compute_mask(self, *args, **kwargs):
        return None


def center(points, mask=None):
    """The mean (B, 1, 3) of ``points`` (B, N, 3); distances are most precise near the origin."""
    if mask is None:
        return ops.mean(points, axis=1, keepdims=True)
    mask = ops.cast(mask, points.dtype)[..., None]
    count = ops.maximum(ops.sum(mask, axis=1, keepdims=True), 1)
    return ops.sum(points * mask, axis=1, keepdims=True) / count
