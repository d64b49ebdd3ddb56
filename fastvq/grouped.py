"""Grouped vector quantization: the channels split into groups, each with a codebook of its own, in one search."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import validation as check
from .channels import ChannelGroups
from .codebook import Codebook
from .estimators import Estimator, StraightThrough, commitment_loss
from .rules import CodebookRules


class Quantized(NamedTuple):
    """What a quantizer returns: quantized as the input, int64 indices (-1 where masked), and a scalar loss."""

    quantized: Tensor
    indices: Tensor
    loss: Tensor


class GroupedVQ(ChannelGroups):
    """Splits ``dim`` channels into contiguous groups and quantizes each with its own codebook.

    Args:
        dim: channels of the input.
        codebook_size: K, codes in each group.
        groups: G; divides dim.
        metric: "l2", "cosine" or "dot".
        rules: initialiser, update and dead-code rule; by default k-means, EMA 0.99, relative usage 0.1.
        estimator: how gradients pass; :class:`StraightThrough` or :class:`RotationTrick`.
        commitment_weight: weight of the commitment loss.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T) or (B, C, H, W).
        check_finite: raise on a non-finite row, naming it; costs a sync, refused under torch.compile.

    Buffers:
        those of :class:`fastvq.Codebook`, under ``codebooks.``.

    Raises:
        TypeError, ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        groups: int,
        metric: str = "l2",
        rules: CodebookRules | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 1.0,
        channel_dim: int = -1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(dim, groups, channel_dim=channel_dim, check_finite=check_finite)
        self.estimator = StraightThrough() if estimator is None else estimator
        check.not_negative("commitment_weight", commitment_weight)
        self.commitment_weight = commitment_weight
        self.codebooks = Codebook(codebook_size, dim // groups, groups=groups, metric=metric, rules=rules)

    @property
    def codebook(self) -> Tensor:
        """The codes, (G, K, D)."""
        return self.codebooks.codebook

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.codebooks.codebook_size

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes, and in training mode initialises and updates the codebooks.

        Args:
            x: dim channels on ``channel_dim``, any other axes R, at least one; e.g. (B, T, C).
            mask: (*R), bool, True where a row is valid.

        Returns:
            quantized: as x; zeros where masked, NaN where x is not finite.
            indices: (*R, G).
            loss: commitment loss, weighted; mean over valid rows and groups.

        Raises:
            TypeError, ValueError: shapes or dtypes that do not fit; with check_finite, a row that is not finite.
        """
        rows, mask, shape = self._rows(x, mask, self.codebook)
        if self.codebooks.metric == "cosine":
            rows = nn.functional.normalize(rows, dim=-1)
        if self.training:
            self.codebooks.initialise_(rows, mask)
        indices, distances = self.codebooks.search(rows.detach(), mask)
        codes = self.codebooks.lookup(indices)
        valid = None
        if self._may_have_holes(indices):
            # A row that is not finite has distance NaN, and NaN is what its quantized row becomes.
            lost = torch.where(distances.isnan(), float("nan"), 0.0).to(distances.dtype)
            codes, valid = codes + lost.unsqueeze(-1), indices >= 0
        if self.codebooks.metric != "l2":
            distances = (rows.detach().to(codes.dtype) - codes).square().sum(-1)
        loss = self.commitment_weight * commitment_loss(rows, codes, distances, valid)
        if self.training:
            self.codebooks.update_(rows.detach(), indices)
        quantized = self.estimator(rows, codes.to(rows.dtype))
        if mask is not None:
            quantized = torch.where(mask.unsqueeze(-1), quantized, 0)
        return Quantized(self._restore(quantized, shape), self._index_shape(indices, shape), loss)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x and mask as for forward -> indices (*R, G)."""
        rows, mask, shape = self._rows(x, mask, self.codebook)
        return self._index_shape(self.codebooks.search(rows.detach(), mask).indices, shape)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, G) -> quantized, channels on ``channel_dim``, in the codebook's dtype; -1 gives zeros.

        Raises:
            ValueError: the last axis is not G. IndexError: an index outside [-1, K), on a CPU.
        """
        flat, shape = self._flat_indices(indices)
        return self._restore(self.codebooks.lookup(flat), shape)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, estimator={self.estimator}, commitment_weight={self.commitment_weight}"
