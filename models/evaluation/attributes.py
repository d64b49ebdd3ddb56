"""Does a motion do what was asked? Action, direction, side and speed, read off the joints by plain measurements.

They are those of the procedural captions (``motion/procedural.py``): an evaluator that learns nothing, and can be
checked against the generator, whose clips it reads without error (``tests``). Only what a caption names is judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.signal import find_peaks

from fastvq.models.errors import UserError
from fastvq.models.evaluation.body_signals import SHORTEST, BodySignals, measure_body

NAMES = ("action", "direction", "side", "speed")

# Metres per second: procedural walks reach 1.8, runs begin at 2.0.
_RUN_PACE = 1.9
# Metres between the floor and the lower foot, and legs by which the pelvis rises over its first height: 0 and 0.1 at
# most in all that is no jump (of a run the pace tells), 0.15 and 0.2 in the lightest one.
_FLIGHT, _RISE = 0.08, 0.14
# Metres to any side over the clip: below 0.05 on the spot, above 0.45 in the slowest walk aside.
_WALKED = 0.25
# Metres ahead: 0.02 of jumps on the spot, 0.25 of the lightest jump forward.
_LEAPT = 0.13
# Radians: heading changes of 3 degrees without a turn; walks that turn do so by 45 degrees, turns by 90.
_TURNED_WALKING, _TURNED = np.radians(20.0), np.radians(45.0)
# Legs by which the pelvis goes down: 0.12 in the widest step, 0.3 in the shallowest squat.
_DIP = 0.2
# Arms by which a hand moves from its place: 0.45 of one that is not used, 0.59 of one that reaches down.
_USED = 0.5
# One hand's excursion against the other's: 1.0 in a squat, whose arms rise together, above 1.4 in a reach.
_ONE_HANDED = 1.2
# Flexion of the elbow in radians while the hand is out: 0.2 of reaching hands, 1.1 of waving ones.
_BENT = 0.7
# Arms above the shoulder: 0 of hands that reach ahead or aside, 0.85 of those that reach up.
_UP = 0.45

# Limits between slow and normal, and between normal and fast; midway between the procedural ranges.
_PACES = {"forward": (0.92, 1.42), "backward": (0.57, 0.87), "left": (0.27, 0.39), "right": (0.27, 0.39)}
_RUN_PACES = (2.45, 3.2)
_TURN_RATES = (1.0, 1.5)  # radians per second
_JUMP_HEIGHTS = (0.17, 0.29)  # metres
_REACH_SECONDS = {"up": (0.21, 0.34), "forward": (0.23, 0.37), "side": (0.28, 0.46), "down": (0.21, 0.33)}
_WAVE_RATES = (1.2, 1.9)  # per second
_SQUAT_SECONDS = (1.0, 1.37)


@dataclass(frozen=True)
class Attributes:
    """What a caption names, or what a motion shows; None where it does not.

    Attributes:
        action: One of ``procedural.ACTIONS``.
        direction: "forward", "backward", "left", "right", "up", "side" or "down".
        side: "left" or "right": the hand, or the side to which the body turns.
        speed: "slow", "normal" or "fast"; of a jump, its height.
    """

    action: str | None = None
    direction: str | None = None
    side: str | None = None
    speed: str | None = None


# Direction, side and speed.
_Reading = tuple[str | None, str | None, str | None]

_CAPTION = re.compile(
    r"an? (?:\w+ )?person "
    r"(?P<verb>walk|turn|run|jump|reach|wave|squat)(?:e?s)"
    r"(?: (?P<pace>slowly|quickly|lightly|powerfully))?"
    r"(?: sideways to the (?P<aside>left|right)| (?P<where>forward|backward|up|down)| to the (?P<side>side))?"
    r"(?: and turns (?P<turn>left|right)|(?: around)? to the (?P<round>left|right)"
    r"| with the (?P<hand>left|right) hand)?"
    r"(?: twice| three times)?"
)
_SPEEDS = {"slowly": "slow", "lightly": "slow", "quickly": "fast", "powerfully": "fast"}


def asked(caption: str) -> Attributes | None:
    """What a procedural caption asks for; None of another sentence.

    A caption without a word for the pace names no speed.
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()).rstrip("."))
    if match is None:
        return None
    found = match.groupdict()
    return Attributes(
        action=found["verb"],
        direction=found["aside"] or found["where"] or found["side"],
        side=found["turn"] or found["round"] or found["hand"],
        speed=_SPEEDS.get(found["pace"] or ""),
    )


