"""The 21 joints of KIT-ML: tree, chains, directions of the reference pose, mirror pairs.

The joints are those of the Master Motor Map (MMM) model. Its own names call 5 to 7 and 11 to 15 the left
side; the 251 features, which took the joints from another conversion, call the same ones the right side.
Names here follow the features; which side a file really shows is told from where the toes point
(``kit_to_smpl``).
"""

from __future__ import annotations

import numpy as np

KIT_JOINT_NAMES: tuple[str, ...] = (
    "root",
    "spine1",
    "spine2",
    "neck",
    "head",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "right_midfoot",
    "right_foot",
    "left_hip",
    "left_knee",
    "left_ankle",
    "left_midfoot",
    "left_foot",
)
KIT_NUM_JOINTS = len(KIT_JOINT_NAMES)

# The order that KIT-ML's features assume.
KIT_CHAINS: tuple[tuple[int, ...], ...] = (
    (0, 11, 12, 13, 14, 15),
    (0, 16, 17, 18, 19, 20),
    (0, 1, 2, 3, 4),
    (3, 5, 6, 7),
    (3, 8, 9, 10),
)

# joints[KIT_MIRROR_ORDER] swaps left and right.
KIT_MIRROR_ORDER: tuple[int, ...] = (0, 1, 2, 3, 4, 8, 9, 10, 5, 6, 7, 16, 17, 18, 19, 20, 11, 12, 13, 14, 15)


def _directions() -> np.ndarray:
    table = np.zeros((KIT_NUM_JOINTS, 3))
    table[[1, 2, 3, 4], 1] = 1
    table[[6, 7, 9, 10, 12, 13, 17, 18], 1] = -1
    table[[5, 11], 0] = 1
    table[[8, 16], 0] = -1
    table[[14, 15, 19, 20], 2] = 1
    table.setflags(write=False)
    return table


# (21, 3) unit direction of the bone that ends at a joint in KIT-ML's reference pose; the root has none.
KIT_RAW_DIRECTIONS: np.ndarray = _directions()
