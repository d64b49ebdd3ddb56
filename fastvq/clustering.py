"""k-means on the search's own kernels: Lloyd's algorithm, k-means++ to begin with, and rows that come in a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from . import functional as F
from . import sampling
from . import validation as check

INITIALISERS = ("random", "k-means++")
SAMPLE = 256  # rows per code that a stream's first centres are found from


class KMeans(NamedTuple):
    """A fitted codebook (G, K, D), the rows' indices (G, N), and inertia (G,), the sum of squared distances."""

    codebook: Tensor
    indices: Tensor
    inertia: Tensor


class StreamedKMeans(NamedTuple):
    """A fitted codebook (G, K, D), the inertia (G,) of its last pass over the rows, and their number."""

    codebook: Tensor
    inertia: Tensor
    rows: int


def kmeans(
    x: Tensor,
    num_codes: int,
    *,
    iters: int = 10,
    init: str | Tensor = "random",
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    impl: str = "auto",
) -> KMeans:
    """Lloyd's algorithm; a cluster that loses its rows keeps its centre.

    Args:
        x: (G, N, D) or (N, D).
        num_codes: K. With fewer rows than codes, rows are repeated with a little noise.
        iters: Lloyd steps.
        init: "random" for K rows drawn at random, "k-means++" for rows drawn far from those before (Arthur and
            Vassilvitskii 2007; K passes over x), or centres to start from, (G, K, D) or (K, D).
        mask: (N,) bool, True where a row counts.
        generator: for the draws.
        impl: see :mod:`fastvq.functional`.

    Returns:
        codebook (G, K, D), indices (G, N) and inertia (G,), without G where x had none.

    Raises:
        ValueError: no rows, or shapes that do not fit.
    """
    check.floating("x", x)
    check.positive("num_codes", num_codes)
    if x.dim() not in (2, 3):
        raise ValueError(f"x must be (N, D) or (G, N, D), got shape {tuple(x.shape)}")
    if x.shape[-2] == 0:
        raise ValueError("x must have at least one row, got none: k-means needs data")
    _check_iters(iters)
    grouped = x.dim() == 3
    check.mask_shape(mask, x.shape[-2:-1])
    rows = x if grouped else x.unsqueeze(0)
    centres = first_centres(rows, num_codes, init=init, mask=mask, generator=generator, impl=impl)
    for _ in range(iters):
        indices = F.nearest(rows, centres, mask=mask, impl=impl).indices
        centres = moved(centres, *F.segment_sum(rows, indices, num_codes, impl=impl))
    indices, distances = F.nearest(rows, centres, mask=mask, impl=impl)
    inertia = torch.where(indices >= 0, distances, 0).sum(-1)
    return KMeans(centres, indices, inertia) if grouped else KMeans(centres[0], indices[0], inertia[0])


def kmeans_stream(
    batches: Callable[[], Iterable[Tensor]],
    num_codes: int,
    *,
    iters: int = 10,
    init: str | Tensor = "k-means++",
    generator: torch.Generator | None = None,
    impl: str = "auto",
) -> StreamedKMeans:
    """Lloyd's algorithm on rows that do not fit in memory together: each step is one pass over the batches.

    Args:
        batches: begins a pass, over (N_i, D) or (G, N_i, D) tensors; the same rows in every pass.
        num_codes: K.
        iters: Lloyd steps.
        init: as for :func:`kmeans`; rows are drawn from a uniform sample of 256 rows a code, taken in a first pass.
        generator: for the draws.
        impl: see :mod:`fastvq.functional`.

    Returns:
        codebook (G, K, D) and inertia (G,), without G where the batches have none, and the number of rows.

    Raises:
        ValueError: no rows, or shapes that do not fit.
    """
    check.positive("num_codes", num_codes)
    _check_iters(iters)
    sample, total, grouped = _sample(batches, SAMPLE * num_codes, generator)
    if total == 0:
        raise ValueError("batches must have at least one row together, got none: k-means needs data")
    centres = first_centres(sample, num_codes, init=init, mask=None, generator=generator, impl=impl)
    for step in range(iters + 1):
        sums = torch.zeros_like(centres, dtype=torch.float64)
        counts, inertia = sums.new_zeros(sums.shape[:2]), sums.new_zeros(len(sums))
        for batch in batches():
            rows = batch if grouped else batch.unsqueeze(0)
            indices, distances = F.nearest(rows, centres, impl=impl)
            inertia += torch.where(indices >= 0, distances, 0).sum(-1, dtype=torch.float64)
            if step < iters:
                found = F.segment_sum(rows, indices, num_codes, impl=impl)
                sums += found.sums
                counts += found.counts
        if step < iters:
            centres = moved(centres, sums, counts)
    return StreamedKMeans(centres if grouped else centres[0], inertia if grouped else inertia[0], total)


