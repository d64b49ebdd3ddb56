"""Captioned motions out of nothing: a stand-in where no motion capture is at hand, and a test of what is read.

Bodies of different height walk, turn, run, jump, reach, wave and squat. Speed, direction, side and style are
drawn at random and told in the caption. Bones keep their lengths to rounding, and a foot that stands does
not slide, because the legs are solved for feet planted beforehand. It is no replacement for recorded motion:
nobody stumbles, and one person's walk is much like another's.

The numbers come from PCG64's raw output, which numpy promises not to change (NEP 19); a seed gives the same
motions with every version, and clip k does not depend on how many are asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.mirror import mirror, mirror_rotations
from fastvq.models.motion.procedural_body import Pose, make_body, pose_body
from fastvq.models.motion.procedural_gaits import run, turn_round, walk
from fastvq.models.motion.procedural_scene import STYLES, Scene
from fastvq.models.motion.procedural_standing import jump, jump_seconds, reach, squat, wave
from fastvq.models.motion.skeleton import MIRROR_ORDER

ACTIONS: tuple[str, ...] = ("walk", "turn", "run", "jump", "reach", "wave", "squat")
SPEEDS: tuple[str, ...] = ("slow", "normal", "fast")

# Clips are dealt the actions in turn; as 7 and 10 have no common factor, every action gets its tests.
_TEST_EVERY = 10

HeldOut = Literal["clips", "captions"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class MotionSpec:
    """What a procedural motion shows, in the words that its caption uses.

    Attributes:
        action: One of ``ACTIONS``.
        speed: One of ``SPEEDS``; of a jump, its height: lightly, or powerfully.
        style: A key of ``procedural_STYLES``.
        direction: walk: "forward", "backward", "left", "right"; run: "forward"; jump: "up", "forward";
            reach: "up", "forward", "side", "down"; else None.
        side: The hand that reaches or waves, or the side to which a walk, run or turn turns: "left" or
            "right"; None where there is no side.
        degrees: How far a walk, run or turn turns, 0 otherwise.
        count: Number of jumps or squats, 1 otherwise.
        seconds: Duration.
        height: Body height in metres.
    """

    action: str
    speed: str
    style: str
    direction: str | None
    side: str | None
    degrees: float
    count: int
    seconds: float
    height: float

    def caption(self) -> str:
        """One English sentence without a full stop."""
        article = "an" if self.style[0] in "aeiou" else "a"
        who = "a person" if self.style == "neutral" else f"{article} {self.style} person"
        pace = {"slow": " slowly", "normal": "", "fast": " quickly"}[self.speed]
        times = {1: "", 2: " twice", 3: " three times"}[self.count]
        if self.action == "walk" and self.direction in ("left", "right"):
            return f"{who} walks{pace} sideways to the {self.direction}"
        if self.action in ("walk", "run"):
            turn = f" and turns {self.side}" if self.side else ""
            return f"{who} {self.action}s{pace} {self.direction}{turn}"
        if self.action == "turn":
            return f"{who} turns{pace} {'around ' if self.degrees > 135 else ''}to the {self.side}"
        if self.action == "jump":
            force = {"slow": " lightly", "normal": "", "fast": " powerfully"}[self.speed]
            return f"{who} jumps{force} {self.direction}{times}"
        if self.action == "reach":
            where = "to the side" if self.direction == "side" else self.direction
            return f"{who} reaches{pace} {where} with the {self.side} hand"
        if self.action == "wave":
            return f"{who} waves{pace} with the {self.side} hand"
        return f"{who} squats{pace}{times}"


@dataclass(frozen=True)
class ProceduralMotion:
    """A generated clip with what was asked of it.

    Attributes:
        clip: The motion, with true rotations; its text is the caption.
        spec: What it shows.
        contacts: (T, 2) bool, whether the left and the right foot stand on the floor.
        offsets: (22, 3) metres, the body's rest skeleton, for ``skeleton.forward_kinematics``.
    """

    clip: Clip
    spec: MotionSpec
    contacts: np.ndarray
    offsets: np.ndarray


class _Draw:
    """Random numbers of one clip, from raw bits only."""

    def __init__(self, seed: int, index: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index,)))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def choice(self, options: Sequence[_T]) -> _T:
        """One of the options, each as likely."""
        return options[int(self.uniform(0.0, len(options)))]


def generate_motions(
    count: int, *, seed: int, fps: float = 30.0, held_out: HeldOut = "clips"
) -> list[ProceduralMotion]:
    """Captioned motions of 2 to 8 seconds, with what each was asked to show.

    Args:
        count: How many, >= 0. The actions take turns.
        seed: >= 0; equal seeds give equal motions.
        fps: Frames per second.
        held_out: What is of the split "test": "clips" every tenth; "captions" all clips of the captions that
            ``is_held_out`` names, so that training shows none of these compositions.

    Raises:
        UserError: The count or seed is negative, the frame rate is below 5, or there is no such split.
    """
    if held_out not in get_args(HeldOut):
        raise UserError(f"held_out must be clips or captions, got {held_out!r}")
    if count < 0 or seed < 0:
        raise UserError(f"count and seed of procedural motions must be 0 or more, got {count} and {seed}")
    if not (np.isfinite(fps) and fps >= 5):
        raise UserError(f"procedural motions need at least 5 frames per second, got {fps}")
    return [_generate(seed, index, fps, held_out) for index in range(count)]


def generate_clips(count: int, *, seed: int, fps: float = 30.0, held_out: HeldOut = "clips") -> list[Clip]:
    """The clips of ``generate_motions``, of the splits "train" and "test".

    Args, raises: as ``generate_motions``.
    """
    return [motion.clip for motion in generate_motions(count, seed=seed, fps=fps, held_out=held_out)]


def is_held_out(caption: str) -> bool:
    """Whether a caption is one of the 38 of 320 that ``held_out="captions"`` keeps for the test, by its checksum.

    All actions and both sides are among them.
    """
    return zlib.crc32(caption.encode()) % _TEST_EVERY == _TEST_EVERY - 1


def _generate(seed: int, index: int, fps: float, held_out: HeldOut) -> ProceduralMotion:
    draw = _Draw(seed, index)
    spec, flip = _draw_spec(draw, ACTIONS[index % len(ACTIONS)])
    body = make_body(spec.height, leg=draw.uniform(0.96, 1.04), arm=draw.uniform(0.96, 1.04))
    scene = Scene(body=body, style=STYLES[spec.style], end=spec.seconds, rate=fps, uniform=draw.uniform)
    pose = _act(spec, scene, draw)
    joints, rotations = pose_body(body, pose)
    contacts, offsets = pose.planted, body.offsets
    if flip:
        joints, rotations, contacts = mirror(joints), mirror_rotations(rotations), contacts[:, ::-1]
        offsets = offsets[list(MIRROR_ORDER)] * np.array([-1.0, 1.0, 1.0])
    tested = is_held_out(spec.caption()) if held_out == "captions" else index % _TEST_EVERY == _TEST_EVERY - 1
    clip = Clip(
        name=f"procedural_{seed}_{index:05d}_{spec.action}",
        fps=fps,
        joints=joints.astype(np.float32),
        text=spec.caption(),
        split="test" if tested else "train",
        rotations=rotations.astype(np.float32),
    )
    return ProceduralMotion(clip=clip, spec=spec, contacts=contacts.copy(), offsets=offsets)


def _draw_spec(draw: _Draw, action: str) -> tuple[MotionSpec, bool]:
    """What to show, and whether to mirror it, as every action is played on the left side."""
    speed, style = draw.choice(SPEEDS), draw.choice(tuple(STYLES))
    # Nobody is both.
    if (style, speed) in (("tired", "fast"), ("energetic", "slow")):
        speed = "normal"
    flip = draw.uniform(0.0, 1.0) < 0.5
    hand = "right" if flip else "left"
    direction: str | None = None
    side: str | None = None
    degrees, count = 0.0, 1
    if action == "walk":
        direction = draw.choice(("forward", "forward", "forward", "backward", hand))
    elif action == "run":
        direction = "forward"
    elif action == "turn":
        side, degrees = hand, draw.choice((90.0, 180.0))
    elif action == "jump":
        direction, count = draw.choice(("up", "forward")), draw.choice((1, 2, 3))
    elif action == "reach":
        side, direction = hand, draw.choice(("up", "forward", "side", "down"))
    elif action == "wave":
        side = hand
    else:
        count = draw.choice((1, 2, 3))
    if direction == "forward" and action in ("walk", "run") and draw.uniform(0.0, 1.0) < 0.6:
        side, degrees = hand, draw.uniform(45.0, 120.0)
    seconds = {
        "walk": draw.uniform(3.0, 8.0),
        "run": draw.uniform(2.0, 5.0),
        "turn": 1.2 + np.radians(degrees) / _TURN_RATE[speed] + draw.uniform(0.0, 1.0),
        "jump": draw.uniform(0.3, 0.8) + jump_seconds(_JUMP_HEIGHT[speed], count),
        "reach": draw.uniform(0.6, 1.6) + 2.0 * _REACH_SECONDS[speed],
        "wave": draw.uniform(2.5, 6.0),
        "squat": draw.uniform(0.4, 1.0) + count * _SQUAT_SECONDS[speed],
    }[action]
    height = draw.uniform(1.55, 1.95)
    spec = MotionSpec(
        action=action,
        speed=speed,
        style=style,
        direction=direction,
        side=side,
        degrees=degrees,
        count=count,
        seconds=min(max(float(seconds), 2.0), 8.0),
        height=height,
    )
    return spec, flip


# What slow, normal and fast mean: ranges that do not touch, so that the word can be told from the motion.
_WALK_SPEED = {"slow": (0.6, 0.8), "normal": (1.05, 1.3), "fast": (1.55, 1.8)}
_SIDE_SPEED = {"slow": (0.18, 0.24), "normal": (0.30, 0.36), "fast": (0.42, 0.48)}
_BACK_SPEED = {"slow": (0.4, 0.5), "normal": (0.65, 0.8), "fast": (0.95, 1.1)}
_RUN_SPEED = {"slow": (2.0, 2.3), "normal": (2.6, 3.0), "fast": (3.4, 3.8)}
_TURN_RATE = {"slow": 0.8, "normal": 1.3, "fast": 2.2}
_JUMP_HEIGHT = {"slow": 0.12, "normal": 0.22, "fast": 0.36}
_REACH_SECONDS = {"slow": 1.5, "normal": 0.95, "fast": 0.55}
_WAVE_FREQUENCY = {"slow": 0.9, "normal": 1.5, "fast": 2.4}
_SQUAT_SECONDS = {"slow": 2.5, "normal": 1.8, "fast": 1.2}


def _act(spec: MotionSpec, scene: Scene, draw: _Draw) -> Pose:
    """The spec's action on the left side."""
    turn = np.radians(spec.degrees)
    if spec.action == "walk":
        direction = "left" if spec.direction in ("left", "right") else str(spec.direction)
        table = {"forward": _WALK_SPEED, "backward": _BACK_SPEED, "left": _SIDE_SPEED}[direction]
        return walk(scene, speed=draw.uniform(*table[spec.speed]), direction=direction, turn=turn)
    if spec.action == "run":
        return run(scene, speed=draw.uniform(*_RUN_SPEED[spec.speed]), turn=turn)
    if spec.action == "turn":
        return turn_round(scene, angle=turn, rate=_TURN_RATE[spec.speed])
    if spec.action == "jump":
        height = _JUMP_HEIGHT[spec.speed]
        distance = (draw.uniform(0.8, 1.2) * (0.15 + 1.4 * height)) if spec.direction == "forward" else 0.0
        return jump(scene, height=height, distance=distance, count=spec.count)
    if spec.action == "reach":
        return reach(scene, direction=str(spec.direction), seconds=_REACH_SECONDS[spec.speed])
    if spec.action == "wave":
        return wave(scene, frequency=_WAVE_FREQUENCY[spec.speed])
    return squat(scene, depth=draw.uniform(0.3, 0.5), seconds=_SQUAT_SECONDS[spec.speed], count=spec.count)
