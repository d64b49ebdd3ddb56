"""The losses besides the distance to the chosen code, none of which keeps a score for every row and code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .candidates import Candidates, blocks, scores


def in_blocks(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """``function(*arguments)``, whose insides are formed again for the backward pass rather than kept."""
    wanted = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)
    if not wanted:
        return function(*arguments)
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result


def cross_entropy(candidates: Candidates, rows: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(scores)[target], its mean over targets that are not -1; 0 if there is none.

    Args:
        rows: (H, R1, R2, D). targets: (H, R1, R2) int64.
    """
    flat = targets.flatten(1)
    total = rows.new_zeros((), dtype=torch.float64 if rows.dtype == torch.float64 else torch.float32)
    for head, positions, part in blocks(candidates, rows):
        codes = candidates.of(head, positions)
        total = total + in_blocks(_cross_entropy, part, codes, flat[head, positions], candidates.cosine)
    return total / (targets >= 0).sum().clamp_min(1)


def _cross_entropy(rows: Tensor, codes: Tensor, targets: Tensor, cosine: bool) -> Tensor:
    found = scores(rows, codes, cosine)
    chosen = found.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(targets >= 0, found.logsumexp(-1) - chosen, 0).sum()


def diversity(candidates: Candidates, rows: Tensor, temperature: float, shared_heads: int = 1) -> Tensor:
    """The negative entropy of softmax(scores * temperature) averaged over batch and heads, its mean over positions.

    Args:
        rows: (H, B, N * shared_heads, D).
        temperature: factor of the scores; the higher, the harder.
        shared_heads: heads that lie innermost among the rows.
    """
    heads, batch, inner = rows.shape[:3]
    number = inner // shared_heads
    grid = torch.arange(batch * inner, device=rows.device).view(batch, number, shared_heads)
    grid = grid.transpose(1, 2).flatten(0, 1)
    step = max(candidates.rows_per_block // max(grid.shape[0], 1), 1)
    total = rows.new_zeros((), dtype=torch.float64 if rows.dtype == torch.float64 else torch.float32)
    for start in range(0, number, step):
        positions = grid[:, start : start + step]
        parts = [
            in_blocks(
                _mean_probability,
                rows[head].flatten(0, 1)[positions.flatten()],
                candidates.of(head, positions.flatten()),
                candidates.cosine,
                temperature,
                positions.shape[0],
            )
            for head in range(heads)
        ]
        mean = torch.stack(parts).mean(0)
        total = total + (mean * mean.clamp_min(1e-5).log()).sum()
    return total / max(number, 1)


def _mean_probability(rows: Tensor, codes: Tensor, cosine: bool, temperature: float, batch: int) -> Tensor:
    found = (scores(rows, codes, cosine) * temperature).softmax(-1)
    return found.view(batch, -1, found.shape[-1]).mean(0)


def soft_codes(candidates: Candidates, rows: Tensor, temperature: float) -> Tensor:
    """The codes averaged with weights softmax(scores / temperature): (H, R1, R2, D)."""
    parts = [
        in_blocks(_soft_codes, part, candidates.of(head, positions), candidates.cosine, temperature)
        for head, positions, part in blocks(candidates, rows)
    ]
    return torch.cat(parts).view(rows.shape)


def _soft_codes(rows: Tensor, codes: Tensor, cosine: bool, temperature: float) -> Tensor:
    weights = (scores(rows, codes, cosine) / temperature).softmax(-1)
    return weights @ codes if codes.dim() == 2 else (weights.unsqueeze(-2) @ codes).squeeze(-2)


def orthogonal_loss(codes: Tensor, active: Tensor | None = None) -> Tensor:
    """The mean square of the cosines between codes, less that of orthogonal ones (Shin et al. 2021, equation 2).

    The squares of a Gram matrix sum to the same over codes (K x K) and over dimensions (D x D); the smaller is
    formed.

    Args:
        codes: (H, K, D).
        active: (K,) bool, the codes that count; None for all.
    """
    unit = nn.functional.normalize(codes, dim=-1, eps=1e-6)
    if active is not None:
        unit = unit * active.unsqueeze(-1)
    number = codes.shape[1] if active is None else active.sum().clamp_min(1)
    gram = unit.transpose(1, 2) @ unit if unit.shape[2] < unit.shape[1] else unit @ unit.transpose(1, 2)
    loss: Tensor = gram.square().sum() / (codes.shape[0] * number**2) - 1 / number
    return loss
