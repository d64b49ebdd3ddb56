"""What the quantizers without a learned codebook share: rows, projections, masks, and indices of stages."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from . import validation as check
from .channels import ChannelGroups
from .dropout import QuantizeDropout
from .grouped import Quantized


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """quantized to the bit, with the gradient passed to a finite x unchanged (Bengio et al. 2013).

    x - sg(x) is exactly zero, where x + sg(quantized - x) rounds; and plain operations work under torch.func.
    """
    return quantized.detach() + (x - x.detach())


class ScalarQuantizer(ChannelGroups, ABC):
    """Quantizes every row in ``num_quantizers`` stages without a codebook; a subclass says how.

    Args:
        dim: channels of the input.
        code_dim: dimension of a group's codes; where G of it do not add up to dim, linear layers lead there and back.
        codebook_size: K, codes of a stage.
        groups: G.
        num_quantizers: Q, stages.
        dropout: in training, how many stages are taken; None for all.
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
        dropout: QuantizeDropout | None,
        channel_dim: int,
        check_finite: bool,
    ) -> None:
        super().__init__(
            dim, groups=groups, codebook_dim=code_dim, channel_dim=channel_dim, check_finite=check_finite
        )
        check.positive("num_quantizers", num_quantizers)
        if dropout is not None and not isinstance(dropout, QuantizeDropout):
            raise TypeError(f"dropout must be a QuantizeDropout or None, got {type(dropout).__name__}")
        self.codebook_size, self.num_quantizers, self.dropout = codebook_size, num_quantizers, dropout

    @abstractmethod
    def _quantize(self, z: Tensor, valid: Tensor, taken: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What forward does with rows.

        Args:
            z: (G, R1, R2, C), finite. valid: (G, R1, R2). taken: (R1, R2, Q) or what broadcasts to it, or None.

        Returns:
            Codes as z, indices (G, R1, R2, Q) of all stages, and the loss.
        """

    @abstractmethod
    def _indices(self, z: Tensor) -> Tensor:
        """z (G, R1, R2, C), finite -> indices (G, R1, R2, Q)."""

    @abstractmethod
    def _codes(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """indices (G, R1, R2, Q) in [0, K) or -1 -> the sum of the stages' codes, (G, R1, R2, C)."""

    def _latent(
        self, x: Tensor, mask: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, torch.Size]:
        """x -> z (G, R1, R2, C) with zeros for rows that are not finite, which rows are (None where all are known to
        be), the mask, the shape R."""
        check.floating("x", x)
        wide = x
        if isinstance(self.project_in, nn.Linear):
            # Zeros before the projection: a NaN times a gradient of zero would still spoil the weight's gradient.
            wide = x if self.check_finite or known_finite(x) else torch.where(x.isfinite(), x, 0)
            wide = wide.to(self.project_in.weight.dtype)
        rows, mask, shape = self._rows(wide, mask, lengths, x)
        z = rows if rows.dtype == torch.float64 else rows.float()
        if known_finite(z) and (wide is x or known_finite(x)):
            return z, None, mask, shape
        finite = z.isfinite().all(-1)
        if isinstance(self.project_in, nn.Linear):
            finite = finite & x.movedim(self.channel_dim, -1).isfinite().all(-1).reshape(z.shape[1:3])
        return torch.where(finite.unsqueeze(-1), z, 0), finite, mask, shape

    def _quantized(self, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Quantized:
        """As forward, with indices (*R, G, Q)."""
        z, finite, mask, shape = self._latent(x, mask, lengths)
        valid = _both(finite, mask)
        taken = None
        if self.training and self.dropout is not None:
            number = self.dropout(z.shape[1:3], self.num_quantizers, z.device)
            taken = torch.arange(self.num_quantizers, device=z.device) < number.unsqueeze(-1)
        every = z.new_ones(z.shape[:-1], dtype=torch.bool) if valid is None else valid.expand(z.shape[:-1])
        codes, indices, loss = self._quantize(z, every, taken)
        kept = _both(None if valid is None else valid.unsqueeze(-1), taken)
        indices = indices if kept is None else torch.where(kept, indices, -1)
        # A row that is not finite becomes NaN, behind the projection and not before, for the reason above.
        lost = None if finite is None else torch.where(finite, 0.0, float("nan")).to(codes.dtype).unsqueeze(-1)
        if lost is None:
            quantized = self._restore(codes, shape)
        elif isinstance(self.project_out, nn.Linear):
            quantized = self._restore(codes, shape)
            spoilt = lost.sum(0).reshape(*shape, 1).movedim(-1, self.channel_dim)
            quantized = quantized + spoilt.to(quantized.dtype)
        else:
            quantized = self._restore(codes + lost, shape)
        if mask is not None:
            quantized = torch.where(mask.reshape(*shape, 1).movedim(-1, self.channel_dim), quantized, 0)
        return Quantized(quantized.to(x.dtype), self._index_shape(indices, shape), loss)

    def _encoded(self, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
        """x -> indices (*R, G, Q)."""
        z, finite, mask, shape = self._latent(x, mask, lengths)
        valid, indices = _both(finite, mask), self._indices(z)
        return self._index_shape(indices if valid is None else torch.where(valid.unsqueeze(-1), indices, -1), shape)

    def _decoded(self, indices: Tensor) -> Tensor:
        """indices (*R, G, Q) -> quantized."""
        flat, shape = self._flat_indices(indices, (self.num_quantizers,))
        if flat.device.type == "cpu" and not torch.compiler.is_compiling():
            self._raise_unless_known(flat)
        weight = getattr(self.project_out, "weight", None)
        dtype = torch.float32 if weight is None else torch.promote_types(weight.dtype, torch.float32)
        # A bias must not make a vector of no code.
        known = (flat >= 0).any(-1).any(0)
        return self._restore(self._codes(flat, dtype), shape, known)

    def _raise_unless_known(self, indices: Tensor) -> None:
        if bool(((indices < -1) | (indices >= self.codebook_size)).any()):
            raise IndexError(
                f"indices must lie in [-1, {self.codebook_size}), got {int(indices.min())} to {int(indices.max())}: "
                "these indices belong to another quantizer"
            )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}"


def known_finite(x: Tensor) -> bool:
    """Whether x is known to be finite at the price of one look at it: on a CPU, where no graph is being traced.

    A sum is finite only where all its terms are; where it overflows, nothing is known.
    """
    return on_cpu_now(x) and math.isfinite(x.detach().sum().item())


def on_cpu_now(x: Tensor) -> bool:
    """Whether x is a plain tensor on a CPU whose operations run as they come: not traced, and not transformed."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    plain = type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and not traced
    return plain and torch._C._functorch.peek_interpreter_stack() is None


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a & b, where None is True everywhere."""
    return b if a is None else a if b is None else a & b


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
