"""The volumetric auto-encoder of the adversarial VQ-GAN on heatmaps (2025, arXiv 2509.19252).

Five levels of residual blocks, with a non-local block after each where a volume is small enough; three to five of the
levels end by halving time, height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastvq.models.nn.conv3d import NORM_EPS, Conv3d, Downsample3d, NonLocalBlock3d, ResidualBlock3d, Upsample3d


class _Blocks(nn.Module):
    """Modules in a row; ``checkpointing`` computes their activations again in the backward pass."""

    checkpointing = False

    def _run(self, modules: Sequence[nn.Module], x: Tensor) -> Tensor:
        for module in modules:
            kept = not (self.checkpointing and torch.is_grad_enabled())
            x = module(x) if kept else checkpoint(module, x, use_reentrant=False)
        return x


class VolumeEncoder(_Blocks):
    """Volumes to latents, each of ``2 ** down_stages`` places along every axis.

    Args:
        in_channels, out_channels: of the input and of the latents.
        channels: of each level.
        down_stages: how many levels, the first ones, end by halving every axis; at most all.
        size: height of the volumes that it is made for.
        attention_size: levels at which such a volume has this height have non-local blocks.
        norm_groups: of the group normalisations; divides all channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int],
        down_stages: int,
        size: int,
        attention_size: int,
        norm_groups: int,
    ) -> None:
        super().__init__()
        self.conv_in = Conv3d(in_channels, channels[0], 3, padding=1)
        body: list[nn.Module] = []
        before = channels[0]
        for level, width in enumerate(channels):
            for _ in range(2):
                body.append(ResidualBlock3d(before, width, norm_groups=norm_groups))
                body += [NonLocalBlock3d(width)] if size == attention_size else []
                before = width
            if level < down_stages:
                body.append(Downsample3d(width))
                size //= 2
        body += _middle(before, norm_groups)
        self.body = nn.ModuleList(body)
        self.norm_out = nn.GroupNorm(norm_groups, before, eps=NORM_EPS)
        self.conv_out = Conv3d(before, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T, H, W) -> (B, out_channels, T', H', W'), each axis over ``2 ** down_stages``."""
        return self.conv_out(F.silu(self.norm_out(self._run(list(self.body), self.conv_in(x)))))


class VolumeDecoder(_Blocks):
    """Latents to volumes.

    Three residual blocks a level. The published model counts heights from 16, whatever the latents' true one, and has
    non-local blocks where it counts 16; so the levels up to the first doubling have them, at every downsampling.

    Args:
        in_channels, out_channels: of the latents and of the volumes.
        channels: of each level, in the encoder's order.
        up_stages: how many levels end by doubling every axis. They begin with the second, as the published ones do;
            with as many stages as levels, all levels do.
        norm_groups: of the group normalisations; divides all channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int],
        up_stages: int,
        norm_groups: int,
    ) -> None:
        super().__init__()
        before = channels[-1]
        self.conv_in = Conv3d(in_channels, before, 3, padding=1)
        body: list[nn.Module] = _middle(before, norm_groups)
        first = 1 if up_stages < len(channels) else 0
        for level, width in enumerate(reversed(channels)):
            for _ in range(3):
                body.append(ResidualBlock3d(before, width, norm_groups=norm_groups))
                body += [NonLocalBlock3d(width)] if level <= first else []
                before = width
            if first <= level < first + up_stages:
                body.append(Upsample3d(width))
        self.body = nn.ModuleList(body)
        self.norm_out = nn.GroupNorm(norm_groups, before, eps=NORM_EPS)
        self.conv_out = Conv3d(before, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T', H', W') -> (B, out_channels, T, H, W), each axis times ``2 ** up_stages``."""
        return self.conv_out(F.silu(self.norm_out(self._run(list(self.body), self.conv_in(x)))))


def _middle(channels: int, norm_groups: int) -> list[nn.Module]:
    """What stands around the latents on either side."""
    return [
        ResidualBlock3d(channels, channels, norm_groups=norm_groups),
        NonLocalBlock3d(channels),
        ResidualBlock3d(channels, channels, norm_groups=norm_groups),
    ]
