"""Pose codes as the vectors that a transformer reads and predicts: 392 codes, an END and a PAD.

A latent's vector is K-hot: 70 ones among the first 392 numbers, one in each category. END is 1 in the vector that
follows the last latent, PAD in all after that; those have no codes. Predicted scores are logits of the same 394
numbers, each of which may be on or off by itself; what is made of them is one code of every category all the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvq.models.motion.pose_codes import NUM_CATEGORIES, NUM_CODES, PADDED_CODES
from fastvq.models.tokenizers.pose_codes import POSE_SIZES

END, PAD, WIDTH = NUM_CODES, NUM_CODES + 1, NUM_CODES + 2

_CODES = torch.from_numpy(PADDED_CODES.copy())
_STARTS = _CODES[:, 0]
_REAL = torch.arange(_CODES.shape[1]) < torch.tensor(POSE_SIZES)[:, None]


def k_hot(bins: Tensor) -> Tensor:
    """The vectors of latents.

    Args:
        bins: (..., 70), each counted from 0 in its category.

    Returns:
        (..., 394) float32 with 70 ones.
    """
    vectors = torch.zeros(*bins.shape[:-1], WIDTH, device=bins.device)
    return vectors.scatter_(-1, bins + _STARTS.to(bins.device), 1.0)


def sequences(bins: Tensor, lengths: Tensor) -> Tensor:
    """Padded clips as vectors, with END behind each.

    Args:
        bins: (B, T, 70); what lies behind a clip's end is not looked at.
        lengths: (B,) latents of each clip, at most T.

    Returns:
        (B, T + 1, 394) float32.
    """
    place = torch.arange(bins.shape[1] + 1, device=bins.device)
    vectors = k_hot(torch.cat([bins, bins.new_zeros(len(bins), 1, NUM_CATEGORIES)], dim=1).clamp_min(0))
    vectors[place >= lengths[:, None]] = 0.0
    vectors[..., END] = (place == lengths[:, None]).float()
    vectors[..., PAD] = (place > lengths[:, None]).float()
    return vectors


def by_category(scores: Tensor) -> Tensor:
    """Scores of the codes, a row for each category.

    Args:
        scores: (..., 394) or (..., 392).

    Returns:
        (..., 70, 18), minus infinity behind the last code of a category.
    """
    rows = scores[..., _CODES.to(scores.device)]
    return rows.masked_fill(~_REAL.to(scores.device), -math.inf)


def best_bins(scores: Tensor) -> Tensor:
    """(..., 70) the bin of the largest score in every category; of equal ones the first."""
    return by_category(scores).argmax(dim=-1)


def ends(scores: Tensor) -> Tensor:
    """(...) bool: whether END is more likely than not, its sigmoid above one half."""
    return scores[..., END] > 0


def corrupted(vectors: Tensor, keep: float, generator: torch.Generator | None = None) -> Tensor:
    """Vectors of which some numbers were replaced by noise, and made into vectors again.

    Each number stays with probability ``keep``, else it becomes N(0, 1); of every category the largest number is then
    1, and END and PAD are 1 where their sigmoid is above one half.

    Args:
        vectors: (..., 394).
        keep: a probability.
        generator: of the CPU, whatever the device of the vectors, so that it draws the same there.

    Source: PGR2M (arXiv 2512.22464), after CoMo.
    """
    kept = torch.rand(vectors.shape, generator=generator) < keep
    noise = torch.randn(vectors.shape, generator=generator)
    mixed = torch.where(kept.to(vectors.device), vectors, noise.to(vectors))
    found = k_hot(best_bins(mixed)).to(vectors.dtype)
    found[..., END:] = (mixed[..., END:] > 0).to(vectors.dtype)
    return found


def clean_probability(step: int, *, decay: float = 0.99, least: float = 0.1) -> float:
    """How likely the inputs of a training step (counted from 0) are left as they are: 1 at first, then ever less."""
    return max(decay**step, least)


def drawn_stage(uniform: Tensor, stages: int) -> Tensor:
    """The residual stages that samples of a batch are trained at, the first ones more often.

    Args:
        uniform: (B,) numbers evenly drawn from [0, 1).
        stages: how many there are.

    Returns:
        (B,) int64, round((1 - cos(pi u / 2)) (stages - 1)).

    Source: PGR2M (arXiv 2512.22464).
    """
    return ((1 - torch.cos(uniform * (math.pi / 2))) * (stages - 1)).round().long()
