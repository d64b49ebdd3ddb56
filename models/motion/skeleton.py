"""The 22 body joints of SMPL: names, tree, rest directions, mirror pairs, and forward kinematics.

Axes: +x is the body's left, +y is up, +z is where it faces. Lengths are metres.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

JOINT_NAMES: tuple[str, ...] = (
    "pelvis",
    "left_hip",
    "right_hip",
    "spine1",
    "left_knee",
    "right_knee",
    "spine2",
    "left_ankle",
    "right_ankle",
    "spine3",
    "left_foot",
    "right_foot",
    "neck",
    "left_collar",
    "right_collar",
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
)
NUM_JOINTS = len(JOINT_NAMES)

# Parent of every joint; parents come before children, so one pass in index order walks the tree.
PARENTS: tuple[int, ...] = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)

# Right leg, left leg, spine to head, right arm, left arm: the order that HumanML3D's features assume.
CHAINS: tuple[tuple[int, ...], ...] = (
    (0, 2, 5, 8, 11),
    (0, 1, 4, 7, 10),
    (0, 3, 6, 9, 12, 15),
    (9, 14, 17, 19, 21),
    (9, 13, 16, 18, 20),
)

MIRROR_PAIRS: tuple[tuple[int, int], ...] = (
    (1, 2),
    (4, 5),
    (7, 8),
    (10, 11),
    (13, 14),
    (16, 17),
    (18, 19),
    (20, 21),
)

# (ankle, ball of the foot), left then right.
FEET: tuple[tuple[int, int], tuple[int, int]] = ((7, 10), (8, 11))


def _mirror_order() -> tuple[int, ...]:
    order = list(range(NUM_JOINTS))
    for left, right in MIRROR_PAIRS:
        order[left], order[right] = right, left
    return tuple(order)


# joints[MIRROR_ORDER] swaps left and right.
MIRROR_ORDER: tuple[int, ...] = _mirror_order()


def _children() -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(child for child, parent in enumerate(PARENTS) if parent == joint) for joint in range(NUM_JOINTS)
    )


CHILDREN: tuple[tuple[int, ...], ...] = _children()


def _directions(rows: Mapping[int, tuple[float, float, float]]) -> np.ndarray:
    table = np.zeros((NUM_JOINTS, 3))
    for joint, row in rows.items():
        table[joint] = np.asarray(row) / np.linalg.norm(row)
    table.setflags(write=False)
    return table


# (22, 3) unit direction of the bone that ends at a joint in HumanML3D's reference pose (arms hang); the
# pelvis has none. That data set's 263 features are defined by it.
RAW_DIRECTIONS: np.ndarray = _directions(
    {1: (1, 0, 0), 2: (-1, 0, 0), 13: (1, 0, 0), 14: (-1, 0, 0)}
    | dict.fromkeys((3, 6, 9, 12), (0, 1, 0))
    | dict.fromkeys((4, 5, 7, 8, 16, 17, 18, 19, 20, 21), (0, -1, 0))
    | dict.fromkeys((10, 11, 15), (0, 0, 1))
)

# (22, 3) the same for SMPL's rest pose, in which the arms are stretched sideways. Rotations of the 272
# features are relative to it. Rounded, and exactly mirror-symmetric, so that a mirrored motion has
# mirrored rotations.
REST_DIRECTIONS: np.ndarray = _directions(
    {
        1: (0.6, -0.8, 0.0),
        2: (-0.6, -0.8, 0.0),
        10: (0.0, -0.45, 0.9),
        11: (0.0, -0.45, 0.9),
        13: (0.6, 0.8, 0.0),
        14: (-0.6, 0.8, 0.0),
        15: (0.0, 0.9, 0.3),
    }
    | dict.fromkeys((3, 6, 9, 12), (0, 1, 0))
    | dict.fromkeys((4, 5, 7, 8), (0, -1, 0))
    | dict.fromkeys((16, 18, 20), (1, 0, 0))
    | dict.fromkeys((17, 19, 21), (-1, 0, 0))
)


def bone_vectors(joints: np.ndarray) -> np.ndarray:
    """Vectors from every joint's parent to the joint, in metres.

    Args:
        joints: (..., 22, 3) positions.

    Returns:
        (..., 22, 3); the pelvis, which has no parent, has zeros.
    """
    vectors = np.zeros_like(joints)
    vectors[..., 1:, :] = joints[..., 1:, :] - joints[..., list(PARENTS[1:]), :]
    return vectors


def bone_lengths(joints: np.ndarray) -> np.ndarray:
    """(..., 22) length in metres of the bone that ends at every joint; 0 for the pelvis."""
    return np.linalg.norm(bone_vectors(joints), axis=-1)


def global_rotations(rotations: np.ndarray) -> np.ndarray:
    """Rotations relative to the world from local ones.

    Args:
        rotations: (..., 22, 3, 3), each relative to its parent's; the pelvis' is global already.

    Returns:
        (..., 22, 3, 3), same dtype.
    """
    out = np.empty_like(rotations)
    out[..., 0, :, :] = rotations[..., 0, :, :]
    for joint in range(1, NUM_JOINTS):
        out[..., joint, :, :] = out[..., PARENTS[joint], :, :] @ rotations[..., joint, :, :]
    return out


def forward_kinematics(offsets: np.ndarray, rotations: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Joint positions of a posed body: a joint's rotation turns every bone that leaves it (SMPL's rule).

    Args:
        offsets: (22, 3) metres, vector from a joint's parent to the joint in the rest pose.
        rotations: (..., 22, 3, 3) local rotations; the pelvis' is global.
        root: (..., 3) metres, position of the pelvis.

    Returns:
        (..., 22, 3) global positions in metres.
    """
    turned = global_rotations(rotations)
    joints = np.empty((*rotations.shape[:-3], NUM_JOINTS, 3), dtype=np.result_type(offsets, rotations, root))
    joints[..., 0, :] = root
    for joint in range(1, NUM_JOINTS):
        parent = PARENTS[joint]
        joints[..., joint, :] = joints[..., parent, :] + turned[..., parent, :, :] @ offsets[joint]
    return joints