def read_attributes(joints: np.ndarray, fps: float, action: str | None = None) -> Attributes:
    """What a motion shows.

    Args:
        joints: (T, 22, 3) metres, Y up, T >= 4.
        fps: Frames per second.
        action: Take direction, side and speed as they are understood of this action, whether the body shows it or
            not (which way did the hand go, asked of one that should reach); of what it shows if absent.

    Returns:
        The action that the body shows, None of one that does nothing of all that; and its direction, side and speed.
        A side or direction is None where the body did not turn, move or use a hand.

    Raises:
        UserError: Joints that are none, or an action that is none.
    """
    if action is not None and action not in _READERS:
        raise UserError(f"an action is one of {', '.join(_READERS)}, got {action!r}")
    body = measure_body(joints, fps)
    shown = _action(body)
    reader = _READERS.get(action or shown or "")
    direction, side, speed = (None, None, None) if reader is None else reader(body)
    return Attributes(shown, direction, side, speed)


def attribute_accuracy(captions: Sequence[str], motions: Sequence[np.ndarray], fps: float) -> dict[str, Any]:
    """How many motions do what their captions ask.

    Args:
        captions: Procedural ones; others are left out.
        motions: (T_i, 22, 3) joints in metres; one of less than four frames does nothing that was asked.
        fps: Of all motions.

    Returns:
        For action, direction, side and speed the share that is right of those that the captions name, with
        ``<name>_interval``, its 95 % interval, and ``<name>_count`` of them; absent where none names it. ``all``: the
        share of motions in which all that is named is right, with its interval; ``count``: how many motions were
        judged; ``captions``: how many different captions they have.

    Raises:
        UserError: Joints that are none.
    """
    right: dict[str, list[bool]] = {name: [] for name in NAMES}
    whole, judged = [], set()
    for caption, joints in zip(captions, motions, strict=True):
        wanted = asked(caption)
        if wanted is None:
            continue
        shown = Attributes() if len(joints) < SHORTEST else read_attributes(joints, fps, wanted.action)
        agree = {
            name: getattr(shown, name) == getattr(wanted, name) for name in NAMES if getattr(wanted, name) is not None
        }
        for name, hit in agree.items():
            right[name].append(hit)
        whole.append(all(agree.values()))
        judged.add(caption)
    if not whole:
        return {"count": 0, "captions": 0}
    shares: dict[str, Any] = {}
    for name, hits in {**right, "all": whole}.items():
        if hits:
            shares |= {name: float(np.mean(hits)), f"{name}_interval": interval(hits), f"{name}_count": len(hits)}
    shares["count"] = shares.pop("all_count")
    return {**shares, "captions": len(judged)}


