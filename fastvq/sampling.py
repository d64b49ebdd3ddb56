"""Draws rows of a batch as codes, without a host sync."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def draw_rows(x: Tensor, valid: Tensor | None, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws ``count`` valid rows for each group, stratified over the batch, so distinct where there are enough.

    With fewer valid rows than ``count`` rows repeat; repeats get noise of 1 % of the drawn rows' standard
    deviation, since two equal codes would never part.

    Args:
        x: (G, R1, R2, D).
        valid: (R1, R2) bool or None for all.
        count: how many, K.
        generator: for the draw.

    Returns:
        (G, K, D) in x's dtype, detached.
    """
    x = x.detach()
    groups, rows1, rows2 = x.shape[:3]
    device = x.device
    # Passing generator=None would pick an overload that torch.compile cannot trace at a symbolic size.
    random: dict[str, Any] = {"device": device} if generator is None else {"device": device, "generator": generator}
    u = torch.rand(groups, count, **random)
    shift = torch.randint(count, (groups, 1), **random)
    stratum = (torch.arange(count, device=device) + shift) % count
    number = torch.tensor(rows1 * rows2, device=device) if valid is None else valid.sum()
    # Stratum s covers the rows s N // K up to (s + 1) N // K; with N < K some are empty and take the row before.
    first = stratum * number // count
    width = (stratum + 1) * number // count - first
    position = (first + (u * width).long()).minimum(number - 1).clamp_min(0)
    if valid is not None:
        position = torch.argsort((~valid.reshape(-1)).to(torch.uint8), stable=True)[position]
    group = torch.arange(groups, device=device)[:, None]
    drawn = x[group, position // rows2, position % rows2]
    if valid is None and rows1 * rows2 >= count:
        return drawn
    noise = torch.randn(drawn.shape, **random).to(x.dtype)
    wide = drawn.float()
    floor = 0.01 * wide.abs().mean(dim=1, keepdim=True) + 1e-6  # for rows that are all alike
    spread = wide.std(dim=1, keepdim=True, correction=0).maximum(floor).to(x.dtype)
    return torch.where((width == 0).unsqueeze(-1), drawn + 0.01 * spread * noise, drawn)


def first_rows(x: Tensor, valid: Tensor | None, count: int, noise: float) -> Tensor:
    """The first ``count`` valid rows of each group, from the first again, with noise, where there are fewer.

    Args:
        x: (G, R1, R2, D).
        valid: (R1, R2) bool or None for all.
        count: how many, K.
        noise: standard deviation of what is added to repeated rows, divided by sqrt(D).

    Returns:
        (G, K, D) in x's dtype, detached.
    """
    x = x.detach().flatten(1, 2)
    rows = x.shape[1]
    number = torch.tensor(rows, device=x.device) if valid is None else valid.sum()
    place = torch.arange(count, device=x.device)
    position = (place % number.clamp_min(1)).clamp_max(rows - 1)
    if valid is not None:
        position = torch.argsort((~valid.reshape(-1)).to(torch.uint8), stable=True)[position]
    drawn = x[:, position]
    if valid is None and rows >= count:
        return drawn
    added = torch.randn(drawn.shape, device=x.device).to(x.dtype) * (noise / x.shape[-1] ** 0.5)
    return torch.where((place >= number).unsqueeze(-1), drawn + added, drawn)


def complete_rows(indices: Tensor) -> Tensor | None:
    """Rows without a hole (index -1) in any group, (R1, R2) bool for (G, R1, R2, ...); None for all, where asking
    costs no sync."""
    holes = (indices < 0).flatten(3).any(-1) if indices.dim() > 3 else indices < 0
    valid = ~holes.any(0)
    known = indices.device.type == "cpu" and not torch.compiler.is_compiling()
    return None if known and bool(valid.all()) else valid


def fullest_rows(indices: Tensor) -> Tensor:
    """Rows that took as many stages as any row did, and at least one: (G, R1, R2, Q) -> (R1, R2) bool."""
    taken = (indices >= 0).sum(-1).amin(0)
    return (taken == taken.max()) & (taken > 0)


def random_rows(x: Tensor, valid: Tensor | None, group: Tensor) -> Tensor:
    """A valid row, drawn at random, of each of the named groups.

    Args:
        x: (G, R1, R2, D).
        valid: (R1, R2) bool or None for all.
        group: (...) int64 in [0, G).

    Returns:
        (..., D) in x's dtype, detached.
    """
    outer, inner = random_positions(x.shape[1:3], valid, group)
    return x.detach()[group, outer, inner]


def random_positions(shape: Sequence[int], valid: Tensor | None, group: Tensor) -> tuple[Tensor, Tensor]:
    """Where in (R1, R2) a valid row lies, drawn at random: two int64 tensors in the shape of ``group``.

    Without a valid row the positions mean nothing, and lie in range.
    """
    rows1, rows2 = shape
    u = torch.rand(group.shape, device=group.device)
    if valid is None:
        position = (u * (rows1 * rows2)).long().clamp_max(rows1 * rows2 - 1)
    else:
        number = valid.sum()
        position = (u * number).long().minimum(number - 1).clamp_min(0)
        position = torch.argsort((~valid.reshape(-1)).to(torch.uint8), stable=True)[position]
    return position // rows2, position % rows2
