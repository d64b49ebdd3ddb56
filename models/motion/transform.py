"""Changes of whole clips: frame rate, speed, and cutting out measuring faults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation, Slerp

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.features272 import SLICES, heading_angle
from fastvq.models.motion.rotation import matrix_from_6d, matrix_to_6d, yaw_matrix
from fastvq.models.motion.skeleton import NUM_JOINTS

# A sprinter's pelvis stays below 6 m/s in any room that holds a motion capture system. Hands and feet reach
# 14 m/s in the fastest kicks of the CMU and HDM05 recordings; above 15 m/s come only frames in which a
# marker was lost or the whole body tumbles over between two frames.
MAX_ROOT_SPEED = 6.0
MAX_JOINT_SPEED = 15.0


def resample(joints: np.ndarray, source_fps: float, target_fps: float) -> np.ndarray:
    """Positions at another frame rate.

    Where the source rate is a whole multiple of the target's, every n-th frame is taken as it is (60 to 30
    frames per second keeps each second one, bit for bit). Otherwise a cubic spline through the frames is
    read at the new times. It follows curved paths, so bones shrink less than along straight lines.

    Args:
        joints: (T, ...) float, T >= 1.
        source_fps, target_fps: Frames per second, > 0.

    Returns:
        (T', ...) of the input's dtype; frame k lies at k / target_fps seconds, the last one at or before
        the source's last.

    Raises:
        UserError: A rate is not positive.
    """
    stride, times = _sampling(len(joints), source_fps, target_fps)
    if times is None:
        return joints[::stride].copy()
    spline = make_interp_spline(np.arange(len(joints)), joints.astype(np.float64), k=_odd_degree(len(joints)))
    return spline(times).astype(joints.dtype)


def resample_rotations(rotations: np.ndarray, source_fps: float, target_fps: float) -> np.ndarray:
    """Rotations at another frame rate: every n-th where the rates divide, else by spherical interpolation.

    Args:
        rotations: (T, ..., 3, 3), T >= 1.
        source_fps, target_fps: Frames per second, > 0.

    Returns:
        (T', ..., 3, 3) of the input's dtype, at the times of ``resample``.

    Raises:
        UserError: A rate is not positive.
    """
    stride, times = _sampling(len(rotations), source_fps, target_fps)
    if times is None:
        return rotations[::stride].copy()
    if len(rotations) == 1:
        return rotations.copy()
    frames = np.arange(len(rotations))
    flat = rotations.reshape(len(rotations), -1, 3, 3).astype(np.float64)
    turned = [Slerp(frames, Rotation.from_matrix(flat[:, i]))(times).as_matrix() for i in range(flat.shape[1])]
    return np.stack(turned, axis=1).reshape(len(times), *rotations.shape[1:]).astype(rotations.dtype)


def resample_clip(clip: Clip, fps: float) -> Clip:
    """The clip at another frame rate; features, which hold speeds per frame, are dropped if it changes.

    Raises:
        UserError: A rate is not positive.
    """
    if clip.fps == fps:
        return clip
    rotations = None if clip.rotations is None else resample_rotations(clip.rotations, clip.fps, fps)
    joints = resample(clip.joints, clip.fps, fps)
    return replace(clip, fps=fps, joints=joints, rotations=rotations, features=None)


def _sampling(frames: int, source_fps: float, target_fps: float) -> tuple[int, np.ndarray | None]:
    """Either a stride, or (0, the new frames' times in source frames)."""
    for name, rate in (("source", source_fps), ("target", target_fps)):
        if not (np.isfinite(rate) and rate > 0):
            raise UserError(f"the {name} frame rate must be a positive number of frames per second, got {rate}")
    ratio = source_fps / target_fps
    # Rates such as 1 / 0.0083333 are written with seven digits in files; they are meant to be whole.
    if round(ratio) >= 1 and abs(ratio - round(ratio)) < 1e-4 * ratio:
        return round(ratio), None
    # A single frame, or the last one missed by rounding, still counts.
    count = int((frames - 1) / ratio + 1e-6) + 1
    return 0, np.minimum(np.arange(count) * ratio, frames - 1)


def _odd_degree(frames: int) -> int:
    """The highest odd spline degree up to cubic that this many frames carry (even ones need other knots)."""
    return 3 if frames >= 4 else (1 if frames >= 2 else 0)


def change_speed(features: np.ndarray, speed: float) -> np.ndarray:
    """The 272 features (absolute heading) of the motion played faster or slower, at the same frame rate.

    The root's path, its heading (as an angle, without jumps at half a turn), joint positions and rotations are read
    at the new times, as :func:`resample` does it; velocities are those of the result. Bones seen by their joints
    shrink a little where limbs move fast, as in any resampling of positions.

    Args:
        features: (T, 272), not normalised, T >= 1.
        speed: > 0; 2 plays twice as fast, in half as many frames.

    Returns:
        (T', 272) float32, T' = floor((T - 1) / speed) + 1; the features themselves at speed 1.

    Raises:
        UserError: the speed is not positive, or the features are not (T, 272).
    """
    if speed == 1:
        return features
    angle = np.unwrap(heading_angle(features))
    back = np.swapaxes(yaw_matrix(angle), -1, -2)
    steps = np.zeros((len(features), 3))
    steps[1:, [0, 2]] = features[1:, SLICES["root_velocity"]]
    steps[1:] = np.einsum("tij,tj->ti", back[:-1], steps[1:])
    path, angle = resample(np.cumsum(steps, axis=0), speed, 1), resample(angle, speed, 1)
    points = resample(features[:, SLICES["joint_position"]].astype(np.float64), speed, 1)
    turned = matrix_from_6d(features[:, SLICES["joint_rotation"]].astype(np.float64).reshape(-1, NUM_JOINTS, 6))
    facing = yaw_matrix(angle)

    out = np.zeros((len(points), features.shape[1]))
    moved = np.einsum("tij,tj->ti", facing[:-1], np.diff(path, axis=0))
    out[1:, SLICES["root_velocity"]] = moved[:, [0, 2]]
    out[:, SLICES["root_heading"]] = matrix_to_6d(facing)
    out[:, SLICES["joint_position"]] = points
    out[1:, SLICES["joint_velocity"]] = np.diff(points, axis=0)
    out[:, SLICES["joint_rotation"]] = matrix_to_6d(resample_rotations(turned, speed, 1)).reshape(len(points), -1)
    return out.astype(np.float32)


@dataclass(frozen=True)
class SmoothRuns:
    """The parts of a clip between measuring faults.

    Attributes:
        ranges: (start, stop) frames of every part, stop excluded, in order; together they hold every
            frame once.
        faults: Number of steps between two frames that were too fast; 0 leaves the clip whole.
    """

    ranges: tuple[tuple[int, int], ...]
    faults: int


@np.errstate(over="ignore", invalid="ignore")  # what overflows is too fast
def smooth_runs(
    joints: np.ndarray,
    fps: float,
    *,
    max_root_speed: float = MAX_ROOT_SPEED,
    max_joint_speed: float = MAX_JOINT_SPEED,
) -> SmoothRuns:
    """Cuts a clip wherever it moves faster from one frame to the next than a body can.

    The pelvis must stay within ``max_root_speed``, and every joint within ``max_joint_speed``: some
    recordings tumble about a resting pelvis, which the pelvis alone does not show.

    Args:
        joints: (T, 22, 3) metres.
        fps: Frames per second.
        max_root_speed: Metres per second, in all three directions together.
        max_joint_speed: Metres per second; infinity tests the pelvis only.

    Returns:
        The parts in between, as frame ranges, and the number of cuts.
    """
    speeds = np.linalg.norm(np.diff(joints.astype(np.float64), axis=0), axis=-1) * fps
    fast = (speeds[:, 0] > max_root_speed) | (speeds > max_joint_speed).any(axis=1)
    # Step i leads from frame i to frame i + 1, so a new part begins at i + 1.
    bounds = [0, *(np.flatnonzero(fast) + 1).tolist(), len(joints)]
    ranges = tuple((start, stop) for start, stop in pairwise(bounds) if stop > start)
    return SmoothRuns(ranges=ranges, faults=int(fast.sum()))
