"""The 1-D convolutional auto-encoder that the motion tokenizers share (T2M-GPT, Zhang et al. 2023, section 3.1).

Sequences are channels-last, (B, T, C). A mask, True where a frame is real, is applied after every convolution, so
that a padded sequence sees the same zeros beyond its end as a sequence alone sees in its zero padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from fastvq.models.nn.conv import Conv1d, UpConv1d

Activation = Literal["relu", "silu", "gelu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}
assert set(ACTIVATIONS) == set(get_args(Activation))


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` (B, T, C) with zeros where ``mask`` (B, T) is False."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)


class ResidualBlock(nn.Module):
    """x + conv1x1(act(conv3(act(x)))), the inner convolution dilated."""

    def __init__(self, width: int, dilation: int, activation: Activation) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv_in = Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv_out = Conv1d(width, width, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        hidden = masked(self.conv_in(self.activation(x)), mask)
        return x + masked(self.conv_out(self.activation(hidden)), mask)


class ResidualStack(nn.Module):
    """``depth`` residual blocks, the widest dilation, growth ** (depth - 1), first."""

    def __init__(self, width: int, depth: int, dilation_growth: int, activation: Activation) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(width, dilation_growth**power, activation) for power in reversed(range(depth))
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        for block in self.blocks:
            x = block(x, mask)
        return x


class Encoder(nn.Module):
    """Frames to latents, ``2 ** down_stages`` frames each.

    Args:
        input_dim: channels of a frame.
        output_dim: channels of a latent.
        width: channels in between.
        down_stages: strided convolutions, each followed by a residual stack.
        depth: residual blocks in a stack.
        dilation_growth: ratio of the dilations of neighbouring blocks.
        activation: "relu", "silu" or "gelu".
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        width: int,
        down_stages: int = 2,
        depth: int = 3,
        dilation_growth: int = 3,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv_in = Conv1d(input_dim, width, 3, padding=1)
        self.downs = nn.ModuleList(Conv1d(width, width, 4, stride=2, padding=1) for _ in range(down_stages))
        self.stacks = nn.ModuleList(
            ResidualStack(width, depth, dilation_growth, activation) for _ in range(down_stages)
        )
        self.conv_out = Conv1d(width, output_dim, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, input_dim) -> (B, T / 2 ** down_stages, output_dim).

        Args:
            x: T a multiple of ``2 ** down_stages``.
            mask: (B, T) bool, True where a frame is real; each sequence's real frames come first and their number
                is a multiple of ``2 ** down_stages``. Outputs of padding are zero.
        """
        x = self.activation(masked(self.conv_in(masked(x, mask)), mask))
        for down, stack in zip(self.downs, self.stacks, strict=True):
            mask = None if mask is None else mask[:, ::2]
            x = stack(masked(down(x), mask), mask)
        return masked(self.conv_out(x), mask)


class Decoder(nn.Module):
    """Latents to frames, the mirror image of :class:`Encoder` with nearest-neighbour upsampling.

    Args:
        input_dim: channels of a latent.
        output_dim: channels of a frame.
        width, up_stages, depth, dilation_growth, activation: as in :class:`Encoder`.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        width: int,
        up_stages: int = 2,
        depth: int = 3,
        dilation_growth: int = 3,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv_in = Conv1d(input_dim, width, 3, padding=1)
        self.stacks = nn.ModuleList(
            ResidualStack(width, depth, dilation_growth, activation) for _ in range(up_stages)
        )
        self.ups = nn.ModuleList(UpConv1d(width, width) for _ in range(up_stages))
        self.conv_hidden = Conv1d(width, width, 3, padding=1)
        self.conv_out = Conv1d(width, output_dim, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T', input_dim) -> (B, T' * 2 ** up_stages, output_dim).

        Args:
            x: latents.
            mask: (B, T') bool, True where a latent is real, real ones first. Frames of padding are zero.
        """
        x = self.activation(masked(self.conv_in(masked(x, mask)), mask))
        for stack, up in zip(self.stacks, self.ups, strict=True):
            x = up(stack(x, mask))
            mask = None if mask is None else mask.repeat_interleave(2, dim=1)
            x = masked(x, mask)
        x = self.activation(masked(self.conv_hidden(x), mask))
        return masked(self.conv_out(x), mask)
