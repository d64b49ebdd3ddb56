"""A body for procedural motions: its bones, its legs by inverse kinematics, and how a pose becomes joints.

Metres and radians; axes as in ``skeleton``. "Pitch" turns about +x (forward lean, heel up), "roll" about +z.
Index 0 of a pair is the left side, 1 the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from fastvq.models.motion.rotation import normalise, yaw_matrix
from fastvq.models.motion.skeleton import MIRROR_PAIRS, NUM_JOINTS, REST_DIRECTIONS, forward_kinematics

# Bone lengths in metres, by the joint at the bone's end, of a body 1.75 m tall (both sides alike).
_TRUNK = {3: 0.11, 6: 0.13, 9: 0.07, 12: 0.20, 15: 0.11}
_LEG = {1: 0.115, 4: 0.42, 7: 0.41, 10: 0.135}
_ARM = {13: 0.14, 16: 0.115, 18: 0.265, 20: 0.25}
_TALL = 1.75

# How far a leg may stretch, as a part of its length: standing, and in the air, where nothing else depends
# on it. A fully straight knee would jerk.
STRETCH_PLANTED = 0.994
STRETCH_SWING = 0.998
_FOLD = 0.4


@dataclass(frozen=True)
class Body:
    """A body's measures.

    Attributes:
        offsets: (22, 3) metres, from parents to joints in SMPL's rest pose.
    """

    offsets: np.ndarray

    @property
    def leg(self) -> float:
        """Thigh and shin together, metres."""
        return float(np.linalg.norm(self.offsets[4]) + np.linalg.norm(self.offsets[7]))

    @property
    def stand(self) -> float:
        """Height of the pelvis over flat feet with the legs as straight as they get, metres."""
        drop = float(-self.offsets[1, 1] - self.offsets[10, 1])
        return drop + STRETCH_PLANTED * self.leg

    @property
    def scale(self) -> float:
        """Leg length relative to the average body's; gaits scale with it."""
        return self.leg / (_LEG[4] + _LEG[7])


def make_body(height: float, *, leg: float = 1.0, arm: float = 1.0) -> Body:
    """A body of a given height.

    Args:
        height: Metres.
        leg, arm: Factors on the length of the legs and arms.
    """
    lengths = np.zeros(NUM_JOINTS)
    for bones, factor in ((_TRUNK, 1.0), (_LEG, leg), (_ARM, arm)):
        for joint, length in bones.items():
            lengths[joint] = length * factor * height / _TALL
    for left, right in MIRROR_PAIRS:
        lengths[right] = lengths[left]
    return Body(offsets=REST_DIRECTIONS * lengths[:, None])


@dataclass
class Pose:
    """What T frames of a body are made from.

    Attributes:
        root: (T, 3) pelvis position, metres.
        pelvis: (T, 3, 3) global rotation of the pelvis.
        bend: (T, 3) pitch, yaw and roll of the chest relative to the pelvis, spread over the spine.
        head: (T, 3) the same of the head relative to the chest.
        ball: (T, 2, 3) position of the balls of the feet, metres.
        foot_yaw: (T, 2) direction in which the feet point.
        foot_pitch: (T, 2) how far the heels are raised.
        planted: (T, 2) bool, whether the ball of the foot rests on the floor.
        shoulder: (T, 2, 3, 3) rotation of the upper arms relative to the chest.
        elbow: (T, 2) flexion, 0 = straight.
    """

    root: np.ndarray
    pelvis: np.ndarray
    bend: np.ndarray
    head: np.ndarray
    ball: np.ndarray
    foot_yaw: np.ndarray
    foot_pitch: np.ndarray
    planted: np.ndarray
    shoulder: np.ndarray
    elbow: np.ndarray


def pitch_yaw_roll(angles: np.ndarray) -> np.ndarray:
    """(..., 3) angles -> (..., 3, 3): yaw first, then pitch, then roll, each about the turned axes."""
    flat = Rotation.from_euler("YXZ", angles.reshape(-1, 3)[:, [1, 0, 2]]).as_matrix()
    return flat.reshape(*angles.shape[:-1], 3, 3)


def ankles(body: Body, pose: Pose) -> np.ndarray:
    """(T, 2, 3) positions of the ankles that the feet ask for, metres."""
    return pose.ball - np.einsum("tsij,j->tsi", _foot_rotation(pose), body.offsets[10])


def root_limit(body: Body, pose: Pose) -> np.ndarray:
    """(T,) greatest height of the pelvis at which the planted legs still reach; infinity in the air."""
    hip = np.einsum("tij,sj->tsi", pose.pelvis, body.offsets[1:3])
    ankle = ankles(body, pose)
    aside = np.linalg.norm((ankle - hip - pose.root[:, None])[..., [0, 2]], axis=-1)
    reach = STRETCH_PLANTED * body.leg
    height = ankle[..., 1] + np.sqrt(np.maximum(reach**2 - aside**2, 0.0)) - hip[..., 1]
    return np.where(pose.planted, height, np.inf).min(axis=1)


