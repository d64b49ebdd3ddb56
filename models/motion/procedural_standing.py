"""Procedural motions on the spot or by leaps: jumping, reaching, waving, squatting.

Every action is written for the left side (the left hand); the right is its mirror image. Metres, radians,
seconds.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator

from fastvq.models.motion.procedural_body import (
    Pose,
    blend,
    pitch_yaw_roll,
    pointing_arm,
    root_limit,
)
from fastvq.models.motion.procedural_scene import (
    GRAVITY,
    Scene,
    hang_arms,
    stand_on_feet,
    standing_gait,
    still_pose,
)
from fastvq.models.motion.procedural_steps import ease


def jump(scene: Scene, *, height: float, distance: float, count: int) -> Pose:
    """Jumps with both feet, on the spot or ahead; the pelvis flies freely in between.

    Args:
        height: How far the pelvis rises in flight.
        distance: How far each jump carries.
        count: How many; the clip must last ``jump_seconds`` at least.
    """
    body, scale, times = scene.body, scene.body.scale, scene.times
    gait = standing_gait(scene, width=0.20)
    spare = scene.end - jump_seconds(height, count)
    start = scene.uniform(0.3, 0.7) * max(spare, 0.0)
    launch = np.sqrt(2.0 * GRAVITY * height)
    flight, crouch = 2.0 * launch / GRAVITY, (0.15 + 0.45 * height) * body.leg
    stand, tiptoe = body.stand * 0.992, body.stand * 1.04
    push, brake = 2.0 * (tiptoe - stand + crouch) / launch, 2.0 * (tiptoe - stand + crouch) / launch
    drift = distance / (flight + 0.5 * (push + brake))

    knots = [(start - 10.0, stand, 0.0), (start, stand, 0.0)]
    along = [(start - 10.0, 0.0, 0.0), (start, 0.0, 0.0)]
    leaves, lands, where = [], [], 0.0
    now = start
    for number in range(count):
        # The first crouch, and the recovery that follows every landing, take half a second.
        now += 0.5 if number == 0 else 0.15
        knots.append((now, stand - crouch, 0.0))
        along.append((now, where, 0.0))
        now += push
        leaves.append(now)
        knots.append((now, tiptoe, launch))
        along.append((now, where + 0.5 * push * drift, drift))
        now += flight
        lands.append(now)
        knots.append((now, tiptoe, -launch))
        along.append((now, where + (0.5 * push + flight) * drift, drift))
        now += brake
        where += distance
        knots.append((now, stand - crouch, 0.0))
        along.append((now, where, 0.0))
    knots += [(now + 0.6, stand, 0.0), (now + 60.0, stand, 0.0)]
    along.append((now + 60.0, where, 0.0))
    root_y = CubicHermiteSpline(*np.array(knots).T)(times)
    root_z = CubicHermiteSpline(*np.array(along).T)(times)
    for leave, land in zip(leaves, lands, strict=True):
        air = (times > leave) & (times < land)
        since = times[air] - leave
        root_y[air] = tiptoe + launch * since - 0.5 * GRAVITY * since**2

    pose = still_pose(scene, gait)
    pose.root[:, 1], pose.root[:, 2] = root_y, pose.root[:, 2] + root_z
    bent = np.clip((stand - root_y) / (0.3 * body.leg), 0.0, 1.0)
    for number, (leave, land) in enumerate(zip(leaves, lands, strict=True)):
        part = np.clip((times - leave) / flight, 0.0, 1.0)
        air = (part > 0.0) & (part < 1.0)
        tuck = 0.05 * scale * np.sin(np.pi * part) ** 2
        flown = launch * part * flight - 0.5 * GRAVITY * (part * flight) ** 2
        pose.ball[air, :, 1] = (flown + tuck)[air, None]
        after = part > 0.0
        forward = gait.ahead + (number + ease(part, 0.0, 1.0)) * distance
        pose.ball[after, :, 2] = forward[after, None]
        pose.planted[air] = False
        heel = 0.75 * ease(times, leave - 0.6 * push, leave) * (1.0 - ease(times, land, land + 0.8 * brake))
        pose.foot_pitch += heel[:, None]
    level = np.zeros_like(bent)
    pose.pelvis = pitch_yaw_roll(np.stack([0.45 * bent, level, level], axis=-1))
    pose.bend[:, 0] += 0.35 * bent
    pose.head[:, 0] -= 0.4 * bent
    pose.root[:, 2] -= 0.10 * scale * bent
    arms = _jumping_arms(times, start, leaves, lands, push) * scene.style.swing**0.3
    hang_arms(pose, scene, swing=(arms, arms), elbow=scene.style.elbow + 0.1 * np.abs(arms))
    _hold_down(scene, pose)
    return pose


def _jumping_arms(
    times: np.ndarray, start: float, leaves: list[float], lands: list[float], push: float
) -> np.ndarray:
    """(T,) forward angle of the arms: back while crouching, up with the leap, down after the landing."""
    keys = [(start - 10.0, 0.0), (start, 0.0)]
    for leave, land in zip(leaves, lands, strict=True):
        keys += [(leave - push, -0.8), (leave + 0.05, 1.7), (land, 1.9)]
    keys += [(lands[-1] + 0.7, 0.0), (lands[-1] + 60.0, 0.0)]
    return PchipInterpolator(*np.array(keys).T)(times)


def jump_seconds(height: float, count: int) -> float:
    """Seconds that jumps take at least, from standing to standing."""
    launch = np.sqrt(2.0 * GRAVITY * height)
    return 1.1 + count * (2.0 * launch / GRAVITY + 1.4 / launch + 0.15)


def reach(scene: Scene, *, direction: str, seconds: float) -> Pose:
    """Reaching with the left hand and taking it back.

    Args:
        direction: "up", "forward", "side" or "down".
        seconds: How long the hand takes to get there.
    """
    times = scene.times
    hold = max(0.2, min(1.0, scene.end - 2.0 * seconds - 0.4))
    begin = scene.uniform(0.1, max(0.15, scene.end - 2.0 * seconds - hold - 0.1))
    there = ease(times, begin, begin + seconds) * (
        1.0 - ease(times, begin + seconds + hold, begin + 2.0 * seconds + hold)
    )
    gait = standing_gait(scene, width=0.24)
    pose = still_pose(scene, gait)
    aim, hinge, bend, shift, drop = {
        "up": ((0.15, 1.0, 0.25), (-1.0, 0.0, 0.0), (-0.08, 0.0, -0.12), (0.02, 0.03), 0.0),
        "forward": ((0.05, 0.0, 1.0), (-1.0, -0.3, 0.0), (0.22, -0.25, 0.0), (0.0, 0.05), 0.01),
        "side": ((1.0, 0.05, 0.15), (0.0, -1.0, 0.0), (0.02, 0.15, -0.25), (0.05, 0.0), 0.01),
        "down": ((0.05, -0.3, 1.0), (-1.0, 0.0, 0.0), (0.75, -0.15, 0.0), (0.0, -0.07), 0.36),
    }[direction]
    jitter = np.array([scene.uniform(-0.12, 0.12) for _ in range(3)])
    pose.bend += there[:, None] * np.array(bend)
    pose.head[:, 0] += there * {"up": -0.35, "forward": 0.0, "side": 0.0, "down": 0.15}[direction]
    pose.head[:, 1] += there * {"up": 0.1, "forward": 0.1, "side": 0.6, "down": 0.1}[direction]
    pose.root[:, 0] += shift[0] * there
    pose.root[:, 2] += shift[1] * there
    pitch = 0.65 * there if direction == "down" else 0.0 * there
    pose.pelvis = pitch_yaw_roll(np.stack([pitch, 0 * there, 0 * there], axis=-1)) @ pose.pelvis
    hang_arms(pose, scene, swing=(0 * times, 1.4 * pitch), elbow=scene.style.elbow)
    target = pointing_arm(0, tuple(np.asarray(aim) + jitter), hinge)
    pose.shoulder[:, 0] = blend(pose.shoulder[:, 0], target, there)
    # The elbow bends on the way and stretches as the hand arrives.
    way = 4.0 * there * (1.0 - there)
    pose.elbow[:, 0] += way * 0.6 + there * (0.12 - pose.elbow[:, 0])
    stand_on_feet(scene, pose, scene.body.stand * (0.992 - drop * there))
    return pose


def wave(scene: Scene, *, frequency: float) -> Pose:
    """Waving with the left hand.

    Args:
        frequency: Waves per second.
    """
    times = scene.times
    begin, finish = scene.uniform(0.1, 0.4), scene.end - scene.uniform(0.1, 0.4)
    up = ease(times, begin, begin + 0.7) * (1.0 - ease(times, finish - 0.7, finish))
    pose = still_pose(scene, standing_gait(scene, width=0.20))
    hang_arms(pose, scene, swing=(0 * times, 0 * times), elbow=scene.style.elbow)
    lift = scene.uniform(-0.25, 0.35)
    target = pointing_arm(0, (1.0, lift, 0.35), (-0.25, 0.0, 1.0))
    pose.shoulder[:, 0] = blend(pose.shoulder[:, 0], target, up)
    beat = np.sin(2.0 * np.pi * frequency * (times - begin))
    waving = ease(times, begin + 0.4, begin + 0.9) * (1.0 - ease(times, finish - 0.9, finish - 0.4))
    pose.elbow[:, 0] += up * (1.45 - 0.5 * lift - pose.elbow[:, 0]) + 0.45 * beat * waving
    pose.bend[:, 2] += 0.04 * up * np.sin(2.0 * np.pi * frequency * (times - begin) - 0.6)
    pose.head[:, 1] += 0.1 * up
    stand_on_feet(scene, pose, np.full(len(times), scene.body.stand * (0.997 - scene.style.crouch)))
    return pose


def squat(scene: Scene, *, depth: float, seconds: float, count: int) -> Pose:
    """Squats with the arms stretched ahead for balance.

    Args:
        depth: How far the pelvis goes down, as a part of the leg length.
        seconds: How long one squat takes, down and up.
        count: How many.
    """
    times, body = scene.times, scene.body
    begin = scene.uniform(0.3, 0.7) * max(scene.end - count * seconds, 0.0)
    cycle = np.clip((times - begin) / seconds, 0.0, count)
    part = cycle - np.floor(cycle)
    down = ease(part, 0.0, 0.45) * (1.0 - ease(part, 0.55, 1.0))
    gait = standing_gait(scene, width=0.32, toe_out=0.3)
    pose = still_pose(scene, gait)
    pitch = 0.75 * depth / 0.5 * down
    pose.pelvis = pitch_yaw_roll(np.stack([pitch, 0 * down, 0 * down], axis=-1)) @ pose.pelvis
    pose.bend[:, 0] += 0.2 * down
    pose.head[:, 0] -= 0.5 * down
    pose.root[:, 2] -= 0.42 * depth * body.leg * down
    raise_arms = 1.3 * down * (1.0 + 0.3 * (scene.style.swing - 1.0)) + pitch + scene.style.lean * down
    hang_arms(pose, scene, swing=(raise_arms, raise_arms), elbow=scene.style.elbow * (1.0 - 0.6 * down))
    stand_on_feet(scene, pose, body.stand * 0.992 - depth * body.leg * down)
    return pose


def _hold_down(scene: Scene, pose: Pose) -> None:
    """Raises the heels of planted feet where their legs would not reach up to the pelvis."""
    for _ in range(12):
        short = np.maximum(pose.root[:, 1] - root_limit(scene.body, pose), 0.0)
        pose.foot_pitch += np.where(pose.planted, 8.0 * short[:, None], 0.0)
