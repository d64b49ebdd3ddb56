"""From a motion in a file's own skeleton, units and axes to SMPL-22 joints in metres, Y up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.mapping import MappingReport, map_skeleton
from fastvq.models.motion.skeleton import JOINT_NAMES
from fastvq.models.motion.source import SourceMotion

UpAxis = Literal["y", "z"]

# Metres per unit: metres, the unit of CMU's files (an inch over 0.45), inches, centimetres, millimetres.
_UNITS: dict[str, float] = {"metres": 1.0, "CMU units": 0.0254 / 0.45, "inches": 0.0254, "cm": 0.01, "mm": 0.001}
# Ankle to hip plus pelvis to head joint, in metres. It is some 0.8 of the stature: 1.9 m is a giant of 2.4 m.
_LONGEST_BODY = 1.9
_SHORTEST_BODY = 0.6

_LEGS = ((1, 4, 7), (2, 5, 8))
_TRUNK = (0, 3, 6, 9, 12, 15)


@dataclass(frozen=True)
class Placed:
    """A motion as SMPL-22 joints.

    Attributes:
        joints: (T, 22, 3) float32, metres, Y up. Where the body stands and faces is as in the file.
        fps: Frames per second, as in the file.
        report: How the skeleton was mapped.
        notes: What was guessed and may be wrong; empty where nothing was.
    """

    joints: np.ndarray
    fps: float
    report: MappingReport
    notes: list[str] = field(default_factory=list)


@np.errstate(over="ignore", invalid="ignore")  # absurd sizes end as infinity, which is refused
def place(
    motion: SourceMotion,
    *,
    overrides: Mapping[str, str] | None = None,
    scale: float | None = None,
    up_axis: UpAxis | None = None,
    where: str = "the motion",
) -> Placed:
    """Maps a motion onto SMPL-22, in metres, Y up.

    Args:
        motion: The source.
        overrides: {SMPL name: source name} (``mapping.read_mapping_file``).
        scale: Metres per file unit. None takes the file's own statement, or guesses from the body's size
            (``guess_scale``).
        up_axis: The file's vertical axis. None guesses (``guess_up_axis``).
        where: What to call the source in messages.

    Raises:
        UserError: The skeleton cannot be mapped, a position is not finite, or an argument is out of range.
    """
    if up_axis not in (None, "y", "z"):
        raise UserError(f"up axis must be 'y' or 'z', got {up_axis!r}")
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise UserError(f"scale must be a positive number of metres per unit, got {scale}")
    check_finite(motion.positions, where)
    samples = np.unique(np.linspace(0, len(motion.positions) - 1, 8).astype(int))
    mapping = map_skeleton(motion.skeleton, overrides=overrides, poses=motion.positions[samples], where=where)
    joints = mapping.apply(motion.positions)
    notes = []
    if up_axis is None:
        up_axis = guess_up_axis(joints, mapping.apply(motion.skeleton.rest_positions()))
        if up_axis != "y":
            notes.append(f"{where}: taken as {up_axis.upper()} up, as the body stands along it")
    if up_axis == "z":
        joints = np.stack([joints[..., 0], joints[..., 2], -joints[..., 1]], axis=-1)
    if scale is None:
        scale = motion.unit
        if scale is None or not _plausible(scale * body_length(joints)):
            scale, unit = guess_scale(joints)
            length = scale * body_length(joints)
            if not _plausible(length):
                notes.append(
                    f"{where}: ankles to head measure {length:.2f} m if the unit is {unit}, which is no grown body: "
                    "give the scale in metres per unit"
                )
    placed = (joints * scale).astype(np.float32)
    check_finite(placed, where)
    return Placed(placed, motion.fps, mapping.report, notes)


@np.errstate(over="ignore", invalid="ignore")
def body_length(joints: np.ndarray) -> float:
    """Length of the legs (hip to ankle, mean of both) and the trunk (pelvis to head), median over frames.

    It does not depend on the pose. Of a grown body it is some 0.8 of the stature.

    Args:
        joints: (T, 22, 3), any unit.
    """

    def path(chain: tuple[int, ...]) -> np.ndarray:
        return np.linalg.norm(np.diff(joints[:, list(chain)], axis=1), axis=-1).sum(axis=-1)

    return float(np.median((path(_LEGS[0]) + path(_LEGS[1])) / 2 + path(_TRUNK)))


def guess_scale(joints: np.ndarray) -> tuple[float, str]:
    """Metres per unit, and the unit's name, from the size of the body.

    Of metres, CMU's unit (0.0564 m), inches, centimetres and millimetres the largest is taken in which
    the body (``body_length``) is no longer than 1.9 m, the length of a giant of about 2.4 m. The others
    would make it a dwarf: CMU's unit is 2.2 inches, an inch 2.5 cm.

    Args:
        joints: (T, 22, 3) in the file's unit.
    """
    length = body_length(joints)
    for unit, scale in _UNITS.items():
        if length * scale <= _LONGEST_BODY:
            return scale, unit
    return _UNITS["mm"], "mm"


def guess_up_axis(joints: np.ndarray, rest: np.ndarray) -> UpAxis:
    """``"z"`` where the body stands along z both in its rest pose and, on the whole, in motion; else ``"y"``.

    Both are asked because either alone misleads: people lie down, and some rest poses lie along another
    axis than the motion.

    Args:
        joints: (T, 22, 3).
        rest: (22, 3), the rest pose.
    """

    def upward(points: np.ndarray) -> np.ndarray:
        head, ankles = JOINT_NAMES.index("head"), [JOINT_NAMES.index(f"{side}_ankle") for side in ("left", "right")]
        return points[..., head, :] - points[..., ankles, :].mean(axis=-2)

    axes = [upward(rest), np.median(upward(joints), axis=0)]
    return "z" if all(axis[2] > 0 and int(np.argmax(np.abs(axis))) == 2 for axis in axes) else "y"


def check_finite(values: np.ndarray, where: str) -> None:
    """Raises ``UserError`` naming the first frame (counted from 0) of (T, ...) that holds NaN or infinity."""
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise UserError(
            f"{where}: {int(bad.sum())} of {len(bad)} frames hold NaN or infinity, first frame {int(bad.argmax())}: "
            "cut them out or export again"
        )


def _plausible(length: float) -> bool:
    return _SHORTEST_BODY <= length <= _LONGEST_BODY
