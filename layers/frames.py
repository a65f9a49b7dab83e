"""Rigid frames of residues, and the atoms that they place.

A frame is a pair of a rotation (..., 3, 3), whose columns are its axes, and a translation (..., 3),
its origin. It maps a point x of the frame to the point rotation x + translation of space. All
tensors are float32, and leading axes are broadcast. Products are sums of elementwise products,
because GPUs may round the factors of matrix products to fewer bits.

The functions are those of Jumper et al. 2021, supplement, section 1.8.
"""

from collections.abc import Sequence

from keras import ops

from .arguments import Tensor

Frames = tuple[Tensor, Tensor]


def identity(shape: Sequence[int | Tensor]) -> Frames:
    """Frames of the leading ``shape`` whose axes and origin are those of space.

    >>> rotation, translation = identity((2, 5))
    >>> tuple(rotation.shape), tuple(translation.shape)
    ((2, 5, 3, 3), (2, 5, 3))
    """
    return (
        ops.broadcast_to(ops.eye(3, dtype="float32"), (*shape, 3, 3)),
        ops.zeros((*shape, 3), "float32"),
    )


def compose(outer: Frames, inner: Frames) -> Frames:
    """The frames that apply ``inner``, then ``outer``.

    >>> turn = from_quaternion(np.float32([1, 1, 0, 0])), np.float32([0, 0, 5])
    >>> rotation, translation = compose(turn, turn)
    >>> np.array(translation).round(3)
    array([ 0., -5.,  5.], dtype=float32)
    """
    left, right = outer[0][..., :, :, None], inner[0][..., None, :, :]
    return ops.sum(left * right, axis=-2), apply(outer, inner[1])


def apply(frames: Frames, points: Tensor) -> Tensor:
    """Maps ``points`` (..., 3) of the frames to points of space.

    >>> quarter = from_quaternion(np.float32([1, 0, 0, 1])), np.float32([0, 0, 5])  # about z
    >>> np.array(apply(quarter, np.float32([2, 0, 0]))).round(3)
    array([0., 2., 5.], dtype=float32)
    """
    rotation, translation = frames
    return ops.sum(rotation * points[..., None, :], axis=-1) + translation


def invert_apply(frames: Frames, points: Tensor) -> Tensor:
    """Maps ``points`` (..., 3) of space to points of the frames: the inverse of `apply`.

    >>> quarter = from_quaternion(np.float32([1, 0, 0, 1])), np.float32([0, 0, 5])
    >>> np.array(invert_apply(quarter, np.float32([0, 2, 5]))).round(3)
    array([2., 0., 0.], dtype=float32)
    """
    rotation, translation = frames
    return ops.sum(rotation * (points - translation)[..., :, None], axis=-2)


def from_quaternion(quaternion: Tensor) -> Tensor:
    """The rotations (..., 3, 3) of quaternions (..., 4), real part first, of any length but 0.

    >>> np.array(from_quaternion(np.float32([2, 0, 0, 2]))).round(3)  # a quarter turn about z
    array([[ 0., -1.,  0.],
           [ 1.,  0.,  0.],
           [ 0.,  0.,  1.]], dtype=float32)
    """
    a, b, c, d = ops.unstack(normalize(quaternion), axis=-1)
    rows = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
    ]
    return ops.stack([ops.stack(row, axis=-1) for row in rows], axis=-2)


def from_points(plane: Tensor, origin: Tensor, axis: Tensor) -> Frames:
    """Frames of three points each (..., 3), such as the atoms N, CA and C (algorithm 21).

    The x axis points from ``origin`` to ``axis``, and ``plane`` has y > 0 and z = 0. Where points
    coincide, such as those of missing atoms, the rotation is 0.

    >>> n, ca, c = np.float32([[0, 3, 1], [0, 0, 1], [2, 0, 1]])
    >>> rotation, translation = from_points(n, ca, c)
    >>> np.array(rotation).round(3)
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]], dtype=float32)
    """
    x = normalize(axis - origin)
    y = plane - origin
    y = normalize(y - x * ops.sum(x * y, axis=-1, keepdims=True))
    return ops.stack([x, y, cross(x, y)], axis=-1), origin


