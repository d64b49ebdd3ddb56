"""Paths on the floor, the footsteps planned along them, and the feet's way from step to step.

Times are seconds, positions (x, z) metres, yaw radians about +y from +z towards +x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d, minimum_filter1d


def ease(times: np.ndarray, start: float, stop: float) -> np.ndarray:
    """From 0 before ``start`` to 1 after ``stop``, at rest at both ends (the minimum-jerk curve)."""
    part = np.clip((times - start) / (stop - start), 0.0, 1.0)
    return part**3 * (10.0 - 15.0 * part + 6.0 * part**2)


def smooth_below(values: np.ndarray, radius: int) -> np.ndarray:
    """A smoothed curve that nowhere exceeds the given one.

    Every average over a window of window minima stays below the value at the window's middle.

    Args:
        values: (T,).
        radius: Half the window, in frames.
    """
    lowest = minimum_filter1d(values, 2 * radius + 1, mode="nearest")
    return gaussian_filter1d(lowest, radius / 2.5, mode="nearest", radius=radius)


@dataclass(frozen=True)
class Track:
    """Where a walker wants to be: position and heading over time.

    Attributes:
        times: (N,) ascending.
        points: (N, 2) x and z.
        yaw: (N,) heading.
    """

    times: np.ndarray
    points: np.ndarray
    yaw: np.ndarray

    def at(self, times: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Points (..., 2) and headings (...) at any times; held beyond both ends."""
        points = [np.interp(times, self.times, self.points[:, axis]) for axis in (0, 1)]
        return np.stack(points, axis=-1), np.interp(times, self.times, self.yaw)


def make_track(times: np.ndarray, forward: np.ndarray, left: np.ndarray, yaw: np.ndarray) -> Track:
    """Integrates speeds (N,) in m/s, ahead and to the left of the heading, to a path from the origin."""
    sine, cosine = np.sin(yaw), np.cos(yaw)
    speed = np.stack([forward * sine + left * cosine, forward * cosine - left * sine], axis=-1)
    points = cumulative_trapezoid(speed, times, axis=0, initial=0.0)
    return Track(times=times, points=points, yaw=yaw)


@dataclass(frozen=True)
class Gait:
    """How feet follow a track.

    Attributes:
        start, stop: When the first foot lifts at the earliest, and the last one at the latest.
        period: Seconds from one lift of a foot to its next.
        duty: Part of the period for which a foot stands; below 0.5 there are flights.
        width: Metres between the balls of the feet, sideways.
        ahead: Metres by which the ball of a foot stands ahead of the pelvis' mid-stance position.
        roll: Seconds before the middle of the stance at which the pelvis passes above the foot: the heel
            rises at the end, so a leg reaches further behind than ahead.
        toe_out: Angle by which a foot points outwards.
        height: How high a ball is lifted, metres.
        heel: How far the heel is raised when the foot leaves the floor.
        toes: How far the toes are raised in the late swing.
    """

    start: float
    stop: float
    period: float
    duty: float
    width: float
    ahead: float
    roll: float
    toe_out: float
    height: float
    heel: float
    toes: float

    @property
    def swing(self) -> float:
        """Seconds for which a foot is in the air."""
        return (1.0 - self.duty) * self.period

    def phase(self, times: np.ndarray) -> np.ndarray:
        """Angle of the left leg's cycle; its sine is 1 when that leg is furthest ahead, -1 when behind."""
        return 2.0 * np.pi * (times - self.start) / self.period - np.pi * (1.0 - self.duty)


@dataclass(frozen=True)
class Feet:
    """Both feet over T frames: balls (T, 2, 3), yaw, pitch and planted (T, 2), as in a ``Pose``."""

    ball: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    planted: np.ndarray


@dataclass(frozen=True)
class Step:
    """One step of a foot: off the floor at ``lift``, on it again at ``land``, at a point and yaw."""

    lift: float
    land: float
    point: np.ndarray
    yaw: float


