"""Draws rows of a batch without repetition.

Eager on a CPU, where looking at values costs no sync, the draws are ``torch.randperm``'s and ``torch.randint``'s over
the valid rows, so that one seed gives the codes that it gives in vector-quantize-pytorch. Elsewhere every row gets a
random key and the largest keys win, which asks the device nothing, and over several processes needs one gather.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .sync import Processes


class Rows(NamedTuple):
    """Rows to draw from.

    Args:
        number: N, how many.
        valid: (N,) bool, those that may be drawn; None for all.
        at: head and positions (n,) in [0, N) -> rows (n, D).
    """

    number: int
    valid: Tensor | None
    at: Callable[[int, Tensor], Tensor]


def rows_of(x: Tensor, indices: Tensor | None, mask: Tensor | None = None) -> Rows:
    """The rows of x (H, R1, R2, D): those with a code in every head, or those of the mask (R1, R2)."""
    inner = x.shape[2]

    def at(head: int, positions: Tensor) -> Tensor:
        return x.detach()[head, positions // inner, positions % inner]

    return Rows(x.shape[1] * x.shape[2], valid_rows(indices, mask), at)


def valid_rows(indices: Tensor | None, mask: Tensor | None = None) -> Tensor | None:
    """(N,) bool for indices (H, R1, R2, ...) or a mask (R1, R2): True where no index is -1. None for all."""
    if indices is None:
        return None if mask is None else mask.flatten()
    valid = ((indices >= 0) if indices.dim() == 3 else (indices >= 0).flatten(3).all(-1)).all(0)
    return None if known(indices) and bool(valid.all()) else valid.flatten()


def known(tensor: Tensor) -> bool:
    """Whether looking at the tensor's values costs no sync and breaks no graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def positions(rows: Rows, device: torch.device) -> Tensor:
    """Positions of the valid rows, looked at: (n,)."""
    if rows.valid is None:
        return torch.arange(rows.number, device=device)
    return rows.valid.nonzero().squeeze(-1)


def drawn_rows(rows: Rows, heads: int, count: int, like: Tensor, processes: Processes) -> tuple[Tensor, Tensor]:
    """``count`` distinct rows in random order, as far as there are any: the same positions for every head.

    Args:
        rows: what to draw from; of each process its own.
        like: gives device and dtype.

    Returns:
        (H, count, D), and (H, count) bool, False where rows ran out.
    """
    number = min(count, rows.number)
    keys = torch.rand(rows.number, device=like.device)
    if rows.valid is not None:
        keys = keys.masked_fill(~rows.valid, -1.0)
    keys, where = keys.topk(number)
    drawn = torch.stack([rows.at(head, where) for head in range(heads)]).to(like.dtype)
    keys = keys.expand(heads, number).masked_fill(~drawn.isfinite().all(-1), -1.0)
    missing = count - number
    drawn = torch.nn.functional.pad(drawn, (0, 0, 0, missing))
    keys = torch.nn.functional.pad(keys, (0, missing), value=-1.0)
    if processes.many:
        drawn, keys = processes.gather(drawn, keys.to(like.dtype))
        keys, best = keys.topk(count, dim=-1)
        drawn = drawn.gather(1, best.unsqueeze(-1).expand(-1, -1, drawn.shape[-1]))
    return drawn, keys >= 0
