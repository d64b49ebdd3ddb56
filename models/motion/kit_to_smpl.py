"""KIT-ML's 21 joints as SMPL's 22."""

from __future__ import annotations

import numpy as np

from fastvq.models.motion.kit_skeleton import KIT_JOINT_NAMES, KIT_MIRROR_ORDER
from fastvq.models.motion.skeleton import JOINT_NAMES, NUM_JOINTS

# Where a SMPL joint is no joint of KIT-ML: (first, second, weight of the second). The arms begin at the neck
# there, so collars lie between chest and shoulder as for any skeleton without them (``mapping``).
_BETWEEN: dict[str, tuple[str, str, float]] = {
    "spine2": ("spine1", "spine3", 0.5),
    "left_collar": ("spine3", "left_shoulder", 0.4),
    "right_collar": ("spine3", "right_shoulder", 0.4),
}
_RENAMED = {"pelvis": "root", "spine3": "spine2"}


def toes_side(joints: np.ndarray) -> float:
    """Whether the joints named left lie on the left of a body that looks where its toes point.

    Args:
        joints: (T, 21, 3), any unit, Y up.

    Returns:
        Positive where they do, negative where the sides are exchanged; about 0 where feet say nothing. The
        sum over a data set's clips is surer than that of one.
    """
    at = KIT_JOINT_NAMES.index
    toes = joints[:, at("left_foot")] - joints[:, at("left_ankle")]
    toes = toes + joints[:, at("right_foot")] - joints[:, at("right_ankle")]
    across = joints[:, at("left_hip")] - joints[:, at("right_hip")]
    # Left is up x forward.
    return float(np.sum(across[:, 0] * toes[:, 2] - across[:, 2] * toes[:, 0]))


def kit_to_smpl(joints: np.ndarray, *, exchanged: bool = False) -> np.ndarray:
    """The 22 joints of SMPL from those of KIT-ML.

    Args:
        joints: (T, 21, 3), Y up.
        exchanged: Whether the joints named left are the body's right ones (``toes_side``).

    Returns:
        (T, 22, 3) of the same unit and dtype. Ankles are KIT's ankles and feet its outermost joints; the
        joint between them is left out. Collars and the middle spine joint are interpolated.
    """
    if exchanged:
        joints = joints[:, list(KIT_MIRROR_ORDER)]
    out = np.empty((len(joints), NUM_JOINTS, 3), dtype=joints.dtype)
    for index, name in enumerate(JOINT_NAMES):
        if name not in _BETWEEN:
            out[:, index] = joints[:, KIT_JOINT_NAMES.index(_RENAMED.get(name, name))]
    for name, (first, second, weight) in _BETWEEN.items():
        near, far = out[:, JOINT_NAMES.index(first)], out[:, JOINT_NAMES.index(second)]
        out[:, JOINT_NAMES.index(name)] = near + weight * (far - near)
    return out
