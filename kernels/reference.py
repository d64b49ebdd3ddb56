"""The oracle: one plain eager function per op. Slow, and right by inspection; tests and gates compare with it.

Shapes at this layer are canonical, so that implementations need no special cases (``fastvq.functional`` brings
users' shapes into this form and back):

* ``x`` (G, R1, R2, D): G groups, two row axes, any strides; float16, bfloat16, float32 or float64.
* ``codebook`` (G, K, D): float32, or float64 exactly when ``x`` is float64. ``codebooks`` (G, Q, K, D).
* ``indices`` (G, R1, R2) or, for stacks of Q stages, (G, R1, R2, Q): int64; -1 is a hole.
* ``mask`` (G, R1, R2): bool, True where a row is valid, or None.
* ``sizes``: Q ints in [1, K], the codes of each stage that count, or None. ``stages`` (R1, R2): int64, or None.

Results keep the rows outermost in memory: ``indices`` (G, R1, R2) is a view of (R1, R2, G) storage, a looked-up
(G, R1, R2, D) one of (R1, R2, G, D), so that grouped results reshape to (N, G) and (N, G*D) without a copy; those
of stacks, (G, R1, R2, Q), are views of (R1, R2, G, Q) storage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ._layout import check_indices, rows_outermost

METRICS = ("l2", "cosine", "dot")


def unit_rows(x: Tensor) -> Tensor:
    """Rows over their Euclidean norm: the norm in float64 with d ascending, the quotient rounded once to float32.

    float64 rows stay float64. A zero row stays zero, a row with NaN or inf has NaN.
    """
    x64 = x.double()
    square = torch.zeros(x.shape[:-1], dtype=torch.float64, device=x.device)
    for d in range(x.shape[-1]):
        square = square + x64[..., d] * x64[..., d]
    norm = square_root(square).unsqueeze(-1)
    unit = torch.where(norm == 0, torch.zeros_like(x64), x64 / norm)
    return unit if x.dtype == torch.float64 else unit.float()


def square_root(x: Tensor) -> Tensor:
    """Correctly rounded square roots. On a CPU they are NumPy's: torch's own are off by a bit for some float64."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.asarray(np.sqrt(x.detach().numpy())))
    return x.sqrt()