def standing_place(track: Track, time: float, side: int, gait: Gait) -> tuple[np.ndarray, float]:
    """Where the ball of a foot stands, and the foot's yaw, if the pelvis passes above it at a time."""
    sign = 1.0 if side == 0 else -1.0
    centre, yaw = track.at(time)
    ahead = np.array([np.sin(yaw), np.cos(yaw)])
    left = np.array([np.cos(yaw), -np.sin(yaw)])
    return centre + gait.ahead * ahead + sign * 0.5 * gait.width * left, float(yaw) + sign * gait.toe_out


def walk_feet(times: np.ndarray, track: Track, gait: Gait) -> Feet:
    """Both feet along a track: each lands where the pelvis will be above it in the middle of its stance.

    Left steps first. The last steps bring the feet side by side; what would not move a foot is left out.
    """
    sides = []
    for side in (0, 1):
        place = standing_place(track, gait.start - gait.period, side, gait)
        steps = []
        lift = gait.start + side * gait.period / 2
        point, yaw = place
        while lift < gait.stop + gait.period:
            land = lift + gait.swing
            target, target_yaw = standing_place(track, land + gait.duty * gait.period / 2 - gait.roll, side, gait)
            if np.hypot(*(target - point)) > 0.02 or abs(target_yaw - yaw) > 0.03:
                steps.append(Step(lift, land, target, target_yaw))
                point, yaw = target, target_yaw
            lift += gait.period
        sides.append(_foot(times, place, steps, gait))
    return join_feet(sides[0], sides[1])


def join_feet(left: Feet, right: Feet) -> Feet:
    """Two single feet, (T, ...) each, as a pair."""
    return Feet(
        ball=np.stack([left.ball, right.ball], axis=1),
        yaw=np.stack([left.yaw, right.yaw], axis=1),
        pitch=np.stack([left.pitch, right.pitch], axis=1),
        planted=np.stack([left.planted, right.planted], axis=1),
    )


def _foot(times: np.ndarray, place: tuple[np.ndarray, float], steps: list[Step], gait: Gait) -> Feet:
    """One foot from step to step."""
    point, yaw = place
    ball = np.zeros((len(times), 3))
    ball[:, [0, 2]], turned = point, np.full(len(times), yaw)
    planted = np.ones(len(times), dtype=bool)
    # The heel rises before the foot leaves, the toes point up before it lands flat.
    keys: list[tuple[float, float]] = [(-1e3, 0.0)]
    early = min(0.35 * gait.duty * gait.period, 0.25)
    for step in steps:
        part = (times - step.lift) / (step.land - step.lift)
        air = (part > 0.0) & (part < 1.0)
        # A cubic is gentler than ``ease``, whose peak of 1.9 times the mean speed no walker's foot reaches.
        # The foot travels only while it is off the floor by more than a sole.
        travel = np.clip((part - 0.05) / 0.9, 0.0, 1.0)
        moved = travel**2 * (3.0 - 2.0 * travel)
        after = part > 0.0
        ball[after, 0] = point[0] + moved[after] * (step.point[0] - point[0])
        ball[after, 2] = point[1] + moved[after] * (step.point[1] - point[1])
        turned[after] = yaw + moved[after] * (step.yaw - yaw)
        # Highest in the first half of the swing, when the knee is most bent.
        ball[air, 1] = gait.height * np.sin(np.pi * part[air] ** 0.8)
        planted &= ~air
        span = step.land - step.lift
        keys += [
            (max(step.lift - early, keys[-1][0] + 0.01), 0.0),
            (step.lift, gait.heel),
            (step.lift + 0.25 * span, 1.15 * gait.heel),
            (step.lift + 0.8 * span, -gait.toes),
            (step.land, 0.0),
        ]
        point, yaw = step.point, step.yaw
    keys.append((1e3, 0.0))
    pitch = PchipInterpolator(*np.array(keys).T)(times)
    return Feet(ball=ball, yaw=turned, pitch=pitch, planted=planted)
