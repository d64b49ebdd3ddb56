"""The 272 features of a pose in a motion, both ways: joints (and rotations) to features and back.

Layout of a row (metres, rotations as the first two rows of their matrices):

    [0:2]      root velocity        x and z of Y(h[t-1]) (p[t, 0] - p[t-1, 0]); row 0 is zero
    [2:8]      root heading         6D of Y(h[t]) ("absolute") or of Y(h[t] - h[t-1]) ("difference"; row 0 = 1)
    [8:74]     joint positions      Y(h[t]) (p[t] - root x and z), 22 x 3; the pelvis' row is (0, height, 0)
    [74:140]   joint velocities     differences of [8:74] from frame to frame, row 0 zero; metres per frame
    [140:272]  joint rotations      6D of the 22 local rotations, the pelvis' turned by Y(h[t])

h is minus the yaw of the pelvis and Y the rotation about +y (``rotation.yaw_matrix``), so Y(h) turns the
body to face +z. "difference" is what the public 272-dimensional data sets hold, "absolute" what the
published multi-group tokenizer was trained on. Rates are those of the clip: 30 frames per second in both.

Twist, the turn of a limb about its own length, cannot be seen in joint positions. From joints alone the
rotations are therefore the shortest ones (``joints_to_rotations``), and a motion that had true rotations
does not get its twist back from its joints.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.finite import check_finite
from fastvq.models.motion.rotation import (
    matrix_from_6d,
    matrix_to_6d,
    rotation_between,
    yaw_angle,
    yaw_matrix,
)
from fastvq.models.motion.skeleton import (
    CHILDREN,
    NUM_JOINTS,
    PARENTS,
    REST_DIRECTIONS,
    bone_vectors,
    forward_kinematics,
    global_rotations,
)

Heading = Literal["absolute", "difference"]

WIDTH = 272
SLICES: dict[str, slice] = {
    "root_velocity": slice(0, 2),
    "root_heading": slice(2, 8),
    "joint_position": slice(8, 74),
    "joint_velocity": slice(74, 140),
    "joint_rotation": slice(140, 272),
}

# A joint with several children: (left, right, base, top). The line from right to left and the one from
# base to top fix all three of its angles; of two base joints the middle is taken.
_BRANCHES: dict[int, tuple[int, int, tuple[int, ...], int]] = {
    0: (1, 2, (1, 2), 3),
    9: (13, 14, (9,), 12),
}


def joints_to_rotations(joints: np.ndarray) -> np.ndarray:
    """Local rotations that pose SMPL's rest skeleton like the given joints (inverse kinematics).

    A joint with one child gets the shortest rotation, relative to its parent, that points the bone the
    right way: swing without twist. Seen from the parent and from a rest pose with stretched arms, no bone
    of a living body points opposite to its rest direction, where the shortest rotation would jump. The
    pelvis and the chest, which carry three bones each, are fixed by two lines: hips or collars from right
    to left exactly, and the spine as far as the first allows. Head, wrists and toes carry no bone and do
    not turn.

    Args:
        joints: (T, 22, 3) metres.

    Returns:
        (T, 22, 3, 3) float64; the pelvis' rotation is global. Coinciding joints give finite rotations.
    """
    joints = np.asarray(joints, dtype=np.float64)
    bones = bone_vectors(joints)
    local = np.broadcast_to(np.eye(3), (*joints.shape[:-1], 3, 3)).copy()
    turned = local.copy()
    for joint in range(NUM_JOINTS):
        above = turned[..., PARENTS[joint], :, :] if joint else np.eye(3)
        if joint in _BRANCHES:
            left, right, base, top = _BRANCHES[joint]
            across = joints[..., left, :] - joints[..., right, :]
            up = joints[..., top, :] - joints[..., list(base), :].mean(axis=-2)
            turned[..., joint, :, :] = np.swapaxes(matrix_from_6d(np.concatenate([across, up], -1)), -1, -2)
            local[..., joint, :, :] = np.swapaxes(above, -1, -2) @ turned[..., joint, :, :]
        elif CHILDREN[joint]:
            child = CHILDREN[joint][0]
            bone = np.einsum("...ji,...j->...i", above, bones[..., child, :])
            local[..., joint, :, :] = rotation_between(REST_DIRECTIONS[child], bone)
            turned[..., joint, :, :] = above @ local[..., joint, :, :]
        else:
            turned[..., joint, :, :] = above
    return local


def rest_offsets(joints: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """The rest skeleton with which ``forward_kinematics`` comes closest to the joints, in least squares.

    Args:
        joints: (T, 22, 3) metres.
        rotations: (T, 22, 3, 3) local rotations of the same frames.

    Returns:
        (22, 3) float64, metres.
    """
    turned = global_rotations(np.asarray(rotations, dtype=np.float64))[:, list(PARENTS[1:])]
    bones = bone_vectors(np.asarray(joints, dtype=np.float64))[:, 1:]
    offsets = np.zeros((NUM_JOINTS, 3))
    offsets[1:] = np.einsum("tjba,tjb->ja", turned, bones) / len(bones)
    return offsets


def _heading(pelvis: np.ndarray, *, true_rotations: bool) -> np.ndarray:
    """(T,) h from (T, 3, 3) pelvis rotations.

    The format's own formula takes the direction in which the pelvis faces, seen from above; it has none
    when the body lies on its back and turns by half a circle in a somersault. It is kept for true
    rotations, so that features agree with published ones. From joints there is nothing to agree with, and
    the nearest yaw, which also uses the direction to the left, stays smooth while lying and rolling.
    """
    if true_rotations:
        return -np.arctan2(pelvis[:, 0, 2], pelvis[:, 2, 2])
    return -yaw_angle(pelvis)


def canonicalise(joints: np.ndarray, rotations: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Moves a clip to where the features put it: starting above the origin, on the floor, facing +z.

    Args:
        joints: (T, 22, 3) metres.
        rotations: (T, 22, 3, 3) local rotations, or None.

    Returns:
        Joints (float64) with the first pelvis at x = z = 0, the lowest joint of the clip at y = 0 and the
        first heading along +z, and the rotations turned alike (None where none were given).
    """
    points, turns = _checked_motion(joints, rotations)
    pelvis = joints_to_rotations(points[:1])[:, 0] if turns is None else turns[:1, 0]
    facing = yaw_matrix(_heading(pelvis, true_rotations=turns is not None)[0])
    points = (points - _origin(points)) @ facing.T
    if turns is not None:
        turns = turns.copy()
        turns[:, 0] = facing @ turns[:, 0]
    return points, turns


