"""Plain torch without an N x K matrix: the fallback where there is neither a compiler nor a GPU kernel.

Formula: with mu the mean of the codes, |x - c|^2 = |x - mu|^2 + 2 (|c - mu|^2 / 2 - (x - mu).(c - mu)); the bracket
ranks the codes. It is evaluated by one matrix product per tile of rows, and every code whose value lies within the
rounding bound of the best is a candidate; rows with more than one candidate are re-scored as the oracle does.

The bound. u is the unit roundoff of the matrix product, X = x - mu, C = c - mu exactly, hats are computed values.
|X^ - X| <= u|X| and |C^ - C| <= u|C| componentwise (one subtraction each); a product of D terms in any order, with
or without FMA, errs by gamma_D |X^||C^|, adding the half norm and its own rounding are two more roundings. With
m = D + 8 and gamma = m u / (1 - m u) all of it is at most
    eps = gamma (|X||C|max + |C|max^2 / 2) + D tiny (2 + |X| + |C|max),
the last term for products or operands that underflow or are flushed to zero. The oracle's own rounding moves a
distance by (D + 3) 2^-53 of itself. A code whose value exceeds the best one by more than
    2 eps + (D + 3) 2^-53 (|X| + |C|max)^2
cannot be the oracle's. Where the bound is not finite every code of the row is a candidate.

Bytes moved: x and the codebook once per tile of rows; tiles are sized to stay in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ._layout import check_indices
from .reference import ema_update_, lookup, unit_rows

__all__ = [
    "ema_update_",
    "lookup",
    "nearest",
    "nearest_topk",
    "residual_nearest",
    "residual_segment_sum",
    "segment_sum",
]

TILE = 2**18  # scores per group and tile: 1 MiB of float32, which a core's L2 cache holds
GROUP_TILE = 2**22  # scores over all groups of a tile
MIN_ROWS = 64  # fewer rows waste the matrix product


def nearest(
    x: Tensor, codebook: Tensor, mask: Tensor | None, metric: str = "l2", precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """As :func:`kernels.reference.nearest`; ``precision="fast"`` takes the best of the matrix product unchecked."""
    if metric == "cosine":
        indices, score = nearest(unit_rows(x), unit_rows(codebook), mask, "dot", precision)
        distance = 1 - score
        return indices, distance if mask is None else distance.masked_fill_(~mask, 0.0)
    groups, rows1, rows2, dim = x.shape
    rows = rows1 * rows2
    x = x.reshape(groups, rows, dim)
    indices = torch.empty(rows, groups, dtype=torch.int64, device=x.device)
    distances = torch.empty(rows, groups, dtype=codebook.dtype, device=x.device)
    for some, blocks in tiles(groups, rows, codebook.shape[1]):
        table = CentredCodes(codebook[some], metric)
        for block in blocks:
            chosen, distance = table.search(x[some, block].to(codebook.dtype), precision)
            indices[block, some], distances[block, some] = chosen.t(), distance.t()

    indices, distances = with_groups_first(indices, rows1, rows2), with_groups_first(distances, rows1, rows2)
    if mask is not None:
        indices.masked_fill_(~mask, -1)
        distances.masked_fill_(~mask, 0.0)
    return indices, distances


def nearest_topk(
    x: Tensor, codebook: Tensor, mask: Tensor | None, topk: int, metric: str = "l2", precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """As :func:`kernels.reference.nearest_topk`; ``precision="fast"`` orders the best of the matrix product."""
    if metric == "cosine":
        indices, score = nearest_topk(unit_rows(x), unit_rows(codebook), mask, topk, "dot", precision)
        distance = 1 - score
        return indices, distance if mask is None else distance.masked_fill_(~mask.unsqueeze(-1), 0.0)
    groups, rows1, rows2, dim = x.shape
    rows = rows1 * rows2
    x = x.reshape(groups, rows, dim)
    indices = torch.empty(rows, groups, topk, dtype=torch.int64, device=x.device)
    distances = torch.empty(rows, groups, topk, dtype=widest(x.device), device=x.device)
    for some, blocks in tiles(groups, rows, codebook.shape[1]):
        table = CentredCodes(codebook[some], metric)
        for block in blocks:
            chosen, distance = table.search_topk(x[some, block].to(codebook.dtype), topk, precision)
            indices[block, some], distances[block, some] = chosen.transpose(0, 1), distance.transpose(0, 1)

    indices, distances = with_groups_first(indices, rows1, rows2), with_groups_first(distances, rows1, rows2)
    if mask is not None:
        indices.masked_fill_(~mask.unsqueeze(-1), -1)
        distances.masked_fill_(~mask.unsqueeze(-1), 0.0)
    return indices, distances


def residual_nearest(
    x: Tensor,
    codebooks: Tensor,
    sizes: Sequence[int] | None,
    stages: Tensor | None,
    mask: Tensor | None,
    precision: str = "exact",
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`kernels.reference.residual_nearest`; a tile of rows takes all its stages before the next one."""
    groups, rows1, rows2, dim = x.shape
    depth, num_codes = codebooks.shape[1:3]
    rows, dtype = rows1 * rows2, codebooks.dtype
    x = x.reshape(groups, rows, dim)
    limit = torch.full((), depth, device=x.device) if stages is None else stages.reshape(rows)
    limit = limit.expand(groups, rows)
    if mask is not None:
        limit = torch.where(mask.reshape(groups, rows), limit, 0)
    indices = torch.empty(rows, groups, depth, dtype=torch.int64, device=x.device)
    quantized = torch.empty(rows, groups, dim, dtype=x.dtype, device=x.device)
    errors = torch.empty(rows, groups, depth, dtype=dtype, device=x.device)
    for some, blocks in tiles(groups, rows, num_codes):
        tables = [
            CentredCodes(codebooks[some, stage, : num_codes if sizes is None else sizes[stage]], "l2")
            for stage in range(depth)
        ]
        for block in blocks:
            residual = x[some, block].to(dtype)
            total = torch.zeros_like(residual)
            for stage, table in enumerate(tables):
                taken = stage < limit[some, block]
                # A row of NaN is never re-scored, and is lost to all later stages.
                index, error = table.search(torch.where(taken.unsqueeze(-1), residual, float("nan")), precision)
                found = (index >= 0).unsqueeze(-1)
                code = table.take(index)
                total = torch.where(found, total + code, torch.where(taken.unsqueeze(-1), float("nan"), total))
                residual = torch.where(found, residual - code, float("nan"))
                indices[block, some, stage] = index.t()
                errors[block, some, stage] = torch.where(taken, error, 0).t()
            quantized[block, some] = total.to(x.dtype).transpose(0, 1)
    return (
        with_groups_first(indices, rows1, rows2),
        with_groups_first(quantized, rows1, rows2),
        with_groups_first(errors, rows1, rows2),
    )


