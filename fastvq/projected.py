"""Residual quantizers whose stages have projections, and strides, of their own (DAC, SNAC)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import validation as check
from .dropout import QuantizeDropout
from .estimators import Estimator
from .grouped import Quantized
from .rules import CodebookRules, Learned
from .vector_quantize import VectorQuantize


class ProjectedResidualVQ(nn.Module):
    """Each stage projects what is left to a few dimensions, quantizes there, and projects back (Kumar et al. 2023).

    With the defaults it is the quantizer of the Descript Audio Codec: codes of 8 dimensions that are learned,
    compared by angle and used at their own length. With strides a stage sees the mean of so many time steps and its
    result is repeated over them (SNAC, Siuzdak et al. 2024).

    Args:
        dim: channels of the input.
        codebook_size: K, or one size for each stage.
        num_quantizers: Q, stages.
        codebook_dim: dimension of the codes.
        strides: time steps that a stage takes as one; None: 1 for all. The input is then (B, T, C) or (B, C, T), T a
            multiple of all strides.
        dropout: :class:`fastvq.QuantizeDropout`, for training with fewer stages.
        metric: "cosine" or "l2". rules: by default learned codes that are initialised at random and never replaced.
        estimator: how gradients pass inside a stage.
        commitment_weight: weight of the commitment loss.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T).

    Parameters and buffers: those of :class:`fastvq.VectorQuantize`, under ``stages.<q>.``.

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from fastvq import ProjectedResidualVQ
        >>> vq = ProjectedResidualVQ(64, 32, num_quantizers=3, strides=(4, 2, 1), channel_dim=1)
        >>> quantized, indices, loss = vq(torch.randn(2, 64, 40))
        >>> [tuple(stage.shape) for stage in indices]
        [(2, 10), (2, 20), (2, 40)]
        >>> tuple(vq.decode(indices).shape)
        (2, 64, 40)
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int | Sequence[int],
        *,
        num_quantizers: int,
        codebook_dim: int = 8,
        strides: Sequence[int] | None = None,
        dropout: QuantizeDropout | None = None,
        metric: str = "cosine",
        rules: CodebookRules | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 0.25,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        check.positive("num_quantizers", num_quantizers)
        sizes = (codebook_size,) * num_quantizers if isinstance(codebook_size, int) else tuple(codebook_size)
        strides = (1,) * num_quantizers if strides is None else tuple(strides)
        for name, values in (("codebook_size", sizes), ("strides", strides)):
            if len(values) != num_quantizers:
                raise ValueError(f"{name} must have one entry for each of {num_quantizers} stages, got {len(values)}")
            for value in values:
                check.positive(name, value)
        rules = CodebookRules(update=Learned(), init=None, dead=None) if rules is None else rules
        self.dim, self.num_quantizers, self.strides = dim, num_quantizers, strides
        self.dropout, self.channel_dim = dropout, channel_dim
        self.stages = nn.ModuleList(
            VectorQuantize(
                dim,
                size,
                codebook_dim=codebook_dim,
                metric=metric,
                rules=rules,
                estimator=estimator,
                commitment_weight=commitment_weight,
            )
            for size in sizes
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes.

        Args:
            x: dim channels on ``channel_dim``, any other axes R, at least one; with strides, (B, T, C) or (B, C, T).
            mask: (*R), bool, True where a row is valid; not together with strides above 1.

        Returns:
            quantized: as x.
            indices: (*R, Q), or with strides above 1 a list of Q tensors (B, T / stride).
            loss: mean over stages of the commitment and codebook losses.

        Raises:
            TypeError, ValueError: shapes that do not fit.
        """
        rows = self._checked(x, mask)
        taken = None
        if self.training and self.dropout is not None:
            shape = (1, rows.shape[0]) if rows.dim() == 2 else (rows.shape[0], math.prod(rows.shape[1:-1]))
            taken = self.dropout(shape, self.num_quantizers, x.device).expand(shape).reshape(rows.shape[:-1])
        residual, total, loss, indices = rows, torch.zeros_like(rows), x.new_zeros((), dtype=torch.float32), []
        for number, (stage, stride) in enumerate(zip(self.stages, self.strides, strict=True)):
            valid = mask
            if taken is not None:
                valid = (taken > number)[:, ::stride] if stride > 1 else taken > number
                valid = valid if mask is None else valid & mask
            quantized, found, part = stage(_mean_pool(residual, stride), valid)
            quantized = quantized if stride == 1 else quantized.repeat_interleave(stride, dim=1)
            residual, total, loss = residual - quantized, total + quantized, loss + part
            indices.append(found)
        return Quantized(total.movedim(-1, self.channel_dim), self._joined(indices), loss / self.num_quantizers)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor | list[Tensor]:
        """x and mask as for forward -> indices (*R, Q), or a list of them where there are strides."""
        residual, indices = self._checked(x, mask), []
        stages: Any = self.stages
        for stage, stride in zip(stages, self.strides, strict=True):
            found = stage.encode(_mean_pool(residual, stride), mask)
            quantized = stage.decode(found).to(x.dtype)
            residual = residual - (quantized if stride == 1 else quantized.repeat_interleave(stride, dim=1))
            indices.append(found)
        return self._joined(indices)

    def decode(self, indices: Tensor | Sequence[Tensor]) -> Tensor:
        """indices (*R, q) of the first q <= Q stages, or a list of q tensors -> quantized, on ``channel_dim``.

        A row whose index is -1 in a stage gets nothing from it.
        """
        parts = list(indices.unbind(-1)) if isinstance(indices, Tensor) else list(indices)
        if not 1 <= len(parts) <= self.num_quantizers:
            raise ValueError(f"indices must be of 1 to {self.num_quantizers} stages, got {len(parts)}")
        total: Tensor | float = 0.0
        stages: Any = self.stages
        for part, stage, stride in zip(parts, stages, self.strides, strict=False):
            quantized = torch.where((part >= 0).unsqueeze(-1), stage.decode(part), 0)
            total = total + (quantized if stride == 1 else quantized.repeat_interleave(stride, dim=1))
        assert isinstance(total, Tensor)
        return total.movedim(-1, self.channel_dim)

    def _joined(self, indices: list[Tensor]) -> Tensor:
        if any(stride > 1 for stride in self.strides):
            return indices  # type: ignore[return-value]
        return torch.stack(indices, dim=-1)

    def _checked(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x with its channels last."""
        check.floating("x", x)
        if x.dim() < 2 or x.shape[self.channel_dim] != self.dim:
            raise ValueError(
                f"x must have {self.dim} channels on axis {self.channel_dim}, got shape {tuple(x.shape)}"
            )
        rows = x.movedim(self.channel_dim, -1)
        if max(self.strides) > 1:
            if mask is not None:
                raise ValueError("mask cannot go with strides above 1: quantize each sequence at its own length")
            if x.dim() != 3 or any(rows.shape[1] % stride for stride in self.strides):
                raise ValueError(
                    f"with strides {self.strides} x must be (B, T, C), channels on axis {self.channel_dim}, T a "
                    f"multiple of each; got shape {tuple(x.shape)}: pad it"
                )
        return rows


def _mean_pool(rows: Tensor, stride: int) -> Tensor:
    """(B, T, C) -> (B, T / stride, C)."""
    return rows if stride == 1 else rows.unflatten(1, (-1, stride)).mean(2)
