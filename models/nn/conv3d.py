"""Blocks of the volumetric auto-encoder: residual, non-local, downsampling and upsampling (arXiv 2509.19252).

Volumes are channels-first, (B, C, T, H, W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d``, whose zeros before and after a short time are laid down first in 16 bits on a CPU.

    Where time is shorter than the kernel, torch 2.13 gives wrong weight gradients there, without an error: with a
    kernel of 3 on 2 frames, or of 4 on 1 to 3, it leaves memory as it was (on AVX-512 BF16). With the zeros in the
    input it does not, and that is several times as fast as float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, T, H, W) -> (B, out_channels, T', H', W')."""
        short = input.device.type == "cpu" and input.shape[2] < self.kernel_size[0]
        if not short or not (torch.is_autocast_enabled("cpu") or input.dtype in (torch.bfloat16, torch.float16)):
            return super().forward(input)
        assert not isinstance(self.padding, str)
        before, *plane = self.padding
        padded = F.pad(input, (0, 0, 0, 0, before, before))
        return F.conv3d(padded, self.weight, self.bias, self.stride, (0, *plane), self.dilation, self.groups)


class ResidualBlock3d(nn.Module):
    """shortcut(x) + conv3(silu(norm(conv3(silu(norm(x)))))), the shortcut a 1 x 1 x 1 convolution if channels differ.

    Args:
        in_channels, out_channels: of the volumes.
        norm_groups: of the group normalisations; divides both.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(norm_groups, in_channels, eps=NORM_EPS)
        self.conv_in = Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm_out = nn.GroupNorm(norm_groups, out_channels, eps=NORM_EPS)
        self.conv_out = Conv3d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T, H, W) -> (B, out_channels, T, H, W)."""
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        return self.shortcut(x) + self.conv_out(F.silu(self.norm_out(hidden)))


class NonLocalBlock3d(nn.Module):
    """Every place of a volume attends to all others (Wang et al. 2018, "Non-local Neural Networks").

    As in the published model, what the attention is added to is the normalised input, not the input itself.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=NORM_EPS)
        self.query, self.key, self.value, self.out = (Conv3d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, T, H, W)."""
        x = self.norm(x)
        rows = (project(x).flatten(2).mT for project in (self.query, self.key, self.value))  # (B, T H W, C)
        return x + self.out(F.scaled_dot_product_attention(*rows).mT.reshape(x.shape))


class Downsample3d(nn.Module):
    """Halves every axis: a convolution of stride 2 that is padded behind only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, T / 2, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1) * 3))


class Upsample3d(nn.Module):
    """Doubles every axis by the nearest neighbour, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, 2 T, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
