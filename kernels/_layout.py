"""What every implementation shares: the storage order of results, and the check of indices."""

from __future__ import annotations

from torch import Tensor


def rows_outermost(result: Tensor) -> Tensor:
    """The same (G, R1, R2, ...) values with storage in the order (R1, R2, G, ...)."""
    trailing = range(3, result.dim())
    return result.permute(1, 2, 0, *trailing).contiguous().permute(2, 0, 1, *trailing)


def check_indices(indices: Tensor, num_codes: int) -> None:
    """Raises IndexError for indices on a CPU outside [-1, num_codes); elsewhere a check would cost a sync."""
    if indices.device.type != "cpu" or indices.numel() == 0:
        return
    low, high = int(indices.min()), int(indices.max())
    if low < -1 or high >= num_codes:
        worst = low if low < -1 else high
        raise IndexError(
            f"indices must lie in [-1, {num_codes}), got {worst}: these indices belong to another codebook"
        )
