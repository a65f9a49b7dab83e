"""The structure module of AlphaFold 2 and ESMFold: from features of residues to frames."""

from typing import Any

import keras
from keras import ops

from .axial import norm_layer
from .dropout import Dropout
from .frames import Frames, apply, from_quaternion, identity
from .parts import built
from .point_attention import InvariantPointAttention

TORSIONS = 7  # pre-omega, phi, psi, chi1 to chi4


@keras.saving.register_keras_serializable("polyhead")
class StructureModule(keras.layers.Layer):
    """Moves the frames of residues from the origin to their places, in several iterations.

    (Jumper et al. 2021, supplement, algorithm 20, lines 1 to 14.) All iterations share their
    weights: invariant point attention, a transition, an update of the backbone's frames (algorithm
    23), and a network for the sines and cosines of the torsions. Between iterations, rotations pass
    no gradient.

    Args:
        num_iterations: the number of iterations.
        num_heads, head_dim, query_points, value_points: of `InvariantPointAttention`.
        torsion_dim: the width of the network of torsions.
        num_torsion_blocks: the number of its residual blocks.
        num_transitions: the number of transitions per iteration.
        dropout: rate, after the attention and after the transition.

    Call with ``s`` (B, N, D), ``z`` (B, N, N, C) and a boolean ``mask`` (B, N), True = exists. The
    result is a dictionary of lists with an item per iteration: ``frames``, pairs of rotations
    (B, N, 3, 3) and translations (B, N, 3) in units of 10 angstroms; ``torsions`` (B, N, 7, 2),
    sines and cosines, and ``unnormalized``, the same before normalization; ``states`` (B, N, D).

    Everything is computed in float32. In inference the iterations are a loop, so that a graph has
    them once; with TensorFlow's XLA, such a loop has no gradients, but training has.

    >>> module = StructureModule(2, num_heads=2, head_dim=8, query_points=4, value_points=4)
    >>> found = module(np.ones((1, 5, 32)), np.ones((1, 5, 5, 16)), np.ones((1, 5), "bool"))
    >>> tuple(found["torsions"][-1].shape)
    (1, 5, 7, 2)
    """

    def __init__(
        self,
        num_iterations: int,
        num_heads: int = 12,
        head_dim: int = 16,
        query_points: int = 4,
        value_points: int = 8,
        torsion_dim: int = 128,
        num_torsion_blocks: int = 2,
        num_transitions: int = 1,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_iterations = num_iterations
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.query_points = query_points
        self.value_points = value_points
        self.torsion_dim = torsion_dim
        self.num_torsion_blocks = num_torsion_blocks
        self.num_transitions = num_transitions
        self.dropout = dropout
        self.autocast = False

    def build(self, s_shape, z_shape, mask_shape=None):
        width = s_shape[-1]

        def norm(name, size=width):
            return norm_layer(name, size, "float32")

        def dense(name, size, x_size=width, activation=None, kernel="glorot_uniform"):
            layer = keras.layers.Dense(
                size, activation, kernel_initializer=kernel, dtype="float32", name=name
            )
            return built(layer, (None, x_size))

        self.norm, self.pair_norm = norm("norm"), norm("pair_norm", z_shape[-1])
        self.input_map = dense("input", width)
        self.attention = InvariantPointAttention(
            self.num_heads,
            self.head_dim,
            self.query_points,
            self.value_points,
            dtype="float32",
            name="attention",
        )
        self.attention.build(s_shape, z_shape)
        self.attention_norm, self.transition_norm = norm("attention_norm"), norm("transition_norm")
        self.transitions = [
            [
                dense(f"transition_{i}_first", width, activation="relu"),
                dense(f"transition_{i}_second", width, activation="relu"),
                dense(f"transition_{i}_third", width, kernel="zeros"),
            ]
            for i in range(self.num_transitions)
        ]
        self.backbone = dense("backbone", 6, kernel="zeros")
        size = self.torsion_dim
        self.torsion_input, self.torsion_skip = (
            dense(name, size) for name in ("torsion_input", "torsion_skip")
        )
        self.torsion_blocks = [
            [
                dense(f"torsion_{i}_first", size, size, "relu"),
                dense(f"torsion_{i}_second", size, size, kernel="zeros"),
            ]
            for i in range(self.num_torsion_blocks)
        ]
        self.torsion_output = dense("torsion_output", 2 * TORSIONS, size)
        self.drop = Dropout(self.dropout, dtype="float32", name="dropout")

    def call(self, s, z, mask, training=False):
        s, z = (ops.cast(x, "float32") for x in (s, z))
        first = s = self.norm(s)
        z, s = self.pair_norm(z), self.input_map(s)
        batch, length = ops.shape(s)[:2]
        quaternion = ops.broadcast_to(
            ops.convert_to_tensor([1.0, 0.0, 0.0, 0.0], "float32"), (batch, length, 4)
        )
        state = s, quaternion, *identity((batch, length))

        def iterate(state, element=None):
            s, quaternion, rotation, translation = state
            rotation, quaternion = map(ops.stop_gradient, (rotation, quaternion))
            s = s + self.attention(s, z, (rotation, translation), mask)
            s = self.attention_norm(self.drop(s, training=training))
            for maps in self.transitions:
                x = s
                for layer in maps:
                    x = layer(x)
                s = s + x
            s = self.transition_norm(self.drop(s, training=training))
            quaternion, frames = move(quaternion, (rotation, translation), self.backbone(s))
            state = s, quaternion, *frames
            return state, state

        n = self.num_iterations
        if training:
            states = []
            for _ in range(n):
                state, _ = iterate(state)
                states.append(state)
            stacked = [ops.stack(x) for x in zip(*states, strict=True)]
        else:
            _, stacked = ops.scan(iterate, state, length=n)
        s, _, rotation, translation = stacked
        unnormalized = self._torsions(s, first)
        size = ops.sum(ops.square(unnormalized), axis=-1, keepdims=True)
        torsions = unnormalized / ops.sqrt(ops.maximum(size, 1e-8))
        rotations, translations = ops.unstack(rotation, n), ops.unstack(translation, n)
        return {
            "frames": list(zip(rotations, translations, strict=True)),
            "torsions": ops.unstack(torsions, n),
            "unnormalized": ops.unstack(unnormalized, n),
            "states": ops.unstack(s, n),
        }

    def _torsions(self, s, first):
        """Sines and cosines of the torsions (..., 7, 2), of any length."""
        # The activation comes before the first maps too, unlike in the paper, as in its code.
        x = self.torsion_input(ops.relu(s)) + self.torsion_skip(ops.relu(first))
        for inner, outer in self.torsion_blocks:
            x = x + outer(inner(ops.relu(x)))
        x = self.torsion_output(ops.relu(x))
        return ops.reshape(x, (*ops.shape(s)[:-1], TORSIONS, 2))

    def compute_mask(self, *args, **kwargs):
        return None


def move(quaternion: Any, frames: Frames, update: Any) -> tuple[Any, Frames]:
    """Rotates and moves frames by an ``update`` (B, N, 6) in their own axes (algorithm 23).

    Args:
        quaternion: (B, N, 4), of the frames' rotations.
        update: b, c, d of the quaternion (1, b, c, d), and a translation.

    Returns:
        the new quaternions, of length 1, and frames.
    """
    b, c, d, *_ = ops.unstack(update, axis=-1)
    w, x, y, z = ops.unstack(quaternion, axis=-1)
    change = [
        -x * b - y * c - z * d,
        w * b + y * d - z * c,
        w * c - x * d + z * b,
        w * d + x * c - y * b,
    ]
    quaternion = quaternion + ops.stack(change, axis=-1)
    quaternion = quaternion / ops.norm(quaternion, axis=-1, keepdims=True)
    translation = apply(frames, update[..., 3:])
    return quaternion, (from_quaternion(quaternion), translation)
