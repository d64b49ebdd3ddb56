"""Nearest-code search on a CPU: ours against torch and vector-quantize-pytorch, with the floor beside each.

Run ``python -m benchmarks.nearest`` on a quiet machine; it takes about a minute on two cores and appends its rows to
``benchmarks/results/cpu/nearest.csv``. The gate comes first: no row of ours is timed on wrong codes, and a peer's
mismatches (codes farther away than the oracle's) are counted beside its time.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import fastvq
from fastvq import functional as F
from fastvq.benchmarks import machine
from fastvq.benchmarks.rows import Row, write_rows
from fastvq.benchmarks.timing import interleave

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "nearest.csv"


class Shape(NamedTuple):
    """A search: G codebooks of K codes of dimension D, N rows each."""

    name: str
    G: int
    N: int
    K: int
    D: int


SHAPES = (
    Shape("a", 1, 8192, 512, 512),
    Shape("b", 1, 65536, 1024, 64),
    Shape("c", 64, 2048, 512, 8),
    Shape("e", 1, 8192, 8192, 32),
)


def ours(x: Tensor, codebook: Tensor, *, precision: str = "exact", impl: str = "auto") -> Tensor:
    """The op under test."""
    return F.nearest(x, codebook, precision=precision, impl=impl).indices


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


def vqp(shape: Shape, codebook: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """vector-quantize-pytorch in eval mode, with separate codebooks as heads where there are groups."""
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        return None
    dim = shape.G * shape.D
    heads = {"heads": shape.G, "separate_codebook_per_head": True} if shape.G > 1 else {}
    module = VectorQuantize(dim, shape.K, codebook_dim=shape.D, **heads).eval()
    module._codebook.embed.copy_(codebook)

    def call(x: Tensor, _: Tensor) -> Tensor:
        indices: Tensor = module(x.permute(1, 0, 2).reshape(1, shape.N, dim))[1]
        return indices.view(shape.N, -1).t()

    return call


def excess(x: Tensor, codebook: Tensor, indices: Tensor) -> int:
    """How many rows got a code farther away, in float64, than the oracle's."""
    oracle = F.nearest(x, codebook, impl="tiled").indices
    wrong = 0
    for group in range(x.shape[0]):
        off = indices[group] != oracle[group]
        row, ours, best = (
            x[group][off].double(),
            codebook[group][indices[group][off]],
            codebook[group][oracle[group][off]],
        )
        wrong += int(((row - ours).square().sum(-1) > (row - best).square().sum(-1)).sum())
    return wrong


def run(shapes: tuple[Shape, ...], reps: int) -> list[Row]:
    """Gates and times every shape."""
    name = fastvq.ops.explain("cpu")["nearest"][0]
    rate = machine.fma_rate()
    rows = []
    for shape in shapes:
        torch.manual_seed(0)
        codebook = torch.randn(shape.G, shape.K, shape.D)
        x = torch.randn(shape.N, shape.G, shape.D).transpose(0, 1)
        dense = x.contiguous()  # peers get the layout that suits them
        calls: dict[str, Callable[[], Tensor]] = {
            f"{name} exact": partial(ours, x, codebook),
            f"{name} fast": partial(ours, x, codebook, precision="fast"),
            "tiled exact": partial(ours, x, codebook, impl="tiled"),
            "torch textbook": partial(textbook, dense, codebook),
            "torch baddbmm": partial(folded, dense, codebook),
            "torch cdist": partial(cdist, dense, codebook),
        }
        peer = vqp(shape, codebook)
        if peer is not None:
            calls["vector-quantize-pytorch"] = partial(peer, dense, codebook)
        with torch.no_grad():
            wrong = {key: excess(dense, codebook, call()) for key, call in calls.items()}
            if wrong[f"{name} exact"] or wrong["tiled exact"]:
                raise SystemExit(f"gate: exact search returned codes that are not the nearest at shape {shape.name}")
            timings = interleave(calls, reps=reps)
        floor = 2e3 * shape.G * shape.N * shape.K * shape.D / rate if rate else None
        for key, timing in timings.items():
            own = key.split()[0] in (name, "tiled")
            rows.append(
                Row(
                    op="nearest",
                    pass_="search",
                    shape=shape.name,
                    G=shape.G,
                    N=shape.N,
                    K=shape.K,
                    D=shape.D,
                    Q=1,
                    dtype="float32",
                    precision=key.split()[1] if own else "",
                    impl=key.split()[0] if own else "",
                    peer="" if own else key,
                    peer_version="" if own else peer_version(key),
                    reps=timing.reps,
                    median_ms=timing.median_ms,
                    p20_ms=timing.p20_ms,
                    p80_ms=timing.p80_ms,
                    floor_ms=floor,
                    floor_kind="float32 multiply-adds",
                    peak_mib=None,
                    mismatch_rows=wrong[key],
                    gate="fail" if wrong[key] else "pass",
                )
            )
            share = f"{floor / timing.median_ms:5.0%} of the floor" if floor else ""
            print(
                f"{shape.name} {key:26s} {timing.median_ms:9.2f} ms  {share}"
                f"  {timing.median_ms / timings[f'{name} exact'].median_ms:6.1f}x ours  {wrong[key]} wrong",
                flush=True,
            )
    return rows


def peer_version(peer: str) -> str:
    """The version of the package that a peer belongs to."""
    return importlib.metadata.version(peer.split()[0])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=15, help="rounds per shape")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    arguments = parser.parse_args()
    write_rows(arguments.out, run(SHAPES, arguments.reps))


if __name__ == "__main__":
    main()
