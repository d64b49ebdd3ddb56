"""What follows a search: a codebook moves, codes are looked up, and k-means does both again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as nnF
from torch import Tensor

import fastvq.functional as F
from fastvq.benchmarks import peers
from fastvq.benchmarks.contest import Call, Contest
from fastvq.benchmarks.faiss_process import Faiss, available
from fastvq.benchmarks.shapes import Shape, make_data
from fastvq.benchmarks.sums import index_add
from fastvq.clustering import kmeans

DECAY, EPS = 0.99, 1e-5
STEPS = 5  # of Lloyd's
# Lloyd's steps from centres that differ by rounding part ways, but by less than this share of the inertia.
INERTIA = 1e-3


def ema(codebook: Tensor, embed_sum: Tensor, size: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """An exponential moving average in plain torch, in place, as vector-quantize-pytorch writes it."""
    size.lerp_(counts, 1 - DECAY)
    embed_sum.lerp_(sums, 1 - DECAY)
    total = size.sum(-1, keepdim=True)
    smooth = (size + EPS) / (total + size.shape[-1] * EPS) * total
    return codebook.copy_(embed_sum / smooth.unsqueeze(-1))


def ema_expected(
    codebook: Tensor, sums: Tensor, counts: Tensor, magnitudes: Tensor, roundings: Tensor | int
) -> tuple[Tensor, Tensor]:
    """The codes after a first step in float64, from cluster sizes of 1, and how far float32 may be from them.

    Args:
        codebook, sums: (..., K, D). counts: (..., K).
        magnitudes: sums of the magnitudes of what ``sums`` adds up.
        roundings: of an entry of ``sums``, as (..., K, 1) or one number.
    """
    start = codebook.double().clone(memory_format=torch.contiguous_format)
    expected, embed_sum, size = start.clone(), start.clone(), torch.ones_like(counts, dtype=torch.float64)
    ema(expected, embed_sum, size, sums.double(), counts.double())
    # embed_sum is rounded three times more; its code is divided by a size that K + 6 roundings touch.
    terms = DECAY * start.abs() + (1 - DECAY) * magnitudes
    allowed = 2.0**-24 * ((3 + roundings) * terms / size.unsqueeze(-1) + (codebook.shape[-2] + 6) * expected.abs())
    return expected, allowed


def ema_contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """One step of the moving average, from sums and counts."""
    _, codebooks = make_data(shape._replace(Q=1, shared=False, N=1), device)
    codebook = codebooks[:, 0].contiguous()
    random = torch.Generator(device).manual_seed(1)
    counts = torch.randint(1, 9, codebook.shape[:2], generator=random, device=device).float()
    sums = torch.randn(codebook.shape, generator=random, device=device) * counts.unsqueeze(-1)
    expected, allowed = ema_expected(codebook, sums, counts, sums.double().abs(), 0)

    def state() -> tuple[Tensor, Tensor, Tensor]:
        return codebook.clone(), codebook.clone(), torch.ones_like(counts)

    def wrong(_: str, found: Tensor) -> int:
        return int(((found - expected).abs() > allowed).any(-1).sum())

    def ours(codebook: Tensor, *rest: Tensor) -> Tensor:
        F.ema_update_(codebook, *rest, decay=DECAY, eps=EPS)
        return codebook

    others: dict[str, Call] = {"torch textbook": partial(ema, *state(), sums, counts)}
    if compiled:
        others["torch compile"] = partial(torch.compile(ema, dynamic=False), *state(), sums, counts)
    return Contest({"": partial(ours, *state(), sums, counts)}, others, wrong)


def gathered(indices: Tensor, codebooks: Tensor) -> Tensor:
    """Codes gathered stage by stage and added: (G, N, Q), (G, Q, K, D) -> (G, N, D)."""
    group = torch.arange(len(indices), device=indices.device)[:, None]
    total = codebooks[group, 0, indices[..., 0]]
    for stage in range(1, codebooks.shape[1]):
        total = total + codebooks[group, stage, indices[..., stage]]
    return total


def embedding_bag(offsets: Tensor, indices: Tensor, codebooks: Tensor) -> Tensor:
    """The best plain torch: one table of all codes, and a sum over a bag of Q of them."""
    groups, rows, stages = indices.shape
    flat = (indices + offsets).view(-1, stages)
    return nnF.embedding_bag(flat, codebooks.flatten(0, -2), mode="sum").view(groups, rows, -1)


def hot_product(indices: Tensor, codebook: Tensor) -> Tensor:
    """A row of K zeros and ones, times the codes: how poses of 70 active codes are embedded."""
    hot = torch.zeros(*indices.shape[:-1], codebook.shape[-2], device=codebook.device)
    return hot.scatter_(-1, indices, 1.0) @ codebook


def lookup_contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """The sum of the codes of all stages; where stages share them, Q different ones."""
    _, codebooks = make_data(shape._replace(N=1), device)
    random = torch.Generator(device).manual_seed(2)
    if shape.shared:
        draws = torch.rand(shape.G, shape.N, shape.K, generator=random, device=device)
        indices = draws.topk(shape.Q, -1).indices
        table, offsets = codebooks[:, :1], torch.arange(shape.G, device=device).view(-1, 1, 1) * shape.K
    else:
        size = (shape.G, shape.N, shape.Q)
        indices = torch.randint(shape.K, size, generator=random, device=device)
        offsets = shape.K * torch.arange(shape.G * shape.Q, device=device).view(shape.G, 1, shape.Q)
        table = codebooks
    others: dict[str, Call] = {
        "torch gather": partial(gathered, indices, codebooks),
        "torch embedding_bag": partial(embedding_bag, offsets, indices, table),
    }
    if compiled:
        others["torch compile"] = partial(torch.compile(gathered, dynamic=False), indices, codebooks)
    if shape.shared:
        others["torch K-hot product"] = partial(hot_product, indices, codebooks[:, 0])
    expected = gathered(indices, codebooks)
    magnitudes = gathered(indices, codebooks.double().abs())

    def wrong(name: str, found: Tensor) -> int:
        """Ours to the bit; a peer, whose order of addition is its own, within the rounding of Q additions."""
        if name:
            return int(((found - expected).abs() > 2.0**-23 * shape.Q * magnitudes).any(-1).sum())
        return int((found != expected).any(-1).sum())

    return Contest({"": partial(F.lookup, indices, codebooks)}, others, wrong)


def lloyd(search: Callable[[Tensor, Tensor], Tensor], x: Tensor, centres: Tensor) -> Tensor:
    """Lloyd's steps in plain torch: (1, N, D), (1, K, D) -> (1, K, D)."""
    for _ in range(STEPS):
        sums, counts = index_add(x, search(x, centres), centres.shape[1])
        centres = torch.where(counts.unsqueeze(-1) > 0, sums / counts.clamp_min(1).unsqueeze(-1), centres)
    return centres


