"""Keeps codebooks equal on all ranks: one all-reduce of sums and counts, one all-gather of rows for dead codes.

Every rank takes part in every call, whatever its batch holds, so none is left waiting.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many ranks there are; 1 where torch.distributed has not been started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Totals(NamedTuple):
    """Sums and counts over all ranks, and a random number that all ranks agree on, int64 ()."""

    sums: Tensor
    counts: Tensor
    turn: Tensor


def totals(sums: Tensor, counts: Tensor) -> Totals:
    """Adds up over ranks what each has summed and counted, in one all-reduce."""
    # Drawn on the device: a draw of the host's would be a constant under torch.compile.
    turn = torch.randint(1024, (1,), device=sums.device)
    joined = torch.cat([sums.flatten(), counts.flatten(), turn.to(sums.dtype)])
    dist.all_reduce(joined)
    size = sums.numel()
    return Totals(
        joined[:size].view_as(sums), joined[size : size + counts.numel()].view_as(counts), joined[-1].long()
    )


def own_items(number: int, turn: Tensor) -> Tensor:
    """Which of so many items this rank provides, the same number on each rank: int64, some of them past the end."""
    world = world_size()
    return torch.arange(-(-number // world), device=turn.device) * world + (dist.get_rank() + turn) % world


def gather_items(own: Tensor, number: int, turn: Tensor) -> Tensor:
    """What all ranks provide for :func:`own_items`, in the order of items: (own, ...) -> (number, ...)."""
    world = world_size()
    gathered = torch.cat(_all_gather(own))
    # Item i was provided by the rank r with (r + turn) % world = i % world.
    item = torch.arange(number, device=turn.device)
    rank = (item - turn) % world
    return gathered[rank * len(own) + item // world]


def _all_gather(own: Tensor) -> list[Tensor]:
    """The tensors of all ranks, which are of one shape."""
    own = own.contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return parts


def gather_rows(x: Tensor, usable: Tensor | None, limit: int) -> Tensor:
    """The usable rows of all ranks, for an initialiser: few rows of each, if need be, so that they are ``limit``.

    Args:
        x: (G, R1, R2, D). usable: (R1, R2) bool or None for all.

    Returns:
        (G, 1, N, D) with N = 0 where no rank has a usable row.
    """
    world = world_size()
    rows = x.detach().flatten(1, 2)
    if usable is not None:
        rows = rows[:, usable.reshape(-1)]
    kept = min(rows.shape[1], -(-limit // world))
    if kept < rows.shape[1]:
        rows = rows[:, torch.linspace(0, rows.shape[1] - 1, kept, device=x.device).round().long()]
    counts = torch.cat(_all_gather(torch.tensor([kept], device=x.device))).tolist()
    widest = max(counts)
    if not widest:
        return rows.unsqueeze(1)
    padded = torch.cat([rows, rows.new_zeros(rows.shape[0], widest - kept, rows.shape[2])], dim=1)
    parts = [part[:, :count] for part, count in zip(_all_gather(padded), counts, strict=True)]
    return torch.cat(parts, dim=1).unsqueeze(1)


def agreed(draw: Tensor) -> Tensor:
    """What the first rank drew, for all; without torch.distributed the draw itself."""
    if world_size() > 1:
        broadcast_(draw)
    return draw


def broadcast_(*tensors: Tensor) -> None:
    """Gives all ranks what the first one has."""
    for tensor in tensors:
        dist.broadcast(tensor, src=0)
