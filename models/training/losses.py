"""Losses of the motion tokenizers: smooth L1 on normalised features, block by block."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvq.models.motion.features272 import SLICES
from fastvq.models.training.config import LossWeights

TERMS = (*SLICES, "temporal_velocity")
assert tuple(field.name for field in dataclasses.fields(LossWeights)) == TERMS


class MotionLoss(NamedTuple):
    """A reconstruction's loss.

    Attributes:
        total: scalar, the weighted sum of the terms, with gradient.
        terms: (6,), the unweighted terms in the order of ``TERMS``, detached.
        smooth_l1: scalar, the unweighted mean over all features, detached.
    """

    total: Tensor
    terms: Tensor
    smooth_l1: Tensor


def motion_loss(
    reconstruction: Tensor, target: Tensor, weights: LossWeights, mask: Tensor | None = None
) -> MotionLoss:
    """Each block of features has the mean of its own smooth L1 errors (threshold 1), and joint positions besides
    that of their frame differences.

    Args:
        reconstruction, target: (B, T, 272), normalised.
        weights: of the terms.
        mask: (B, T), True where a frame is real; None where all are.
    """
    if mask is not None:  # both, so that what padding holds reaches no gradient either
        reconstruction, target = (x.masked_fill(~mask.unsqueeze(-1), 0.0) for x in (reconstruction, target))
    errors = frame_mean(F.smooth_l1_loss(reconstruction, target, reduction="none"), mask)
    position = SLICES["joint_position"]
    steps = reconstruction[..., position].diff(dim=1), target[..., position].diff(dim=1)
    step_mask = None if mask is None else mask[:, 1:] & mask[:, :-1]
    velocity = frame_mean(F.smooth_l1_loss(*steps, reduction="none"), step_mask).mean()
    terms = torch.stack([*(errors[block].mean() for block in SLICES.values()), velocity])
    factors = torch.tensor([getattr(weights, name) for name in TERMS], dtype=terms.dtype)
    total = (terms * factors.to(terms.device, non_blocking=True)).sum()
    return MotionLoss(total, terms.detach(), errors.detach().mean())


def frame_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of (B, T, C) over the real frames, (C,); zeros where there are none."""
    if mask is None:
        return values.mean(dim=(0, 1)) if values.shape[1] else values.sum(dim=(0, 1))
    kept = values.masked_fill(~mask.unsqueeze(-1), 0.0)
    return kept.sum(dim=(0, 1)) / mask.sum().clamp_min(1)
