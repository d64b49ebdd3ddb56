"""How well codes are used. Everything stays on the device; read values when they are wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from . import validation as check


def code_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code of each group occurs.

    Args:
        indices: (..., G) int64 in [-1, K); -1 is not counted.
        codebook_size: K.

    Returns:
        (G, K) int64.

    Raises:
        TypeError, ValueError: indices of another type or shape. IndexError: an index outside [-1, K), on a CPU;
            elsewhere it is not counted.
    """
    check.integer("indices", indices)
    check.positive("codebook_size", codebook_size)
    if indices.dim() < 1 or indices.shape[-1] < 1:
        raise ValueError(f"indices must be (..., G) with at least one group, got shape {tuple(indices.shape)}")
    groups = indices.shape[-1]
    slots = codebook_size + 1
    flat = indices.reshape(-1, groups)
    counted = (flat >= 0) & (flat < codebook_size)
    if flat.device.type == "cpu" and not torch.compiler.is_compiling() and bool(((flat != -1) & ~counted).any()):
        raise IndexError(
            f"indices must lie in [-1, {codebook_size}), got {int(flat.min())} to {int(flat.max())}: these indices "
            "belong to another codebook"
        )
    slot = torch.where(counted, flat, codebook_size) + slots * torch.arange(groups, device=indices.device)
    counts = torch.zeros(groups * slots, dtype=torch.int64, device=indices.device)
    counts.scatter_add_(0, slot.reshape(-1), torch.ones_like(slot.reshape(-1)))
    return counts.view(groups, slots)[:, :codebook_size]


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the code distribution: K where all codes are used alike, 1 where one is, 0 for no rows.

    Args:
        counts: (..., K).

    Returns:
        (...), float32 in [0, K].
    """
    total = counts.sum(-1, keepdim=True)
    share = counts / total.clamp_min(1)
    entropy = -(share * share.clamp_min(torch.finfo(share.dtype).tiny).log()).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


def utilisation(counts: Tensor) -> Tensor:
    """The share of codes that occur: counts (..., K) -> (...), float32 in [0, 1]."""
    return (counts > 0).float().mean(-1)
