"""Entropies of binary codes, without a table of rows by codes.

A row assigns its code by independent bits, bit d being 1 with probability sigmoid(l_d), so the probability of a code
is a product, and what a softmax over 2^C codes would cost N 2^C numbers to hold comes from N 2^(C/2) or fewer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf


def conditional_entropy(logits: Tensor) -> Tensor:
    """The entropy of each row's code, in nats, exactly the sum of its bits' entropies: (..., C) -> (...)."""
    # -p log p - (1 - p) log(1 - p) by the smaller probability: nothing cancels where a bit is all but certain.
    size = logits.abs()
    return (nnf.softplus(-size) + size * (-size).sigmoid()).sum(-1)


def patterns(bits: int, like: Tensor) -> Tensor:
    """All codes of so many bits, (2^bits, bits) of 0 and 1, the first bit the most significant, as ``like``."""
    codes = torch.arange(2**bits, device=like.device)
    places = torch.arange(bits - 1, -1, -1, device=like.device)
    return (codes.unsqueeze(-1) >> places & 1).to(like.dtype)


def halves(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits (..., C) -> logits of all codes of the first half of the bits, (..., 2^(C // 2)), and of the second.

    The probability of a code is the product of its two halves'.
    """
    cut = logits.shape[-1] // 2
    first, second = logits[..., :cut], logits[..., cut:]
    return first @ patterns(cut, logits).mT, second @ patterns(logits.shape[-1] - cut, logits).mT


def mean_probabilities(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean over rows of the probabilities of all codes, as one matrix product of two halves of the bits.

    Args:
        logits: (..., N, C).
        valid: (..., N), bool; other rows count for nothing. None where all count.

    Returns:
        (..., 2^C), the first bit the most significant; zeros where no row counts.
    """
    first, second = (half.softmax(-1) for half in halves(logits))
    number: Tensor | int = logits.shape[-2]
    if valid is not None:
        first = first * valid.unsqueeze(-1)
        number = valid.sum(-1)[..., None, None].clamp_min(1)
    joint = (first.mT @ second) / number
    return joint.flatten(-2)


def entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p, in nats: (..., K) -> (...)."""
    return -torch.xlogy(probabilities, probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)).sum(-1)
