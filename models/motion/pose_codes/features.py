"""Pose codes from rows of features: each row holds a whole pose, as seen from its own heading."""

from __future__ import annotations

import numpy as np

from fastvq.models.motion.feature_formats import FeatureFormat, format_of
from fastvq.models.motion.kit_skeleton import KIT_NUM_JOINTS
from fastvq.models.motion.kit_to_smpl import kit_to_smpl, toes_side
from fastvq.models.motion.pose_codes.codes import PoseCodes
from fastvq.models.motion.pose_codes.parser import PoseParser


def parse_features(features: np.ndarray, *, exchanged: bool = False) -> PoseCodes:
    """The codes of rows of features; they need be no clip, as pose codes know neither place nor heading.

    Args:
        features: (frames, C), not normalised: 272, HumanML3D's 263 or KIT-ML's 251.
        exchanged: of KIT-ML, whether the joints named left are the body's right ones (``sides_exchanged``).

    Raises:
        UserError: a width that no format has, or as ``PoseParser.parse``.
    """
    joints = _poses(features, format_of(features.shape[-1]))
    if joints.shape[1] == KIT_NUM_JOINTS:
        joints = kit_to_smpl(joints, exchanged=exchanged)
    return PoseParser().parse(joints)


def sides_exchanged(features: np.ndarray) -> bool:
    """Whether the joints that KIT-ML names left are the body's right ones, told by where its toes point.

    Args:
        features: (frames, C), not normalised; the mean row of a data set says it most surely. Of other formats than
            KIT-ML's the sides are known.
    """
    joints = _poses(features, format_of(features.shape[-1]))
    return joints.shape[1] == KIT_NUM_JOINTS and toes_side(joints) < 0


def _poses(features: np.ndarray, form: FeatureFormat) -> np.ndarray:
    """(frames, C) -> (frames, J, 3) metres, each frame above the origin and seen from its heading."""
    joints = features[:, form.slices["joint_position"]].reshape(len(features), -1, 3)
    if "root_height" not in form.slices:
        return joints
    root = np.zeros((len(features), 1, 3), dtype=features.dtype)
    root[:, 0, 1] = features[:, form.slices["root_height"]][:, 0]
    return np.concatenate([root, joints], axis=1)