def first_centres(
    rows: Tensor,
    num_codes: int,
    *,
    init: str | Tensor,
    mask: Tensor | None,
    generator: torch.Generator | None,
    impl: str,
) -> Tensor:
    """(G, K, D) float32 or float64 centres to start from. rows (G, N, D), mask (N,) or None."""
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    if isinstance(init, Tensor):
        centres = (init if init.dim() == 3 else init.unsqueeze(0)).to(dtype).clone()
        check.equal_shape("init", centres, (rows.shape[0], num_codes, rows.shape[-1]))
        return centres
    check.choice("init", init, INITIALISERS)
    if init == "k-means++":
        return _far_rows(rows, num_codes, mask, generator, impl).to(dtype)
    valid = None if mask is None else mask.unsqueeze(0)
    return sampling.draw_rows(rows.unsqueeze(1), valid, num_codes, generator).to(dtype)


def _far_rows(x: Tensor, count: int, mask: Tensor | None, generator: torch.Generator | None, impl: str) -> Tensor:
    """(G, count, D) rows of x (G, N, D), each drawn with a probability in proportion to its squared distance from the
    nearest one drawn before; the first, and all once no row has any distance left, at random."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    group = torch.arange(len(x), device=x.device)
    usable = x.isfinite().all(-1)
    if mask is not None:
        usable = usable & mask
    uniform = usable.double()
    nearest = torch.full_like(uniform, float("inf"))
    chosen: list[Tensor] = []
    for _ in range(count):
        weight = nearest if chosen else uniform
        weight = torch.where(weight.sum(-1, keepdim=True) > 0, weight, uniform)
        reached = weight.cumsum(-1)
        u = torch.rand(len(x), 1, dtype=torch.float64, generator=generator, device=x.device) * reached[:, -1:]
        place = torch.searchsorted(reached, u, right=True).clamp_max(x.shape[1] - 1).squeeze(-1)
        row = x[group, place].to(wide)
        distances = F.nearest(x, row.unsqueeze(1), impl=impl).distances
        nearest = torch.where(usable, nearest.minimum(distances.double()), 0)
        chosen.append(row)
    return torch.stack(chosen, 1)


def moved(centres: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """Each centre at the mean of its rows; one without rows stays. (G, K, D), (G, K, D) and (G, K)."""
    counts = counts.unsqueeze(-1)
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres).to(centres.dtype)


def _sample(
    batches: Callable[[], Iterable[Tensor]], count: int, generator: torch.Generator | None
) -> tuple[Tensor, int, bool]:
    """At most ``count`` rows drawn uniformly from all, (G, N, D), in their order; the number of all; whether grouped.

    Every row gets a random key, and the rows with the largest keys so far are kept.
    """
    kept, keys, total, grouped = None, None, 0, False
    for batch in batches():
        check.floating("a batch", batch)
        if batch.dim() not in (2, 3):
            raise ValueError(f"a batch must be (N, D) or (G, N, D), got shape {tuple(batch.shape)}")
        grouped = batch.dim() == 3
        rows = batch if grouped else batch.unsqueeze(0)
        if kept is not None and (rows.shape[0], rows.shape[2]) != (kept.shape[0], kept.shape[2]):
            raise ValueError(
                f"batches must agree in everything but their rows, got {tuple(batch.shape)} after one with "
                f"D = {kept.shape[2]} and {kept.shape[0]} groups"
            )
        total += rows.shape[1]
        drawn = torch.rand(rows.shape[1], generator=generator, device=batch.device)
        keys = drawn if keys is None else torch.cat([keys, drawn])
        kept = rows if kept is None else torch.cat([kept, rows], 1)
        if len(keys) > count:
            best = keys.topk(count).indices.sort().values
            keys, kept = keys[best], kept[:, best]
    if kept is None:
        return torch.empty(0), 0, False
    return kept, total, grouped


def _check_iters(iters: int) -> None:
    if iters < 0:
        raise ValueError(f"iters must be at least 0, got {iters}")