def kmeans_contest(shape: Shape, device: str, *, compiled: bool) -> Contest:
    """:data:`STEPS` of Lloyd's steps from given centres; ours ends with one search more, for the rows' codes."""
    shape = shape._replace(G=1, Q=1, shared=False)
    x, _ = make_data(shape, device)
    x = x.contiguous()
    centres = x[:, : shape.K].clone()
    searches = peers.torch_searches(device, compiled=False)
    others: dict[str, Call] = {}
    for name, search in searches.items():
        others[name] = partial(lloyd, partial(_one_stage, search), x, centres)
    if compiled:
        others["torch compile"] = partial(lloyd, torch.compile(peers.textbook, dynamic=False), x, centres)
    if peers.installed(peers.VQP):
        others[peers.VQP] = partial(_vqp_kmeans, x, centres)
    if device != "cpu" and peers.installed("flash-kmeans"):
        others["flash-kmeans"] = partial(_flash_kmeans, x, centres)

    def inertia(found: Tensor) -> float:
        return float(F.nearest(x, found.view_as(centres)).distances.sum(dtype=torch.float64))

    def oracle(rows: Tensor, codes: Tensor) -> Tensor:
        return F.nearest(rows, codes, impl="tiled" if device == "cpu" else "auto").indices

    best = inertia(lloyd(oracle, x.double(), centres.double()).float())

    def wrong(_: str, found: Tensor) -> int:
        """All rows, where the centres serve them worse than Lloyd's steps in float64 would."""
        return shape.N if not inertia(found) <= (1 + INERTIA) * best else 0

    def ours() -> Tensor:
        return kmeans(x, shape.K, iters=STEPS, init=centres).codebook

    start = centres.unsqueeze(1)
    faiss = partial(Faiss, shape, x, start, torch.get_num_threads(), iters=STEPS)
    return Contest({"": ours}, others, wrong, faiss if device == "cpu" and available() else None)


def _one_stage(search: peers.Search, x: Tensor, centres: Tensor) -> Tensor:
    return search(x, centres.unsqueeze(1)).squeeze(-1)


def _vqp_kmeans(x: Tensor, centres: Tensor) -> Tensor:
    from vector_quantize_pytorch.vector_quantize_pytorch import kmeans

    found: Tensor = kmeans(x, centres.shape[1], STEPS, sample_fn=lambda *_: centres)[0]
    return found


def _flash_kmeans(x: Tensor, centres: Tensor) -> Tensor:
    from flash_kmeans import batch_kmeans_Euclid

    found: Tensor = batch_kmeans_Euclid(x, centres.shape[1], max_iters=STEPS, tol=0.0, init_centroids=centres)[1]
    return found
