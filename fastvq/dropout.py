"""Quantize-dropout: in training only the first stages of a residual stack are taken, so that each prefix decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import validation as check


@dataclass(frozen=True)
class QuantizeDropout:
    """With some probability takes only the first n of Q stages, n drawn evenly (Zeghidour et al. 2021, section 3.4).

    Args:
        probability: that stages are dropped at all: 1 in EnCodec, 0.5 in DAC, 0.2 in MoMask.
        at_least: smallest n.
        multiple_of: n is rounded up to a multiple of this, and to Q at most.
        per_sequence: draws n for every sequence of the batch (DAC) and not once for all.
    """

    probability: float = 1.0
    at_least: int = 1
    multiple_of: int = 1
    per_sequence: bool = False

    def __post_init__(self) -> None:
        check.unit_interval("probability", self.probability)
        check.positive("at_least", self.at_least)
        check.positive("multiple_of", self.multiple_of)

    def __call__(self, shape: Sequence[int], stages: int, device: torch.device) -> Tensor:
        """How many stages rows (R1, R2) take: int64, broadcasts to (R1, R2)."""
        rows = (1, 1)
        if self.per_sequence:
            rows = (1, shape[1]) if shape[0] == 1 else (shape[0], 1)
        least = min(self.at_least, stages)
        number = torch.randint(least, stages + 1, rows, device=device)
        number = ((number + self.multiple_of - 1) // self.multiple_of * self.multiple_of).clamp_max(stages)
        return torch.where(torch.rand(rows, device=device) < self.probability, number, stages)