def joints_to_features(
    joints: np.ndarray, *, rotations: np.ndarray | None = None, heading: Heading = "absolute"
) -> np.ndarray:
    """The 272 features of a clip.

    The clip is canonicalised first (``canonicalise``), so where it stood and faced is not kept.

    Args:
        joints: (T, 22, 3) metres, Y up, T >= 1.
        rotations: (T, 22, 3, 3) true local rotations, the pelvis' global. Without them they are inferred
            from the joints, without twist.
        heading: Which variant of [2:8] to write.

    Returns:
        (T, 272) float32.

    Raises:
        UserError: The shapes are others, a value is not finite, or the heading variant is unknown.
    """
    _check_heading(heading)
    points, turns = _checked_motion(joints, rotations)
    points = points - _origin(points)
    local = joints_to_rotations(points) if turns is None else turns.copy()
    angle = _heading(local[:, 0], true_rotations=turns is not None)
    # Turning the whole clip by Y(h[0]) leaves everything but the heading itself as it is.
    facing = yaw_matrix(angle)

    features = np.zeros((len(points), WIDTH))
    step = np.einsum("tij,tj->ti", facing[:-1], np.diff(points[:, 0], axis=0))
    features[1:, SLICES["root_velocity"]] = step[:, [0, 2]]
    features[:, SLICES["root_heading"]] = _heading_6d(angle - angle[0], heading)
    ground = points[:, :1] * np.array([1.0, 0.0, 1.0])
    local_points = np.einsum("tij,tnj->tni", facing, points - ground).reshape(len(points), -1)
    features[:, SLICES["joint_position"]] = local_points
    features[1:, SLICES["joint_velocity"]] = np.diff(local_points, axis=0)
    local[:, 0] = facing @ local[:, 0]
    features[:, SLICES["joint_rotation"]] = matrix_to_6d(local).reshape(len(points), -1)
    return features.astype(np.float32)


def features_to_joints(
    features: np.ndarray, *, heading: Heading = "absolute", offsets: np.ndarray | None = None
) -> np.ndarray:
    """Joint positions of a clip from its features; the root's path is integrated in float64.

    Args:
        features: (T, 272), not normalised.
        heading: The variant of [2:8] that they hold.
        offsets: None takes the joint positions of the features. (22, 3) metres, the vectors from parents
            to joints in the rest pose (``rest_offsets``), poses that skeleton by the features' rotations
            instead, so that bones keep their lengths.

    Returns:
        (T, 22, 3) float32, metres: the first pelvis at x = z = 0, and, for whole clips, facing +z at first.

    Raises:
        UserError: The features are not (T, 272), a value is not finite, or the variant is unknown.
    """
    values = _checked_features(features)
    angle = _heading_angle(values, heading)
    back = np.swapaxes(yaw_matrix(angle), -1, -2)
    step = np.zeros((len(values), 3))
    step[:, [0, 2]] = values[:, SLICES["root_velocity"]]
    path = np.zeros_like(step)
    path[1:] = np.cumsum(np.einsum("tij,tj->ti", back[:-1], step[1:]), axis=0)
    local = values[:, SLICES["joint_position"]].reshape(-1, NUM_JOINTS, 3)
    if offsets is not None:
        root = path + np.einsum("tij,tj->ti", back, local[:, 0])
        rotations = features_to_rotations(values, heading=heading)
        return forward_kinematics(np.asarray(offsets, np.float64), rotations, root).astype(np.float32)
    return (np.einsum("tij,tnj->tni", back, local) + path[:, None]).astype(np.float32)


