"""How modules take their input: channels on any axis, split into groups, as rows that are read in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import validation as check


class ChannelGroups(nn.Module):
    """Splits ``dim`` channels into contiguous groups, and brings results back to the input's layout.

    Args:
        dim: channels of the input.
        groups: G; divides dim.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T) or (B, C, H, W).
        check_finite: raise on a non-finite row, naming it; costs a sync, refused under torch.compile.

    Raises:
        TypeError, ValueError: sizes that do not fit.
    """

    def __init__(self, dim: int, groups: int, *, channel_dim: int, check_finite: bool) -> None:
        super().__init__()
        check.positive("dim", dim)
        check.positive("groups", groups)
        if not isinstance(channel_dim, int):
            raise TypeError(f"channel_dim must be an int, got {type(channel_dim).__name__}")
        if dim % groups:
            raise ValueError(f"dim must be a multiple of groups, got dim={dim} and groups={groups}")
        self.dim, self.groups = dim, groups
        self.channel_dim, self.check_finite = channel_dim, check_finite

    def _rows(self, x: Tensor, mask: Tensor | None, codebook: Tensor) -> tuple[Tensor, Tensor | None, torch.Size]:
        """x as (G, R1, R2, D), a view wherever strides allow; mask as (R1, R2); the shape R."""
        check.floating("x", x)
        axis = self.channel_dim
        if x.dim() < 2 or not -x.dim() <= axis < x.dim() or x.shape[axis] != self.dim:
            raise ValueError(
                f"x must have {self.dim} channels on axis {axis} and at least one more axis, "
                f"got shape {tuple(x.shape)}"
            )
        x = x.movedim(axis, -1)
        shape = x.shape[:-1]
        check.mask_shape(mask, shape)
        check.same_device(x=x, codebook=codebook, mask=mask)
        if self.check_finite:
            self._raise_unless_finite(x)
        rows = (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))
        if mask is not None:
            mask = mask.expand(shape).reshape(rows)
        return x.reshape(*rows, self.groups, self.dim // self.groups).permute(2, 0, 1, 3), mask, shape

    def _restore(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """(G, R1, R2, D) back to the input's layout."""
        return rows.permute(1, 2, 0, 3).reshape(*shape, self.dim).movedim(-1, self.channel_dim)

    def _index_shape(self, indices: Tensor, shape: torch.Size) -> Tensor:
        """(G, R1, R2, ...) -> (*R, G, ...)."""
        trailing = range(3, indices.dim())
        return indices.permute(1, 2, 0, *trailing).reshape(*shape, self.groups, *indices.shape[3:])

    def _flat_indices(self, indices: Tensor, trailing: tuple[int, ...] = ()) -> tuple[Tensor, torch.Size]:
        """(*R, G, ...) -> (G, 1, N, ...), and the shape R."""
        check.integer("indices", indices)
        expected = (self.groups, *trailing)
        if indices.dim() <= len(expected) or indices.shape[-len(expected) :] != expected:
            raise ValueError(
                f"indices must be (*R, {', '.join(map(str, expected))}), got shape {tuple(indices.shape)}"
            )
        shape = indices.shape[: -len(expected)]
        return indices.reshape(math.prod(shape), *expected).transpose(0, 1).unsqueeze(1), shape

    @staticmethod
    def _may_have_holes(indices: Tensor) -> bool:
        """Whether some index may be -1: asked on a CPU, where the answer costs no sync; assumed elsewhere."""
        return indices.device.type != "cpu" or torch.compiler.is_compiling() or bool((indices < 0).any())

    def _raise_unless_finite(self, x: Tensor) -> None:
        if torch.compiler.is_compiling():
            raise RuntimeError("check_finite=True needs a host sync; switch it off under torch.compile")
        bad = (~x.isfinite()).any(-1)
        if bool(bad.any()):
            first = tuple(bad.nonzero()[0].tolist())
            raise ValueError(f"x must be finite, but row {first} is not ({int(bad.sum())} such rows)")
