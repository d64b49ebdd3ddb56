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

BLOCK = 2**24  # entries of the hypotheses' residuals at a time: 64 MiB of float32


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
    limit = None
    if stages is not None or mask is not None:
        limit = x.new_full((), depth, dtype=torch.int64) if stages is None else stages.reshape(rows)
        limit = limit.expand(groups, rows)
        if mask is not None:
            limit = torch.where(mask.reshape(groups, rows), limit, 0)
    x = x.reshape(groups, rows, dim)
    step = max(1, BLOCK // (groups * beam * dim))
    parts = []
    for row in range(0, max(1, rows), step):
        some = slice(row, row + step)
        limited = None if limit is None else limit[:, some]
        parts.append(best_paths(impl, x[:, some], codebooks, sizes, limited, beam, precision))
    indices = torch.cat([path for path, _ in parts], 1).view(groups, rows1, rows2, depth)
    errors = torch.cat([error for _, error in parts], 1).view(groups, rows1, rows2, depth)
    lost = errors.isnan().any(-1, keepdim=True)
    quantized = impl.lookup(indices, codebooks).masked_fill_(lost, float("nan")).to(x.dtype)
    return rows_outermost(indices), rows_outermost(quantized), rows_outermost(errors.to(codebooks.dtype))


def best_paths(
    impl: ModuleType,
    x: Tensor,
    codebooks: Tensor,
    sizes: Sequence[int] | None,
    limit: Tensor | None,
    beam: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Indices and float64 errors (G, n, Q) of the rows (G, n, D), each with its number of stages (G, n) or all."""
    depth, num_codes = codebooks.shape[1:3]
    residual = x.to(codebooks.dtype).unsqueeze(2)  # (G, n, hypotheses, D)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []  # of each stage (G, n, hypotheses): parent, code, cost
    for stage in range(depth):
        codebook = codebooks[:, stage, : num_codes if sizes is None else sizes[stage]]
        width = min(beam, codebook.shape[1])
        taken = None if limit is None else (stage < limit).unsqueeze(-1).expand(residual.shape[:-1])
        code, cost = impl.nearest_topk(residual, codebook, taken, width, "l2", precision)
        # Extensions lie by hypothesis, then cost, then code; a stable sort keeps that among equals and puts NaN last.
        # Those of a row that is done all cost 0, so its best hypothesis stays in place.
        cost, order = cost.flatten(2).sort(stable=True, dim=-1)
        cost, order = cost[..., :beam], order[..., :beam]
        code, parent = code.flatten(2).gather(2, order), order.div(width, rounding_mode="floor")
        steps.append((parent, code, cost))
        if stage + 1 < depth:
            residual = extended(residual, codebook, parent, code)

    path, errors, place = [], [], torch.zeros_like(steps[-1][0][..., :1])
    for parent, code, cost in reversed(steps):
        path.append(code.gather(2, place))
        errors.append(cost.gather(2, place))
        place = parent.gather(2, place)
    return torch.cat(path[::-1], 2), torch.cat(errors[::-1], 2)


def extended(residual: Tensor, codebook: Tensor, parent: Tensor, code: Tensor) -> Tensor:
    """What every hypothesis's code leaves of its parent's residual; where the code is -1, a row with a NaN.

    Args:
        residual: (G, n, H, D).
        codebook: (G, K, D).
        parent, code: (G, n, B).

    Returns:
        (G, n, B, D).
    """
    groups, rows, hypotheses, dim = residual.shape
    group = torch.arange(groups, device=residual.device)[:, None, None]
    chosen = (group * codebook.shape[1] + code.clamp_min(0)).flatten()
    left = codebook.reshape(groups * codebook.shape[1], dim).index_select(0, chosen).view(*code.shape, dim)
    if hypotheses == 1:
        torch.sub(residual, left, out=left)
    else:
        row = group * rows + torch.arange(rows, device=residual.device)[:, None]
        kept = (row * hypotheses + parent).flatten()
        given = residual.view(groups * rows * hypotheses, dim).index_select(0, kept).view(*code.shape, dim)
        left = given.sub_(left)
    left[..., 0].masked_fill_(code < 0, float("nan"))
    return left
