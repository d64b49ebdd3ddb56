"""Losses of the motion tokenizers: weighted smooth-L1 terms on normalised features."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvq.models.motion.features272 import SLICES
from fastvq.models.tokenizers.config import check_number


class Pair(NamedTuple):
    """A reconstruction beside its target.

    Attributes:
        reconstruction, target: (B, T, C), normalised, zeros where padded.
        denormalise: undoes the normalisation.
    """

    reconstruction: Tensor
    target: Tensor
    denormalise: Callable[[Tensor], Tensor]

    def step_errors(self, columns: slice, mask: Tensor | None) -> Tensor:
        """(columns,) smooth L1 of the differences from frame to frame, means over the real pairs of frames."""
        given, wanted = (x[..., columns].diff(dim=1) for x in (self.reconstruction, self.target))
        pairs = None if mask is None else mask[:, 1:] & mask[:, :-1]
        return frame_mean(F.smooth_l1_loss(given, wanted, reduction="none"), pairs)


class MotionLoss(NamedTuple):
    """A reconstruction's loss.

    Attributes:
        total: scalar, the weighted sum of the terms, with gradient.
        terms: (N,), the unweighted terms in the order of ``LossTerms.names``, detached.
        smooth_l1: scalar, the unweighted mean over all features, detached.
    """

    total: Tensor
    terms: Tensor
    smooth_l1: Tensor


@dataclass(frozen=True)
class LossTerms(ABC):
    """The terms of a tokenizer's loss; a field of a subclass is a term's weight if ``names`` has it, as by default.

    Raises:
        UserError: a weight that is negative or no number.
    """

    _weights: ClassVar[list[float]]

    def __post_init__(self) -> None:
        for name in self.names():
            check_number(f"loss.{name}", getattr(self, name), 0)
        # Here, since torch.compile cannot ask a class for its fields.
        object.__setattr__(self, "_weights", [getattr(self, name) for name in self.names()])

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of the terms, in order."""
        return tuple(entry.name for entry in dataclasses.fields(cls))

    def weights(self) -> list[float]:
        """Of the terms, in order."""
        return self._weights

    @abstractmethod
    def terms(self, motion: Pair, mask: Tensor | None) -> Tensor:
        """(N,) unweighted terms, with gradient; ``mask`` (B, T) is True where a frame is real, None where all are."""


@dataclass(frozen=True)
class LossWeights(LossTerms):
    """Weights of the smooth-L1 terms, each a mean over its own slice of the normalised 272 features."""

    root_velocity: float = 3.0
    root_heading: float = 1.5
    joint_position: float = 0.1
    joint_velocity: float = 0.5
    joint_rotation: float = 5.0
    temporal_velocity: float = 0.5
    """Frame differences of the joint positions."""

    def terms(self, motion: Pair, mask: Tensor | None) -> Tensor:
        """(6,) means over the real frames."""
        errors = frame_mean(F.smooth_l1_loss(motion.reconstruction, motion.target, reduction="none"), mask)
        velocity = motion.step_errors(SLICES["joint_position"], mask).mean()
        return torch.stack([*(errors[block].mean() for block in SLICES.values()), velocity])


TERMS = LossWeights.names()
assert (*SLICES, "temporal_velocity") == TERMS


def motion_loss(
    reconstruction: Tensor,
    target: Tensor,
    weights: LossTerms,
    mask: Tensor | None = None,
    *,
    denormalise: Callable[[Tensor], Tensor] = lambda features: features,
) -> MotionLoss:
    """The weighted sum of a loss's terms.

    Args:
        reconstruction, target: (B, T, C), normalised.
        weights: of the terms.
        mask: (B, T), True where a frame is real; None where all are.
        denormalise: undoes the normalisation, for terms in metres.
    """
    if mask is not None:  # both, so that what padding holds reaches no gradient either
        reconstruction, target = (x.masked_fill(~mask.unsqueeze(-1), 0.0) for x in (reconstruction, target))
    terms = weights.terms(Pair(reconstruction, target, denormalise), mask)
    factors = torch.tensor(weights.weights(), dtype=terms.dtype)
    total = (terms * factors.to(terms.device, non_blocking=True)).sum()
    with torch.no_grad():
        smooth_l1 = frame_mean(F.smooth_l1_loss(reconstruction, target, reduction="none"), mask).mean()
    return MotionLoss(total, terms.detach(), smooth_l1)


def frame_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of (B, T, C) over the real frames, (C,); zeros where there are none."""
    if mask is None:
        return values.mean(dim=(0, 1)) if values.shape[1] else values.sum(dim=(0, 1))
    kept = values.masked_fill(~mask.unsqueeze(-1), 0.0)
    return kept.sum(dim=(0, 1)) / mask.sum().clamp_min(1)
