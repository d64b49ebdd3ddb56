"""Codebook sums: the rows of every code added up, against the one-hot product that most quantizers form.

Run ``python -m benchmarks.sums`` on a quiet machine; it takes about a minute on two cores and appends its rows to
``benchmarks/results/cpu/sums.csv``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as nnF
from torch import Tensor

import fastvq
import fastvq.functional as F
from fastvq.benchmarks.rows import Row, timed, write_rows
from fastvq.benchmarks.shapes import CPU, Shape
from fastvq.benchmarks.timing import Measure, interleave, wall_ms

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "sums.csv"


def one_hot(x: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """As vector-quantize-pytorch does: an int64 one-hot matrix, made float32, and two sums over it."""
    hot = nnF.one_hot(indices, num_codes).type(x.dtype)
    return torch.einsum("gnd,gnk->gkd", x, hot), hot.sum(1)


def index_add(x: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """The best plain torch: no matrix, one pass over the rows."""
    groups, _, dim = x.shape
    flat = (indices + num_codes * torch.arange(groups, device=x.device)[:, None]).flatten()
    sums = x.new_zeros(groups * num_codes, dim).index_add_(0, flat, x.reshape(-1, dim))
    counts = torch.bincount(flat, minlength=groups * num_codes).to(x.dtype)
    return sums.view(groups, num_codes, dim), counts.view(groups, num_codes)


def run(shapes: Sequence[Shape], *, reps: int = 9, seconds: float = 20.0, measure: Measure = wall_ms) -> list[Row]:
    """Compares sums with float64, then times every contender at every shape, of a single stage."""
    rows = []
    for shape in shapes:
        shape = shape._replace(Q=1)
        random = torch.Generator().manual_seed(0)
        x = torch.randn(shape.N, shape.G, shape.D, generator=random).transpose(0, 1)
        indices = torch.randint(shape.K, (shape.N, shape.G), generator=random).T
        wanted, _ = index_add(x.double(), indices, shape.K)
        sums, counts = F.segment_sum(x, indices, shape.K)
        wrong = int(((sums - wanted).abs() > 1e-6 * (1 + wanted.abs())).any(-1).sum())
        if wrong or int(counts.sum()) != shape.G * shape.N:
            raise SystemExit(f"gate: {wrong} sums are wrong at shape {shape.name}")
        calls: dict[str, Callable[[], object]] = {
            "fastvq": partial(F.segment_sum, x, indices, shape.K),
            "torch one-hot": partial(one_hot, x, indices, shape.K),
            "torch index_add": partial(index_add, x, indices, shape.K),
        }
        timings = interleave(calls, reps=reps, seconds=seconds, measure=measure)
        for name, timing in timings.items():
            own = name == "fastvq"
            rows.append(
                timed(
                    shape,
                    timing,
                    op="segment_sum",
                    pass_="forward",
                    impl=fastvq.ops.explain("cpu")["segment_sum"][0] if own else "",
                    peer="" if own else name,
                    peer_version="" if own else torch.__version__,
                    mismatch_rows=wrong if own else None,
                )
            )
            ratio = timing.median_ms / timings["fastvq"].median_ms
            print(f"{shape.name} {name:16s} {timing.median_ms:9.3f} ms  {ratio:7.1f}x ours", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [shape.name for shape in CPU]
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, help="which shapes")
    parser.add_argument("--reps", type=int, default=9, help="rounds per shape")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    options = parser.parse_args(arguments)
    shapes = [shape for shape in CPU if shape.name in options.shapes]
    write_rows(options.out, run(shapes, reps=options.reps))


if __name__ == "__main__":
    main()
