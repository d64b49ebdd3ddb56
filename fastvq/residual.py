"""Residual vector quantization: stages that each quantize what the stages before them left, in one search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import validation as check
from .channels import ChannelGroups
from .dropout import QuantizeDropout
from .estimators import Estimator, GumbelSoftmax, StraightThrough, check_estimator, is_random
from .grouped import Quantized
from .losses import (
    codebook_loss,
    residual_commitment_loss,
    straight_through_residual_commitment,
    taken_stages,
)
from .residual_codebook import ResidualCodebook
from .rules import CodebookRules, Learned


class GroupedResidualVQ(ChannelGroups):
    """Splits ``dim`` channels into contiguous groups and quantizes each with a stack of Q codebooks of its own.

    Args:
        dim: channels of the input.
        codebook_size: K, or one size for each stage.
        groups: G; divides dim, unless ``codebook_dim`` is given.
        num_quantizers: Q, stages.
        codebook_dim: dimension of the codes; where G of it do not add up to dim, a linear layer before and one after.
        shared: all stages of a group use one codebook.
        dropout: :class:`fastvq.QuantizeDropout`, for training with fewer stages.
        beam: choices kept from stage to stage; above 1 it leaves less error and takes about that many times as long.
        rules: initialiser, update and dead-code rule; by default k-means, EMA 0.99, relative usage 0.1.
        estimator: how gradients pass; :class:`fastvq.StraightThrough`, :class:`fastvq.RotationTrick` or
            :class:`fastvq.DiVeQ`.
        commitment_weight: weight of the commitment loss.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T) or (B, C, H, W).
        check_finite: raise on a non-finite row, naming it; costs a sync, refused under torch.compile.

    Buffers:
        those of :class:`fastvq.ResidualCodebook`, under ``codebooks.``.

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from fastvq import GroupedResidualVQ
        >>> vq = GroupedResidualVQ(64, 32, groups=2, num_quantizers=4)
        >>> quantized, indices, loss = vq(torch.randn(4, 50, 64))
        >>> tuple(indices.shape)
        (4, 50, 2, 4)
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int | Sequence[int],
        *,
        groups: int,
        num_quantizers: int,
        codebook_dim: int | None = None,
        shared: bool = False,
        dropout: QuantizeDropout | None = None,
        beam: int = 1,
        rules: CodebookRules | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 1.0,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            dim, groups=groups, codebook_dim=codebook_dim, channel_dim=channel_dim, check_finite=check_finite
        )
        if isinstance(estimator, GumbelSoftmax):
            raise ValueError("estimator GumbelSoftmax draws one code a row: use it with VectorQuantize or GroupedVQ")
        if dropout is not None and not isinstance(dropout, QuantizeDropout):
            raise TypeError(f"dropout must be a QuantizeDropout, got {type(dropout).__name__}: QuantizeDropout(0.5)")
        self.num_quantizers, self.dropout = num_quantizers, dropout
        self.estimator = check_estimator(estimator)
        check.not_negative("commitment_weight", commitment_weight)
        self.commitment_weight = commitment_weight
        self.codebooks = ResidualCodebook(
            codebook_size,
            self.codebook_dim,
            num_quantizers=num_quantizers,
            groups=groups,
            shared=shared,
            beam=beam,
            rules=rules,
        )

    @property
    def codebook(self) -> Tensor:
        """The codes of all stages, (G, Q, K, D)."""
        return self.codebooks.stack()

    @property
    def codebook_size(self) -> int:
        """K, of the largest stage."""
        return self.codebooks.codebook_size

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
            mask: (*R), bool, True where a row is valid.
            lengths: (B,), int64: of the first axis after the batch only so many rows are valid. In place of mask.
            num_quantizers: stages to take, in [1, Q], in place of what dropout draws; the others' indices are -1.

        Returns:
            quantized: as x; zeros where masked, NaN where x is not finite.
            indices: (*R, G, Q).
            loss: commitment loss, weighted; mean over valid rows, stages and groups; with the codebook loss of
                :class:`fastvq.Learned`.

        Raises:
            TypeError, ValueError: shapes or dtypes that do not fit; with check_finite, a row that is not finite.
        """
        rows, mask, shape = self._rows(x, mask, lengths, self.codebooks.codebook)
        if self.training:
            self.codebooks.initialise_(rows, mask)
        stages = self._stages(rows, num_quantizers)
        indices, codes, errors = self.codebooks.search(rows.detach(), mask, stages)
        estimator = self.estimator if self.training or not is_random(self.estimator) else StraightThrough()
        stack, impl = self.codebooks.stack(), self.codebooks.impl
        if type(estimator) is StraightThrough:
            quantized, commitment = straight_through_residual_commitment(
                rows, indices, codes.to(rows.dtype), errors, stack.detach(), impl=impl
            )
        else:
            commitment = residual_commitment_loss(rows, indices, codes, errors, stack.detach(), impl=impl)
            if stack.requires_grad and is_random(estimator):
                # The same sum of codes, but with gradients to them.
                codes = torch.where(codes.isnan(), codes, self.codebooks.lookup(indices))
            quantized = estimator(rows, codes.to(rows.dtype))
        loss = self.commitment_weight * commitment
        rule = self.codebooks.rules.update
        if isinstance(rule, Learned) and rule.weight:
            valid = taken_stages(indices, errors)
            wide = self.codebooks.cast(rows.detach())
            loss = loss + rule.weight * codebook_loss(stack, wide, indices, errors, valid, impl=impl)
        if self.training:
            self.codebooks.update_(rows.detach(), indices, partial=stages is not None)
        return Quantized(self._restore(quantized, shape, mask), self._index_shape(indices, shape), loss)

    def _stages(self, rows: Tensor, num_quantizers: int | None) -> Tensor | None:
        """How many stages rows take, broadcasts to (R1, R2), or None for all."""
        if num_quantizers is not None:
            check.positive("num_quantizers", num_quantizers)
            if num_quantizers > self.num_quantizers:
                raise ValueError(f"num_quantizers must be at most {self.num_quantizers}, got {num_quantizers}")
            return torch.full((1, 1), num_quantizers, device=rows.device)
        if not self.training or self.dropout is None:
            return None
        return self.dropout(rows.shape[1:3], self.num_quantizers, rows.device)

    def encode(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> Tensor:
        """x, mask, lengths and num_quantizers as for forward -> indices (*R, G, Q)."""
        rows, mask, shape = self._rows(x, mask, lengths, self.codebooks.codebook)
        stages = None if num_quantizers is None else self._stages(rows, num_quantizers)
        return self._index_shape(self.codebooks.search(rows.detach(), mask, stages).indices, shape)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, G, Q) -> quantized, channels on ``channel_dim``; -1 adds nothing.

        In the dtype of the codebook, or of ``project_out``'s weight where there is one.

        Raises:
            ValueError: the last axes are not G and Q. IndexError: an index outside [-1, K), on a CPU.
        """
        flat, shape = self._flat_indices(indices, (self.num_quantizers,))
        return self._restore(self.codebooks.lookup(flat), shape)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, estimator={self.estimator}, commitment_weight={self.commitment_weight}"


