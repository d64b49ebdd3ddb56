"""Codebooks that follow the mean and spread of their rows by an affine map (Huh et al. 2023, section 4.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .codebook import Codebook
from .sync import Processes

STATISTICS = ("codebook_mean", "codebook_variance")
BATCH = ("batch_mean", "batch_variance")


class AffineCodebook(Codebook):
    """A codebook whose codes are searched as (embed - codebook mean) * batch spread / codebook spread + batch mean.

    Means and variances are over rows, for each channel; they move in training mode only, so that encoding in eval
    mode depends on nothing but the rows.

    Args:
        affine_param_batch_decay, affine_param_codebook_decay: share of the old statistics that stays.
        sync_affine_param: over the rows of all processes.
        all others: as :class:`Codebook`.

    Buffers:
        codebook_mean, codebook_variance: (H, 1, D).
        codebook_mean_needs_init, codebook_variance_needs_init: (), bool.
        batch_mean, batch_variance: (H, 1, D), from the first training batch on; absent before.
    """

    batch_mean: Tensor | None
    batch_variance: Tensor | None
    codebook_mean: Tensor
    codebook_variance: Tensor
    codebook_mean_needs_init: Tensor
    codebook_variance_needs_init: Tensor

    def __init__(
        self,
        *args: Any,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        sync_affine_param: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.affine_param_batch_decay = affine_param_batch_decay
        self.affine_param_codebook_decay = affine_param_codebook_decay
        self.sync_affine_param = sync_affine_param
        shape = (self.num_codebooks, 1, self.dim)
        for name in BATCH:
            self.register_buffer(name, None)
        for name, start in zip(STATISTICS, (torch.zeros(shape), torch.ones(shape)), strict=True):
            self.register_buffer(f"{name}_needs_init", torch.tensor(True))
            self.register_buffer(name, start)
        self._started = False

    def _state_names(self) -> tuple[str, ...]:
        present = tuple(name for name in BATCH if getattr(self, name) is not None)
        return (*super()._state_names(), *STATISTICS, *present)

    def codes(self) -> Tensor:
        codes = super().codes()
        if self.batch_mean is None:
            return codes
        return (codes - self.codebook_mean) / self._scale() + self.batch_mean

    def observe_(self, x: Tensor, mask: Tensor | None) -> None:
        super().observe_(x, mask)
        if self.training:
            self.update_affine(x, mask)

    @torch.no_grad()
    def update_affine(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Moves the statistics by rows x (H, R1, R2, D), those of the mask (R1, R2)."""
        embed = self.embed.detach()
        mean, variance = embed.mean(1, keepdim=True), embed.var(1, keepdim=True, unbiased=False)
        decay = self.affine_param_codebook_decay if self._started else 0.0
        self.codebook_mean.copy_(self.codebook_mean * decay + mean * (1 - decay))
        self.codebook_variance.copy_(self.codebook_variance * decay + variance * (1 - decay))

        rows = x.detach().to(embed.dtype).flatten(1, 2)
        valid = rows.isfinite().all(-1).all(0)
        if mask is not None:
            valid = valid & mask.flatten()
        valid = valid.unsqueeze(-1)
        processes = Processes(self.sync_affine_param)
        total, number = processes.total(torch.where(valid, rows, 0).sum(1, keepdim=True), valid.sum().to(rows.dtype))
        number = number.clamp_min(1)
        mean = total / number
        spread = torch.where(valid, rows - mean, 0).square().sum(1, keepdim=True)
        variance = processes.total(spread)[0] / number
        if self.batch_mean is None or self.batch_variance is None:
            self.batch_mean, self.batch_variance = mean, variance
        else:
            share = 1 - self.affine_param_batch_decay
            self.batch_mean.lerp_(mean, share)
            self.batch_variance.lerp_(variance, share)
        if not self._started:
            self._started = True
            self.codebook_mean_needs_init.fill_(False)
            self.codebook_variance_needs_init.fill_(False)

    def seen(self, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of rows as sums of the same rows taken back to where ``embed`` is; the map is affine in both."""
        if self.batch_mean is None:
            return sums, counts
        number = counts.unsqueeze(-1)
        return (sums - self.batch_mean * number) * self._scale() + self.codebook_mean * number, counts

    def _scale(self) -> Tensor:
        assert self.batch_variance is not None
        return self.codebook_variance.clamp_min(1e-5).sqrt() / self.batch_variance.clamp_min(1e-5).sqrt()

    def _replace_(self, dead: Tensor, rows: Any) -> None:
        """Rows come back to where ``embed`` is before they replace a code."""
        at = rows.at
        super()._replace_(dead, rows._replace(at=lambda head, where: self._back(at(head, where), head)))

    def _back(self, rows: Tensor, head: int) -> Tensor:
        if self.batch_mean is None:
            return rows
        rows = rows.to(self.embed.dtype)
        back: Tensor = (rows - self.batch_mean[head]) * self._scale()[head] + self.codebook_mean[head]
        return back

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in BATCH:
            if getattr(self, name) is None and prefix + name in state_dict:
                setattr(self, name, torch.empty_like(self.codebook_mean))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._started = not bool(self.codebook_mean_needs_init)
