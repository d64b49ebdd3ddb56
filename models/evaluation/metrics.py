"""Distances between motions as joints."""

from __future__ import annotations

import numpy as np

MILLIMETRES = 1000.0


def centred(joints: np.ndarray) -> np.ndarray:
    """(T, J, 3) joints relative to the pelvis of their frame, float64."""
    joints = np.asarray(joints, dtype=np.float64)
    return joints - joints[:, :1]


def joint_errors(joints: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Distance of each joint from its target after both pelvises are moved together: (T, J) millimetres.

    Their mean is the MPJPE of the motion literature (T2M-GPT and its successors; the pelvis counts, with 0).

    Args:
        joints, target: (T, J, 3) metres.
    """
    return MILLIMETRES * np.linalg.norm(centred(joints) - centred(target), axis=-1)


def acceleration_errors(joints: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How far the second differences of joints relative to the pelvis are apart: (T - 2, J) millimetres per frame^2.

    Args:
        joints, target: (T, J, 3) metres.
    """
    difference = centred(joints) - centred(target)
    return MILLIMETRES * np.linalg.norm(np.diff(difference, n=2, axis=0), axis=-1)