def normalize(x):
    """``x`` (..., D) divided by its length; 0 stays 0."""
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-12))


def cross(x, y):
    """The cross product of vectors (..., 3)."""
    (a, b, c), (d, e, f) = ops.unstack(x, axis=-1), ops.unstack(y, axis=-1)
    return ops.stack([b * f - c * e, c * d - a * f, a * e - b * d], axis=-1)


def torsion_frames(backbone: Frames, torsions: Tensor, groups: Frames) -> Frames:
    """The frames (..., N, 8) of the rigid groups of N residues (algorithm 24, lines 1 to 10).

    Args:
        backbone: the frames (..., N) of the residues.
        torsions: sine and cosine of pre-omega, phi, psi and chi1 to chi4 (..., N, 7, 2).
        groups: the frames (..., N, 8) of the groups at torsion 0: those of chi2 to chi4 relative to
            the previous chi, the others to the backbone.

    >>> angles = np.zeros((5, 7), "float32")
    >>> torsions = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    >>> rotation, translation = torsion_frames(identity((5,)), torsions, identity((5, 8)))
    >>> tuple(rotation.shape), tuple(translation.shape)
    ((5, 8, 3, 3), (5, 8, 3))
    """
    rotation, translation = groups
    sine, cosine = ops.split(torsions, 2, axis=-1)
    x, y, z = ops.unstack(rotation[..., 1:, :, :], axis=-1)  # the torsion turns y and z about x
    turned = ops.stack([x, cosine * y + sine * z, cosine * z - sine * y], axis=-1)
    turned = ops.concatenate([rotation[..., :1, :, :], turned], axis=-3)
    chain = list(zip(ops.unstack(turned, axis=-3), ops.unstack(translation, axis=-2), strict=True))
    for chi in (5, 6, 7):
        chain[chi] = compose(chain[chi - 1], chain[chi])
    rotations, translations = zip(*chain, strict=True)
    inner = ops.stack(rotations, axis=-3), ops.stack(translations, axis=-2)
    return compose((backbone[0][..., None, :, :], backbone[1][..., None, :]), inner)


def place_atoms(frames: Frames, groups: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """The positions (..., N, A, 3) of A atoms for each residue (algorithm 24, line 11).

    Args:
        frames: the frames (..., N, 8) of the rigid groups.
        groups: the group of each atom (..., N, A), integers.
        positions: the atoms' positions in the frames of their groups (..., N, A, 3).
        mask: which atoms exist (..., N, A), boolean; the others are placed at 0.

    >>> rotation, translation = identity((5, 8))
    >>> frames = rotation, translation + np.float32([0, 0, 4])
    >>> groups = np.zeros((5, 14), "int32")
    >>> atoms = place_atoms(frames, groups, np.ones((5, 14, 3), "float32"), groups == 0)
    >>> np.array(atoms[2, 1])
    array([1., 1., 5.], dtype=float32)
    """
    rotation, translation = ops.reshape(frames[0], (-1, 3, 3)), ops.reshape(frames[1], (-1, 3))
    count = frames[1].shape[-2]
    index = ops.reshape(groups, (-1, groups.shape[-1]))
    index = index + count * ops.arange(ops.shape(index)[0], dtype=index.dtype)[:, None]
    index = ops.reshape(index, ops.shape(groups))
    atoms = apply(
        (ops.take(rotation, index, axis=0), ops.take(translation, index, axis=0)), positions
    )
    return ops.where(mask[..., None], atoms, 0.0)


def virtual_beta(n: Tensor, ca: Tensor, c: Tensor) -> Tensor:
    """The position (..., 3) of CB in an ideal residue, from N, CA and C; also for glycine.

    The coefficients are those of ESMFold's code (Lin et al. 2022).

    >>> n, ca, c = np.float32([[-0.525, 1.363, 0], [0, 0, 0], [1.526, 0, 0]])
    >>> np.array(virtual_beta(n, ca, c)).round(1)
    array([-0.5, -0.8, -1.2], dtype=float32)
    """
    first, second = ca - n, c - ca
    normal = cross(first, second)
    return ca - 0.58273431 * normal + 0.56802827 * first - 0.54067466 * second