def pose_body(body: Body, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Joints and local rotations of T frames.

    Planted feet stand exactly where they are asked to, provided the pelvis is not above ``root_limit``; a
    foot in the air that the leg cannot reach is drawn towards the hip.

    Returns:
        (T, 22, 3) metres and (T, 22, 3, 3), float64.
    """
    frames = len(pose.root)
    local = np.broadcast_to(np.eye(3), (frames, NUM_JOINTS, 3, 3)).copy()
    local[:, 0] = pose.pelvis
    for joint, share in ((3, 0.3), (6, 0.35), (9, 0.35)):
        local[:, joint] = pitch_yaw_roll(pose.bend * share)
    for joint in (12, 15):
        local[:, joint] = pitch_yaw_roll(pose.head * 0.5)
    for side, (shoulder, elbow) in enumerate(((16, 18), (17, 19))):
        local[:, shoulder] = pose.shoulder[:, side]
        # Rest arms lie along +-x with the palms down; the elbow's hinge is vertical there.
        local[:, elbow] = yaw_matrix(pose.elbow[:, side] * (-1.0 if side == 0 else 1.0))
    _pose_legs(body, pose, local)
    return forward_kinematics(body.offsets, local, pose.root), local


def _pose_legs(body: Body, pose: Pose, local: np.ndarray) -> None:
    """Fills in hips, knees and ankles, by the triangle of thigh, shin and the line from hip to ankle."""
    thigh, shin = np.linalg.norm(body.offsets[4]), np.linalg.norm(body.offsets[7])
    wanted, feet = ankles(body, pose), _foot_rotation(pose)
    for side, (hip, knee, ankle) in enumerate(((1, 4, 7), (2, 5, 8))):
        line = wanted[:, side] - pose.root - pose.pelvis @ body.offsets[hip]
        reach = np.linalg.norm(line, axis=-1)
        length = np.clip(reach, _FOLD * body.leg, STRETCH_SWING * body.leg)
        line = normalise(line)
        # The knee points midway between where the foot and the pelvis do.
        pole = yaw_matrix(pose.foot_yaw[:, side])[..., 2] + pose.pelvis[..., 2]
        pole = normalise(pole - np.sum(pole * line, axis=-1, keepdims=True) * line)
        hinge = np.cross(pole, line)
        cosine = (thigh**2 + length**2 - shin**2) / (2 * thigh * length)
        sine = np.sqrt(np.maximum(1.0 - cosine**2, 0.0))
        upper = cosine[:, None] * line + sine[:, None] * pole
        lower = normalise(length[:, None] * line - thigh * upper)
        turned = [_along(hinge, direction) for direction in (upper, lower)]
        local[:, hip] = np.swapaxes(pose.pelvis, -1, -2) @ turned[0]
        local[:, knee] = np.swapaxes(turned[0], -1, -2) @ turned[1]
        local[:, ankle] = np.swapaxes(turned[1], -1, -2) @ feet[:, side]


def _along(hinge: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """(T, 3, 3) rotations that turn a hanging leg's -y into the direction and its +x into the hinge."""
    return np.stack([hinge, -direction, np.cross(hinge, -direction)], axis=-1)


def _foot_rotation(pose: Pose) -> np.ndarray:
    """(T, 2, 3, 3) global rotations of the feet."""
    level = np.zeros_like(pose.foot_yaw)
    return pitch_yaw_roll(np.stack([pose.foot_pitch, pose.foot_yaw, level], axis=-1))


# How a hanging arm is turned relative to the rest pose, left and right.
_HANG = Rotation.from_euler("z", [[-np.pi / 2], [np.pi / 2]]).as_matrix()


def hanging_arm(side: int, swing: np.ndarray, aside: np.ndarray | float, inward: float = 0.2) -> np.ndarray:
    """(T, 3, 3) shoulder rotations of an arm that hangs and swings.

    Args:
        side: 0 left, 1 right.
        swing: (T,) forward angle.
        aside: (T,) angle away from the body.
        inward: Turn about the arm's own length that brings a bent forearm in front of the belly.
    """
    sign = 1.0 if side == 0 else -1.0
    aside = np.broadcast_to(aside, swing.shape) * sign
    turn = np.full_like(swing, -sign * inward)
    return Rotation.from_euler("ZXY", np.stack([aside, -swing, turn], axis=-1)).as_matrix() @ _HANG[side]


def pointing_arm(side: int, direction: tuple[float, float, float], hinge: tuple[float, float, float]) -> np.ndarray:
    """(3, 3) shoulder rotation that points the upper arm somewhere, seen from the chest.

    Args:
        side: 0 left, 1 right.
        direction: Where the upper arm points.
        hinge: Axis about which the elbow bends; its part along the arm is left out. Bending moves the
            forearm towards hinge x direction.
    """
    sign = 1.0 if side == 0 else -1.0
    along = normalise(np.asarray(direction, dtype=np.float64))
    axis = np.asarray(hinge, dtype=np.float64)
    axis = normalise(axis - axis @ along * along)
    rest_along, rest_axis = np.array([sign, 0.0, 0.0]), np.array([0.0, -sign, 0.0])
    to = np.stack([along, axis, np.cross(along, axis)], axis=-1)
    return to @ np.stack([rest_along, rest_axis, np.cross(rest_along, rest_axis)], axis=0)


def blend(start: np.ndarray, end: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(T, 3, 3) rotations on the shortest way from (T, 3, 3) to (3, 3), as far as the (T,) weights say."""
    first = Rotation.from_matrix(start)
    way = (first.inv() * Rotation.from_matrix(end)).as_rotvec()
    return (first * Rotation.from_rotvec(way * weight[:, None])).as_matrix()
