"""What a quantizer's loss is made of, and the step that an in-place optimizer takes on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...losses import commitment_loss
from . import losses
from .access import CodebookAccess
from .candidates import Candidates, Found
from .draws import known
from .sync import Processes


class LossBreakdown(NamedTuple):
    """The losses before their weights, each a scalar (with ``topk`` commitment is one for each code)."""

    commitment: Tensor
    codebook_diversity: Tensor
    orthogonal_reg: Tensor
    inplace_optimize: Tensor


class Objectives(CodebookAccess):
    """The losses of :class:`VectorQuantize`, by its options."""

    zero: Tensor
    learnable_codebook: bool
    has_commitment_loss: bool
    commitment_weight: float
    commitment_use_cross_entropy_loss: bool
    has_codebook_diversity_loss: bool
    codebook_diversity_loss_weight: float
    codebook_diversity_temperature: float
    has_codebook_orthogonal_loss: bool
    orthogonal_reg_weight: float
    orthogonal_reg_active_codes_only: bool
    orthogonal_reg_max_codes: int | None
    in_place_codebook_optimizer: torch.optim.Optimizer | None
    manual_in_place_optimizer_update: bool

    def update_in_place_optimizer(self) -> None:
        """One step of the ``in_place_codebook_optimizer``, on gradients averaged over processes."""
        if self.in_place_codebook_optimizer is None:
            return
        processes = Processes(self._codebook.use_ddp)
        if processes.many:
            gradients = [p.grad for p in self._codebook.parameters() if p.grad is not None]
            number = torch.distributed.get_world_size()
            for gradient, total in zip(gradients, processes.total(*gradients), strict=True):
                gradient.copy_(total / number)
        self.in_place_codebook_optimizer.step()
        self.in_place_codebook_optimizer.zero_grad()

    def _optimise(self, rows: Tensor, found: Found) -> Tensor:
        """One step of the in-place optimizer on the squared distance to the rows; the loss."""
        with torch.enable_grad():
            codes = found.codes
            if not codes.requires_grad:
                codes = self._codebook.candidates().pick(found.indices)
            loss = self._distance(rows.detach(), codes, found.indices)
            loss.backward(inputs=[p for p in self._codebook.parameters() if p.requires_grad])
        if not self.manual_in_place_optimizer_update:
            self.update_in_place_optimizer()
        return loss.detach()

    def _distance(self, rows: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
        """mean((rows - codes)^2) over rows that have a code, with gradients to both."""
        rows = rows.to(codes.dtype)
        if known(indices) and not bool((indices < 0).any()):
            return nn.functional.mse_loss(codes, rows)
        valid = indices >= 0
        error = torch.where(valid.unsqueeze(-1), codes - torch.where(valid.unsqueeze(-1), rows, 0), 0)
        return error.square().sum() / (valid.sum().clamp_min(1) * rows.shape[-1])

    def _losses(
        self, rows: Tensor, found: Found, candidates: Candidates, freeze: bool, topk: int | None
    ) -> LossBreakdown:
        commitment = diversity = orthogonal = self.zero
        wide = self._codebook.cast(rows)
        if topk is not None:
            if not self.training or self.has_commitment_loss:
                commitment = self._each_distance(rows, found, freeze)
        elif self.training and self.has_commitment_loss:
            if self.commitment_use_cross_entropy_loss:
                commitment = losses.cross_entropy(candidates, wide, found.indices)
            elif self.learnable_codebook and not freeze:
                commitment = self._distance(rows, found.codes, found.indices)
            else:
                holes = not known(found.indices) or bool((found.indices < 0).any())
                valid = (found.indices >= 0) if holes else None
                commitment = commitment_loss(wide, found.codes.detach(), found.distances, valid)
        if self.training and self.has_codebook_diversity_loss:
            shared = 1 if self.separate_codebook_per_head else self.heads
            diversity = losses.diversity(candidates, wide, self.codebook_diversity_temperature, shared)
        if self.training and self.has_codebook_orthogonal_loss:
            orthogonal = self._orthogonal(found.indices)
        return LossBreakdown(commitment, diversity, orthogonal, self.zero)

    def _each_distance(self, rows: Tensor, found: Found, freeze: bool) -> Tensor:
        """The mean squared distance of every row to each of its ``topk`` codes, (1, B, N, k); 0 where masked."""
        codes = found.codes if self.learnable_codebook and not freeze else found.codes.detach()
        each = (codes - rows.to(codes.dtype).unsqueeze(-2)).square().mean(-1)
        return torch.where(found.indices >= 0, each, 0)

    def _orthogonal(self, indices: Tensor) -> Tensor:
        embed, number = self._codebook.embed, self.orthogonal_reg_max_codes
        if not self.orthogonal_reg_active_codes_only:
            if number is not None and number < self.codebook_size:
                embed = embed[:, torch.randperm(self.codebook_size, device=embed.device)[:number]]
            return losses.orthogonal_loss(embed)
        used = torch.zeros(self.codebook_size + 1, dtype=torch.bool, device=embed.device)
        used = used.index_fill(0, indices.flatten() + 1, True)[1:]  # slot 0 is that of holes
        if number is not None and number < self.codebook_size:
            keys = torch.where(used, torch.rand(used.shape, device=embed.device), -1.0)
            keys, kept = keys.topk(number)
            return losses.orthogonal_loss(embed[:, kept], keys >= 0)
        return losses.orthogonal_loss(embed, used)

    def _total(self, parts: LossBreakdown, topk: int | None) -> Tensor:
        """The weighted sum; a leaf that may be given to ``backward`` where nothing contributes in training mode."""
        if not self.training:
            weight = self.commitment_weight if self.has_commitment_loss else 1.0
            return self.zero if topk is None else parts.commitment * weight
        loss = self.zero.clone()
        if self.has_codebook_diversity_loss:
            loss = loss + parts.codebook_diversity * self.codebook_diversity_loss_weight
        if self.has_commitment_loss:
            loss = loss + parts.commitment * self.commitment_weight
        if self.has_codebook_orthogonal_loss:
            loss = loss + parts.orthogonal_reg * self.orthogonal_reg_weight
        if not loss.requires_grad and not torch.compiler.is_compiling():
            loss.requires_grad_()
        return loss
