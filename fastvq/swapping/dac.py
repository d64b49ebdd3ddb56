"""DAC and SNAC: stages that search a few projected dimensions by angle, in their own packages and in transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional as F
from .fusing import Fused


class DacStage(Fused):
    """``decode_latents``: (B, D, T) -> the codes (B, D, T), at their own length, and indices (B, T)."""

    names = ("VectorQuantize", "DacVectorQuantize")
    attributes = ("decode_latents", "in_proj", "out_proj", "codebook", "codebook_dim")
    codebook: nn.Embedding

    def decode_latents(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.codebook.weight.detach()
        codes = codes if codes.dtype == torch.float64 else codes.float()
        rows = latents.detach().mT
        rows = rows.to(codes.dtype) if (rows.dtype == torch.float64) != (codes.dtype == torch.float64) else rows
        indices = F.nearest(rows.unsqueeze(0), codes.unsqueeze(0), metric="cosine").indices[0]
        return self.codebook(indices).mT, indices


def handlers() -> tuple[type[Fused], ...]:
    """What is tried on a module, in this order."""
    return (DacStage,)
