"""What the quantizers without a learned codebook share: rows, projections, masks, and indices of stages."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import validation as check
from .channels import ChannelGroups
from .grouped import Quantized


class GroupLinear(nn.Module):
    """A linear layer for each group: (G, R1, R2, in) -> (G, R1, R2, out).

    Args:
        groups: G.
        inputs, outputs: channels.

    Parameters:
        weight (G, out, in), bias (G, out): drawn as ``torch.nn.Linear`` draws its own.
    """

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(self.weight.dtype).flatten(1, 2)
        return (rows @ self.weight.mT + self.bias.unsqueeze(1)).unflatten(1, x.shape[1:3])

    def extra_repr(self) -> str:
        groups, outputs, inputs = self.weight.shape
        return f"groups={groups}, inputs={inputs}, outputs={outputs}"


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """quantized to the bit, with the gradient passed to a finite x unchanged (Bengio et al. 2013).

    x - sg(x) is exactly zero, where x + sg(quantized - x) rounds; and plain operations work under torch.func.
    """
    return quantized.detach() + (x - x.detach())


class ScalarQuantizer(ChannelGroups):
    """Quantizes every row in ``num_quantizers`` stages without a codebook; a subclass says how.

    Args:
        dim: channels of the input.
        code_dim: dimension of a group's codes; where dim // groups differs, linear layers lead there and back.
        codebook_size: K, codes of a stage.
        groups: G; divides dim.
        num_quantizers: Q, stages.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T) or (B, C, H, W).
        check_finite: raise on a non-finite row, naming it; costs a sync, refused under torch.compile.

    Raises:
        TypeError, ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        dim: int,
        code_dim: int,
        codebook_size: int,
        *,
        groups: int,
        num_quantizers: int,
        channel_dim: int,
        check_finite: bool,
    ) -> None:
        super().__init__(dim, groups, channel_dim=channel_dim, check_finite=check_finite)
        check.positive("num_quantizers", num_quantizers)
        self.code_dim, self.codebook_size, self.num_quantizers = code_dim, codebook_size, num_quantizers
        width = dim // groups
        projected = width != code_dim
        self.project_in = GroupLinear(groups, width, code_dim) if projected else nn.Identity()
        self.project_out = GroupLinear(groups, code_dim, width) if projected else nn.Identity()

    def _quantize(self, z: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (G, R1, R2, C), finite, valid (G, R1, R2) -> codes as z, indices (G, R1, R2, Q), the loss."""
        raise NotImplementedError

    def _indices(self, z: Tensor) -> Tensor:
        """z (G, R1, R2, C), finite -> indices (G, R1, R2, Q)."""
        raise NotImplementedError

    def _codes(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """indices (G, R1, R2, Q) in [0, K) or -1 -> the sum of the stages' codes, (G, R1, R2, C)."""
        raise NotImplementedError

    def _latent(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, torch.Size]:
        """x -> z (G, R1, R2, C) with zeros for rows that are not finite, which rows are, the mask, the shape R."""
        rows, mask, shape = self._rows(x, mask, x)
        finite = rows.isfinite().all(-1)
        # Zeros before the projection: a NaN times a gradient of zero would still spoil the weight's gradient.
        z = self.project_in(torch.where(finite.unsqueeze(-1), rows, 0))
        z = z if z.dtype == torch.float64 else z.float()
        if isinstance(self.project_in, GroupLinear):
            finite = finite & z.isfinite().all(-1)
            z = torch.where(finite.unsqueeze(-1), z, 0)
        return z, finite, mask, shape

    def _quantized(self, x: Tensor, mask: Tensor | None) -> Quantized:
        """As forward, with indices (*R, G, Q)."""
        z, finite, mask, shape = self._latent(x, mask)
        valid = finite if mask is None else finite & mask
        codes, indices, loss = self._quantize(z, valid)
        quantized = self.project_out(codes).to(x.dtype)
        quantized = torch.where(finite.unsqueeze(-1), quantized, float("nan"))
        if mask is not None:
            quantized = torch.where(mask.unsqueeze(-1), quantized, 0)
        indices = torch.where(valid.unsqueeze(-1), indices, -1)
        return Quantized(self._restore(quantized, shape), self._index_shape(indices, shape), loss)

    def _encoded(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x -> indices (*R, G, Q)."""
        z, finite, mask, shape = self._latent(x, mask)
        valid = finite if mask is None else finite & mask
        return self._index_shape(torch.where(valid.unsqueeze(-1), self._indices(z), -1), shape)

    def _decoded(self, indices: Tensor) -> Tensor:
        """indices (*R, G, Q) -> quantized."""
        flat, shape = self._flat_indices(indices, (self.num_quantizers,))
        if flat.device.type == "cpu" and not torch.compiler.is_compiling():
            self._raise_unless_known(flat)
        weight = getattr(self.project_out, "weight", None)
        dtype = torch.float32 if weight is None else weight.dtype
        codes = self._codes(flat, torch.promote_types(dtype, torch.float32))
        out = self.project_out(codes)
        # A bias must not make a vector of no code.
        return self._restore(torch.where((flat >= 0).any(-1, keepdim=True), out, 0), shape)

    def _raise_unless_known(self, indices: Tensor) -> None:
        if bool(((indices < -1) | (indices >= self.codebook_size)).any()):
            raise IndexError(
                f"indices must lie in [-1, {self.codebook_size}), got {int(indices.min())} to {int(indices.max())}: "
                "these indices belong to another quantizer"
            )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}"


def mean_of(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of values (..., C) over the rows that are valid (...); zero where none is."""
    total = torch.where(valid.unsqueeze(-1), values, 0).sum()
    return total / (valid.sum() * values.shape[-1]).clamp_min(1)


def code_count(levels: list[int]) -> int:
    """The product of levels; ValueError where an index would not fit int64."""
    number = math.prod(levels)
    if number >= 2**63:
        raise ValueError(f"the product of levels must be below 2**63, got {number}; split the channels into groups")
    return number
