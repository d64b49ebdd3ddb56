"""Residual quantization by beam search, composed from the ``nearest_topk`` and ``lookup`` of any implementation.

A hypothesis is a code for every stage so far. Each stage extends every hypothesis of a row by the codes nearest to
its residual and keeps those ``beam`` that leave the least error: the multi-path encoding of Liu, Lu and Shao,
"Improved Residual Vector Quantization" (2015), which FAISS's residual quantizer uses. Errors are the oracle's, in
float64; of equal ones the extension of the better hypothesis comes first, then the lower code. A row's codes are
those of its best hypothesis after the last of its stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ._layout import rows_outermost

BLOCK = 2**26  # entries of the hypotheses' residuals at a time: 256 MiB of float32


def residual_beam(
    impl: ModuleType,
    x: Tensor,
    codebooks: Tensor,
    sizes: Sequence[int] | None,
    stages: Tensor | None,
    mask: Tensor | None,
    beam: int,
    precision: str = "exact",
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`kernels.reference.residual_nearest`, with ``beam`` hypotheses a row, by an implementation's own ops.

    With ``beam`` 1 the two are equal. A hypothesis whose residual is not finite is dropped; a row is lost where all
    its hypotheses are.
    """
    groups, rows1, rows2, dim = x.shape
    depth, rows = codebooks.shape[1], rows1 * rows2
    limit = torch.full((), depth, device=x.device) if stages is None else stages.reshape(rows)
    limit = limit.expand(groups, rows)
    if mask is not None:
        limit = torch.where(mask.reshape(groups, rows), limit, 0)
    x = x.reshape(groups, rows, dim)
    step = max(1, BLOCK // (groups * beam * dim))
    parts = [
        best_paths(impl, x[:, row : row + step], codebooks, sizes, limit[:, row : row + step], beam, precision)
        for row in range(0, max(1, rows), step)
    ]
    indices = torch.cat([path for path, _ in parts], 1).view(groups, rows1, rows2, depth)
    errors = torch.cat([error for _, error in parts], 1).view(groups, rows1, rows2, depth)
    lost = errors.isnan().any(-1, keepdim=True)
    quantized = torch.where(lost, float("nan"), impl.lookup(indices, codebooks)).to(x.dtype)
    return rows_outermost(indices), rows_outermost(quantized), rows_outermost(errors.to(codebooks.dtype))


def best_paths(
    impl: ModuleType,
    x: Tensor,
    codebooks: Tensor,
    sizes: Sequence[int] | None,
    limit: Tensor,
    beam: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Indices and float64 errors (G, n, Q) of the rows (G, n, D), each with its number of stages (G, n)."""
    groups, depth, num_codes, _ = codebooks.shape
    group = torch.arange(groups, device=x.device)[:, None, None]
    residual = x.to(codebooks.dtype).unsqueeze(2)  # (G, n, hypotheses, D)
    paths: list[Tensor] = []  # for each stage so far, the codes (G, n, hypotheses)
    errors: list[Tensor] = []
    for stage in range(depth):
        codebook = codebooks[:, stage, : num_codes if sizes is None else sizes[stage]]
        width = min(beam, codebook.shape[1])
        taken = (stage < limit).unsqueeze(-1).expand(residual.shape[:-1])
        codes, costs = impl.nearest_topk(residual, codebook, taken, width, "l2", precision)
        # Extensions lie by hypothesis, then cost, then code; a stable sort keeps that among equals and puts NaN last.
        # Those of a row that is done all cost 0, so its best hypothesis stays in place.
        cost, order = costs.flatten(2).sort(stable=True, dim=-1)
        cost, order = cost[..., :beam], order[..., :beam]
        parent = order.div(width, rounding_mode="floor")
        code = codes.flatten(2).gather(2, order)
        paths = [path.gather(2, parent) for path in paths] + [code]
        errors = [error.gather(2, parent) for error in errors] + [cost]
        residual = residual.gather(2, parent.unsqueeze(-1).expand(-1, -1, -1, residual.shape[-1]))
        residual = residual - codebook[group, code.clamp_min(0)]
        residual = torch.where((code >= 0).unsqueeze(-1), residual, float("nan"))
    return torch.stack([path[..., 0] for path in paths], -1), torch.stack([error[..., 0] for error in errors], -1)
