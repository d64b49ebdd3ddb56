"""KIT-ML's joints as SMPL's, whichever side the file calls left."""

import numpy as np
import pytest

from fastvq.models.motion.kit_skeleton import KIT_JOINT_NAMES, KIT_MIRROR_ORDER
from fastvq.models.motion.kit_to_smpl import kit_to_smpl, toes_side
from fastvq.models.motion.rotation import yaw_matrix
from fastvq.models.motion.skeleton import JOINT_NAMES


def standing() -> np.ndarray:
    """(1, 21, 3) a body that faces +z, its left at +x."""
    height = {"root": 0.95, "spine1": 1.0, "spine2": 1.2, "neck": 1.45, "head": 1.65, "shoulder": 1.4, "elbow": 1.1}
    height |= {"wrist": 0.85, "hip": 0.9, "knee": 0.5, "ankle": 0.1, "midfoot": 0.05, "foot": 0.02}
    width = {"shoulder": 0.2, "elbow": 0.25, "wrist": 0.25, "hip": 0.1, "knee": 0.1, "ankle": 0.1}
    width |= {"midfoot": 0.1, "foot": 0.1}
    depth = {"midfoot": 0.05, "foot": 0.15}
    joints = np.zeros((1, 21, 3))
    for index, name in enumerate(KIT_JOINT_NAMES):
        side, _, part = name.rpartition("_")
        sign = {"left": 1, "right": -1, "": 0}[side]
        joints[0, index] = [sign * width.get(part, 0.0), height[part], depth.get(part, 0.0)]
    return joints


@pytest.mark.parametrize("yaw", [0.0, 1.0, 3.0, -2.0])
def test_toes_tell_the_side(yaw: float):
    joints = standing() @ yaw_matrix(yaw).T
    assert toes_side(joints) > 0
    assert toes_side(joints[:, list(KIT_MIRROR_ORDER)]) < 0


def test_joints_go_where_they_belong():
    joints = standing()
    smpl = kit_to_smpl(joints)
    at = JOINT_NAMES.index
    np.testing.assert_allclose(smpl[0, at("pelvis")], [0, 0.95, 0])
    np.testing.assert_allclose(smpl[0, at("left_ankle")], [0.1, 0.1, 0])
    np.testing.assert_allclose(smpl[0, at("right_foot")], [-0.1, 0.02, 0.15])
    np.testing.assert_allclose(smpl[0, at("left_wrist")], [0.25, 0.85, 0])
    np.testing.assert_allclose(smpl[0, at("spine2")], [0, 1.1, 0])
    np.testing.assert_allclose(smpl[0, at("left_collar")], [0.08, 1.28, 0])
    np.testing.assert_allclose(smpl[0, at("head")], [0, 1.65, 0])
    exchanged = kit_to_smpl(joints[:, list(KIT_MIRROR_ORDER)], exchanged=True)
    np.testing.assert_array_equal(exchanged, smpl)
