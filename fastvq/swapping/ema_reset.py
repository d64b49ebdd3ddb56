"""The EMA-reset quantizer of T2M-GPT and MoMask, and of what descends from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import functional as F
from .fusing import Fused, matching, wide


class EMAReset(Fused):
    """``quantize``: rows (N, C) -> (N,), from ``codebook`` (K, C); ``update_codebook`` without a one-hot matrix."""

    names: tuple[str, ...] = ("QuantizeEMAReset", "QuantizeEMA", "QuantizeReset", "Quantizer")
    attributes: tuple[str, ...] = ("quantize", "codebook", "nb_code", "code_dim", "init_codebook")
    codebook: Tensor
    training: bool

    def quantize(self, x: Tensor, sample_codebook_temp: float = 0.0, **others: Any) -> Tensor:
        if self.training and sample_codebook_temp:
            # Codes are drawn at random: that needs every score.
            return super().quantize(x, sample_codebook_temp, **others)  # type: ignore[misc]
        codes = wide(self.codebook)
        # A row that is not finite gets the first code, as it does there.
        return F.nearest(matching(x, codes), codes).indices.clamp_min(0)


class UpdatedEMAReset(EMAReset):
    """The same with the averages ``code_sum`` and ``code_count``, and codes that few rows come to reset to rows."""

    names = ("QuantizeEMAReset",)
    attributes = (*EMAReset.attributes, "update_codebook", "mu", "_tile")
    nb_code: int
    mu: float

    @torch.no_grad()
    def update_codebook(self, x: Tensor, code_idx: Tensor) -> Tensor:
        module: Any = self
        sums, counts = F.segment_sum(x.to(self.codebook.dtype), code_idx, self.nb_code)
        spare = module._tile(x)[: self.nb_code]
        module.code_sum = module.code_sum * self.mu + sums * (1 - self.mu)
        module.code_count = module.code_count * self.mu + counts * (1 - self.mu)
        kept = (module.code_count >= 1.0).unsqueeze(-1)
        module.codebook = torch.where(kept, module.code_sum / module.code_count.unsqueeze(-1), spare)
        share = counts / counts.sum()
        return torch.exp(-torch.sum(share * torch.log(share + 1e-7)))


def handlers() -> tuple[type[Fused], ...]:
    """What is tried on a module, in this order."""
    return UpdatedEMAReset, EMAReset
