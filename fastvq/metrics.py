"""How well codes are used. Everything stays on the device; read values when they are wanted."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import validation as check
from .distributed import world_size


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


def dead_share(cluster_size: Tensor, threshold: float = 0.1) -> Tensor:
    """The share of codes whose average usage is below a share of the mean, as :class:`fastvq.RelativeUsage` has it.

    Args:
        cluster_size: (..., K), e.g. the buffer ``codebooks.cluster_size``.
        threshold: share of the mean below which a code counts as dead.

    Returns:
        (...), float32 in [0, 1].
    """
    return (cluster_size < threshold * cluster_size.mean(-1, keepdim=True)).float().mean(-1)


class Usage(NamedTuple):
    """How codes were used, for each group: perplexity in [0, K], and the share of codes that occurred."""

    perplexity: Tensor
    utilisation: Tensor


class CodeUsage(nn.Module):
    """Counts codes over many batches, on the device and without a host sync.

    Args:
        groups: G, the last axis of the indices; for residual stacks the stages, Q.
        codebook_size: K.

    Buffers: counts (G, K), int64, not saved.

    Raises:
        TypeError, ValueError: sizes below 1.

    >>> import torch
    >>> from fastvq import GroupedVQ, metrics
    >>> vq, usage = GroupedVQ(8, 16, groups=2), metrics.CodeUsage(2, 16)
    >>> for _ in range(3):
    ...     usage(vq(torch.randn(4, 50, 8)).indices)
    >>> tuple(usage.compute().perplexity.shape)
    (2,)
    """

    counts: Tensor

    def __init__(self, groups: int, codebook_size: int) -> None:
        super().__init__()
        check.positive("groups", groups)
        check.positive("codebook_size", codebook_size)
        self.register_buffer("counts", torch.zeros(groups, codebook_size, dtype=torch.int64), persistent=False)

    def forward(self, indices: Tensor) -> None:
        """Adds indices (..., G) in [-1, K); -1 is not counted."""
        check.integer("indices", indices)
        groups, codebook_size = self.counts.shape
        if indices.dim() < 1 or indices.shape[-1] != groups:
            raise ValueError(f"indices must be (..., {groups}), got shape {tuple(indices.shape)}")
        self.counts += code_counts(indices, codebook_size)

    def compute(self, *, over_ranks: bool = True) -> Usage:
        """What was counted, on all ranks where torch.distributed runs and ``over_ranks`` is set; every rank asks."""
        counts = self.counts.clone()
        if over_ranks and world_size() > 1:
            dist.all_reduce(counts)
        return Usage(perplexity(counts), utilisation(counts))

    def reset(self) -> None:
        """Starts anew."""
        self.counts.zero_()
