"""Residual vector quantization: stages that each quantize what the stages before them left, in one search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import validation as check
from .channels import ChannelGroups
from .estimators import Estimator, StraightThrough, residual_commitment_loss
from .grouped import Quantized
from .residual_codebook import ResidualCodebook
from .rules import CodebookRules


class GroupedResidualVQ(ChannelGroups):
    """Splits ``dim`` channels into contiguous groups and quantizes each with a stack of Q codebooks of its own.

    Args:
        dim: channels of the input.
        codebook_size: K, or one size for each stage.
        groups: G; divides dim.
        num_quantizers: Q, stages.
        shared: all stages of a group use one codebook.
        beam: choices kept from stage to stage; above 1 it leaves less error and takes about that many times as long.
        rules: initialiser, update and dead-code rule; by default k-means, EMA 0.99, relative usage 0.1.
        estimator: how gradients pass; :class:`fastvq.StraightThrough` or :class:`fastvq.RotationTrick`.
        commitment_weight: weight of the commitment loss.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T) or (B, C, H, W).
        check_finite: raise on a non-finite row, naming it; costs a sync, refused under torch.compile.

    Buffers:
        those of :class:`fastvq.ResidualCodebook`, under ``codebooks.``.

    Raises:
        TypeError, ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int | Sequence[int],
        *,
        groups: int,
        num_quantizers: int,
        shared: bool = False,
        beam: int = 1,
        rules: CodebookRules | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 1.0,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(dim, groups, channel_dim=channel_dim, check_finite=check_finite)
        self.num_quantizers = num_quantizers
        self.estimator = StraightThrough() if estimator is None else estimator
        check.not_negative("commitment_weight", commitment_weight)
        self.commitment_weight = commitment_weight
        self.codebooks = ResidualCodebook(
            codebook_size,
            dim // groups,
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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes, and in training mode initialises and updates the codebooks.

        Args:
            x: dim channels on ``channel_dim``, any other axes R, at least one; e.g. (B, T, C).
            mask: (*R), bool, True where a row is valid.

        Returns:
            quantized: as x; zeros where masked, NaN where x is not finite.
            indices: (*R, G, Q).
            loss: commitment loss, weighted; mean over valid rows, stages and groups.

        Raises:
            TypeError, ValueError: shapes or dtypes that do not fit; with check_finite, a row that is not finite.
        """
        rows, mask, shape = self._rows(x, mask, self.codebooks.codebook)
        if self.training:
            self.codebooks.initialise_(rows, mask)
        indices, codes, errors = self.codebooks.search(rows.detach(), mask)
        loss = self.commitment_weight * residual_commitment_loss(
            rows, indices, codes, errors, self.codebook, impl=self.codebooks.impl
        )
        if self.training:
            self.codebooks.update_(rows.detach(), indices)
        quantized = self.estimator(rows, codes.to(rows.dtype))
        if mask is not None:
            quantized = torch.where(mask.unsqueeze(-1), quantized, 0)
        return Quantized(self._restore(quantized, shape), self._index_shape(indices, shape), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x and mask as for forward -> indices (*R, G, Q)."""
        rows, mask, shape = self._rows(x, mask, self.codebooks.codebook)
        return self._index_shape(self.codebooks.search(rows.detach(), mask).indices, shape)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, G, Q) -> quantized, channels on ``channel_dim``, in the codebook's dtype; -1 adds nothing.

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
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int | Sequence[int],
        *,
        num_quantizers: int,
        shared: bool = False,
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
            shared=shared,
            beam=beam,
            rules=rules,
            estimator=estimator,
            commitment_weight=commitment_weight,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """As :meth:`fastvq.GroupedResidualVQ.forward`, with indices (*R, Q)."""
        quantized, indices, loss = super().forward(x, mask)
        return Quantized(quantized, indices.squeeze(-2), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x -> indices (*R, Q)."""
        return super().encode(x, mask).squeeze(-2)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, Q) -> quantized; -1 adds nothing."""
        return super().decode(indices.unsqueeze(-2))
