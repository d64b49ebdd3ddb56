"""Nearest codes, the nearest few, and residual stacks of them: ours, torch's, FAISS's and the peers' searches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastvq import functional as F
from fastvq.benchmarks import peers
from fastvq.benchmarks.contest import Call, Contest
from fastvq.benchmarks.faiss_process import Faiss, available
from fastvq.benchmarks.shapes import Shape, make_data

TOPK = 5
MATRIX_LIMIT = 48 * 2**30  # bytes of scores beyond which peers that write them are left out
JUDGED = 8192  # rows of a group that a device's results are compared on


def ours(x: Tensor, codebooks: Tensor, *, precision: str = "exact", impl: str = "auto") -> Tensor:
    """The op under test: (G, N, D) and (G, Q, K, D) -> (G, N, Q)."""
    if codebooks.shape[1] == 1:
        return F.nearest(x, codebooks[:, 0], precision=precision, impl=impl).indices.unsqueeze(-1)
    return F.residual_nearest(x, codebooks, precision=precision, impl=impl).indices


def excess(x: Tensor, codebooks: Tensor, indices: Tensor) -> int:
    """How many rows got a code farther away, in float64, than the oracle's for the residual that they left.

    Args:
        x: (G, N, D). codebooks: (G, Q, K, D). indices: (G, N, Q).
    """
    group = torch.arange(len(x), device=x.device)[:, None]
    wrong = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
    for stage in range(codebooks.shape[1]):
        chosen, codes = indices[..., stage], codebooks[:, stage]
        oracle = F.nearest(x, codes, impl="tiled" if x.device.type == "cpu" else "auto").indices
        for g, n in (chosen != oracle).nonzero().tolist():
            row = x[g, n].double()
            distance, least = ((row - codes[g, k]).square().sum() for k in (chosen[g, n], oracle[g, n]))
            wrong[g, n] |= bool(distance > least)
        x = x - codes[group, chosen]
    return int(wrong.sum())


def contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """The search of one stage or of several."""
    x, codebooks = make_data(shape, device)
    dense = x.contiguous()  # peers get the layout that suits them
    others: dict[str, Call] = {}
    if 4 * shape.G * shape.N * shape.K <= MATRIX_LIMIT:
        for name, search in peers.torch_searches(device, compiled=compiled).items():
            others[name] = partial(search, dense, codebooks)
    vqp = peers.vqp_search(shape, codebooks)
    if vqp is not None and 16 * shape.G * shape.N * shape.K <= MATRIX_LIMIT:
        others[peers.VQP] = partial(vqp, dense, codebooks)
    if device != "cpu" and peers.installed("flash-kmeans"):
        for half in (False, True):
            others["flash-kmeans" + " fp16" * half] = peers.flash_kmeans(dense, codebooks, half=half)
    known: list[Tensor] = []

    def wrong(_: str, found: Tensor) -> int:
        if any(torch.equal(found, right) for right in known):
            return 0
        judged = shape.N if device == "cpu" else JUDGED
        count = excess(dense[:, :judged], codebooks, found[:, :judged])
        if not count:
            known.append(found)
        return count

    return Contest(
        {precision: partial(ours, x, codebooks, precision=precision) for precision in ("exact", "fast")},
        others,
        wrong,
        partial(Faiss, shape, dense, codebooks, torch.get_num_threads()) if device == "cpu" and available() else None,
    )


def topk_contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """The :data:`TOPK` nearest codes in order, of one codebook a group."""
    x, codebooks = make_data(shape._replace(Q=1), device)
    dense, codes = x.contiguous(), codebooks[:, 0]

    def scores(x: Tensor, codes: Tensor) -> Tensor:
        return torch.baddbmm(codes.square().sum(-1).unsqueeze(-2), x, codes.mT, alpha=-2)

    def first(costs: Callable[[Tensor, Tensor], Tensor], x: Tensor, codes: Tensor) -> Tensor:
        return costs(x, codes).topk(TOPK, -1, largest=False).indices

    others: dict[str, Call] = {
        "torch baddbmm": partial(first, scores, dense, codes),
        "torch cdist": partial(first, torch.cdist, dense, codes),
    }
    if compiled:
        others["torch compile"] = partial(torch.compile(partial(first, scores), dynamic=False), dense, codes)
    group = torch.arange(shape.G, device=device)[:, None, None]
    oracle = F.nearest(dense, codes, topk=TOPK, impl="tiled" if device == "cpu" else "auto").indices

    def distances(indices: Tensor) -> Tensor:
        return (dense.double().unsqueeze(-2) - codes[group, indices].double()).square().sum(-1)

    def wrong(_: str, found: Any) -> int:
        """Rows with a code farther away than the oracle's in its place."""
        indices = found if isinstance(found, Tensor) else found.indices
        return int((distances(indices) > distances(oracle)).any(-1).sum())

    return Contest(
        {"exact": partial(F.nearest, x, codes, topk=TOPK)},
        others,
        wrong,
        partial(Faiss, shape, dense, codebooks, torch.get_num_threads(), topk=TOPK)
        if device == "cpu" and available() and shape.G == 1
        else None,
    )