class ResidualVQ(GroupedResidualVQ):
    """Quantizes every row with a stack of Q codebooks.

    Args:
        dim: channels of the input and dimension of the codes.
        codebook_size, num_quantizers and all others: as :class:`fastvq.GroupedResidualVQ`.

    Buffers:
        those of :class:`fastvq.ResidualCodebook` with G = 1, under ``codebooks.``.

    Example:
        >>> import torch
        >>> from fastvq import QuantizeDropout, ResidualVQ
        >>> vq = ResidualVQ(64, 32, num_quantizers=6, dropout=QuantizeDropout())
        >>> quantized, indices, loss = vq(torch.randn(4, 50, 64))
        >>> coarse = vq.eval()(torch.randn(4, 50, 64), num_quantizers=2)
        >>> tuple(coarse.indices.shape), bool((coarse.indices[..., 2:] == -1).all())
        ((4, 50, 6), True)
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int | Sequence[int],
        *,
        num_quantizers: int,
        codebook_dim: int | None = None,
        shared: bool = False,
        dropout: QuantizeDropout | None = None,
        beam: int = 1,
        rules: CodebookRules | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 1.0,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            dim,
            codebook_size,
            groups=1,
            num_quantizers=num_quantizers,
            codebook_dim=codebook_dim,
            shared=shared,
            dropout=dropout,
            beam=beam,
            rules=rules,
            estimator=estimator,
            commitment_weight=commitment_weight,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> Quantized:
        """As :meth:`fastvq.GroupedResidualVQ.forward`, with indices (*R, Q)."""
        quantized, indices, loss = super().forward(x, mask, lengths=lengths, num_quantizers=num_quantizers)
        return Quantized(quantized, indices.squeeze(-2), loss)

    def encode(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> Tensor:
        """x -> indices (*R, Q)."""
        return super().encode(x, mask, lengths=lengths, num_quantizers=num_quantizers).squeeze(-2)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, Q) -> quantized; -1 adds nothing."""
        return super().decode(indices.unsqueeze(-2))
