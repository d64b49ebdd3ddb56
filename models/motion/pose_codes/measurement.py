"""The 70 numbers that pose codes are read from: angles, distances and differences of a body's points.

What lies left, right, in front or behind is told as the body itself would: every frame is turned by the yaw of its
pelvis, so that it faces +z, before x and z are compared. The yaw is the one of the 272 features: that of the
rotation about +y nearest to the pelvis', smooth while lying and rolling. Leaning and lying stay as they are; "above"
always means further from the floor. Angles, distances, heights and slopes do not depend on the heading.
"""

from __future__ import annotations

import numpy as np

from fastvq.models.motion.pose_codes.categories import (
    ANGLE,
    CATEGORIES,
    DEPTH,
    DISTANCE,
    GROUND,
    HEIGHT,
    NUM_CATEGORIES,
    SIDEWAYS,
    SLOPE,
    Kind,
)
from fastvq.models.motion.pose_codes.points import POINT, build_points, inverse_length, length

# Frames that are measured together: enough to make numpy's calls cheap, few enough for a core's cache.
BLOCK = 2048


def _rows(kind: Kind) -> slice:
    """The rows of a kind's categories, which follow each other."""
    indices = [category.index for category in CATEGORIES if category.kind is kind]
    return slice(indices[0], indices[-1] + 1)


def _indices(kind: Kind, place: int) -> np.ndarray:
    """The ``place``-th point of every category of a kind."""
    return np.array([POINT[category.points[place]] for category in CATEGORIES[_rows(kind)]])


ROWS: dict[str, slice] = {
    kind.name: _rows(kind) for kind in (ANGLE, DISTANCE, SIDEWAYS, HEIGHT, DEPTH, SLOPE, GROUND)
}
_FIRST, _MIDDLE, _LAST = (_indices(ANGLE, place) for place in range(3))
_PAIRS = {kind.name: (_indices(kind, 0), _indices(kind, 1)) for kind in (DISTANCE, SIDEWAYS, HEIGHT, DEPTH, SLOPE)}
_GROUND = _indices(GROUND, 0)


def measure(joints: np.ndarray, *, como_compat: bool = False) -> np.ndarray:
    """What the 70 categories measure, before it is cut into bins.

    Args:
        joints: (frames, 22, 3) finite positions in metres, Y up.
        como_compat: As ``PoseParser``'s.

    Returns:
        (frames, 70) float64, degrees or metres as the category's kind says. A line without length has no
        direction: an angle at its end reads 90 degrees and its own slope 45, which is neither vertical nor
        horizontal.
    """
    values = np.empty((len(joints), NUM_CATEGORIES))
    for start in range(0, len(joints), BLOCK):
        values[start : start + BLOCK] = measure_block(joints[start : start + BLOCK], como_compat=como_compat).T
    return values


@np.errstate(over="ignore", invalid="ignore")  # a lost joint far away has finite codes, if no meaning
def measure_block(joints: np.ndarray, *, como_compat: bool) -> np.ndarray:
    """``measure`` for few frames at once, categories first: (frames, 22, 3) -> (70, frames)."""
    points = build_points(joints)
    out = np.empty((NUM_CATEGORIES, len(joints)))

    middle = points[:, _MIDDLE]
    out[ROWS["angle"]] = _angle(points[:, _FIRST] - middle, points[:, _LAST] - middle)
    out[ROWS["distance"]] = length(_difference(points, "distance"))

    cosine, sine = (-1.0, 0.0) if como_compat else _facing(points)
    x, _, z = _difference(points, "sideways")
    out[ROWS["sideways"]] = cosine * x - sine * z
    x, _, z = _difference(points, "depth")
    out[ROWS["depth"]] = sine * x + cosine * z
    out[ROWS["height"]] = _difference(points[1:2], "height")[0]

    line = _difference(points, "slope")
    size = length(line)
    upright = np.divide(np.abs(line[1]), size, out=np.full_like(size, np.sqrt(0.5)), where=size > 0)
    out[ROWS["slope"]] = np.degrees(np.arccos(np.minimum(upright, 1.0)))
    out[ROWS["ground"]] = points[1, _GROUND] - points[1].min(axis=0)
    return out


def _difference(points: np.ndarray, kind: str) -> np.ndarray:
    """First point minus second of a kind's categories, (coordinates, categories, frames)."""
    first, second = _PAIRS[kind]
    return points[:, first] - points[:, second]


def _angle(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Degrees between (3, ...) vectors; rounding may carry a cosine past 1, where acos has no value."""
    cosine = (one[0] * other[0] + one[1] * other[1] + one[2] * other[2]) * (
        inverse_length(one) * inverse_length(other)
    )
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def _facing(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(frames,) cosine and sine of the pelvis' yaw.

    The pelvis' axes are the line through the hips, the spine as far as that allows, and their cross product, the
    front; left x + front z and front x - left z are the cosine and sine of the nearest yaw, times a common factor.
    No angle is computed, so that mirrored joints give the mirrored yaw to the last bit.
    """
    hips = points[:, POINT["left_hip"]], points[:, POINT["right_hip"]]
    left = hips[0] - hips[1]
    left = left * inverse_length(left)
    up = points[:, POINT["spine1"]] - (hips[0] + hips[1]) / 2
    up = up - left * (left[0] * up[0] + left[1] * up[1] + left[2] * up[2])
    up = up * inverse_length(up)
    front_x = left[1] * up[2] - left[2] * up[1]
    front_z = left[0] * up[1] - left[1] * up[0]
    cosine, sine = left[0] + front_z, front_x - left[2]
    size = np.sqrt(cosine * cosine + sine * sine)
    # Exactly head down, and with the hips in one point, there is no nearest yaw, and the frame stays as it is.
    known = size > 0
    return (
        np.divide(cosine, size, out=np.ones_like(size), where=known),
        np.divide(sine, size, out=np.zeros_like(size), where=known),
    )
