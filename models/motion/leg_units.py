"""Metres per unit of HumanML3D and KIT-ML files, which do not say theirs: told by the length of the leg."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastvq.models.errors import UserError
from fastvq.models.motion.layout263 import KIT_UNIT, Layout

# (shortest and longest leg in the file's unit, metres per unit, name). A leg, from hip over knee to ankle, is
# some 0.45 of the stature: 0.5 m of a child of 1.1 m, 1.2 m of a giant. KIT-ML's model lies between the
# centimetres of a giant and the millimetres of a child.
_UNITS: tuple[tuple[float, float, float, str], ...] = (
    (0.5, 1.2, 1.0, "metres"),
    (50.0, 120.0, 0.01, "centimetres"),
    (350.0, 600.0, KIT_UNIT, "millimetres of KIT-ML's model"),
    (600.0, 1200.0, 0.001, "millimetres"),
)
# Micrometres to kilometres: what lies beyond is a slip, and its products leave the range of float32.
_SMALLEST_UNIT, _LARGEST_UNIT = 1e-6, 1e3
_SCALED = ("root_velocity", "root_height", "joint_position", "joint_velocity")


def leg_length(joints: np.ndarray, layout: Layout) -> float:
    """Thigh and shank of one leg together, median over the frames.

    Args:
        joints: (T, J, 3), any unit.
        layout: The skeleton.
    """
    knee, ankle = layout.leg
    hip = layout.parents[knee]
    path = np.linalg.norm(np.diff(joints[:, [hip, knee, ankle]].astype(np.float64), axis=1), axis=-1)
    return float(np.median(path.sum(axis=1)))


def metres_per_unit(legs: Sequence[float], layout: Layout, *, scale: float | None = None) -> tuple[float, str]:
    """The unit of a data set.

    Args:
        legs: Leg of every clip (``leg_length``), in the file's unit; their median counts.
        layout: Whose files they are.
        scale: Metres per unit where the user says so; None tells it from the legs.

    Returns:
        Metres per unit, and a sentence on what was found, empty where the files are in metres.

    Raises:
        UserError: The legs fit no unit, or the scale is not between 1e-6 and 1000.
    """
    if scale is not None:
        if not _SMALLEST_UNIT <= scale <= _LARGEST_UNIT:
            raise UserError(
                f"scale must be a positive number of metres per unit, {_SMALLEST_UNIT:g} to {_LARGEST_UNIT:g}, got "
                f"{scale:g}: give 0.01 for files in centimetres, 0.001 for millimetres"
            )
        return scale, ""
    leg = float(np.median(legs))
    for shortest, longest, unit, name in _UNITS:
        if shortest <= leg < longest:
            if unit == 1.0:
                return unit, ""
            return unit, (
                f"{layout.name}: the leg measures {leg:.4g} units, taken as {name} ({unit:.6g} m) and converted to "
                f"{leg * unit:.2f} m"
            )
    raise UserError(
        f"{layout.name}: the leg (hip to knee to ankle) measures {leg:.4g} units, which is no leg in metres, "
        "centimetres, millimetres or the unit of KIT-ML's model: give the scale (--scale) in metres per unit"
    )


def scale_features(features: np.ndarray, scale: float, layout: Layout) -> np.ndarray:
    """Features (or their mean, or their standard deviation) in another unit of length.

    Turns, rotations and contacts stay: what counted as standing when the file was written still does.

    Args:
        features: (..., 12 J - 1) array or nested lists.
        scale: New units per old unit.
        layout: What they are.

    Returns:
        A new array of the same dtype, float32 for integers.
    """
    out = np.array(features)
    if out.dtype.kind != "f":
        out = out.astype(np.float32)
    for name in _SCALED:
        out[..., layout.slices[name]] *= scale
    return out
