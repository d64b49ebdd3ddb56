"""What all procedural actions share: the scene they play in, how people move, and standing on one's feet.

Metres, radians, seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastvq.models.motion.procedural_body import Body, Pose, hanging_arm, root_limit
from fastvq.models.motion.procedural_steps import Feet, Gait, Track, smooth_below, standing_place

GRAVITY = 9.81

Uniform = Callable[[float, float], float]


@dataclass(frozen=True)
class Style:
    """How somebody moves: factors and angles on top of an action.

    Attributes:
        swing: Factor on the swing of the arms and the turning of the trunk.
        lean: Forward bend of the spine.
        head: Forward bend of the head.
        bounce: Factor on the height to which feet are lifted.
        crouch: Part of the standing height by which the pelvis is lowered.
        elbow: Flexion of the elbows at rest.
    """

    swing: float = 1.0
    lean: float = 0.05
    head: float = 0.05
    bounce: float = 1.0
    crouch: float = 0.01
    elbow: float = 0.3


STYLES: dict[str, Style] = {
    "neutral": Style(),
    "energetic": Style(swing=1.5, lean=0.02, head=-0.08, bounce=1.6, crouch=0.015, elbow=0.65),
    "tired": Style(swing=0.45, lean=0.23, head=0.3, bounce=0.6, crouch=0.035, elbow=0.12),
    "stiff": Style(swing=0.12, lean=0.0, head=0.0, bounce=0.8, crouch=0.0, elbow=0.05),
}


@dataclass(frozen=True)
class Scene:
    """What an action needs to know besides its own numbers.

    Attributes:
        body: The body that moves.
        style: How it moves.
        end: Duration in seconds.
        rate: Frames per second.
        uniform: Draws a number between two others.
    """

    body: Body
    style: Style
    end: float
    rate: float
    uniform: Uniform

    @cached_property
    def times(self) -> np.ndarray:
        """(T,) seconds of the frames, from 0."""
        return np.arange(round(self.end * self.rate)) / self.rate


def standing_gait(scene: Scene, *, width: float, toe_out: float = 0.12) -> Gait:
    """Where the feet are while nothing steps."""
    scale = scene.body.scale
    return Gait(
        start=0.0,
        stop=0.0,
        period=1.0,
        duty=0.6,
        width=width * scale,
        ahead=0.11 * scale,
        roll=0.0,
        toe_out=toe_out,
        height=0.0,
        heel=0.0,
        toes=0.0,
    )


def still_pose(scene: Scene, gait: Gait) -> Pose:
    """Standing at the origin, both feet planted, breathing a little."""
    frames = len(scene.times)
    origin = Track(times=np.zeros(1), points=np.zeros((1, 2)), yaw=np.zeros(1))
    ball, yaw = np.zeros((frames, 2, 3)), np.zeros((frames, 2))
    for side in (0, 1):
        point, yaw[:, side] = standing_place(origin, 0.0, side, gait)
        ball[:, side, [0, 2]] = point
    feet = Feet(ball=ball, yaw=yaw, pitch=np.zeros((frames, 2)), planted=np.ones((frames, 2), dtype=bool))
    return pose_on(scene, np.zeros((frames, 3)), feet, lean=scene.style.lean)


def pose_on(scene: Scene, root: np.ndarray, feet: Feet, *, lean: float) -> Pose:
    """An upright pose over given feet, with the small unrest that a living body has."""
    frames = len(scene.times)
    bend, head = np.zeros((frames, 3)), np.zeros((frames, 3))
    for target, size in ((bend, 0.02), (head, 0.04)):
        for axis in range(3):
            phase, rate = scene.uniform(0.0, 2 * np.pi), scene.uniform(0.15, 0.45)
            target[:, axis] = size * np.sin(2 * np.pi * rate * scene.times + phase)
    bend[:, 0] += lean
    head[:, 0] += scene.style.head - 0.5 * lean
    for axis in (0, 2):
        phase, rate = scene.uniform(0.0, 2 * np.pi), scene.uniform(0.1, 0.35)
        root[:, axis] += 0.006 * np.sin(2 * np.pi * rate * scene.times + phase)
    return Pose(
        root=root,
        pelvis=np.broadcast_to(np.eye(3), (frames, 3, 3)).copy(),
        bend=bend,
        head=head,
        ball=feet.ball,
        foot_yaw=feet.yaw,
        foot_pitch=feet.pitch,
        planted=feet.planted,
        shoulder=np.broadcast_to(np.eye(3), (frames, 2, 3, 3)).copy(),
        elbow=np.zeros((frames, 2)),
    )


def hang_arms(pose: Pose, scene: Scene, *, swing: tuple[np.ndarray, np.ndarray], elbow: np.ndarray | float) -> None:
    """Lets both arms hang and swing by forward angles, left and right."""
    for side in (0, 1):
        pose.shoulder[:, side] = hanging_arm(side, swing[side], 0.16)
        pose.elbow[:, side] = elbow


def stand_on_feet(scene: Scene, pose: Pose, height: np.ndarray) -> None:
    """Puts the pelvis at a height, or lower where the standing legs do not reach."""
    limit = np.minimum(height, root_limit(scene.body, pose))
    pose.root[:, 1] = smooth_below(limit, max(1, round(0.1 * scene.rate)))
