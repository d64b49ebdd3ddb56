"""Nearest-code search on a CPU: ours against torch, FAISS and vector-quantize-pytorch, the floor beside each.

Run ``python -m benchmarks.nearest`` on a quiet machine; it takes about three minutes on two cores and appends its
rows to ``benchmarks/results/cpu/nearest.csv``. The gate comes first: no row of ours is timed on wrong codes, and a
peer's mismatches (codes farther away than the oracle's) are counted beside its time.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import fastvq
from fastvq import functional as F
from fastvq.benchmarks import machine, peers
from fastvq.benchmarks.faiss_process import Faiss, available
from fastvq.benchmarks.rows import Row, timed, write_rows
from fastvq.benchmarks.shapes import CPU, Shape, make_data
from fastvq.benchmarks.timing import Elapsed, interleave

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "nearest.csv"


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


def run(shapes: Sequence[Shape], reps: int, *, compiled: bool = True, seconds: float = 40.0) -> list[Row]:
    """Gates and times every shape."""
    name = fastvq.ops.explain("cpu")["nearest"][0]
    rate = machine.fma_rate()
    rows = []
    for shape in shapes:
        x, codebooks = make_data(shape)
        dense = x.contiguous()  # peers get the layout that suits them
        calls: dict[str, Callable[[], Tensor]] = {
            f"{name} exact": partial(ours, x, codebooks),
            f"{name} fast": partial(ours, x, codebooks, precision="fast"),
            "tiled exact": partial(ours, x, codebooks, impl="tiled"),
        }
        for key, search in peers.torch_searches(compiled=compiled).items():
            calls[key] = partial(search, dense, codebooks)
        vqp = peers.vqp_search(shape, codebooks)
        if vqp is not None:
            calls[peers.VQP] = partial(vqp, dense, codebooks)
        with torch.no_grad():
            wrong = {key: excess(dense, codebooks, call()) for key, call in calls.items()}
            if wrong[f"{name} exact"] or wrong["tiled exact"]:
                raise SystemExit(f"gate: exact search returned codes that are not the nearest at shape {shape.name}")
            contenders: dict[str, Callable[[], object]] = dict(calls)
            with contextlib.ExitStack() as stack:
                if available():
                    faiss = stack.enter_context(Faiss(shape, dense, codebooks, torch.get_num_threads()))
                    contenders["faiss"] = partial(_in_child, faiss)
                    faiss.milliseconds()
                    wrong["faiss"] = excess(dense, codebooks, torch.from_numpy(faiss.indices()))
                timings = interleave(contenders, reps=reps, seconds=seconds)
        floor = 1e3 * shape.operations / rate if rate else None
        for key, timing in timings.items():
            own = key.split()[0] in (name, "tiled")
            rows.append(
                timed(
                    shape,
                    timing,
                    op="nearest" if shape.Q == 1 else "residual_nearest",
                    pass_="search",
                    impl=key.split()[0] if own else "",
                    precision=key.split()[1] if own else "",
                    peer="" if own else key,
                    peer_version="" if own else peers.version(key),
                    floor_ms=floor,
                    floor_kind="float32 multiply-adds",
                    mismatch_rows=wrong[key],
                )
            )
            share = f"{floor / timing.median_ms:5.0%} of the floor" if floor else ""
            print(
                f"{shape.name} {key:26s} {timing.median_ms:9.2f} ms  {share}"
                f"  {timing.median_ms / timings[f'{name} exact'].median_ms:6.1f}x ours  {wrong[key]} wrong",
                flush=True,
            )
    return rows


def _in_child(faiss: Faiss) -> Elapsed:
    taken = Elapsed(faiss.milliseconds())
    time.sleep(0.05)  # its threads spin on for a while, and would take the next contender's cores
    return taken


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [shape.name for shape in CPU]
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, help="which shapes")
    parser.add_argument("--reps", type=int, default=15, help="rounds per shape")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    options = parser.parse_args(arguments)
    shapes = [shape for shape in CPU if shape.name in options.shapes]
    write_rows(options.out, run(shapes, options.reps, compiled=not options.no_compile))


if __name__ == "__main__":
    main()
