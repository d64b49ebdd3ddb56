"""Perceptual terms of image losses: how alike two heatmaps look, beyond the difference of their pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvq.models.tokenizers.config import check_integer


class Perceptual(Protocol):
    """A perceptual term."""

    def __call__(self, given: Tensor, wanted: Tensor) -> Tensor:
        """(B, C, T, H, W) reconstruction and target -> a scalar, 0 where they are alike, with gradient."""
        ...


@dataclass(frozen=True)
class GradientDifference:
    """The mean absolute difference of neighbouring pixels' differences, at several scales, each half of the last.

    A deviation from the paper (arXiv 2509.19252), which takes LPIPS on VGG's features: that needs weights, and this
    does not. It too punishes blur, which leaves absolute differences small and gradients wrong. For LPIPS give
    :class:`PerSlice` of a network.

    Args:
        scales: how many; as many as rows and columns allow are taken.

    Raises:
        UserError: fewer than one scale.
    """

    scales: int = 3

    def __post_init__(self) -> None:
        check_integer("scales", self.scales, 1)

    def __call__(self, given: Tensor, wanted: Tensor) -> Tensor:
        error = (given - wanted).flatten(0, 2).unsqueeze(1)
        terms = []
        for scale in range(self.scales):
            if min(error.shape[-2:]) < (4 if scale else 2):
                break
            error = F.avg_pool2d(error, 2) if scale else error
            terms.append(sum((error.diff(dim=axis).abs().mean() for axis in (-2, -1)), error.new_zeros(())) / 2)
        return torch.stack(terms).mean() if terms else error.sum() * 0


@dataclass(frozen=True)
class PerSlice:
    """A network for pictures, shown every view of every frame as grey RGB, as the paper shows them to LPIPS.

    Args:
        network: (N, 3, H, W) reconstruction and target -> distances of any shape, whose mean is taken; for example
            ``lpips.LPIPS(net="vgg")`` with its weights at hand.
    """

    network: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, given: Tensor, wanted: Tensor) -> Tensor:
        pictures = (x.flatten(0, 2).unsqueeze(1).expand(-1, 3, -1, -1) for x in (given, wanted))
        return self.network(*pictures).mean()
