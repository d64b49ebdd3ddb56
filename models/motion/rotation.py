"""Rotations as the motion formats write them: 6D rows, shortest turns, and yaw; numpy, float64 inside.

Everything that scipy offers (interpolation, quaternions, Euler angles) is taken from
``scipy.spatial.transform`` where it is needed. Here stands what it lacks. Angles are radians, matrices act
on column vectors, and every function takes any number of leading axes.
"""

from __future__ import annotations

import numpy as np

# Below this length a vector has no direction worth using; joints are metres, so this is 10 picometres.
_TINY = 1e-11


def normalise(vectors: np.ndarray) -> np.ndarray:
    """(..., 3) vectors scaled to length 1; those shorter than 1e-11 become zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > _TINY, vectors / np.maximum(length, _TINY), 0.0)


def perpendicular(vectors: np.ndarray) -> np.ndarray:
    """(..., 3) unit vectors, each perpendicular to the given one."""
    # The axis along which a vector is shortest is the furthest from it.
    axis = np.eye(3)[np.argmin(np.abs(vectors), axis=-1)]
    return normalise(np.cross(vectors, axis))


def matrix_to_6d(matrices: np.ndarray) -> np.ndarray:
    """The first two rows of rotation matrices, (..., 3, 3) -> (..., 6)."""
    return matrices[..., :2, :].reshape(*matrices.shape[:-2], 6)


def matrix_from_6d(rows: np.ndarray) -> np.ndarray:
    """Rotation matrices from their first two rows, made orthonormal by Gram-Schmidt.

    Args:
        rows: (..., 6); need not be orthonormal. Zero or parallel rows, which name no rotation, are
            completed by an arbitrary perpendicular row rather than by NaN.

    Returns:
        (..., 3, 3) float64, orthonormal with determinant 1.

    Source: Zhou et al., "On the Continuity of Rotation Representations in Neural Networks", section 4.
    """
    rows = np.asarray(rows, dtype=np.float64)
    first, second = normalise(rows[..., :3]), normalise(rows[..., 3:])
    missing = ~np.any(first, axis=-1, keepdims=True)
    if missing.any():
        first = np.where(missing, perpendicular(second), first)
        first = np.where(np.any(first, axis=-1, keepdims=True), first, np.eye(3)[0])
    second = normalise(second - np.einsum("...i,...i->...", first, second)[..., None] * first)
    parallel = ~np.any(second, axis=-1, keepdims=True)
    if parallel.any():
        second = np.where(parallel, perpendicular(first), second)
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def rotation_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The rotation by the smallest angle that turns one direction into another.

    Args:
        start, end: (..., 3), broadcast against each other; lengths do not matter. For opposite directions
            the axis is some fixed perpendicular; where either is zero the result is the identity.

    Returns:
        (..., 3, 3) float64.
    """
    a, b = np.broadcast_arrays(
        normalise(np.asarray(start, dtype=np.float64)), normalise(np.asarray(end, dtype=np.float64))
    )
    # a x b = a x (a + b), and 1 + a.b = |a + b|^2 / 2: both keep their digits as b nears -a, which the
    # usual forms do not.
    middle = a + b
    one_plus_cosine = 0.5 * np.einsum("...i,...i->...", middle, middle)
    x = a[..., 1] * middle[..., 2] - a[..., 2] * middle[..., 1]
    y = a[..., 2] * middle[..., 0] - a[..., 0] * middle[..., 2]
    z = a[..., 0] * middle[..., 1] - a[..., 1] * middle[..., 0]
    known = np.any(a, axis=-1) & np.any(b, axis=-1)
    special = (one_plus_cosine <= _TINY**2) | ~known
    # With v = a x b and c = a.b: c 1 + [v] + v v^T / (1 + c), entry by entry, several times as fast as products
    # of many small matrices.
    cosine = one_plus_cosine - 1.0
    scale = 1.0 / np.where(special, 1.0, one_plus_cosine)
    xy, xz, yz = x * y * scale, x * z * scale, y * z * scale
    turn = np.empty((*a.shape, 3))
    turn[..., 0, 0] = cosine + x * x * scale
    turn[..., 1, 1] = cosine + y * y * scale
    turn[..., 2, 2] = cosine + z * z * scale
    turn[..., 0, 1], turn[..., 1, 0] = xy - z, xy + z
    turn[..., 0, 2], turn[..., 2, 0] = xz + y, xz - y
    turn[..., 1, 2], turn[..., 2, 1] = yz - x, yz + x
    if special.any():
        normal = perpendicular(a[special])
        half_turn = 2.0 * normal[..., :, None] * normal[..., None, :] - np.eye(3)
        turn[special] = np.where(known[special][..., None, None], half_turn, np.eye(3))
    return turn


def yaw_matrix(angle: np.ndarray | float) -> np.ndarray:
    """Rotation about +y, which turns +z towards +x: Y(h) = [[c, 0, s], [0, 1, 0], [-s, 0, c]].

    Args:
        angle: (...) radians.

    Returns:
        (..., 3, 3) float64.
    """
    angle = np.asarray(angle, dtype=np.float64)
    cosine, sine = np.cos(angle), np.sin(angle)
    zero, one = np.zeros_like(cosine), np.ones_like(cosine)
    rows = np.stack([cosine, zero, sine, zero, one, zero, -sine, zero, cosine], axis=-1)
    return rows.reshape(*angle.shape, 3, 3)


def yaw_angle(matrices: np.ndarray) -> np.ndarray:
    """The angle of the rotation about +y that is nearest to each rotation.

    This is the twist of the swing-twist decomposition. It depends smoothly on the rotation in every pose,
    lying on any side included, but for the one of standing exactly on the head.

    Args:
        matrices: (..., 3, 3).

    Returns:
        (...) radians in [-pi, pi]; 0 where the axis +y is turned into -y.
    """
    return np.arctan2(matrices[..., 0, 2] - matrices[..., 2, 0], matrices[..., 0, 0] + matrices[..., 2, 2])
