"""The exact search on data that a coarse pass cannot decide, beside the same search on normal data.

Run ``python -m benchmarks.worst_cases`` on a quiet machine; it takes two minutes on two cores and appends its rows to
``benchmarks/results/cpu/worst_cases.csv``. A mismatch fails its row. The goal is three times the normal time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import fastvq
from fastvq import functional as F
from fastvq.benchmarks.gate import search_input
from fastvq.benchmarks.nearest import excess, ours
from fastvq.benchmarks.rows import Row, timed, write_rows
from fastvq.benchmarks.shapes import CPU, Shape
from fastvq.benchmarks.timing import interleave

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "worst_cases.csv"
SHAPES = tuple(shape for shape in CPU if shape.name in ("a", "b", "c"))
KINDS = ("offset", "trained", "equal", "twice", "neighbours", "outlier", "k-means", "two clusters")


def make_case(kind: str, shape: Shape) -> tuple[Tensor, Tensor]:
    """x (G, N, D) and codebooks (G, 1, K, D): a kind of ``gate.search_input``, or

    * k-means: codes after ten of Lloyd's steps, which leave many rows midway between codes;
    * two clusters: codes in two clusters a thousand times farther apart than they are wide.
    """
    plain = kind if kind in KINDS[:6] else "normal"
    rows, codes, _ = search_input(plain, (shape.G, shape.N, 1, shape.K, shape.D), torch.float32, "cpu")
    x = rows[:, :, 0].transpose(0, 1).contiguous().transpose(0, 1)
    if kind == "k-means":
        for _ in range(10):
            sums, counts = F.segment_sum(x, F.nearest(x, codes).indices, shape.K)
            codes = torch.where(counts[..., None] > 0, sums / counts[..., None], codes)
    elif kind == "two clusters":
        sides = 30 * (-1.0) ** torch.arange(max(shape.N, shape.K))[:, None]
        x, codes = x + sides[: shape.N], codes * 1e-3 + sides[: shape.K]
    return x, codes.contiguous()[:, None]


def run(shapes: Sequence[Shape], reps: int, *, seconds: float = 30.0) -> list[Row]:
    """Gates and times every case of every shape."""
    name = fastvq.ops.explain("cpu")["nearest"][0]
    rows = []
    for shape in shapes:
        cases = {kind: make_case(kind, shape) for kind in ("normal", *KINDS)}
        wrong = {kind: excess(x, codes, ours(x, codes)) for kind, (x, codes) in cases.items()}
        timings = interleave({kind: partial(ours, *case) for kind, case in cases.items()}, reps=reps, seconds=seconds)
        for kind, timing in timings.items():
            case = shape._replace(name=f"{shape.name} {kind}")
            rows.append(
                timed(
                    case,
                    timing,
                    op="nearest",
                    pass_="search",
                    impl=name,
                    precision="exact",
                    mismatch_rows=wrong[kind],
                )
            )
            ratio = timing.median_ms / timings["normal"].median_ms
            print(
                f"{case.name:16s} {timing.median_ms:9.2f} ms  {ratio:5.2f}x normal  {wrong[kind]} wrong", flush=True
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, help="which shapes")
    parser.add_argument("--reps", type=int, default=9, help="rounds per shape")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    options = parser.parse_args(arguments)
    with torch.no_grad():
        rows = run([shape for shape in SHAPES if shape.name in options.shapes], options.reps)
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
