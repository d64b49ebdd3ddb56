"""From joint positions to pose codes."""

from __future__ import annotations

import numpy as np

from fastvq.models.errors import UserError
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
    STARTS,
)
from fastvq.models.motion.pose_codes.codes import PoseCodes
from fastvq.models.motion.pose_codes.measurement import BLOCK, ROWS, measure_block
from fastvq.models.motion.skeleton import JOINT_NAMES, NUM_JOINTS

_NOISE = np.array([category.kind.noise for category in CATEGORIES])
_LEGS = ((1, 4, 7), (2, 5, 8))
# Thigh and shin in metres. No body's are as long; in centimetres, millimetres or KIT's units they are longer.
_LONGEST_LEG = 10.0


class PoseParser:
    """Reads the 70 active pose codes of every frame, each frame by itself.

    Choices where the published description leaves them open: the lowest point, over which heights above ground
    are taken, is that of the same frame, so a body in the air stands on its lower foot; the heading is the pelvis'
    (``measurement``); noise is off.

    Args:
        como_compat: Follow the published parser, which turns every body by half a circle about the vertical and
            leaves headings in: for codes that others have made or are to read. Names of the x and z categories
            ("at the left of", "in front of") are then true only of bodies that face -z, and say the opposite of
            bodies that face +z, as those of HumanML3D at first do.

    Source: CoMo (Huang et al., ECCV 2024), after PoseScript (Delmas et al., ECCV 2022).
    """

    def __init__(self, *, como_compat: bool = False) -> None:
        self.como_compat = como_compat

    def parse(self, joints: np.ndarray, *, noise: np.random.Generator | None = None) -> PoseCodes:
        """The codes of a clip.

        Args:
            joints: (frames, 22, 3) positions in metres, Y up, joints in the order of ``skeleton.JOINT_NAMES``;
                at least one frame.
            noise: A seeded generator adds uniform noise to every value before it is cut into bins, as the
                published parser does: within 5 degrees or 5 cm. One draw of 70 numbers per frame, in order.

        Returns:
            The codes, 70 in every frame.

        Raises:
            UserError: Another shape, no frames, NaN or infinity, bodies too large to be in metres, or noise that is
                no generator.
        """
        if noise is not None and not isinstance(noise, np.random.Generator):
            raise UserError(f"noise must be a generator, such as numpy.random.default_rng(0), or None; got {noise!r}")
        joints = check_body(joints)
        indices = np.empty((len(joints), NUM_CATEGORIES), dtype=np.int64)
        for start in range(0, len(joints), BLOCK):
            block = joints[start : start + BLOCK]
            values = measure_block(block, como_compat=self.como_compat)
            if noise is not None:
                values += noise.uniform(-_NOISE, _NOISE, size=(len(block), NUM_CATEGORIES)).T
            np.add(_bins(values).T, STARTS, out=indices[start : start + BLOCK])
        return PoseCodes(indices)


def _bins(values: np.ndarray) -> np.ndarray:
    """(70, frames) values -> (70, frames) int8 bins: how many of its kind's thresholds lie below each."""
    bins = np.zeros(values.shape, dtype=np.int8)
    for kind in (ANGLE, DISTANCE, SIDEWAYS, HEIGHT, DEPTH, SLOPE, GROUND):
        rows = ROWS[kind.name]
        for threshold in kind.thresholds:
            bins[rows] += values[rows] > threshold
    return bins


def check_body(joints: np.ndarray) -> np.ndarray:
    """The joints as an array that can be measured.

    Raises:
        UserError: As ``PoseParser.parse``.
    """
    try:
        joints = np.asarray(joints)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"joints must be a numeric array (frames, {NUM_JOINTS}, 3) on the CPU: {error}") from error
    if joints.dtype.kind not in "fiu":
        raise UserError(f"joints must be real numbers (frames, {NUM_JOINTS}, 3), got an array of {joints.dtype}")
    if joints.ndim != 3 or joints.shape[1:] != (NUM_JOINTS, 3):
        raise UserError(
            f"joints must be (frames, {NUM_JOINTS}, 3), SMPL's body joints, got shape {joints.shape}: "
            "load the motion with fastvq.models.motion.load, which maps other skeletons, "
            "or map KIT-ML's 21 joints with kit_to_smpl"
        )
    if not len(joints):
        raise UserError("joints hold no frames: a clip needs at least one to have pose codes")
    if not np.isfinite(joints).all():
        frame, joint = np.argwhere(~np.isfinite(joints).all(axis=-1))[0].tolist()
        raise UserError(
            f"joints hold NaN or infinity, first at frame {frame}, {JOINT_NAMES[joint]}: "
            "cut such frames out or fill them in before parsing"
        )
    leg = _leg_length(joints)
    if leg > _LONGEST_LEG:
        raise UserError(
            f"joints must be in metres, but thigh and shin together are {leg:.4g} long: "
            "multiply by the metres per unit (0.01 for centimetres, 0.001 for millimetres)"
        )
    return joints


@np.errstate(over="ignore", invalid="ignore")
def _leg_length(joints: np.ndarray) -> float:
    """Median over some frames and both sides of thigh and shin together."""
    some = joints[:: max(1, len(joints) // 16)].astype(np.float64)
    legs = [
        np.linalg.norm(some[:, hip] - some[:, knee], axis=-1)
        + np.linalg.norm(some[:, knee] - some[:, ankle], axis=-1)
        for hip, knee, ankle in _LEGS
    ]
    return float(np.median(legs))
