"""Procedural motions on moving feet: walking, turning on the spot, running.

Every action is written for the left side (turning left, the left foot first); the right is its mirror image.
Metres, radians, seconds.
"""

from __future__ import annotations

import numpy as np

from fastvq.models.motion.procedural_body import Pose, pitch_yaw_roll, root_limit
from fastvq.models.motion.procedural_scene import GRAVITY, Scene, hang_arms, pose_on, stand_on_feet
from fastvq.models.motion.procedural_steps import Gait, Track, ease, make_track, walk_feet


def walk(scene: Scene, *, speed: float, direction: str, turn: float) -> Pose:
    """Walking ahead, backward or to the left, standing still at one of the ends or at none.

    Args:
        speed: Metres per second.
        direction: "forward", "backward" or "left".
        turn: How far the path turns to the left in all.
    """
    uniform, scale = scene.uniform, scene.body.scale
    begin, finish = uniform(-2.5, 0.5), scene.end + uniform(-0.5, 2.5)
    sideways = direction == "left"
    period = 1.0 if sideways else 1.08 * (1.2 * scale / speed) ** 0.45
    gait = Gait(
        start=begin,
        stop=finish,
        period=period,
        duty=0.60,
        width=(0.30 if sideways else 0.17) * scale,
        ahead=0.11 * scale,
        roll=0.04 if direction == "forward" else 0.0,
        toe_out=0.1,
        height=0.075 * scale * scene.style.bounce,
        heel=0.15 if sideways or direction == "backward" else 0.65,
        toes=0.0 if sideways else 0.2,
    )
    ramp = 0.8 * period
    grid = np.arange(begin - 0.5, finish + 3.0, 0.005)
    pace = speed * ease(grid, begin, begin + ramp) * (1.0 - ease(grid, finish - ramp, finish))
    still = np.zeros_like(pace)
    yaw = turn * _heading_change(grid, scene.end)
    ahead = {"forward": pace, "backward": -pace, "left": still}[direction]
    track = make_track(grid, ahead, pace if sideways else still, yaw)
    moving = np.interp(scene.times, grid, pace / speed)
    swing = 0.35 * np.clip(speed / 1.2, 0.5, 1.4) * (0.15 if sideways else 1.0)
    sign = -1.0 if direction == "backward" else 1.0
    pose = _gait_pose(scene, track, gait, moving, swing=sign * swing, lean=scene.style.lean, elbow=scene.style.elbow)
    base = np.full(len(scene.times), scene.body.stand * (0.99 - scene.style.crouch))
    stand_on_feet(scene, pose, base)
    return pose


def turn_round(scene: Scene, *, angle: float, rate: float) -> Pose:
    """Turning to the left on the spot, in small steps.

    Args:
        angle: How far.
        rate: Mean speed of the turn, radians per second.
    """
    need = angle / rate
    begin = scene.uniform(0.2, max(0.25, scene.end - need - 0.3))
    scale = scene.body.scale
    gait = Gait(
        start=begin - 0.1,
        stop=begin + need,
        period=np.clip(1.6 / rate, 0.65, 1.0),
        duty=0.55,
        width=0.20 * scale,
        ahead=0.11 * scale,
        roll=0.0,
        toe_out=0.12,
        height=0.06 * scale * scene.style.bounce,
        heel=0.3,
        toes=0.05,
    )
    grid = np.arange(gait.start - 2.0, scene.end + 3.0, 0.005)
    still = np.zeros_like(grid)
    track = make_track(grid, still, still, angle * ease(grid, begin, begin + need))
    moving = ease(scene.times, begin - 0.2, begin + 0.2) * (1.0 - ease(scene.times, begin + need, begin + need + 0.4))
    pose = _gait_pose(
        scene, track, gait, moving, swing=0.12, lean=scene.style.lean, elbow=scene.style.elbow, sway=0.03
    )
    # The eyes arrive first.
    pose.head[:, 1] += 0.35 * np.sin(np.pi * ease(scene.times, begin - 0.25, begin + 0.9 * need))
    stand_on_feet(scene, pose, np.full(len(scene.times), scene.body.stand * (0.992 - scene.style.crouch)))
    return pose