def tiles(groups: int, rows: int, num_codes: int) -> Iterator[tuple[slice, list[slice]]]:
    """The groups of one tile after another, each with the rows of its tiles."""
    group_step = max(1, min(groups, GROUP_TILE // (MIN_ROWS * num_codes)))
    row_step = max(MIN_ROWS, min(TILE // num_codes, GROUP_TILE // (group_step * num_codes)))
    blocks = [slice(row, row + row_step) for row in range(0, rows, row_step)]
    for group in range(0, groups, group_step):
        yield slice(group, group + group_step), blocks


def with_groups_first(result: Tensor, rows1: int, rows2: int) -> Tensor:
    """A result in storage order, (R1 * R2, G, ...), as (G, R1, R2, ...)."""
    result = result.view(rows1, rows2, *result.shape[1:])
    return result.permute(2, 0, 1, *range(3, result.dim()))


class CentredCodes:
    """A codebook (G, K, D) made ready for the matrix product: centred, with half norms and bound constants."""

    def __init__(self, codebook: Tensor, metric: str) -> None:
        self.codebook, self.metric = codebook, metric
        self.usable = codebook.isfinite().all(-1)
        finite = torch.where(self.usable.unsqueeze(-1), codebook, 0.0)
        count = self.usable.sum(-1, keepdim=True).clamp_min(1).unsqueeze(-1)
        self.mean = (finite / count).sum(1, keepdim=True)
        self.centred = torch.where(self.usable.unsqueeze(-1), finite - self.mean, 0.0)
        half_norm = self.centred.square().sum(-1) / 2 if metric == "l2" else torch.zeros_like(self.centred[..., 0])
        self.bias = torch.where(self.usable, half_norm, float("inf")).unsqueeze(1)
        self.radius = norm_bound(self.centred).amax(-1, keepdim=True)
        self.raw_radius = norm_bound(finite).amax(-1, keepdim=True)
        self.unit = product_roundoff(codebook)

    def search(self, x: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        """Indices and distances (G, n) of the rows (G, n, D), which are in the codebook's dtype."""
        shifted, value = self.values(x)
        best = value.amin(-1, keepdim=True)
        finite = x.isfinite().all(-1)
        if precision == "fast":
            indices = torch.where(value == best, 1, 0).to(torch.uint8).argmax(-1)
        else:
            threshold = best + self.margin(shifted).unsqueeze(-1)
            # Written so that NaN, on either side, makes a candidate.
            candidate = ~(value > threshold) & finite.unsqueeze(-1)
            indices = self.resolve(x, candidate)
        wide = widest(x.device)
        codes, x = self.take(indices).to(wide), x.to(wide)
        distances = ((x - codes).square() if self.metric == "l2" else x * codes).sum(-1).to(self.codebook.dtype)
        lost = ~finite | (indices < 0) | ~self.usable.any(-1, keepdim=True)
        return torch.where(lost, -1, indices), torch.where(lost, float("nan"), distances)

    def search_topk(self, x: Tensor, topk: int, precision: str) -> tuple[Tensor, Tensor]:
        """Indices and distances (G, n, topk), the latter in float64, of the rows (G, n, D)."""
        shifted, value = self.values(x)
        lowest = value.topk(topk, largest=False)
        if precision == "fast":
            candidate = torch.zeros_like(value, dtype=torch.bool).scatter_(-1, lowest.indices, True)
        else:
            # A code further than the margin from the last of the best has topk codes before it. NaN as in search.
            candidate = ~(value > lowest.values[..., -1:] + self.margin(shifted).unsqueeze(-1))
        indices, cost = self.order(x, candidate & x.isfinite().all(-1, keepdim=True), topk)
        return indices, cost if self.metric == "l2" else -cost

    def values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The rows relative to the mean (for l2), and the values (G, n, K) that rank the codes."""
        shifted = x - self.mean if self.metric == "l2" else x
        return shifted, torch.baddbmm(self.bias, shifted, self.centred.mT, beta=1, alpha=-1)

    def take(self, indices: Tensor) -> Tensor:
        """The codes (G, n, D) at indices (G, n); a hole takes the first."""
        dim = self.codebook.shape[-1]
        return self.codebook.gather(1, indices.clamp_min(0).unsqueeze(-1).expand(-1, -1, dim))

    def margin(self, shifted: Tensor) -> Tensor:
        """How far above the best value a code can lie and still be the oracle's: (G, n)."""
        dim = shifted.shape[-1]
        gamma = (dim + 8) * self.unit
        gamma = gamma / (1 - gamma) if gamma < 0.5 else math.inf
        norm, radius = norm_bound(shifted), self.radius
        tiny = dim * torch.finfo(shifted.dtype).tiny * (2 + norm + radius)
        oracle = (dim + 3) * 2.0**-53
        if self.metric == "l2":
            eps = gamma * (norm * radius + radius.square() / 2) + tiny
            return 2 * eps + oracle * (norm + radius).square()
        return 2 * (gamma * norm * radius + tiny) + 2 * oracle * norm * self.raw_radius

    def resolve(self, x: Tensor, candidate: Tensor) -> Tensor:
        """The oracle's choice among the candidates (G, n, K); -1 where there is none."""
        groups, rows, num_codes = candidate.shape
        group, row, code = candidate.nonzero(as_tuple=True)
        place = group * rows + row
        result = torch.full((groups * rows,), -1, dtype=torch.int64, device=x.device)
        result[place] = code
        several = torch.bincount(place, minlength=groups * rows)[place] > 1
        if bool(several.any()):
            group, row, code, place = group[several], row[several], code[several], place[several]
            cost = pair_costs(x, self.codebook, group, row, code, self.metric)
            cost = torch.where(cost.isfinite(), cost, float("inf"))
            lowest = torch.full((groups * rows,), float("inf"), dtype=cost.dtype, device=x.device)
            lowest = lowest.scatter_reduce(0, place, cost, "amin")
            first = torch.full((groups * rows,), num_codes, dtype=torch.int64, device=x.device)
            tied = (cost == lowest[place]) & cost.isfinite()
            first = first.scatter_reduce(0, place[tied], code[tied], "amin")
            result[place] = torch.where(first[place] < num_codes, first[place], -1)
        return result.view(groups, rows)

    def order(self, x: Tensor, candidate: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """The first ``topk`` of the candidates (G, n, K) in the oracle's order, with costs; -1 and NaN follow."""
        groups, rows, _ = candidate.shape
        group, row, code = candidate.nonzero(as_tuple=True)
        cost = pair_costs(x, self.codebook, group, row, code, self.metric)
        usable = cost.isfinite()
        place, code, cost = (group * rows + row)[usable], code[usable], cost[usable]
        # Codes ascend within a row, and a stable sort keeps them so among equals.
        order = cost.argsort(stable=True)
        order = order[place[order].argsort(stable=True)]
        place, code, cost = place[order], code[order], cost[order]
        counts = torch.bincount(place, minlength=groups * rows)
        rank = torch.arange(place.numel(), device=x.device) - (counts.cumsum(0) - counts)[place]
        first = rank < topk
        target = place[first], rank[first]
        indices = torch.full((groups * rows, topk), -1, dtype=torch.int64, device=x.device)
        costs = torch.full((groups * rows, topk), float("nan"), dtype=cost.dtype, device=x.device)
        indices[target], costs[target] = code[first], cost[first]
        return indices.view(groups, rows, topk), costs.view(groups, rows, topk)


def pair_costs(x: Tensor, codebook: Tensor, group: Tensor, row: Tensor, code: Tensor, metric: str) -> Tensor:
    """The oracle's cost of given (row, code) pairs: float64, d ascending, one rounding per operation.

    Pairs are taken in blocks of at most about 2^20 terms. A device without float64 hands the work to the CPU.
    """
    home = x.device
    if home.type == "mps":
        x, codebook, group, row, code = (t.cpu() for t in (x, codebook, group, row, code))
    costs = []
    step = max(1, 2**20 // x.shape[-1])
    for start in range(0, max(1, group.numel()), step):
        block = slice(start, start + step)
        left, right = x[group[block], row[block]].double(), codebook[group[block], code[block]].double()
        terms = (left - right).square() if metric == "l2" else -(left * right)
        cost = torch.zeros(terms.shape[0], dtype=torch.float64, device=x.device)
        for term in terms.t().contiguous():
            cost += term
        costs.append(cost)
    return torch.cat(costs).to(home) if home.type != "mps" else torch.cat(costs).float().to(home)


def widest(device: torch.device) -> torch.dtype:
    """float64, but on Apple's GPUs, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def norm_bound(x: Tensor) -> Tensor:
    """An upper bound of the rows' Euclidean norms: the computed norm, its rounding, and squares that underflow."""
    dim, info = x.shape[-1], torch.finfo(x.dtype)
    lost = math.sqrt(dim) * 2 * math.sqrt(info.tiny)
    return torch.linalg.vector_norm(x, dim=-1) * (1 + (dim + 4) * info.eps) + lost


def product_roundoff(codebook: Tensor) -> float:
    """The roundoff of a float32 matrix product under the user's settings: TF32 and bfloat16 are allowed for."""
    if codebook.dtype == torch.float64:
        return 2.0**-53
    library: Any = torch.backends.cuda if codebook.is_cuda else torch.backends.mkldnn
    backend = library.matmul
    reduced = torch.get_float32_matmul_precision() != "highest" or getattr(backend, "fp32_precision", "none") not in (
        "none",
        "ieee",
    )
    return 2.0**-8 if reduced else 2.0**-24


def segment_sum(x: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """As :func:`kernels.reference.segment_sum`; rows are added in float64, in a fixed order on every device."""
    check_indices(indices, num_codes)
    groups, dim = x.shape[0], x.shape[-1]
    out_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = widest(x.device)
    slots = num_codes + 1  # the last takes what is left out
    kept = (indices >= 0) & (indices < num_codes)
    slot = torch.where(kept, indices, num_codes) + slots * torch.arange(groups, device=x.device)[:, None, None]
    slot, values = slot.reshape(-1), x.reshape(-1, dim)
    counts = torch.bincount(slot, minlength=groups * slots)
    if x.device.type == "cpu":
        sums = torch.zeros(groups * slots, dim, dtype=wide).index_add_(0, slot, values.to(wide))
    else:
        order = torch.argsort(slot, stable=True)
        sums = torch.segment_reduce(values.to(wide)[order], "sum", lengths=counts, axis=0, initial=0.0)
    sums = sums.view(groups, slots, dim)[:, :num_codes].to(out_dtype)
    return sums.contiguous(), counts.view(groups, slots)[:, :num_codes].to(out_dtype).contiguous()


def residual_segment_sum(x: Tensor, indices: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`kernels.reference.residual_segment_sum`, stage by stage."""
    groups, depth, num_codes, dim = codebooks.shape
    check_indices(indices, num_codes)
    sums = torch.empty(groups, depth, num_codes, dim, dtype=codebooks.dtype, device=x.device)
    counts = torch.empty(groups, depth, num_codes, dtype=codebooks.dtype, device=x.device)
    group = torch.arange(groups, device=x.device)[:, None, None]
    residual = x.to(codebooks.dtype)
    for stage, index in enumerate(indices.unbind(-1)):
        sums[:, stage], counts[:, stage] = segment_sum(residual, index, num_codes)
        kept = (index >= 0) & (index < num_codes)
        code = codebooks[group, stage, torch.where(kept, index, 0)]
        residual = torch.where(kept.unsqueeze(-1), residual - code, residual)
    return sums, counts
