"""Grouped vector quantization: the channels split into groups, each with a codebook of its own, in one search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import validation as check
from .channels import ChannelGroups
from .codebook import Codebook
from .estimators import Estimator, GumbelSoftmax, StraightThrough, check_estimator, is_random
from .losses import Regulariser, codebook_loss, commitment_loss, straight_through_commitment
from .rules import CodebookRules, Learned
from .state import snapshot


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
        groups: G; divides dim, unless ``codebook_dim`` is given.
        codebook_dim: dimension of the codes; where G of it do not add up to dim, a linear layer before and one after.
        metric: "l2", "cosine" or "dot". With "cosine" rows and codes are put on the unit sphere, unless the codes are
            :class:`fastvq.Learned`: then they are compared by angle and returned at their own length (as DAC does).
        rules: initialiser, update and dead-code rule; by default k-means, EMA 0.99, relative usage 0.1.
        estimator: how gradients pass; :class:`StraightThrough`, :class:`RotationTrick`, :class:`DiVeQ` or
            :class:`GumbelSoftmax`.
        commitment_weight: weight of the commitment loss.
        regularisers: further losses: :class:`fastvq.losses.Orthogonality`, :class:`fastvq.losses.Diversity`.
        sample_temperature: above 0, codes are drawn in training with probability softmax(score / temperature), the
            score being minus the squared distance, the cosine or the dot product.
        channel_dim: axis of the channels: -1 for (B, T, C), 1 for (B, C, T), (B, C, H, W) or (B, C, T, H, W).
        check_finite: raise on a non-finite row, naming it; costs a sync, refused under torch.compile.
        heads: with one group, the channels are split into so many rows of its codebook.

    Buffers:
        those of :class:`fastvq.Codebook`, under ``codebooks.``; ``codebooks.codebook`` is a parameter where the rules
        say :class:`fastvq.Learned`, and ``project_in``, ``project_out`` are linear layers where there are any.

    Raises:
        TypeError, ValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> from fastvq import GroupedVQ
        >>> vq = GroupedVQ(64, 32, groups=8, channel_dim=1)
        >>> quantized, indices, loss = vq(torch.randn(4, 64, 50), lengths=torch.tensor([50, 20, 31, 7]))
        >>> tuple(quantized.shape), tuple(indices.shape)
        ((4, 64, 50), (4, 50, 8))
        >>> bool((indices[1, 20:] == -1).all())
        True
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        groups: int,
        codebook_dim: int | None = None,
        metric: str = "l2",
        rules: CodebookRules | None = None,
        estimator: Estimator | None = None,
        commitment_weight: float = 1.0,
        regularisers: Sequence[Regulariser] = (),
        sample_temperature: float = 0.0,
        channel_dim: int = -1,
        check_finite: bool = False,
        heads: int = 1,
    ) -> None:
        super().__init__(
            dim,
            groups=groups,
            heads=heads,
            codebook_dim=codebook_dim,
            channel_dim=channel_dim,
            check_finite=check_finite,
        )
        self.estimator = check_estimator(estimator)
        check.not_negative("commitment_weight", commitment_weight)
        check.not_negative("sample_temperature", sample_temperature)
        self.commitment_weight, self.sample_temperature = commitment_weight, sample_temperature
        self.regularisers = tuple(regularisers)
        self.codebooks = Codebook(codebook_size, self.codebook_dim, groups=groups, metric=metric, rules=rules)

    @property
    def codebook(self) -> Tensor:
        """The codes, (G, K, D)."""
        return self.codebooks.codebook

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.codebooks.codebook_size

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Quantized:
        """Quantizes, and in training mode initialises and updates the codebooks.

        Args:
            x: dim channels on ``channel_dim``, any other axes R, at least one; e.g. (B, T, C).
            mask: (*R), bool, True where a row is valid.
            lengths: (B,), int64: of the first axis after the batch only so many rows are valid. In place of mask.

        Returns:
            quantized: as x; zeros where masked, NaN where x is not finite.
            indices: (*R, G).
            loss: commitment loss, weighted, mean over valid rows and groups; with the codebook loss of
                :class:`fastvq.Learned` and the regularisers.

        Raises:
            TypeError, ValueError: shapes or dtypes that do not fit; with check_finite, a row that is not finite.
        """
        rows, mask, shape = self._rows(x, mask, lengths, self.codebook)
        rows = self.codebooks.place(rows)
        if self.training:
            self.codebooks.initialise_(rows, mask)
        # What keeps codes for the backward pass keeps these: the codebook itself is about to move.
        kept = self.codebook
        if self.training and (self.regularisers or isinstance(self.estimator, GumbelSoftmax)):
            kept = snapshot(kept)
        indices, distances, relaxed = self._choose(rows, mask, kept)
        valid = lost = None
        if self._may_have_holes(indices):
            # A row that is not finite has no code, and NaN is what its quantized row becomes.
            valid = indices >= 0
            lost = ~valid if mask is None else ~valid & mask
        estimator = self.estimator if self.training or not is_random(self.estimator) else StraightThrough()
        # A compiler may make a copy of the codebook again in the backward pass, from what it has become by then.
        if type(estimator) is StraightThrough and not torch.compiler.is_compiling():
            quantized, commitment = straight_through_commitment(
                rows, indices, self.codebook, distances, valid, lost, impl=self.codebooks.impl
            )
        else:
            codes = self.codebooks.lookup(indices)
            if lost is not None:
                codes = torch.where(lost.unsqueeze(-1), float("nan"), codes)
            if distances is None:
                distances = (rows.detach().to(codes.dtype) - codes.detach()).square().sum(-1)
            commitment = commitment_loss(rows, codes.detach(), distances, valid)
            quantized = estimator(rows if relaxed is None else relaxed.to(rows.dtype), codes.to(rows.dtype))
        loss = self.commitment_weight * commitment + self._other_losses(
            rows, indices, distances, quantized, valid, kept
        )
        if self.training:
            self.codebooks.update_(rows.detach(), indices)
        return Quantized(self._restore(quantized, shape, mask), self._index_shape(indices, shape), loss)

    def _choose(
        self, rows: Tensor, mask: Tensor | None, codebook: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Indices, squared distances where the search gave them, and the relaxed draw where there was one."""
        books = self.codebooks
        if self.training and isinstance(self.estimator, GumbelSoftmax):
            indices, relaxed = books.sample(rows, mask, self.estimator.temperature, relaxed=codebook)
            return indices, None, relaxed
        if self.training and self.sample_temperature:
            return books.sample(rows.detach(), mask, self.sample_temperature)[0], None, None
        indices, distances = books.search(rows.detach(), mask)
        return indices, distances if books.metric == "l2" else None, None

    def _other_losses(
        self,
        rows: Tensor,
        indices: Tensor,
        distances: Tensor | None,
        quantized: Tensor,
        valid: Tensor | None,
        codebook: Tensor,
    ) -> Tensor | float:
        """The codebook loss of learned codes, and the regularisers."""
        loss: Tensor | float = 0.0
        rule = self.codebooks.rules.update
        if isinstance(rule, Learned) and rule.weight:
            if distances is None:
                distances = (rows - quantized).detach().to(self.codebook.dtype).square().sum(-1)
            taken = None if valid is None else valid.unsqueeze(-1)
            stack, found, errors = self.codebook.unsqueeze(1), indices.unsqueeze(-1), distances.unsqueeze(-1)
            wide = self.codebooks.cast(rows.detach())
            pull = codebook_loss(stack, wide, found, errors.to(stack.dtype), taken, impl=self.codebooks.impl)
            loss = loss + rule.weight * pull
        if self.training:
            for regulariser in self.regularisers:
                loss = loss + regulariser(rows, codebook, self.codebooks.metric, valid)
        return loss

    def encode(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x, mask and lengths as for forward -> the nearest codes' indices (*R, G)."""
        rows, mask, shape = self._rows(x, mask, lengths, self.codebook)
        return self._index_shape(self.codebooks.search(rows.detach(), mask).indices, shape)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (*R, G) -> quantized, channels on ``channel_dim``; -1 gives zeros before ``project_out``.

        In the dtype of the codebook, or of ``project_out``'s weight where there is one.

        Raises:
            ValueError: the last axis is not G. IndexError: an index outside [-1, K), on a CPU.
        """
        flat, shape = self._flat_indices(indices)
        return self._restore(self.codebooks.lookup(flat), shape)

    def extra_repr(self) -> str:
        parts = f"dim={self.dim}, estimator={self.estimator}, commitment_weight={self.commitment_weight}"
        return parts + "".join(f", {regulariser}" for regulariser in self.regularisers)
