"""HumanML3D's 263 and KIT-ML's 251 features of a pose in a motion, both ways: joints to features and back.

The columns are those of ``layout263``. T frames of joints give T - 1 rows, as every row holds the step to the
next frame. What the format does, and what follows from it:

- The heading is where hips and shoulders face, smoothed over some 20 frames, and 0 in the first frame. The
  data sets take hips and shoulders with opposite signs there, so the shoulders' line less the hips' decides;
  files agree with published ones only if that is kept, and it is. Nothing is lost by it.
- Rotations come from the joints alone: the shortest turn from a bone's direction in the reference pose to the
  one it has, without twist. Every chain begins at the root's heading, also those of the arms.
- The turn [0] is the arcsine of a quaternion's component. Published files hold it with the wrong sign in the
  one frame in which the heading passes half a turn from where it began, since the quaternion's other half is
  not looked at; from there on they decode to a body that walks elsewhere. ``"continuous"`` writes the right
  sign, ``"published"`` the other; files read from folders are corrected (``published_turns``).

Accuracy: ``joints_from_ric`` returns what the format keeps, within 1e-5 m; ``joints_from_rotations`` poses
a skeleton of fixed bones, so it is off by as much as bones of the recording change their lengths, and
within 1e-5 m where they do not.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fastvq.models.errors import UserError
from fastvq.models.motion.finite import check_finite
from fastvq.models.motion.layout263 import HUMANML3D, Layout
from fastvq.models.motion.rotation import matrix_from_6d, normalise, rotation_between, yaw_matrix

Turns = Literal["continuous", "published"]

# Standard deviation, in frames, of the Gaussian that smooths the heading.
_SMOOTHING = 20.0


def canonicalise(joints: np.ndarray, layout: Layout = HUMANML3D) -> np.ndarray:
    """Moves a clip to where the features put it: starting above the origin, on the floor, facing +z.

    Args:
        joints: (T, J, 3) metres, Y up, T >= 1.
        layout: The skeleton.

    Returns:
        (T, J, 3) float64: the first root at x = z = 0, the lowest joint of the clip at y = 0, and the line
        across hips and shoulders of the first frame along x.

    Raises:
        UserError: The shape is another, or a value is not finite.
    """
    points = _checked_joints(joints, layout, least=1)
    (right_hip, left_hip), (right_shoulder, left_shoulder) = layout.hips, layout.shoulders
    first = points[0]
    across = first[right_hip] - first[left_hip] + first[right_shoulder] - first[left_shoulder]
    origin = np.array([first[0, 0], points[..., 1].min(), first[0, 2]])
    return (points - origin) @ yaw_matrix(_yaw_to_front(across)).T


def joints_to_features(joints: np.ndarray, layout: Layout = HUMANML3D, *, turns: Turns = "continuous") -> np.ndarray:
    """The features of a clip.

    The clip is canonicalised first (``canonicalise``), so where it stood and faced is not kept. Bones keep
    their lengths; the published data sets retarget every body to one skeleton first (``retarget``).

    Args:
        joints: (T, J, 3) metres, Y up, at the layout's frame rate, T >= 2.
        layout: ``HUMANML3D`` or ``KIT_ML``.
        turns: The sign of [0] where the heading passes half a turn (see above).

    Returns:
        (T - 1, 12 J - 1) float32.

    Raises:
        UserError: The shape is another, there are fewer than 2 frames, or a value is not finite.
    """
    if turns not in get_args(Turns):
        raise UserError(f"turns must be 'continuous' or 'published', got {turns!r}")
    points = canonicalise(_checked_joints(joints, layout, least=2), layout)
    half = _half_headings(points, layout)
    facing = yaw_matrix(2 * half)
    steps = np.diff(points, axis=0)
    ground = points[:-1, :1] * np.array([1.0, 0.0, 1.0])
    turned = np.diff(half)
    if turns == "published":
        turned = np.arcsin(np.sin(turned))
    else:
        turned = np.arctan2(np.sin(2 * turned), np.cos(2 * turned)) / 2

    columns = layout.slices
    features = np.empty((len(points) - 1, layout.width), dtype=np.float32)
    features[:, columns["root_turn"]] = turned[:, None]
    features[:, columns["root_velocity"]] = _turned(facing[1:], steps[:, :1])[:, 0, [0, 2]]
    features[:, columns["root_height"]] = points[:-1, 0, 1:2]
    local = _turned(facing[:-1], points[:-1, 1:] - ground)
    features[:, columns["joint_position"]] = local.reshape(len(local), -1)
    six = _rotations_6d(points[:-1], facing[:-1], layout)
    features[:, columns["joint_rotation"]] = six.reshape(len(six), -1)
    features[:, columns["joint_velocity"]] = _turned(facing[:-1], steps).reshape(len(steps), -1)
    moved = np.sum(steps[:, list(layout.feet)] ** 2, axis=-1)
    features[:, columns["contact"]] = moved < layout.contact_threshold
    return features


def joints_from_ric(features: np.ndarray, layout: Layout = HUMANML3D) -> np.ndarray:
    """Joint positions of a clip from the positions [4:67] of its features and the root's path.

    Args:
        features: (T, 12 J - 1), not normalised.
        layout: What they are.

    Returns:
        (T, J, 3) float32 metres, starting at x = z = 0 and facing +z.

    Raises:
        UserError: The shape is another, or a value is not finite.
    """
    values = check_features(features, layout)
    half, root = _path(values, layout)
    local = values[:, layout.slices["joint_position"]].reshape(len(values), -1, 3)
    joints = np.empty((len(values), layout.joints, 3))
    joints[:, 0] = root
    joints[:, 1:] = _turned(yaw_matrix(-2 * half), local) + root[:, None] * np.array([1.0, 0.0, 1.0])
    return joints.astype(np.float32)


def joints_from_rotations(features: np.ndarray, lengths: np.ndarray, layout: Layout = HUMANML3D) -> np.ndarray:
    """Joint positions of a skeleton with fixed bones, posed by the rotations [67:193] of the features.

    Args:
        features: (T, 12 J - 1), not normalised; rotations need not be orthonormal.
        lengths: (J,) metres, length of the bone that ends at every joint (``bone_lengths``).
        layout: What they are.

    Returns:
        (T, J, 3) float32 metres, starting at x = z = 0 and facing +z.

    Raises:
        UserError: A shape is another, or a value is not finite.
    """
    values = check_features(features, layout)
    bones = layout.directions * _checked_lengths(lengths, layout)[:, None]
    half, root = _path(values, layout)
    six = values[:, layout.slices["joint_rotation"]].reshape(len(values), -1, 6)
    local = np.swapaxes(matrix_from_6d(six), -1, -2)
    turned = np.empty((len(values), layout.joints, 3, 3))
    turned[:, 0] = yaw_matrix(2 * half)
    joints = np.empty((len(values), layout.joints, 3))
    joints[:, 0] = root
    parents, turned_by = layout.parents, layout.turned_by
    for chain in layout.chains:
        for joint in chain[1:]:
            turned[:, joint] = turned[:, turned_by[joint]] @ local[:, joint - 1]
            joints[:, joint] = joints[:, parents[joint]] + turned[:, joint] @ bones[joint]
    return joints.astype(np.float32)


def bone_lengths(joints: np.ndarray, layout: Layout = HUMANML3D) -> np.ndarray:
    """(J,) float64 length of the bone that ends at every joint, median over the frames; 0 for the root.

    Args:
        joints: (T, J, 3), any unit.
        layout: The skeleton.

    Raises:
        UserError: The shape is another, or a value is not finite.
    """
    points = _checked_joints(joints, layout, least=1)
    return np.append(0.0, np.median(np.linalg.norm(_bones(points, layout), axis=-1), axis=0))


def retarget(joints: np.ndarray, lengths: np.ndarray, layout: Layout = HUMANML3D) -> np.ndarray:
    """The motion of a body with other bones: every bone keeps its direction, the root's path is scaled.

    The data sets bring all bodies to one skeleton so before they compute features: HumanML3D to that of its
    clip 000021, KIT-ML to that of its clip 03950.

    Args:
        joints: (T, J, 3) metres.
        lengths: (J,) metres, bones of the body to bring it to (``bone_lengths``). The path is scaled by the
            ratio of its leg (thigh and shank) to this body's.
        layout: The skeleton.

    Returns:
        (T, J, 3) float64 metres.

    Raises:
        UserError: A shape is another, a value is not finite, or the body has no leg.
    """
    points, target = _checked_joints(joints, layout, least=1), _checked_lengths(lengths, layout)
    leg = list(layout.leg)
    own = float(bone_lengths(points, layout)[leg].sum())
    if not own > 0:
        raise UserError(f"joints have no leg: {layout.name}'s joints {leg} coincide with the ones above them")
    directions = normalise(_bones(points, layout))
    out = np.empty_like(points)
    out[:, 0] = points[:, 0] * (target[leg].sum() / own)
    parents = layout.parents
    for chain in layout.chains:
        for joint in chain[1:]:
            out[:, joint] = out[:, parents[joint]] + target[joint] * directions[:, joint - 1]
    return out


def check_features(features: np.ndarray, layout: Layout = HUMANML3D) -> np.ndarray:
    """A float64 copy of (T, 12 J - 1) features, or a ``UserError`` that says what is wrong with them."""
    values = np.array(features, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != layout.width or not len(values):
        raise UserError(
            f"{layout.name}'s features must have the shape (frames, {layout.width}) with at least one frame, got "
            f"{values.shape}"
        )
    check_finite("features", values)
    return values


def _half_headings(points: np.ndarray, layout: Layout) -> np.ndarray:
    """(T,) half the angle in radians that turns the smoothed heading to +z; 0 in the first frame."""
    (right_hip, left_hip), (right_shoulder, left_shoulder) = layout.hips, layout.shoulders
    # The hips' sign is the data sets' own; see above.
    across = points[:, left_hip] - points[:, right_hip] + points[:, right_shoulder] - points[:, left_shoulder]
    half = _yaw_to_front(gaussian_filter1d(normalise(across), _SMOOTHING, axis=0, mode="nearest")) / 2
    half[0] = 0.0
    return half


def _yaw_to_front(across: np.ndarray) -> np.ndarray:
    """(...) the yaw that turns a body with this (..., 3) line from left to right to face +z; 0 without a line."""
    return -np.arctan2(across[..., 2], -across[..., 0] + 0.0)


def _path(values: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """(T,) half headings and (T, 3) positions of the root."""
    columns = layout.slices
    half = np.zeros(len(values))
    half[1:] = np.cumsum(values[:-1, 0])
    steps = np.zeros((len(values), 1, 3))
    steps[1:, 0, ::2] = values[:-1, columns["root_velocity"]]
    root = np.cumsum(_turned(yaw_matrix(-2 * half), steps)[:, 0], axis=0)
    root[:, 1] = values[:, 3]
    return half, root


def _rotations_6d(points: np.ndarray, facing: np.ndarray, layout: Layout) -> np.ndarray:
    """(T, J - 1, 6) the first two columns of the local rotations."""
    turned = np.empty((len(points), layout.joints, 3, 3))
    turned[:, 0] = facing
    turned[:, 1:] = rotation_between(layout.directions[1:], _bones(points, layout))
    above = turned[:, list(layout.turned_by[1:])]
    # The columns of above^T turned, as rows.
    return (np.swapaxes(turned[:, 1:, :, :2], -1, -2) @ above).reshape(len(points), -1, 6)


def _bones(points: np.ndarray, layout: Layout) -> np.ndarray:
    """(T, J - 1, 3) from every joint's parent to the joint, the root left out."""
    return points[:, 1:] - points[:, list(layout.parents[1:])]


def _turned(matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(T, 3, 3) matrices on (T, n, 3) points."""
    return points @ np.swapaxes(matrices, -1, -2)


def _checked_joints(joints: np.ndarray, layout: Layout, *, least: int) -> np.ndarray:
    points = np.asarray(joints, dtype=np.float64)
    if points.ndim != 3 or points.shape[1:] != (layout.joints, 3) or len(points) < least:
        frames = "one frame" if least == 1 else f"{least} frames"
        raise UserError(
            f"{layout.name}'s joints must have the shape (frames, {layout.joints}, 3) with at least {frames}, got "
            f"{points.shape}"
        )
    check_finite("joints", points)
    return points


def _checked_lengths(lengths: np.ndarray, layout: Layout) -> np.ndarray:
    values = np.asarray(lengths, dtype=np.float64)
    if values.shape != (layout.joints,) or not (np.isfinite(values) & (values >= 0)).all():
        raise UserError(
            f"lengths must hold {layout.joints} bone lengths in metres, finite and not negative, got shape "
            f"{values.shape}: take those of bone_lengths"
        )
    return values