def run(scene: Scene, *, speed: float, turn: float) -> Pose:
    """Running ahead, in full stride from the first frame to the last, in the air between the steps.

    Args:
        speed: Metres per second.
        turn: How far the path turns to the left in all.
    """
    body, scale = scene.body, scene.body.scale
    gait = Gait(
        start=-2.0 - scene.uniform(0.0, 0.7),
        stop=scene.end + 2.0,
        period=0.70 * np.sqrt(scale) * (3.0 / speed) ** 0.2,
        duty=0.32,
        width=0.09 * scale,
        ahead=0.13 * scale,
        roll=0.0,
        toe_out=0.03,
        height=(0.06 + 0.055 * speed) * scale,
        heel=0.85,
        toes=0.1,
    )
    grid = np.arange(gait.start - 1.0, gait.stop + 2.0, 0.005)
    pace = np.full_like(grid, speed)
    track = make_track(grid, pace, np.zeros_like(grid), turn * _heading_change(grid, scene.end))
    here = track.at(0.0)[0]
    track = Track(times=grid, points=track.points - here, yaw=track.yaw)
    pose = _gait_pose(
        scene,
        track,
        gait,
        np.ones(len(scene.times)),
        swing=0.30 + 0.12 * speed,
        lean=scene.style.lean + 0.12 + 0.02 * speed,
        elbow=1.45,
        sway=0.01,
    )
    height = _running_height(scene.times - gait.start, gait)
    # Lowered as a whole, so that flights stay ballistic and no standing leg is too short.
    pose.root[:, 1] = height
    pose.root[:, 1] += min((root_limit(body, pose) - height).min() - 0.015 * body.leg, body.stand * 0.97)
    return pose


def _heading_change(grid: np.ndarray, end: float) -> np.ndarray:
    """0 to 1 over the middle of a clip that ends at ``end``."""
    return ease(grid, 0.15 * end, 0.85 * end)


def _gait_pose(
    scene: Scene,
    track: Track,
    gait: Gait,
    moving: np.ndarray,
    *,
    swing: float,
    lean: float,
    elbow: float,
    sway: float = 0.02,
) -> Pose:
    """A body that follows a track on its feet: weight shifts, hips turn, arms swing against the legs."""
    feet = walk_feet(scene.times, track, gait)
    point, yaw = track.at(scene.times)
    phase, style = gait.phase(scene.times), scene.style.swing
    root = np.zeros((len(scene.times), 3))
    # The weight is over the foot that stands: to the right in the middle of the left leg's swing.
    aside = -sway * moving * np.cos(phase)
    root[:, 0] = point[:, 0] + aside * np.cos(yaw)
    root[:, 2] = point[:, 1] - aside * np.sin(yaw)
    pose = pose_on(scene, root, feet, lean=lean)
    ahead = moving * np.sin(phase)
    turn = 0.35 * swing * style
    pelvis = np.stack([np.full_like(yaw, 0.3 * lean), yaw - turn * ahead, -0.04 * moving * np.cos(phase)], -1)
    pose.pelvis = pitch_yaw_roll(pelvis)
    pose.bend[:, 1] += 1.9 * turn * ahead
    pose.bend[:, 2] += 0.05 * moving * np.cos(phase)
    pose.head[:, 1] -= 0.9 * turn * ahead
    arms = swing * style * ahead
    hang_arms(pose, scene, swing=(-arms, arms), elbow=elbow + 0.25 * np.abs(arms))
    return pose


def _running_height(times: np.ndarray, gait: Gait) -> np.ndarray:
    """Rise and fall of a runner's pelvis: ballistic in the air, half a sine wave on the ground."""
    half = gait.period / 2
    flight = half - gait.duty * gait.period
    stance = half - flight
    # A foot lands ``swing`` after its lift; every half period begins with a landing.
    since = np.mod(times - gait.swing, half)
    launch = 0.5 * GRAVITY * flight
    ground = -launch * stance / np.pi * np.sin(np.pi * since / stance)
    air = since - stance
    return np.where(since < stance, ground, launch * air - 0.5 * GRAVITY * air**2)
