"""Residual attention quantization: stages that each quantize what the stages before them left, by attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import functional as F
from . import validation as check
from .attention import AttentionVQ
from .channels import ChannelGroups
from .dropout import QuantizeDropout
from .grouped import Quantized


class ResidualAttentionVQ(nn.Module):
    """Q attention quantizers, each of what the ones before it left (PGR2M, 2512.22464).

    As published, every stage passes gradients straight through, so that x gets those of the result Q times, and what
    a stage leaves passes none back through it.

    Args:
        dim, codebook_size and all others: as :class:`fastvq.AttentionVQ`; every stage has codes of its own.
        num_quantizers: Q, stages.
        dropout: :class:`fastvq.QuantizeDropout`, for training with fewer stages; begins when all stages have their
            first codes.

    Parameters and buffers: those of :class:`fastvq.AttentionVQ`, under ``stages.<q>.``.

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from fastvq import QuantizeDropout, ResidualAttentionVQ
        >>> vq = ResidualAttentionVQ(32, 16, num_quantizers=6, dropout=QuantizeDropout(0.2))
        >>> quantized, indices, loss = vq(torch.randn(4, 50, 32))
        >>> tuple(indices.shape), tuple(vq.codebook.shape)
        ((4, 50, 6), (6, 16, 32))
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_quantizers: int,
        dropout: QuantizeDropout | None = None,
        channel_dim: int = -1,
        **others: Any,
    ) -> None:
        super().__init__()
        check.positive("num_quantizers", num_quantizers)
        self.dim, self.codebook_size, self.num_quantizers = dim, codebook_size, num_quantizers
        self.dropout, self.channel_dim = dropout, channel_dim
        self.stages = nn.ModuleList(
            AttentionVQ(dim, codebook_size, channel_dim=channel_dim, **others) for _ in range(num_quantizers)
        )

    @property
    def codebook(self) -> Tensor:
        """The codes of all stages as used, W_v c, (Q, K, D), with gradients to both; at least float32; a copy."""
        stages: Any = self.stages
        return torch.stack([stage._values() for stage in stages])

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> Quantized:
        """Quantizes, and in training mode takes each stage's first codes from what the first batch leaves to it.

        Args:
            x: dim channels on ``channel_dim``, any other axes R, at least one; e.g. (B, T, C).
            mask: (*R), bool, True where a row is valid. lengths: (B,), int64, in its place.
            num_quantizers: stages to take, in [1, Q], in place of what dropout draws; the others' indices are -1.

        Returns:
            quantized: as x; zeros where masked, NaN where x is not finite.
            indices: (*R, Q).
            loss: that of :class:`fastvq.AttentionVQ`, mean over the stages taken.

        Raises:
            TypeError, ValueError: shapes or dtypes that do not fit.
        """
        mask = self._mask(x, mask, lengths)
        stages = self._number(num_quantizers)
        taken = None if num_quantizers is not None else self._drawn(x)
        residual, total, loss = x, torch.zeros_like(x), x.new_zeros((), dtype=torch.float32)
        weight: Tensor | float = 0.0
        indices: list[Tensor] = []
        for number, stage in enumerate(self.stages[:stages]):
            valid = mask
            if taken is not None:
                valid = taken > number if mask is None else (taken > number) & mask
            quantized, found, part = stage(residual, valid)
            share = 1.0 if valid is None else valid.any().to(part.dtype)
            loss, weight = loss + share * part, weight + share
            residual, total = residual - quantized.detach(), total + quantized
            indices.append(found)
        loss = loss / (weight.clamp_min(1) if isinstance(weight, Tensor) else weight)
        return Quantized(total, self._joined(indices), loss)

    def encode(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> Tensor:
        """x, mask, lengths and num_quantizers as for forward -> indices (*R, Q)."""
        mask = self._mask(x, mask, lengths)
        residual, indices = x, []
        stages: Any = self.stages[: self._number(num_quantizers)]
        for stage in stages:
            indices.append(stage.encode(residual, mask))
            if len(indices) < len(stages):
                residual = residual - stage.decode(indices[-1]).to(x.dtype)
        return self._joined(indices)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, Q) -> sum of the stages' W_v c_k, channels on ``channel_dim``; -1 adds nothing.

        In one look-up, and without gradients on a CPU the codes are projected once for the parameters as they are.

        Raises:
            ValueError: the last axis is not Q. IndexError: an index outside [-1, K), on a CPU.
        """
        check.integer("indices", indices)
        if indices.dim() < 2 or indices.shape[-1] != self.num_quantizers:
            raise ValueError(f"indices must be (*R, {self.num_quantizers}), got shape {tuple(indices.shape)}")
        flat = indices.reshape(1, -1, self.num_quantizers)
        codes = F.lookup(flat, self.codebook.unsqueeze(0))
        return codes.reshape(*indices.shape[:-1], self.dim).movedim(-1, self.channel_dim)

    def _mask(self, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
        """Valid rows (*R), None for all."""
        if lengths is None:
            return mask
        shape = x.movedim(self.channel_dim, -1).shape[:-1]
        return ChannelGroups._within(lengths, mask, shape).expand(shape)

    def _number(self, num_quantizers: int | None) -> int:
        """How many stages are asked for."""
        if num_quantizers is None:
            return self.num_quantizers
        check.positive("num_quantizers", num_quantizers)
        if num_quantizers > self.num_quantizers:
            raise ValueError(f"num_quantizers must be at most {self.num_quantizers}, got {num_quantizers}")
        return num_quantizers

    def _drawn(self, x: Tensor) -> Tensor | None:
        """How many stages dropout leaves each row, (*R), None where all."""
        stages: Any = self.stages
        # A stage that the first batch does not reach would keep random codes, where nobody may ask for its rows.
        if not self.training or self.dropout is None or not all(stage.codebooks._initted for stage in stages):
            return None
        shape = x.movedim(self.channel_dim, -1).shape[:-1]
        rows = (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1:].numel())
        return self.dropout(rows, self.num_quantizers, x.device).expand(rows).reshape(shape)

    def _joined(self, indices: list[Tensor]) -> Tensor:
        """Indices of the first stages (*R) each -> (*R, Q), -1 in the others."""
        missing = [torch.full_like(indices[0], -1)] * (self.num_quantizers - len(indices))
        return torch.stack(indices + missing, dim=-1)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, num_quantizers={self.num_quantizers}"
