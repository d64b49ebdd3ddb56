"""Residual quantizers side by side on one input, each with projections of its own (Mimi)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import validation as check
from .dropout import QuantizeDropout
from .estimators import Estimator
from .grouped import Quantized
from .residual import ResidualVQ
from .rules import CodebookRules


class SplitResidualVQ(nn.Module):
    """Several residual quantizers that each see the whole input; their results are added.

    In Mimi (Defossez et al. 2024, section 3.3) the first has one stage, whose codes follow a teacher of speech
    content, and the second the other stages. Each projects the input without bias, quantizes, and projects back.

    Args:
        dim: channels of the input.
        codebook_size: K.
        num_quantizers: stages of each part, e.g. (1, 31).
        codebook_dim: dimension of the codes; None: dim.
        project: whether parts have projections; None: where codebook_dim is not dim.
        dropout: :class:`fastvq.QuantizeDropout`, for training with fewer stages of the parts after the first.
        rules: initialiser, update and dead-code rule; by default k-means, EMA 0.99, relative usage 0.1.
        estimator: how gradients pass inside a part.
        commitment_weight: weight of the commitment loss.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T) or (B, C, H, W).

    Parameters and buffers: those of :class:`fastvq.ResidualVQ`, under ``parts.<i>.``; ``project_in.<i>.weight``
    (codebook_dim, dim) and ``project_out.<i>.weight`` (dim, codebook_dim) where there are projections.

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from fastvq import SplitResidualVQ
        >>> vq = SplitResidualVQ(16, 32, num_quantizers=(1, 3), codebook_dim=8, channel_dim=1)
        >>> quantized, indices, loss = vq(torch.randn(2, 16, 50))
        >>> tuple(quantized.shape), tuple(indices.shape)
        ((2, 16, 50), (2, 50, 4))
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_quantizers: Sequence[int],
        codebook_dim: int | None = None,
        project: bool | None = None,
        dropout: QuantizeDropout | None = None,
        rules: CodebookRules | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 1.0,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        check.positive("dim", dim)
        if isinstance(num_quantizers, int) or not num_quantizers:
            raise ValueError(f"num_quantizers must be the stages of each part, as in (1, 7), got {num_quantizers!r}")
        codebook_dim = dim if codebook_dim is None else codebook_dim
        project = codebook_dim != dim if project is None else project
        if not project and codebook_dim != dim:
            raise ValueError(f"codebook_dim must be dim without projections, got {codebook_dim} and {dim}")
        self.dim, self.codebook_dim, self.channel_dim = dim, codebook_dim, channel_dim
        self.stages = tuple(num_quantizers)
        self.parts = nn.ModuleList(
            ResidualVQ(
                codebook_dim,
                codebook_size,
                num_quantizers=stages,
                dropout=dropout if number else None,
                rules=rules,
                estimator=estimator,
                commitment_weight=commitment_weight,
            )
            for number, stages in enumerate(self.stages)
        )

        def maps(inputs: int, outputs: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Linear(inputs, outputs, bias=False) if project else nn.Identity() for _ in self.stages
            )

        self.project_in, self.project_out = maps(dim, codebook_dim), maps(codebook_dim, dim)

    @property
    def num_quantizers(self) -> int:
        """Stages of all parts."""
        return sum(self.stages)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> Quantized:
        """Quantizes, and in training mode initialises and updates the codebooks.

        Args:
            x: dim channels on ``channel_dim``, any other axes R, at least one; e.g. (B, T, C).
            mask: (*R), bool, True where a row is valid. lengths: (B,), int64, in its place.
            num_quantizers: stages to take, those of the first part first; the others' indices are -1.

        Returns:
            quantized: as x; zeros where masked, NaN where x is not finite.
            indices: (*R, Q), Q the stages of all parts.
            loss: the parts' losses, weighted by their numbers of stages.

        Raises:
            TypeError, ValueError: shapes or dtypes that do not fit.
        """
        rows, total, loss, taken = self._rows(x), None, x.new_zeros((), dtype=torch.float32), 0
        indices = []
        for number, stages in enumerate(self._taken(num_quantizers)):
            if not stages:
                indices.append(self._absent(rows, number))
                continue
            count = None if num_quantizers is None else stages
            quantized, found, part = self.parts[number](
                self.project_in[number](rows), mask, lengths=lengths, num_quantizers=count
            )
            quantized = self.project_out[number](quantized)
            total = quantized if total is None else total + quantized
            loss, taken = loss + part * stages, taken + stages
            indices.append(found)
        assert total is not None
        return Quantized(total.movedim(-1, self.channel_dim), torch.cat(indices, dim=-1), loss / taken)

    def encode(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> Tensor:
        """x, mask, lengths and num_quantizers as for forward -> indices (*R, Q)."""
        rows, indices = self._rows(x), []
        for number, stages in enumerate(self._taken(num_quantizers)):
            if not stages:
                indices.append(self._absent(rows, number))
                continue
            count = None if num_quantizers is None else stages
            projected = self.project_in[number](rows)
            part = self.parts[number]
            assert isinstance(part, ResidualVQ)
            indices.append(part.encode(projected, mask, lengths=lengths, num_quantizers=count))
        return torch.cat(indices, dim=-1)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, Q) -> quantized, channels on ``channel_dim``; -1 adds nothing.

        Raises:
            ValueError: the last axis is not Q. IndexError: an index outside [-1, K), on a CPU.
        """
        check.integer("indices", indices)
        if indices.dim() < 2 or indices.shape[-1] != self.num_quantizers:
            raise ValueError(f"indices must be (*R, {self.num_quantizers}), got shape {tuple(indices.shape)}")
        total: Tensor | None = None
        for part, back, chosen in zip(self.parts, self.project_out, indices.split(self.stages, dim=-1), strict=True):
            assert isinstance(part, ResidualVQ)
            codes = part.decode(chosen)
            codes = back(codes.to(back.weight.dtype)) if isinstance(back, nn.Linear) else codes
            total = codes if total is None else total + codes
        assert total is not None
        return total.movedim(-1, self.channel_dim)

    def _rows(self, x: Tensor) -> Tensor:
        """x with its channels last."""
        check.floating("x", x)
        axis = self.channel_dim
        if x.dim() < 2 or not -x.dim() <= axis < x.dim() or x.shape[axis] != self.dim:
            raise ValueError(
                f"x must have {self.dim} channels on axis {axis} and at least one more axis, "
                f"got shape {tuple(x.shape)}"
            )
        return x.movedim(axis, -1)

    def _taken(self, num_quantizers: int | None) -> list[int]:
        """How many stages each part takes."""
        if num_quantizers is None:
            return list(self.stages)
        check.positive("num_quantizers", num_quantizers)
        if num_quantizers > self.num_quantizers:
            raise ValueError(f"num_quantizers must be at most {self.num_quantizers}, got {num_quantizers}")
        taken = []
        for stages in self.stages:
            taken.append(min(stages, num_quantizers))
            num_quantizers -= taken[-1]
        return taken

    def _absent(self, rows: Tensor, number: int) -> Tensor:
        return torch.full((*rows.shape[:-1], self.stages[number]), -1, device=rows.device)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_dim={self.codebook_dim}, num_quantizers={self.stages}"
