"""How inputs are laid out: sequences, one token, channels first, images and volumes, as rows and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import validation as check


@dataclass(frozen=True)
class Layout:
    """Where an input's channels are and what its row axes were.

    Args:
        shape: the row axes, batch first.
        first: whether the channels come right after the batch.
    """

    shape: torch.Size
    first: bool

    def restore(self, values: Tensor) -> Tensor:
        """(B, N, *more, C) -> the input's row axes and channels where they were, ``more`` behind the row axes."""
        values = values.reshape(*self.shape, *values.shape[2:])
        return values.movedim(-1, 1) if self.first else values

    def restore_indices(self, indices: Tensor) -> Tensor:
        """(B, N, *more) -> (*R, *more)."""
        return indices.reshape(*self.shape, *indices.shape[2:])


def tokens(x: Tensor, *, first: bool, image: bool, volume: bool) -> tuple[Tensor, Layout]:
    """An input as (B, N, C), a view wherever its strides allow, and its layout.

    Args:
        x: (B, C), (B, *R, C), or with channels first (B, C, *R); two of R for an image, three for a volume.
        first: channels first; implied by ``image`` and ``volume``.
        image, volume: two or three row axes after the channels.

    Raises:
        TypeError, ValueError: another dtype or number of axes.
    """
    check.floating("x", x)
    expected = 4 if image else 5 if volume else None
    if (expected is not None and x.dim() != expected) or x.dim() < 2:
        form = "(B, C, H, W)" if image else "(B, C, D, H, W)" if volume else "(B, C), (B, N, C) or (B, C, N)"
        raise ValueError(f"x must be {form}, got shape {tuple(x.shape)}")
    first = (first or image or volume) and x.dim() > 2
    if first:
        x = x.movedim(1, -1)
    shape = x.shape[:-1]
    return x.reshape(shape[0], math.prod(shape[1:]), x.shape[-1]), Layout(shape, first)


def split_heads(x: Tensor, heads: int, separate: bool) -> Tensor:
    """(B, N, H * D) -> (H, B, N, D) for a codebook for each head, (1, B, N * H, D) for one that heads share."""
    batch, number, width = x.shape
    if separate:
        return x.reshape(batch, number, heads, width // heads).permute(2, 0, 1, 3)
    return x.reshape(1, batch, number * heads, width // heads)


def merge_heads(rows: Tensor, heads: int, separate: bool) -> Tensor:
    """The inverse of :func:`split_heads`; for one head, (1, B, N, *more, D) -> (B, N, *more, D)."""
    if separate and heads > 1:
        return rows.permute(1, 2, 0, 3).flatten(2)
    if heads > 1:
        return rows.reshape(rows.shape[1], rows.shape[2] // heads, heads * rows.shape[-1])
    return rows[0]


def merge_indices(indices: Tensor, heads: int, separate: bool) -> Tensor:
    """(H, B, N) or (1, B, N * H) -> (B, N, H), and (1, B, N, *more) -> (B, N, *more) for one head."""
    if heads == 1:
        return indices[0]
    if separate:
        return indices.permute(1, 2, 0)
    return indices.reshape(indices.shape[1], indices.shape[2] // heads, heads)


def split_indices(indices: Tensor, heads: int, separate: bool) -> Tensor:
    """The inverse of :func:`merge_indices`."""
    if heads == 1:
        return indices.unsqueeze(0)
    return indices.permute(2, 0, 1) if separate else indices.flatten(1).unsqueeze(0)


def head_mask(mask: Tensor | None, heads: int, separate: bool) -> Tensor | None:
    """(B, N) bool -> the rows' (B, N) or (B, N * H)."""
    if mask is None or heads == 1 or separate:
        return mask
    return mask.unsqueeze(-1).expand(*mask.shape, heads).flatten(1)


def valid_tokens(mask: Tensor | None, lens: Tensor | None, layout: Layout, number: int) -> Tensor | None:
    """The mask (B, N) that ``mask`` or ``lens`` mean, or None.

    Raises:
        TypeError, ValueError: both given, another shape or dtype.
    """
    if mask is not None and lens is not None:
        raise ValueError("mask and lens were both given; pass one of them, lens=(B,) for padding at the end")
    if lens is not None:
        if lens.dim() != 1 or len(lens) != layout.shape[0]:
            raise ValueError(
                f"lens must be ({layout.shape[0]},), one length for each sequence, got shape {tuple(lens.shape)}"
            )
        return torch.arange(number, device=lens.device) < lens.unsqueeze(-1)
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, True where a token is valid, got {got}")
    check.equal_shape("mask", mask, layout.shape)
    return mask.reshape(layout.shape[0], number)
