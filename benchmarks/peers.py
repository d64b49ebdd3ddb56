"""Other people's searches, each at its best honest setting: torch's own operations, compiled ones, and peers.

A search takes rows (G, N, D), contiguous, and codebooks (G, Q, K, D), and returns indices (G, N, Q).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastvq.benchmarks.shapes import Shape

Search = Callable[[Tensor, Tensor], Tensor]
VQP = "vector-quantize-pytorch"
DEFAULT_PRODUCT = ("torch textbook", "torch baddbmm", "torch cdist", "torch compile")
ONEDNN = "torch oneDNN"
SCORES = 2**20  # of a block


def textbook(x: Tensor, codebook: Tensor) -> Tensor:
    """argmin of |x|^2 - 2 x.c + |c|^2: the code in most papers' repositories."""
    cost = x.square().sum(-1, keepdim=True) - 2 * x @ codebook.mT + codebook.square().sum(-1).unsqueeze(-2)
    return cost.argmin(-1)


def folded(x: Tensor, codebook: Tensor) -> Tensor:
    """The best of plain torch: the norm folded into one matrix product."""
    return torch.baddbmm(codebook.square().sum(-1).unsqueeze(-2), x, codebook.mT, alpha=-2).argmin(-1)


def cdist(x: Tensor, codebook: Tensor) -> Tensor:
    """torch.cdist and argmin."""
    return torch.cdist(x, codebook).argmin(-1)


def onednn(x: Tensor, codebook: Tensor) -> Tensor:
    """The fastest plain torch on an AMD processor: oneDNN's float32 product, a block of rows at a time.

    torch gives float32 products to MKL, which takes AVX2 on AMD processors; its layers hand them to oneDNN, which
    takes AVX-512, when they are compiled and frozen, by the operator called here. Scores x.c - |c|^2 / 2 of a block
    stay in the caches.
    """
    found = []
    for rows, codes in zip(x, codebook, strict=True):
        bias = codes.square().sum(-1).mul_(-0.5)
        for block in rows.split(max(128, min(1024, SCORES // len(codes)))):
            found.append(torch.ops.mkldnn._linear_pointwise(block, codes, bias, "none", [], "").argmax(-1))
    return torch.cat(found).view(x.shape[:-1])


def staged(search: Callable[[Tensor, Tensor], Tensor]) -> Search:
    """One search a stage, the residual written out between them: how residual quantizers are written."""

    def call(x: Tensor, codebooks: Tensor) -> Tensor:
        found = []
        group = torch.arange(len(x), device=x.device)[:, None]
        for stage in range(codebooks.shape[1]):
            indices = search(x, codebooks[:, stage])
            if stage + 1 < codebooks.shape[1]:
                x = x - codebooks[group, stage, indices]
            found.append(indices)
        return torch.stack(found, -1)

    return call


def torch_searches(device: str = "cpu", *, compiled: bool = True) -> dict[str, Search]:
    """The peers that torch brings; ``compiled`` adds torch.compile of the textbook, which takes seconds at first."""
    peers = {"torch textbook": textbook, "torch baddbmm": folded, "torch cdist": cdist}
    if device == "cpu" and torch.backends.mkldnn.is_available():
        peers[ONEDNN] = onednn
    if compiled:
        peers["torch compile"] = torch.compile(textbook, dynamic=False)
    return {name: staged(search) for name, search in peers.items()}


def vqp_search(shape: Shape, codebooks: Tensor) -> Search | None:
    """vector-quantize-pytorch in eval mode, of groups in the form that is several times faster than heads.

    None: it is not there, or has no such quantizer.
    """
    if not installed(VQP) or (shape.G > 1 and shape.Q > 1):
        return None
    module = vqp_module(shape, codebooks, grouped=shape.G > 1).eval()

    def call(x: Tensor, _: Tensor) -> Tensor:
        flat = x.permute(1, 0, 2).reshape(1, shape.N, shape.G * shape.D)
        indices: Tensor = module(flat)[1]
        return indices.view(shape.G, shape.N, shape.Q)

    return call


def vqp_module(shape: Shape, codebooks: Tensor, *, grouped: bool = False) -> nn.Module:
    """The peer's module with our codes: plain, residual, or with one codebook a group.

    Args:
        grouped: ``GroupedResidualVQ`` with one stage a group, faster than heads.
    """
    import vector_quantize_pytorch as peer

    with contextlib.suppress(ImportError):  # it logs a line a group where a batch has fewer rows than codes
        from loguru import logger

        logger.disable("vector_quantize_pytorch")
    dim = shape.G * shape.D
    common: dict[str, Any] = {"decay": 0.99, "commitment_weight": 1.0, "threshold_ema_dead_code": 0}
    common["rotation_trick"] = False  # gradients straight through, as in ours
    stages: list[nn.Module]
    if shape.Q > 1:
        common |= {"num_quantizers": shape.Q, "shared_codebook": shape.shared}
        module = peer.ResidualVQ(dim=dim, codebook_size=shape.K, **common)
        stages = list(module.layers)
        parts = [codebooks[:, stage] for stage in range(shape.Q)]
    elif grouped:
        module = peer.GroupedResidualVQ(dim=dim, codebook_size=shape.K, groups=shape.G, num_quantizers=1, **common)
        stages = [part.layers[0] for part in module.rvqs]
        parts = list(codebooks)
    else:
        heads = {"heads": shape.G, "separate_codebook_per_head": True} if shape.G > 1 else {}
        module = peer.VectorQuantize(dim, shape.K, codebook_dim=shape.D, **heads, **common)
        stages, parts = [module], [codebooks[:, 0]]
    for stage, part in zip(stages, parts, strict=True):
        state: Any = stage._codebook
        state.embed.copy_(part)
        state.embed_avg.copy_(part)
        state.initted.fill_(True)
    return module.to(codebooks.device)


def flash_kmeans(x: Tensor, codebooks: Tensor, *, half: bool) -> Callable[[], Tensor]:
    """flash-kmeans' assignment of (G, N, D) rows, stage by stage; its own squares of rows are not timed."""
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    dtype = torch.float16 if half else torch.float32
    rows, codes = x.to(dtype), codebooks.to(dtype)
    squares = rows.float().square().sum(-1)

    def search(rows: Tensor, codebook: Tensor) -> Tensor:
        known = squares if rows.data_ptr() == first else rows.float().square().sum(-1)
        found: Tensor = euclid_assign_triton(rows, codebook.contiguous(), known)
        return found.long()

    first = rows.data_ptr()
    return lambda: staged(search)(rows, codes)


def installed(peer: str) -> bool:
    """Whether a peer's package is there."""
    return importlib.util.find_spec(peer.replace("-", "_")) is not None


@functools.cache
def version(peer: str) -> str:
    """The version of the package that a peer belongs to."""
    name = {"faiss": "faiss-cpu"}.get(peer.split()[0], peer.split()[0])
    return importlib.metadata.version(name)