def features_to_rotations(features: np.ndarray, *, heading: Heading = "absolute") -> np.ndarray:
    """Local joint rotations of a clip from its features.

    Args:
        features: (T, 272), not normalised.
        heading: The variant of [2:8] that they hold.

    Returns:
        (T, 22, 3, 3) float64, orthonormal; the pelvis' rotation is global.

    Raises:
        UserError: As ``features_to_joints``.
    """
    values = _checked_features(features)
    angle = _heading_angle(values, heading)
    local = matrix_from_6d(values[:, SLICES["joint_rotation"]].reshape(-1, NUM_JOINTS, 6))
    local[:, 0] = np.swapaxes(yaw_matrix(angle), -1, -2) @ local[:, 0]
    return local


def convert_heading(features: np.ndarray, *, source: Heading, target: Heading) -> np.ndarray:
    """Rewrites [2:8] from one heading variant to the other; everything else is copied.

    "difference" cannot say where a clip faces at first. Of a clip that does not begin at heading zero (a
    window cut from the middle of another), the conversion to it and back returns the clip turned so that
    it does.

    Args:
        features: (T, 272), not normalised.
        source: The variant that they hold.
        target: The variant to write.

    Returns:
        (T, 272) float32, a new array.

    Raises:
        UserError: As ``features_to_joints``.
    """
    _check_heading(target)
    values = _checked_features(features)
    angle = _heading_angle(values, source)
    if source != target:
        values[:, SLICES["root_heading"]] = _heading_6d(angle, target)
    return values.astype(np.float32)


def heading_angle(features: np.ndarray, *, heading: Heading = "absolute") -> np.ndarray:
    """(T,) h in radians, in (-pi, pi] for "absolute", from (T, 272) features; errors as ``features_to_joints``."""
    return _heading_angle(_checked_features(features), heading)


def _heading_6d(angle: np.ndarray, heading: Heading) -> np.ndarray:
    """(T, 6) of [2:8] from (T,) headings."""
    written = angle if heading == "absolute" else np.diff(angle, prepend=angle[:1])
    return matrix_to_6d(yaw_matrix(written))


def _heading_angle(features: np.ndarray, heading: Heading) -> np.ndarray:
    """(T,) headings in radians from float64 features; the 6D need not be a pure yaw, the nearest is taken."""
    _check_heading(heading)
    angle = yaw_angle(matrix_from_6d(features[:, SLICES["root_heading"]]))
    return angle if heading == "absolute" else np.cumsum(angle)


def _origin(points: np.ndarray) -> np.ndarray:
    """(3,) what canonicalising subtracts: x and z of the first pelvis, and the lowest joint's height."""
    return np.array([points[0, 0, 0], points[..., 1].min(), points[0, 0, 2]])


def _check_heading(heading: str) -> None:
    if heading not in get_args(Heading):
        raise UserError(f"heading must be 'absolute' or 'difference', got {heading!r}")


def _checked_motion(joints: np.ndarray, rotations: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    points = np.asarray(joints, dtype=np.float64)
    if points.ndim != 3 or points.shape[1:] != (NUM_JOINTS, 3) or not len(points):
        raise UserError(
            f"joints must have the shape (frames, {NUM_JOINTS}, 3) with at least one frame, got {points.shape}"
        )
    check_finite("joints", points)
    if rotations is None:
        return points, None
    turns = np.asarray(rotations, dtype=np.float64)
    if turns.shape != (len(points), NUM_JOINTS, 3, 3):
        raise UserError(
            f"rotations must have the shape {(len(points), NUM_JOINTS, 3, 3)} to go with these joints, "
            f"got {turns.shape}"
        )
    check_finite("rotations", turns)
    return points, turns


def _checked_features(features: np.ndarray) -> np.ndarray:
    """A float64 copy."""
    values = np.array(features, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != WIDTH or not len(values):
        raise UserError(f"features must have the shape (frames, {WIDTH}) with at least one frame, got {values.shape}")
    check_finite("features", values)
    return values
