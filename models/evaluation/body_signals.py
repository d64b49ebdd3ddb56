"""What a body does as a whole, measured on its joints: pace and turning, flights and dips, and what the hands do.

Lengths that depend on the body's size are in units of its leg or arm, taken from the same joints.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fastvq.models.errors import UserError
from fastvq.models.motion.pose_codes.parser import check_body
from fastvq.models.motion.skeleton import JOINT_NAMES

SHORTEST = 4
# Seconds over which jitter is averaged (the standard deviation of the weights).
_SMOOTH_PACE, _SMOOTH_HEADING = 0.3, 0.1

_PELVIS, _NECK = JOINT_NAMES.index("pelvis"), JOINT_NAMES.index("neck")
_HIPS, _KNEES, _ANKLES, _BALLS, _SHOULDERS, _ELBOWS, _WRISTS = (
    [JOINT_NAMES.index(f"{side}_{name}") for side in ("left", "right")]
    for name in ("hip", "knee", "ankle", "foot", "shoulder", "elbow", "wrist")
)


@dataclass(frozen=True, eq=False)
class BodySignals:
    """Measurements of one clip; index 0 of a pair is the left side, 1 the right.

    Attributes:
        joints: (T, 22, 3) float64 metres, Y up.
        fps: Frames per second.
    """

    joints: np.ndarray
    fps: float

    @cached_property
    def heading(self) -> np.ndarray:
        """(T,) direction in which hips and shoulders face, radians, growing to the left, with no jump by a circle."""
        left = self.joints[:, [_HIPS[0], _SHOULDERS[0]]] - self.joints[:, [_HIPS[1], _SHOULDERS[1]]]
        across = left.sum(axis=1)
        yaw = np.unwrap(np.arctan2(-across[:, 2], across[:, 0]))
        smooth: np.ndarray = gaussian_filter1d(yaw, _SMOOTH_HEADING * self.fps, mode="nearest")
        return smooth

    @property
    def turned(self) -> float:
        """Radians from the first heading to the last; to the left above 0."""
        return float(self.heading[-1] - self.heading[0])

    @cached_property
    def leg(self) -> float:
        """Thigh and shin, metres."""
        return self._limb(_HIPS, _KNEES, _ANKLES)

    @cached_property
    def arm(self) -> float:
        """Upper arm and forearm, metres."""
        return self._limb(_SHOULDERS, _ELBOWS, _WRISTS)

    @cached_property
    def velocity(self) -> np.ndarray:
        """(T, 2) metres per second of the pelvis over the floor: to the body's left, and ahead."""
        path = self.joints[:, _PELVIS][:, [0, 2]]
        world = gaussian_filter1d(
            np.gradient(path, 1.0 / self.fps, axis=0), _SMOOTH_PACE * self.fps, axis=0, mode="nearest"
        )
        sine, cosine = np.sin(self.heading), np.cos(self.heading)
        return np.stack(
            [world[:, 0] * cosine - world[:, 1] * sine, world[:, 0] * sine + world[:, 1] * cosine], axis=-1
        )

    @property
    def pace(self) -> float:
        """Greatest speed over the floor, metres per second."""
        return float(np.linalg.norm(self.velocity, axis=-1).max())

    @cached_property
    def travelled(self) -> np.ndarray:
        """(2,) metres to the body's left, and ahead, over the whole clip; a way back counts against a way there."""
        total: np.ndarray = self.velocity.sum(axis=0) / self.fps
        return total

    @cached_property
    def floor(self) -> float:
        """Height of the floor, metres: under the lowest joints."""
        return float(np.quantile(self.joints[..., 1].min(axis=1), 0.05))

    @cached_property
    def flight(self) -> np.ndarray:
        """(T,) metres from the floor to the lower ball of the foot."""
        height: np.ndarray = self.joints[:, _BALLS, 1].min(axis=1) - self.floor
        return height

    @cached_property
    def pelvis(self) -> np.ndarray:
        """(T,) height of the pelvis over the floor, legs."""
        height: np.ndarray = (self.joints[:, _PELVIS, 1] - self.floor) / self.leg
        return height

    @property
    def dip(self) -> float:
        """How far the pelvis goes down from where it usually is, legs."""
        return float(np.quantile(self.pelvis, 0.9) - self.pelvis.min())

    @cached_property
    def hands(self) -> np.ndarray:
        """(T, 2, 3) wrists seen from their shoulders: to the body's own outside, up, ahead; arms."""
        found = self._seen(self.joints[:, _WRISTS] - self.joints[:, _SHOULDERS]) / self.arm
        found[:, 1, 0] *= -1.0
        return found

    @cached_property
    def excursions(self) -> np.ndarray:
        """(T, 2) how far each wrist is from where it was at first, as the pelvis sees it; arms."""
        seen = self._seen(self.joints[:, _WRISTS] - self.joints[:, [_PELVIS]])
        found: np.ndarray = np.linalg.norm(seen - seen[:1], axis=-1) / self.arm
        return found

    @cached_property
    def elbows(self) -> np.ndarray:
        """(T, 2) flexion of the elbows, radians, 0 = straight."""
        upper = self.joints[:, _ELBOWS] - self.joints[:, _SHOULDERS]
        lower = self.joints[:, _WRISTS] - self.joints[:, _ELBOWS]
        product = np.linalg.norm(upper, axis=-1) * np.linalg.norm(lower, axis=-1)
        cosine = (upper * lower).sum(axis=-1) / np.maximum(product, 1e-9)
        found: np.ndarray = np.arccos(np.clip(cosine, -1.0, 1.0))
        return found

    def _limb(self, first: list[int], middle: list[int], last: list[int]) -> float:
        upper = np.linalg.norm(self.joints[:, middle] - self.joints[:, first], axis=-1)
        lower = np.linalg.norm(self.joints[:, last] - self.joints[:, middle], axis=-1)
        return max(float(np.median(upper + lower)), 1e-3)

    def _seen(self, vectors: np.ndarray) -> np.ndarray:
        """(T, 2, 3) vectors along the body's left, up and ahead."""
        sine, cosine = np.sin(self.heading)[:, None], np.cos(self.heading)[:, None]
        x, y, z = np.moveaxis(vectors, -1, 0)
        return np.stack([x * cosine - z * sine, y, x * sine + z * cosine], axis=-1)


def measure_body(joints: np.ndarray, fps: float) -> BodySignals:
    """The measurements of a clip.

    Args:
        joints: (T, 22, 3) metres, Y up, finite, T >= 4.
        fps: Frames per second, > 0.

    Raises:
        UserError: Another shape, fewer frames, no frame rate, or values that are no body's.
    """
    joints = check_body(joints)
    if len(joints) < SHORTEST:
        raise UserError(f"what a body does is read off {SHORTEST} frames at least, got {len(joints)}")
    if not (np.isfinite(fps) and fps > 0):
        raise UserError(f"fps must be above 0, got {fps}")
    return BodySignals(joints=joints.astype(np.float64), fps=float(fps))
