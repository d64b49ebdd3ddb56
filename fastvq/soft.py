"""Soft and random assignments of rows to codes, in chunks of rows: no N x K matrix is formed or kept.

Where gradients are wanted, a chunk is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 1 << 20  # scores formed at a time


def entropy(share: Tensor) -> Tensor:
    """-sum p log p over the last axis; 0 log 0 is 0, and its gradient finite."""
    return -(share * share.clamp_min(torch.finfo(share.dtype).tiny).log()).sum(-1)


def unit(x: Tensor) -> Tensor:
    """Rows over their lengths, whatever these are; rows of length 0 stay, and pass gradients as they are."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    largest = wide.detach().abs().amax(-1, keepdim=True)
    scaled = wide / torch.where(largest > 0, largest, 1)
    square = scaled.square().sum(-1, keepdim=True)
    return (scaled / torch.where(square > 0, square, 1).sqrt()).to(x.dtype)


def scores(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """How well codes fit rows: minus the squared distance, the cosine, or the dot product.

    Args:
        x: (G, N, D). codebook: (G, K, D) of the same dtype. metric: "l2", "cosine" or "dot".

    Returns:
        (G, N, K).
    """
    if metric == "cosine":
        x, codebook = unit(x), unit(codebook)
    if metric != "l2":
        return x @ codebook.mT
    # A common shift changes no distance, and a small mean keeps the expanded square from cancelling.
    mean = codebook.detach().mean(-2, keepdim=True)
    x, codebook = x - mean, codebook - mean
    half = x @ codebook.mT - codebook.square().sum(-1).unsqueeze(-2) / 2
    return 2 * half - x.square().sum(-1, keepdim=True)


def mean_assignment(x: Tensor, codebook: Tensor, metric: str, temperature: float, valid: Tensor | None) -> Tensor:
    """The mean over valid rows of softmax(score / temperature).

    Args:
        x: (G, R1, R2, D). codebook: (G, K, D). valid: (G, R1, R2) bool, or None for all.

    Returns:
        (G, K) in the codebook's dtype; zeros where no row is valid.
    """
    rows = x.to(codebook.dtype).flatten(1, 2)
    weight = torch.ones(rows.shape[:2], dtype=rows.dtype, device=rows.device)
    if valid is not None:
        kept = valid.flatten(1, 2)
        weight, rows = kept.to(rows.dtype), torch.where(kept.unsqueeze(-1), rows, 0)

    def part(rows: Tensor, weight: Tensor, codebook: Tensor) -> tuple[Tensor]:
        share = (scores(rows, codebook, metric) / temperature).softmax(-1)
        return ((weight.unsqueeze(-2) @ share).squeeze(-2),)

    parts = _chunked(part, (rows, weight), codebook)
    total = torch.zeros_like(codebook[..., 0]) if not parts else torch.stack([p for (p,) in parts]).sum(0)
    return total / weight.sum(-1, keepdim=True).clamp_min(1)


def sample(
    x: Tensor, codebook: Tensor, metric: str, temperature: float, valid: Tensor | None, *, relaxed: bool
) -> tuple[Tensor, Tensor | None]:
    """Draws a code for every row with probability softmax(score / temperature), by Gumbel's maximum.

    Args:
        x: (G, R1, R2, D). codebook: (G, K, D). valid: (G, R1, R2) bool, or None for all.
        relaxed: also return the Gumbel-softmax (Jang et al. 2017), which carries gradients to x and codebook.

    Returns:
        indices (G, R1, R2), -1 where not valid; and None or sum_k p_k c_k (G, R1, R2, D), p the softmax of the noisy
        scores over the temperature.
    """
    shape = x.shape[:-1]
    rows = x.to(codebook.dtype).flatten(1, 2)
    finite = rows.detach().isfinite().all(-1)
    kept = finite if valid is None else finite & valid.flatten(1, 2)
    rows = torch.where(kept.unsqueeze(-1), rows, 0)

    def part(rows: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
        logits = scores(rows, codebook, metric) / temperature
        noisy = logits - torch.empty_like(logits).exponential_().log()
        found = noisy.argmax(-1)
        return (found, noisy.softmax(-1) @ codebook) if relaxed else (found,)

    parts = _chunked(part, (rows,), codebook)
    if not parts:
        return kept.long().view(shape), (rows.view(x.shape) if relaxed else None)
    indices = torch.where(kept, torch.cat([p[0] for p in parts], 1), -1).view(shape)
    return indices, torch.cat([p[1] for p in parts], 1).view(x.shape) if relaxed else None


class Attended(NamedTuple):
    """What :func:`attend` returns: the rows' mean values (N, D), the sum over rows of the entropy of their sharpened
    distribution (), and the sum of those distributions (K,)."""

    means: Tensor
    entropies: Tensor
    usage: Tensor


def attend(queries: Tensor, keys: Tensor, values: Tensor, weight: Tensor, temperature: float) -> Attended:
    """Softmax attention of rows over codes, and the entropies of the same at a temperature.

    Args:
        queries: (N, D), scaled. keys: (K, D). values: (K, E). weight: (N,), 0 for rows that do not count.
        temperature: of the distributions whose entropies are taken.
    """

    def part(queries: Tensor, weight: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        logits = queries[0] @ keys[0].mT
        sharp = (logits / temperature).log_softmax(-1)
        share = sharp.exp()
        entropies = -(share * sharp).sum(-1)
        return logits.softmax(-1) @ values, weight[0] @ entropies, weight[0] @ share

    parts = _chunked(part, (queries.unsqueeze(0), weight.unsqueeze(0)), keys.unsqueeze(0))
    if not parts:
        return Attended(values[:0], values.new_zeros(()), values.new_zeros(len(keys)))
    means, entropies, usage = zip(*parts, strict=True)
    return Attended(torch.cat(means), torch.stack(entropies).sum(), torch.stack(usage).sum(0))


def _chunked(
    part: Callable[..., tuple[Tensor, ...]], rows: tuple[Tensor, ...], codebook: Tensor
) -> list[tuple[Tensor, ...]]:
    """Calls ``part`` for chunks along axis 1 of the rows, to be computed again where gradients are wanted."""
    if torch.compiler.is_exporting():
        return [part(*rows, codebook)]  # of any number of rows; a loop over them would be of this number
    size = max(1, CHUNK // (codebook.shape[0] * codebook.shape[1]))
    graph = torch.is_grad_enabled() and (codebook.requires_grad or any(r.requires_grad for r in rows))
    results = []
    for start in range(0, rows[0].shape[1], size):
        chunk = [r[:, start : start + size] for r in rows]
        if graph and rows[0].shape[1] > size:
            results.append(checkpoint(part, *chunk, codebook, use_reentrant=False))
        else:
            results.append(part(*chunk, codebook))
    return results