def interval(hits: Sequence[bool]) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which has a width where all or none are right too."""
    count, share, z = len(hits), float(np.mean(hits)), 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _action(body: BodySignals) -> str | None:
    if body.pace > _RUN_PACE:
        return "run"
    if _jumps(body):
        return "jump"
    if np.abs(body.travelled).max() > _WALKED:
        return "walk"
    if abs(body.turned) > _TURNED:
        return "turn"
    most, least = sorted(body.excursions.max(axis=0), reverse=True)
    if most > _USED and most > _ONE_HANDED * least:
        return "wave" if body.dip < _DIP and _flexion(body) > _BENT else "reach"
    return "squat" if body.dip > _DIP else None


def _walk(body: BodySignals) -> _Reading:
    direction, turn = _way(body), _side(body.turned, _TURNED_WALKING)
    return direction, turn, None if direction is None else _grade(_steady_pace(body), _PACES[direction])


def _run(body: BodySignals) -> _Reading:
    direction, turn = _way(body), _side(body.turned, _TURNED_WALKING)
    return direction, turn, None if direction is None else _grade(_steady_pace(body), _RUN_PACES)


def _turn(body: BodySignals) -> _Reading:
    side = _side(body.turned, _TURNED)
    return None, side, None if side is None else _grade(_turn_rate(body), _TURN_RATES)


def _jump(body: BodySignals) -> _Reading:
    if not _jumps(body):
        return None, None, None
    ahead = body.travelled[1]
    direction = "forward" if ahead > _LEAPT else "up" if ahead > -_LEAPT else "backward"
    return direction, None, _grade(_jump_height(body), _JUMP_HEIGHTS)


def _reach(body: BodySignals) -> _Reading:
    hand = int(body.excursions.max(axis=0).argmax())
    frame = int(body.excursions[:, hand].argmax())
    if body.excursions[frame, hand] < _USED:
        return None, None, None
    aside, up, ahead = body.hands[frame, hand]
    if body.dip > _DIP:
        direction = "down"
    elif up > _UP:
        direction = "up"
    else:
        direction = "forward" if ahead > aside else "side"
    return (
        direction,
        _hand(hand),
        _grade(_reach_seconds(body, hand), _REACH_SECONDS[direction], longer_is_slower=True),
    )


def _wave(body: BodySignals) -> _Reading:
    hand = int(body.excursions.max(axis=0).argmax())
    if body.excursions[:, hand].max() < _USED:
        return None, None, None
    return None, _hand(hand), _grade(_wave_rate(body, hand), _WAVE_RATES)


def _squat(body: BodySignals) -> _Reading:
    return None, None, _grade(_squat_seconds(body), _SQUAT_SECONDS, longer_is_slower=True)


_READERS: dict[str, Callable[[BodySignals], _Reading]] = {
    "walk": _walk,
    "turn": _turn,
    "run": _run,
    "jump": _jump,
    "reach": _reach,
    "wave": _wave,
    "squat": _squat,
}


def _way(body: BodySignals) -> str | None:
    left, ahead = body.travelled
    if max(abs(left), abs(ahead)) < _WALKED:
        return None
    if abs(ahead) >= abs(left):
        return "forward" if ahead > 0 else "backward"
    return "left" if left > 0 else "right"


def _side(turned: float, least: float) -> str | None:
    return None if abs(turned) < least else "left" if turned > 0 else "right"


def _hand(index: int) -> str:
    return ("left", "right")[index]


def _jumps(body: BodySignals) -> bool:
    return bool(body.flight.max() > _FLIGHT and body.pelvis.max() - body.pelvis[0] > _RISE)


def _grade(value: float, limits: tuple[float, float], *, longer_is_slower: bool = False) -> str | None:
    if not np.isfinite(value):
        return None
    grade = int(np.searchsorted(limits, value))
    return ("slow", "normal", "fast")[2 - grade if longer_is_slower else grade]


def _steady_pace(body: BodySignals) -> float:
    """Metres per second while the body is on its way, its start and stop left out."""
    speed = np.linalg.norm(body.velocity, axis=-1)
    return float(np.median(speed[speed > 0.7 * speed.max()]))


def _flexion(body: BodySignals) -> float:
    """Of the elbow of the hand that moves most, while it is out; its middle, as a waving elbow swings."""
    hand = int(body.excursions.max(axis=0).argmax())
    away = body.excursions[:, hand]
    return float(np.median(body.elbows[away > 0.8 * away.max(), hand]))


def _turn_rate(body: BodySignals) -> float:
    """Mean radians per second of a turn by the minimum-jerk curve, which has 80 % of it in 0.506 of its time."""
    done = np.abs(body.heading - body.heading[0])
    first, last = (_crossing(done, part * done[-1]) for part in (0.1, 0.9))
    return float(done[-1] * 0.506 / max((last - first) / body.fps, 1e-3))


def _jump_height(body: BodySignals) -> float:
    """Metres by which the pelvis rises over standing on tiptoe, which is 0.05 of a leg higher than standing."""
    return float((body.pelvis.max() - body.pelvis[0] - 0.05) * body.leg)


def _reach_seconds(body: BodySignals, hand: int) -> float:
    """Seconds that the hand takes from a fifth to four fifths of its way there."""
    away = body.excursions[:, hand]
    way = away[: int(away.argmax()) + 1]
    first, last = (_crossing(way, part * away.max()) for part in (0.2, 0.8))
    return float((last - first) / body.fps)


def _crossing(rising: np.ndarray, level: float) -> float:
    """The frame, with its fraction, at which a curve passes a level for the last time on its way up."""
    below = np.flatnonzero(rising < level)
    if not len(below) or below[-1] + 1 == len(rising):
        return 0.0
    before = int(below[-1])
    return before + float((level - rising[before]) / (rising[before + 1] - rising[before]))


def _wave_rate(body: BodySignals, hand: int) -> float:
    """Beats per second of the elbow while the hand is up; NaN of a clip too short to tell."""
    away = body.excursions[:, hand]
    beat = body.elbows[away > 0.7 * away.max(), hand]
    if len(beat) < max(4, body.fps / 2):
        return float("nan")
    beat = beat - np.polyval(np.polyfit(np.arange(len(beat)), beat, 2), np.arange(len(beat)))
    size = 16 * len(beat)
    power = np.abs(np.fft.rfft(beat * np.hanning(len(beat)), size))
    rate = np.fft.rfftfreq(size, 1.0 / body.fps)
    heard = (rate > 0.5) & (rate < 4.0)
    return float(rate[heard][power[heard].argmax()])


def _squat_seconds(body: BodySignals) -> float:
    """Seconds for which the pelvis is below half the depth of a squat."""
    depth = np.quantile(body.pelvis, 0.95) - body.pelvis
    if depth.max() < _DIP:
        return float("nan")
    padded = np.concatenate([[0.0], depth, [0.0]])
    count = max(len(find_peaks(padded, height=0.7 * depth.max(), prominence=0.5 * depth.max())[0]), 1)
    return float((depth > 0.5 * depth.max()).sum() / body.fps / count)
