"""From logits to codes: guidance, temperature, top-k, top-p, and random numbers that belong to a sample.

A sample's codes must not depend on what it is generated with, so its random numbers come from the seed and its place
alone, one for each of its codes, and codes are found by inverting a distribution in float64: roundings that differ
between batches move a code only where a number falls so near to a step of the distribution, once in some 10^12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastvq.models.tokenizers.config import check_integer, check_number


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    Raises:
        UserError: a value that cannot be.
    """

    guidance: float = 4.0
    """Strength of the text: 1 leaves the model's logits, 0 ignores the text, more exaggerates it."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest code."""
    top_k: int | None = None
    """Only so many of the likeliest codes; all if absent."""
    top_p: float | None = None
    """Only the likeliest codes that together have this probability; all if absent."""

    def __post_init__(self) -> None:
        check_number("guidance", self.guidance, 0, 1000)  # float32 holds what comes of it
        check_number("temperature", self.temperature, 0)
        if self.top_k is not None:
            check_integer("top_k", self.top_k, 1)
        if self.top_p is not None:
            check_number("top_p", self.top_p, 0, 1, above=True)


def uniforms(seed: int, places: Sequence[int], *shape: int) -> Tensor:
    """Random numbers in [0, 1) of some samples.

    Args:
        seed: of the generation.
        places: of the samples; each has its own numbers.
        shape: of a sample's numbers; a larger first size adds numbers behind the same ones.

    Returns:
        (samples, *shape) float64.
    """
    drawn = [np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(place,))) for place in places]
    count = int(np.prod(shape))
    bits = np.stack([generator.random_raw(count) for generator in drawn]).reshape(len(drawn), *shape)
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022) on logits: u + scale * (c - u)."""
    return unconditional + scale * (conditional - unconditional)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """One code from each distribution.

    Args:
        logits: (..., K), guided already; -inf for what cannot be.
        uniform: (...) in [0, 1).
        sampling: temperature, top_k and top_p.

    Returns:
        (...) int64.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.double()
    # From the largest down, so that a tiny temperature takes the likeliest code too, and nothing overflows.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    ordered, codes = scaled.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        ordered[..., sampling.top_k :] = -torch.inf
    probability = ordered.softmax(dim=-1)
    mass = probability.cumsum(dim=-1)
    if sampling.top_p is not None:
        # Kept is what the codes before it leave room for, so always the first.
        probability = probability.masked_fill(mass - probability >= sampling.top_p, 0.0)
        mass = probability.cumsum(dim=-1)
    target = uniform.to(mass).unsqueeze(-1) * mass[..., -1:]
    place = torch.searchsorted(mass, target, right=True).clamp_max(mass.shape[-1] - 1)
    # Rounding may carry the target up to the whole mass, behind which lie codes of no probability.
    place = place.minimum((probability > 0).sum(dim=-1, keepdim=True) - 1)
    return codes.gather(-1, place).squeeze(-1)