def oracle_cost(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """The oracle's cost (smaller is nearer) of every code for every row, in float64.

    l2: sum_d (x_d - c_d)^2; dot: -sum_d x_d c_d; cosine: -sum_d of the product of :func:`unit_rows`. Always d
    ascending, one rounding per operation (eager torch fuses nothing), on the inputs as given.

    Args:
        x: (G, R1, R2, D).
        codebook: (G, K, D).

    Returns:
        (G, R1, R2, K) float64.
    """
    if metric == "cosine":
        x, codebook = unit_rows(x), unit_rows(codebook)
    x64, c64 = x.double(), codebook.double()[:, None, None]
    cost = torch.zeros(*x.shape[:-1], codebook.shape[-2], dtype=torch.float64, device=x.device)
    for d in range(x.shape[-1]):
        if metric == "l2":
            difference = x64[..., d : d + 1] - c64[..., d]
            cost = cost + difference * difference
        else:
            cost = cost - x64[..., d : d + 1] * c64[..., d]
    return cost


def nearest(
    x: Tensor, codebook: Tensor, mask: Tensor | None, metric: str = "l2", precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """The nearest code of every row by :func:`oracle_cost`; of equal costs the lowest index.

    A row with a non-finite entry gets index -1 and distance NaN, a masked one index -1 and distance 0. A code
    with a non-finite entry is never chosen; where no code is left the row counts as non-finite.

    Returns:
        indices (G, R1, R2) int64, and distances (G, R1, R2) in float32 (float64 for float64): the squared
        Euclidean distance for l2, 1 - cosine for cosine, the score for dot.
    """
    del precision  # the reference is exact in every mode
    out_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    cost = oracle_cost(x, codebook, metric)
    cost = torch.where(cost.isfinite(), cost, torch.full_like(cost, float("inf")))
    best = cost.amin(-1, keepdim=True)
    position = torch.arange(codebook.shape[-2], device=x.device).expand_as(cost)
    indices = torch.where(cost == best, position, codebook.shape[-2]).amin(-1)
    distances = {"l2": best, "dot": -best, "cosine": 1 + best}[metric].squeeze(-1)

    usable = x.isfinite().all(-1) & best.squeeze(-1).isfinite()
    indices = torch.where(usable, indices, -1)
    distances = torch.where(usable, distances, float("nan")).to(out_dtype)
    if mask is not None:
        indices = torch.where(mask, indices, -1)
        distances = torch.where(mask, distances, 0.0)
    return rows_outermost(indices), rows_outermost(distances)


def nearest_topk(
    x: Tensor, codebook: Tensor, mask: Tensor | None, topk: int, metric: str = "l2", precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """The ``topk`` nearest codes of every row, in the order of :func:`oracle_cost`; of equal costs the lower index.

    Where fewer codes are left than asked for, the last places of the row have index -1 and distance NaN; so has a
    whole row with a non-finite entry. A masked row has index -1 and distance 0.

    Returns:
        indices (G, R1, R2, topk) int64, and distances (G, R1, R2, topk) as :func:`nearest` has them, but in float64
        as they come: two codes keep their order.
    """
    del precision
    cost = oracle_cost(x, codebook, metric)
    cost = torch.where(cost.isfinite() & x.isfinite().all(-1, keepdim=True), cost, float("inf"))
    cost, indices = (ordered[..., :topk] for ordered in cost.sort(stable=True, dim=-1))
    distances = {"l2": cost, "dot": -cost, "cosine": 1 + cost}[metric]
    indices = torch.where(cost.isfinite(), indices, -1)
    distances = torch.where(cost.isfinite(), distances, float("nan"))
    if mask is not None:
        indices = torch.where(mask.unsqueeze(-1), indices, -1)
        distances = torch.where(mask.unsqueeze(-1), distances, 0.0)
    return rows_outermost(indices), rows_outermost(distances)


def segment_sum(x: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Sums the rows of each code, in float64, rounded once.

    Args:
        x: (G, R1, R2, D).
        indices: (G, R1, R2) in [-1, num_codes); -1 is left out.

    Returns:
        sums (G, K, D) and counts (G, K), float32 (float64 for float64).

    Raises:
        IndexError: an index outside [-1, num_codes). (On a GPU such rows are left out: raising would need a sync.)
    """
    check_indices(indices, num_codes)
    groups, _, _, dim = x.shape
    out_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = torch.zeros(groups, num_codes, dim, dtype=torch.float64, device=x.device)
    counts = torch.zeros(groups, num_codes, dtype=torch.float64, device=x.device)
    for group in range(groups):
        index = indices[group].reshape(-1)
        kept = index >= 0
        sums[group].index_add_(0, index[kept], x[group].reshape(-1, dim)[kept].double())
        counts[group].index_add_(0, index[kept], torch.ones_like(index[kept], dtype=torch.float64))
    return sums.to(out_dtype), counts.to(out_dtype)


def ema_update_(
    codebook: Tensor,
    embed_sum: Tensor,
    cluster_size: Tensor,
    sums: Tensor,
    counts: Tensor,
    decay: float,
    eps: float,
    smoothing: str,
    normalize: bool,
    dead_below: float,
    relative: bool,
) -> Tensor:
    """One exponential-moving-average step of a codebook, in place (VQ-VAE, van den Oord et al. 2017, appendix A.1).

    n <- decay n + (1 - decay) counts and m <- decay m + (1 - decay) sums; then c = m / n' with n' = n, or with
    Laplace smoothing n' = (n + eps) / (sum n + K eps) * sum n. Codes with n' = 0 keep their value. ``normalize``
    puts the codes on the unit sphere.

    Args:
        codebook, embed_sum, sums: (G, K, D). cluster_size, counts: (G, K). All of one dtype, contiguous.
        smoothing: "laplace" or "none".
        dead_below: a code is dead where its new n is below this; with ``relative`` below this share of its
            group's mean n.

    Returns:
        dead (G, K), bool.
    """
    cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
    embed_sum.mul_(decay).add_(sums, alpha=1 - decay)
    total = cluster_size.sum(-1, keepdim=True)
    size = cluster_size
    if smoothing == "laplace":
        size = (cluster_size + eps) / (total + cluster_size.shape[-1] * eps) * total
    size = size.unsqueeze(-1)
    codes = torch.where(size > 0, embed_sum / size, codebook)
    if normalize:
        codes = codes / codes.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(codes.dtype).tiny)
    codebook.copy_(codes)
    threshold = dead_below * (total / cluster_size.shape[-1] if relative else torch.ones_like(total))
    return cluster_size < threshold


def lookup(indices: Tensor, codebooks: Tensor) -> Tensor:
    """Sums the chosen codes over the stages, left to right in the codebooks' dtype; -1 adds nothing.

    Args:
        indices: (G, R1, R2, Q) in [-1, K).
        codebooks: (G, Q, K, D).

    Returns:
        (G, R1, R2, D) in the codebooks' dtype.

    Raises:
        IndexError: as :func:`segment_sum`.
    """
    check_indices(indices, codebooks.shape[-2])
    groups, stages, _, dim = codebooks.shape
    out = torch.zeros(*indices.shape[:-1], dim, dtype=codebooks.dtype, device=codebooks.device)
    group = torch.arange(groups, device=codebooks.device)[:, None, None]
    for stage in range(stages):
        index = indices[..., stage]
        codes = codebooks[group, stage, index.clamp_min(0)]
        out = torch.where((index >= 0).unsqueeze(-1), out + codes, out)
    return rows_outermost(out)


def residual_nearest(
    x: Tensor,
    codebooks: Tensor,
    sizes: Sequence[int] | None,
    stages: Tensor | None,
    mask: Tensor | None,
    precision: str = "exact",
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes every row in stages: each takes the nearest code of what the stages before it left.

    r_1 = x in the codebooks' dtype; c_q is the code that :func:`nearest` finds for r_q among the first sizes[q] codes
    of stage q; r_{q+1} = r_q - c_q, rounded to that dtype. A row takes its first clamp(stages, 0, Q) stages (all
    without ``stages``), a masked one none.

    A stage that finds no code, because r_q or every code of the stage is not finite, ends its row: this stage and the
    row's later ones get index -1 and error NaN, and the row's ``quantized`` is NaN.

    Returns:
        indices (G, R1, R2, Q) int64, -1 at stages that a row does not take; quantized (G, R1, R2, D) in x's dtype,
        the codes added as :func:`lookup` adds them, 0 for a row without stages; errors (G, R1, R2, Q),
        |r_q - c_q|^2 in float32 (float64 for float64), 0 at stages that a row does not take.
    """
    groups, depth, num_codes, _ = codebooks.shape
    group = torch.arange(groups, device=x.device)[:, None, None]
    valid = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
    residual = x.to(codebooks.dtype)
    quantized, lost = torch.zeros_like(residual), torch.zeros_like(valid)
    indices, errors = [], []
    for stage in range(depth):
        taken = valid if stages is None else valid & (stage < stages)
        codebook = codebooks[:, stage, : num_codes if sizes is None else sizes[stage]]
        index, error = nearest(residual, codebook, taken, "l2", precision)
        code, found = codebook[group, index.clamp_min(0)], (index >= 0).unsqueeze(-1)
        quantized = torch.where(found, quantized + code, quantized)
        residual = torch.where(found, residual - code, float("nan"))  # so that later stages find none either
        lost = lost | (taken & (index < 0))
        indices.append(index)
        errors.append(error)
    quantized = torch.where(lost.unsqueeze(-1), float("nan"), quantized).to(x.dtype)
    return (
        rows_outermost(torch.stack(indices, -1)),
        rows_outermost(quantized),
        rows_outermost(torch.stack(errors, -1)),
    )


def residual_segment_sum(x: Tensor, indices: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Sums what each code of each stage stood for: r_q of :func:`residual_nearest`, in float64, rounded once.

    Args:
        x: (G, R1, R2, D).
        indices: (G, R1, R2, Q) in [-1, K); -1 is left out and subtracts nothing.
        codebooks: (G, Q, K, D).

    Returns:
        sums (G, Q, K, D) and counts (G, Q, K), float32 (float64 for float64).

    Raises:
        IndexError: as :func:`segment_sum`.
    """
    groups, depth, num_codes, _ = codebooks.shape
    check_indices(indices, num_codes)
    group = torch.arange(groups, device=x.device)[:, None, None]
    residual = x.to(codebooks.dtype)
    results = []
    for stage in range(depth):
        index = indices[..., stage]
        results.append(segment_sum(residual, index, num_codes))
        code = codebooks[group, stage, index.clamp_min(0)]
        residual = torch.where((index >= 0).unsqueeze(-1), residual - code, residual)
    sums, counts = zip(*results, strict=True)
    return torch.stack(sums, 1), torch.stack(counts, 1)
