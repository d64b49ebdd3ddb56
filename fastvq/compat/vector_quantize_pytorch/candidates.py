"""The codes that a row may take: of a codebook, or made for each row by a function; searched without an N x K matrix.

Where an option needs a row's scores against all codes (sampling, cross-entropy, diversity), they are formed for a
block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ... import functional as F

BLOCK = 2**22  # entries of scores, or of codes made for rows, that exist at a time


class Found(NamedTuple):
    """What rows (H, R1, R2, D) took: indices (H, R1, R2[, k]), -1 where masked or not finite; codes
    (H, R1, R2[, k], D), 0 there; squared distances (H, R1, R2[, k]), NaN where not finite."""

    indices: Tensor
    codes: Tensor
    distances: Tensor


class Candidates(Protocol):
    """Codes to choose from, for each of H heads."""

    cosine: bool

    @property
    def rows_per_block(self) -> int:
        """How many rows' scores may exist at a time."""
        ...

    def of(self, head: int, positions: Tensor) -> Tensor:
        """The codes of rows at positions (n,) in [0, R1 * R2): (K, D) if the same for all rows, else (n, K, D)."""
        ...

    def pick(self, indices: Tensor) -> Tensor:
        """(H, R1, R2) -> codes (H, R1, R2, D); -1 gives zeros."""
        ...


class Codes:
    """One codebook for each head, codes (H, K, D)."""

    def __init__(self, codes: Tensor, cosine: bool) -> None:
        self.codes, self.cosine = codes, cosine

    @property
    def rows_per_block(self) -> int:
        return max(BLOCK // self.codes.shape[1], 1)

    def of(self, head: int, positions: Tensor) -> Tensor:
        return self.codes[head]

    def pick(self, indices: Tensor) -> Tensor:
        return F.lookup(indices.unsqueeze(-1), self.codes.unsqueeze(1))


class GivenCodes:
    """Codes made for every row beforehand, (H, R1, R2, K, D)."""

    def __init__(self, codes: Tensor, cosine: bool) -> None:
        self.codes, self.cosine = nn.functional.normalize(codes, dim=-1, eps=1e-6) if cosine else codes, cosine

    @property
    def rows_per_block(self) -> int:
        return max(BLOCK // (self.codes.shape[-2] * self.codes.shape[-1]), 1)

    def of(self, head: int, positions: Tensor) -> Tensor:
        return self.codes[head].flatten(0, 1)[positions]

    def pick(self, indices: Tensor) -> Tensor:
        index = indices.clamp_min(0)[..., None, None].expand(*indices.shape, 1, self.codes.shape[-1])
        return torch.where((indices >= 0).unsqueeze(-1), self.codes.gather(-2, index).squeeze(-2), 0)


def scores(rows: Tensor, codes: Tensor, cosine: bool) -> Tensor:
    """rows (n, D) against codes (K, D) or (n, K, D): cosines of unit vectors, else negative distances; (n, K).

    Distances are of rows and codes moved by the codes' mean, since a common offset would cost their digits.
    """
    rows = rows.to(codes.dtype)
    if cosine:
        return rows @ codes.T if codes.dim() == 2 else (codes @ rows.unsqueeze(-1)).squeeze(-1)
    if codes.dim() == 3:
        return -(rows.unsqueeze(1) - codes).square().sum(-1).clamp_min(1e-8).sqrt()
    centre = codes.detach().mean(0)
    rows, codes = rows - centre, codes - centre
    squares = rows.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * rows @ codes.T
    return -squares.clamp_min(1e-8).sqrt()


def blocks(candidates: Candidates, rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Heads, positions (n,) and rows (n, D), in order, for rows (H, R1, R2, D)."""
    step = candidates.rows_per_block
    for head in range(rows.shape[0]):
        flat = rows[head].flatten(0, 1)
        for start in range(0, flat.shape[0], step):
            part = flat[start : start + step]
            yield head, torch.arange(start, start + part.shape[0], device=rows.device), part


def find(
    candidates: Candidates, rows: Tensor, mask: Tensor | None, *, topk: int | None = None, temperature: float = 0.0
) -> Found:
    """The codes that rows take: the nearest, or with a temperature above 0 drawn by softmax(score / temperature).

    Args:
        candidates: what to choose from; ``codes`` carries gradients to it.
        rows: (H, R1, R2, D).
        mask: (R1, R2) bool or None.
        topk: how many codes for each row; None for one, without its axis.
        temperature: of the draw (Gumbel's trick).
    """
    distances = None
    plain = rows.detach()
    if isinstance(candidates, Codes) and temperature <= 0:
        metric = "dot" if candidates.cosine else "l2"
        indices, found = F.nearest(plain, candidates.codes.detach(), metric=metric, mask=mask, topk=topk)
        distances = found if metric == "l2" else None
    else:
        indices = _ranked(candidates, plain, mask, topk, temperature)
    codes = candidates.pick(indices) if topk is None else _pick_many(candidates, indices)
    if distances is None:
        wide = plain.to(codes.dtype) if topk is None else plain.to(codes.dtype).unsqueeze(-2)
        distances = (wide - codes.detach()).square().sum(-1)
    return Found(indices, codes, distances)


def taken(candidates: Candidates, rows: Tensor, indices: Tensor) -> Found:
    """What rows (H, R1, R2, D) find that take the codes of given indices (H, R1, R2), -1 for none."""
    codes = candidates.pick(indices)
    return Found(indices, codes, (rows.detach().to(codes.dtype) - codes.detach()).square().sum(-1))


def _pick_many(candidates: Candidates, indices: Tensor) -> Tensor:
    """Indices (H, R1, R2, k) -> codes (H, R1, R2, k, D)."""
    if isinstance(candidates, Codes):
        codes = candidates.pick(indices.flatten(2))
        return codes.view(*indices.shape, codes.shape[-1])
    return torch.stack([candidates.pick(each) for each in indices.unbind(-1)], -2)


@torch.no_grad()
def _ranked(
    candidates: Candidates, rows: Tensor, mask: Tensor | None, topk: int | None, temperature: float
) -> Tensor:
    """The indices of :func:`find` by scores of a block of rows at a time."""
    chosen = []
    for head, positions, part in blocks(candidates, rows):
        found = scores(part, candidates.of(head, positions), candidates.cosine)
        if temperature > 0:
            noise = torch.zeros_like(found).uniform_(0, 1).clamp_min_(1e-20)
            found = found / temperature - (-noise.log()).clamp_min(1e-20).log()
        chosen.append(found.argmax(-1) if topk is None else found.topk(topk, dim=-1).indices)
    lead = rows.shape[:-1]
    empty = torch.empty((0,) if topk is None else (0, topk), dtype=torch.int64, device=rows.device)
    indices = torch.cat(chosen or [empty]).view(*lead, *(() if topk is None else (topk,)))
    keep = rows.isfinite().all(-1)
    if mask is not None:
        keep = keep & mask
    return torch.where(keep if topk is None else keep.unsqueeze(-1), indices, -1)
