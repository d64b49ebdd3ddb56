"""Which joints limbs join, and how sure of a joint a detector is: heatmaps show limbs, not joints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.motion.skeleton import PARENTS

Limb = tuple[int, int]

# Every bone of SMPL's 22 joints, from parent to child.
SMPL_LIMBS: tuple[Limb, ...] = tuple((parent, joint) for joint, parent in enumerate(PARENTS) if parent >= 0)

# The limbs of the adversarial VQ-GAN on heatmaps (2025, arXiv 2509.19252), of the 15 joints of CMU Panoptic that it
# keeps: neck, nose, middle of the hips, and of the left, then of the right: shoulder, elbow, wrist, hip, knee, ankle.
PANOPTIC_LIMBS: tuple[Limb, ...] = (
    (0, 1),
    (0, 2),
    (0, 3),
    (3, 4),
    (4, 5),
    (0, 9),
    (9, 10),
    (10, 11),
    (2, 6),
    (2, 12),
    (6, 7),
    (7, 8),
    (12, 13),
    (13, 14),
)

# Of the scores that the paper draws where its data have none.
SCORE_MEAN, SCORE_STD = 0.65, 0.16


def check_limbs(limbs: Sequence[Limb], joints: int) -> Tensor:
    """The limbs as (L, 2) int64, checked against a number of joints.

    Raises:
        UserError: fewer than two joints, no limb, or one that joins no two of the joints.
    """
    if joints < 2:
        raise UserError(f"joints must hold at least 2 joints, got {joints}: a limb joins two, so give whole bodies")
    if not len(limbs):
        raise UserError("limbs must name at least one pair of joints, got none")
    for limb in limbs:
        if len(limb) != 2 or limb[0] == limb[1] or not all(0 <= joint < joints for joint in limb):
            raise UserError(
                f"limbs must be pairs of different joints from 0 to {joints - 1}, got {tuple(limb)}: "
                "give the limbs of this skeleton"
            )
    return torch.tensor([tuple(limb) for limb in limbs])


def draw_scores(shape: Sequence[int], *, generator: torch.Generator | None = None) -> Tensor:
    """Scores as the paper draws them: normal with mean 0.65 and standard deviation 0.16, clipped to 0 to 1."""
    return torch.randn(tuple(shape), generator=generator).mul_(SCORE_STD).add_(SCORE_MEAN).clamp_(0, 1)
