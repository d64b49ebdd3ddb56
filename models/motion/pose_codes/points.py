"""The 27 points that pose codes speak of: SMPL's 22 joints and five that are built from them.

SMPL's arms end at the wrist. A knuckle lies 13.67 cm beyond it, where the forearm points, and the hand halfway
between; the torso is the middle of pelvis, chest (spine3) and neck.

Source: CoMo (Huang et al., ECCV 2024), after PoseScript (Delmas et al., ECCV 2022).
"""

from __future__ import annotations

import numpy as np

from fastvq.models.motion.skeleton import JOINT_NAMES, NUM_JOINTS

POINT_NAMES: tuple[str, ...] = (
    *JOINT_NAMES,
    "left_knuckle",
    "right_knuckle",
    "left_hand",
    "right_hand",
    "torso",
)
NUM_POINTS = len(POINT_NAMES)
POINT: dict[str, int] = {name: index for index, name in enumerate(POINT_NAMES)}

# Metres from the wrist to the knuckle.
REACH = 0.1367


def build_points(joints: np.ndarray) -> np.ndarray:
    """The 27 points, coordinates first: that is the order in which whole clips are measured fastest.

    Args:
        joints: (frames, 22, 3) metres.

    Returns:
        (3, 27, frames) float64. The hand of a forearm without length lies at its wrist.
    """
    points = np.empty((3, NUM_POINTS, len(joints)))
    points[:, :NUM_JOINTS] = joints.transpose(2, 1, 0)
    for side in ("left", "right"):
        wrist = points[:, POINT[f"{side}_wrist"]]
        knuckle = points[:, POINT[f"{side}_knuckle"]]
        forearm = wrist - points[:, POINT[f"{side}_elbow"]]
        np.add(wrist, REACH * forearm * inverse_length(forearm), out=knuckle)
        points[:, POINT[f"{side}_hand"]] = (wrist + knuckle) / 2
    points[:, POINT["torso"]] = (
        points[:, POINT["pelvis"]] + points[:, POINT["neck"]] + points[:, POINT["spine3"]]
    ) / 3
    return points


def length(vectors: np.ndarray) -> np.ndarray:
    """(3, ...) vectors -> (...) lengths."""
    x, y, z = vectors
    return np.sqrt(x * x + y * y + z * z)


def inverse_length(vectors: np.ndarray) -> np.ndarray:
    """(3, ...) vectors -> (...) 1 / length, and 0 for a vector without length, whose direction then is zero."""
    size = length(vectors)
    return np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
