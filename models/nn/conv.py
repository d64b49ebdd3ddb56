"""1-D convolution on channels-last sequences, as one matrix product where that is faster than the library's own.

``im2col`` lays the k shifted views of the input side by side, (B, T', k * in), and multiplies them by the weight
as one (k * in, out) matrix. With bfloat16 on a CPU that reaches the matrix product's speed, which the library's
convolution does not; in float32 the library's convolution is the faster one.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ConvImplementation = Literal["auto", "conv1d", "im2col"]


class Conv1d(nn.Module):
    """Cross-correlation over time of (B, T, in_channels), zero-padded; the weights of a ``torch.nn.Conv1d``.

    ``weight`` has the shape (out, in, k) of ``torch.nn.Conv1d`` and its memory order is (out, k, in), so that the
    (out, k * in) matrix that ``im2col`` multiplies by is a view: otherwise every step would copy all weights, and
    their gradients back. Loading, copying and the optimizers keep the strides of what they find.

    Args:
        in_channels, out_channels, kernel_size: as in ``torch.nn.Conv1d``.
        implementation: "conv1d", "im2col", or "auto": "im2col" for bfloat16 on a CPU, "conv1d" otherwise.
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
        self.implementation = implementation
        self.weight = nn.Parameter(torch.empty(out_channels, kernel_size, in_channels).permute(0, 2, 1))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(in * k) for weight and bias, as ``torch.nn.Conv1d``."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in_channels) -> (B, T', out_channels), T' = (T + 2 padding - dilation (k - 1) - 1) // stride + 1."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        implementation = self.implementation
        # Forward and backward of the auto-encoder at width 512, 16 windows of 64 frames, two AVX-512 cores: float32
        # conv1d 0.17 s, im2col 0.38 s; bfloat16 conv1d 0.11 s, im2col 0.09 s (at width 1024 0.41 and 0.32 s).
        if implementation == "auto":
            implementation = "im2col" if device == "cpu" and x.dtype == torch.bfloat16 else "conv1d"
        if implementation == "conv1d":
            y = F.conv1d(x.transpose(1, 2), self.weight, self.bias, self.stride, self.padding, self.dilation)
            return y.transpose(1, 2)
        return F.linear(self._columns(x), self.weight.permute(0, 2, 1).flatten(1), self.bias)

    def _columns(self, x: Tensor) -> Tensor:
        """The inputs of every output frame side by side: (B, T', k * in_channels)."""
        if self.kernel_size == 1 and self.stride == 1 and self.padding == 0:
            return x
        padded = F.pad(x, (0, 0, self.padding, self.padding))
        reach = self.dilation * (self.kernel_size - 1)
        span = padded.shape[1] - reach
        taps = [padded[:, tap * self.dilation :][:, : span : self.stride] for tap in range(self.kernel_size)]
        return torch.cat(taps, dim=-1)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, implementation={self.implementation!r}"
        )


def set_implementation(module: nn.Module, implementation: ConvImplementation) -> None:
    """Makes every :class:`Conv1d` inside ``module`` use ``implementation``.

    Raises:
        ValueError: an implementation of another name.
    """
    if implementation not in get_args(ConvImplementation):
        raise ValueError(f"implementation must be one of {get_args(ConvImplementation)}, got {implementation!r}")
    for child in module.modules():
        if isinstance(child, Conv1d):
            child.implementation = implementation
