"""Batch normalisation over the parts of a batch that several ranks share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastvq.distributed import world_size


class RankedBatchNorm3d(nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` whose mean and variance in training are those of the batches of all ranks.

    ``torch.nn.SyncBatchNorm`` does that on GPUs alone. Every rank takes part in each call, forward and backward, with
    a batch of the same size. The gradients of a rank are those of the sum of all ranks' losses, as they are to be
    where they are averaged over ranks afterwards.

    Parameters and buffers: those of ``torch.nn.BatchNorm3d``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same, normalised for each channel."""
        ranks = world_size()
        if not self.training or ranks == 1:
            return super().forward(input)
        axes = (0, 2, 3, 4)
        wide = input.float()
        mean = _Sum.apply(wide.mean(axes)) / ranks
        centred = wide - mean.view(-1, 1, 1, 1)
        variance = _Sum.apply(centred.square().mean(axes)) / ranks
        self._follow(mean.detach(), variance.detach(), ranks * input.numel() // len(mean))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)).to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor, number: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (number / max(number - 1, 1)), self.momentum)


class _Sum(torch.autograd.Function):
    """Over ranks, of values and of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        summed = x.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        summed: Tensor = grads[0].clone()
        dist.all_reduce(summed)
        return summed
