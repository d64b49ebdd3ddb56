"""How modules take their input: channels on any axis, split into groups or heads, as rows that are read in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import validation as check


class ChannelGroups(nn.Module):
    """Splits ``dim`` channels into contiguous groups or heads, and brings results back to the input's layout.

    Groups have a codebook each; heads are rows of one codebook.

    Args:
        dim: channels of the input.
        groups: G; divides dim.
        heads: H; divides dim. At most one of groups and heads is above 1.
        codebook_dim: dimension of the codes; where groups or heads of it do not add up to dim, linear layers before
            and after. None: dim over groups or heads.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T) or (B, C, H, W).
        check_finite: raise on a non-finite row, naming it; costs a sync, refused under torch.compile.

    Raises:
        TypeError, ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        dim: int,
        *,
        groups: int = 1,
        heads: int = 1,
        codebook_dim: int | None = None,
        channel_dim: int,
        check_finite: bool,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("groups", groups), ("heads", heads)):
            check.positive(name, value)
        if not isinstance(channel_dim, int):
            raise TypeError(f"channel_dim must be an int, got {type(channel_dim).__name__}")
        if groups > 1 and heads > 1:
            raise ValueError(f"groups and heads cannot both be above 1, got {groups} and {heads}: use groups alone")
        self.dim, self.groups, self.heads = dim, groups, heads
        parts = groups * heads
        if codebook_dim is None:
            for name, value in (("groups", groups), ("heads", heads)):
                if dim % value:
                    raise ValueError(f"dim must be a multiple of {name}, got dim={dim} and {name}={value}")
            codebook_dim = dim // parts
        check.positive("codebook_dim", codebook_dim)
        self.codebook_dim, self.channel_dim, self.check_finite = codebook_dim, channel_dim, check_finite
        inner = parts * codebook_dim
        self.project_in = nn.Identity() if inner == dim else nn.Linear(dim, inner)
        self.project_out = nn.Identity() if inner == dim else nn.Linear(inner, dim)

    def _rows(
        self, x: Tensor, mask: Tensor | None, lengths: Tensor | None, codebook: Tensor
    ) -> tuple[Tensor, Tensor | None, torch.Size]:
        """x as (G, R1, R2, D), a view wherever strides allow; mask as (R1, R2) or (R1, 1); the shape R."""
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
        if lengths is not None:
            check.integer("lengths", lengths)
        check.same_device(x=x, codebook=codebook, mask=mask, lengths=lengths)
        if lengths is not None:
            mask = self._within(lengths, mask, shape)
        if self.check_finite:
            self._raise_unless_finite(x)
        if mask is not None and not isinstance(self.project_in, nn.Identity):
            # What stands in padding, NaN too, must not reach the weights' gradients.
            x = torch.where(mask.expand(shape).unsqueeze(-1), x, 0)
        x = self.project_in(x)
        if self.heads > 1:
            rows = (math.prod(shape), self.heads)
        else:
            rows = (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))
        if mask is not None:
            mask = (
                mask.expand(shape).reshape(-1, 1).expand(rows) if self.heads > 1 else mask.expand(shape).reshape(rows)
            )
        return x.reshape(*rows, self.groups, self.codebook_dim).permute(2, 0, 1, 3), mask, shape

    @staticmethod
    def _within(lengths: Tensor, mask: Tensor | None, shape: torch.Size) -> Tensor:
        """lengths (B,) as a mask over (B, T, ...), joined with the given one."""
        check.integer("lengths", lengths)
        if mask is not None:
            raise ValueError("mask and lengths say the same thing: give one of them")
        if len(shape) < 2 or lengths.shape != shape[:1]:
            raise ValueError(
                f"lengths must be ({shape[0]},), one for each sequence of a batch, got shape {tuple(lengths.shape)} "
                f"for rows {tuple(shape)}"
            )
        within = torch.arange(shape[1], device=lengths.device) < lengths.unsqueeze(-1)
        return within.view(*within.shape, *(1,) * (len(shape) - 2))

    def _restore(self, rows: Tensor, shape: torch.Size, mask: Tensor | None = None) -> Tensor:
        """(G, R1, R2, D) back to the input's channels and layout; zeros where masked."""
        flat = rows.permute(1, 2, 0, 3).reshape(*shape, self.groups * self.heads * self.codebook_dim)
        if isinstance(self.project_out, nn.Linear):
            flat = self.project_out(flat.to(self.project_out.weight.dtype))
        if mask is not None:
            mask = mask[:, 0] if self.heads > 1 else mask
            flat = torch.where(mask.reshape(*shape, 1), flat, 0)
        return flat.movedim(-1, self.channel_dim)

    def _index_shape(self, indices: Tensor, shape: torch.Size) -> Tensor:
        """(G, R1, R2, ...) -> (*R, G or H, ...)."""
        trailing = range(3, indices.dim())
        return indices.permute(1, 2, 0, *trailing).reshape(*shape, self.groups * self.heads, *indices.shape[3:])

    def _flat_indices(self, indices: Tensor, trailing: tuple[int, ...] = ()) -> tuple[Tensor, torch.Size]:
        """(*R, G or H, ...) -> (G, R1, R2, ...), and the shape R."""
        check.integer("indices", indices)
        expected = (self.groups * self.heads, *trailing)
        if indices.dim() <= len(expected) or indices.shape[-len(expected) :] != expected:
            raise ValueError(
                f"indices must be (*R, {', '.join(map(str, expected))}), got shape {tuple(indices.shape)}"
            )
        shape = indices.shape[: -len(expected)]
        if self.heads > 1:
            return indices.reshape(1, math.prod(shape), *expected), shape
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
