"""Quantize-dropout: how many stages a training batch takes (Zeghidour et al. 2021, section III.C)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from .sync import shared_draw


@dataclass(frozen=True)
class QuantizeDropout:
    """Takes the stages up to one drawn at random.

    Args:
        stages: Q.
        cutoff: the least index of the last stage taken.
        multiple_of: the number of stages taken is rounded up to it.
    """

    stages: int
    cutoff: int
    multiple_of: int

    def draw(self, seed: int | None, device: torch.device) -> int:
        """How many stages are taken, alike in every process that talks on the device.

        One seed gives what it gives in vector-quantize-pytorch; None draws a seed.
        """
        seed = shared_draw(10_000, device) if seed is None else seed
        return self._rounded(seeded_stage(seed, self.cutoff, self.stages) + 1)

    def traced(self, device: torch.device) -> Tensor:
        """The same as a () int64 tensor, whose value no graph depends on."""
        number = torch.randint(self.cutoff, self.stages, (), device=device) + 1
        number = (number + self.multiple_of - 1) // self.multiple_of * self.multiple_of
        return number.clamp_max(self.stages)

    def _rounded(self, number: int) -> int:
        return min(ceil(number / self.multiple_of) * self.multiple_of, self.stages)


@torch.compiler.assume_constant_result
def seeded_stage(seed: int, cutoff: int, stages: int) -> int:
    """The index of the last stage taken that a seed gives."""
    return random.Random(seed).randrange(cutoff, stages)
