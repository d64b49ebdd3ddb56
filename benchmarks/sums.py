"""Codebook sums: the rows, or residuals, of every code added up, against what most quantizers do."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as nnF
from torch import Tensor

import fastvq.functional as F
from fastvq.benchmarks.contest import Call, Contest
from fastvq.benchmarks.shapes import Shape, make_data

Sums = tuple[Tensor, Tensor]


def one_hot(x: Tensor, indices: Tensor, num_codes: int) -> Sums:
    """As vector-quantize-pytorch does: an int64 one-hot matrix, made float32, and two sums over it."""
    hot = nnF.one_hot(indices, num_codes).type(x.dtype)
    return torch.einsum("gnd,gnk->gkd", x, hot), hot.sum(1)


def index_add(x: Tensor, indices: Tensor, num_codes: int) -> Sums:
    """The best plain torch: no matrix, one pass over the rows."""
    groups, _, dim = x.shape
    flat = (indices + num_codes * torch.arange(groups, device=x.device)[:, None]).flatten()
    sums = x.new_zeros(groups * num_codes, dim).index_add_(0, flat, x.reshape(-1, dim))
    counts = torch.bincount(flat, minlength=groups * num_codes).to(x.dtype)
    return sums.view(groups, num_codes, dim), counts.view(groups, num_codes)


def by_stage(x: Tensor, indices: Tensor, codebooks: Tensor) -> Sums:
    """Residuals written out stage by stage, each summed by :func:`index_add`."""
    group = torch.arange(len(x), device=x.device)[:, None]
    found = []
    for stage in range(codebooks.shape[1]):
        found.append(index_add(x, indices[..., stage], codebooks.shape[2]))
        x = x - codebooks[group, stage, indices[..., stage]]
    return torch.stack([sums for sums, _ in found], 1), torch.stack([counts for _, counts in found], 1)


def wrong_sums(expected: Sums, magnitudes: Tensor, terms: int, _: str, found: Sums) -> int:
    """Codes whose count is not the float64 one, or whose sum is off by more than float32 rounding may make it.

    Args:
        expected: sums (..., K, D) and counts (..., K), float64.
        magnitudes: sums of the terms' magnitudes, (..., K, D).
        terms: how many terms one entry of a row has, each of which may be rounded once.
    """
    counts = expected[1]
    allowed = 2.0**-24 * (counts + terms + 1).unsqueeze(-1) * magnitudes
    off = ((found[0] - expected[0]).abs() > allowed).any(-1)
    return int((off | (found[1] != counts)).sum())


def contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """Sums of rows by code."""
    shape = shape._replace(Q=1, shared=False)
    x, _ = make_data(shape, device)
    random = torch.Generator(device).manual_seed(0)
    indices = torch.randint(shape.K, (shape.N, shape.G), generator=random, device=device).T
    others: dict[str, Call] = {
        "torch index_add": partial(index_add, x, indices, shape.K),
        "torch one-hot": partial(one_hot, x, indices, shape.K),
    }
    if compiled:
        others["torch compile"] = partial(torch.compile(index_add, dynamic=False), x, indices, shape.K)
    expected, magnitudes = index_add(x.double(), indices, shape.K), index_add(x.double().abs(), indices, shape.K)[0]
    return Contest(
        {"": partial(F.segment_sum, x, indices, shape.K)}, others, partial(wrong_sums, expected, magnitudes, 1)
    )


def residual_contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """Sums of residuals by code, stage by stage."""
    x, codebooks = make_data(shape, device)
    indices = F.residual_nearest(x, codebooks).indices
    dense = x.contiguous()
    others: dict[str, Call] = {"torch index_add": partial(by_stage, dense, indices, codebooks)}
    if compiled:
        others["torch compile"] = partial(torch.compile(by_stage, dynamic=False), dense, indices, codebooks)
    expected = by_stage(x.double(), indices, codebooks.double())
    magnitudes, _ = by_stage(x.double().abs(), indices, -codebooks.double().abs())
    return Contest(
        {"": partial(F.residual_segment_sum, x, indices, codebooks)},
        others,
        partial(wrong_sums, expected, magnitudes, shape.Q),
    )
