"""1-D convolution on channels-last sequences, as matrix products where that is faster than the library's own.

``taps`` is one matrix product for each tap of the kernel (:mod:`fastvq.models.nn.taps`). On a CPU that reaches the
matrix product's speed, which the library's convolution does not in its backward pass.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvq.models.nn.taps import tap_products

ConvImplementation = Literal["auto", "conv1d", "taps"]


class Conv1d(nn.Module):
    """Cross-correlation over time of (B, T, in_channels), zero-padded; the weights of a ``torch.nn.Conv1d``.

    ``weight`` has the shape (out, in, k) of ``torch.nn.Conv1d``, and its memory order too, unless the implementation
    was set to "taps": then it is (k, out, in), one tap's matrix behind the other, since otherwise every step would
    gather all weights, and scatter their gradients. Loading, copying and the optimizers keep what they find.

    Args:
        in_channels, out_channels, kernel_size: as in ``torch.nn.Conv1d``.
        implementation: "conv1d", "taps", or "auto": "taps" for bfloat16 on a CPU, "conv1d" otherwise.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        implementation: ConvImplementation = "auto",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.implement(implementation)
        self.reset_parameters()

    @torch.no_grad()
    def implement(self, implementation: ConvImplementation) -> None:
        """Sets the implementation and puts the weight into its memory order.

        Raises:
            ValueError: an implementation of another name.
        """
        if implementation not in get_args(ConvImplementation):
            raise ValueError(f"implementation must be one of {get_args(ConvImplementation)}, got {implementation!r}")
        self.implementation = implementation
        if implementation == "taps":
            self.weight.data = self.weight.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        else:
            self.weight.data = self.weight.contiguous()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(in * k) for weight and bias, as ``torch.nn.Conv1d``."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in_channels) -> (B, T', out_channels), T' = (T + 2 padding - dilation (k - 1) - 1) // stride + 1."""
        x = self._cast(x)
        if self._form(x) == "conv1d":
            y = F.conv1d(x.transpose(1, 2), self.weight, self.bias, self.stride, self.padding, self.dilation)
            return y.transpose(1, 2)
        offsets = [tap * self.dilation - self.padding for tap in range(self.kernel_size)]
        frames = (x.shape[1] - 1 - offsets[-1] + self.padding) // self.stride + 1
        weight = self.weight.permute(2, 0, 1)
        by_time = x.transpose(0, 1).contiguous()
        return tap_products(by_time, weight, self.bias, offsets, frames, self.stride).transpose(0, 1)

    def _cast(self, x: Tensor) -> Tensor:
        device = x.device.type
        return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x

    def _form(self, x: Tensor) -> ConvImplementation:
        chosen = self.implementation
        return fastest_implementation(x.device, x.dtype) if chosen == "auto" else chosen

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, implementation={self.implementation!r}"
        )


class UpConv1d(Conv1d):
    """Every frame twice, then a convolution of three taps: :class:`Conv1d` on ``x.repeat_interleave(2, dim=1)``.

    Two of the three taps see the same frame. ``taps`` adds their matrices first and forms four products for two
    frames where six were, and writes no frame twice.

    Args:
        in_channels, out_channels: as in ``torch.nn.Conv1d``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in_channels) -> (B, 2 T, out_channels)."""
        x = self._cast(x)
        if self._form(x) == "conv1d":
            return super().forward(x.repeat_interleave(2, dim=1))
        before, here, after = self.weight.permute(2, 0, 1).unbind()
        by_time = x.transpose(0, 1).contiguous()
        frames = len(by_time)
        even = tap_products(by_time, torch.stack([before, here + after]), self.bias, (-1, 0), frames, 1)
        odd = tap_products(by_time, torch.stack([before + here, after]), self.bias, (0, 1), frames, 1)
        return torch.stack([even, odd], dim=1).flatten(0, 1).transpose(0, 1)


def set_implementation(module: nn.Module, implementation: ConvImplementation) -> None:
    """Makes every :class:`Conv1d` inside ``module`` use ``implementation``; before an optimizer gets their weights.

    Raises:
        ValueError: an implementation of another name.
    """
    for child in module.modules():
        if isinstance(child, Conv1d):
            child.implement(implementation)


def fastest_implementation(device: torch.device, dtype: torch.dtype) -> ConvImplementation:
    """What "auto" stands for: "taps" for bfloat16 on a CPU, "conv1d" otherwise."""
    return "taps" if device.type == "cpu" and dtype == torch.bfloat16 else "conv1d"
