"""How time and memory grow with rows, codes, dimensions, stages and groups; the cost of a row must stay flat.

Run ``python -m benchmarks.scaling`` on a quiet machine; it takes about twelve minutes on two cores and appends its
rows to ``benchmarks/results/cpu/scaling.csv``. One size grows by factors of two while all others stay. The cost of a
row, divided by the size that grows where that is not the number of rows, may rise above the least cost at any smaller
size by ``MARGIN`` at most; the command ends with 1 where it does not hold. All sizes of an axis, and the peer's, take
turns, so that a busy moment hits each of them, and the 20th percentile is judged, since what else runs on a machine
can only add to a time.

Up to ten million rows come in a stream: blocks that are made, searched and thrown away, as no machine need hold them
together. Their making is not timed. Memory is the growth of resident memory at its peak, in a process for each size
that has done nothing but one small search of the same kind before: beyond rows and codes, but with results; in
streams with the blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastvq
from fastvq import functional as F
from fastvq.benchmarks import machine, peers
from fastvq.benchmarks.measured import SCALING, unit_cost
from fastvq.benchmarks.nearest import excess
from fastvq.benchmarks.resident import peak_growth
from fastvq.benchmarks.rows import MOVED, Row, timed, write_rows
from fastvq.benchmarks.shapes import Shape, make_data
from fastvq.benchmarks.timing import Elapsed, interleave
from fastvq.clustering import kmeans_stream

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "scaling.csv"
# Caches cost up to a quarter when codes or rows outgrow one, and times taken in turns repeat within a tenth or so on
# a shared machine: 1.25 * 1.1 is 1.4. What grows faster than linearly goes beyond: n log n costs 1.8 times as much
# for each row after ten doublings from 2^12, and a quadratic twice as much at every step.
MARGIN = 1.5
# Besides what rows, codes and indices take themselves: workspaces of threads, and what the allocator rounds up.
SPARE_MIB = 32
BLOCK = 65_536  # rows of a stream that come together
# Blocks that a stream has at once: the one that others are made from and the one in use; k-means also its sample of
# 256 rows a code, which is as large, and that joined with a block.
BLOCKS = {"nearest": 2, "kmeans_stream": 5}
# From this size on the C library gives freed memory back at once: what is weighed is what is held, and not the holes
# that blocks leave in its heap as they come and go.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
MATRIX = 2**28  # scores beyond which the peer, which writes them all, is left out
GATED = 1024  # rows of every search that are compared with the oracle's
PEER = "torch baddbmm"


class Axis(NamedTuple):
    """A size that grows: its letter, the op, the shape around it, its values, and whether rows come in a stream."""

    name: str
    op: str
    base: Shape
    sizes: tuple[int, ...]
    stream: bool = False

    @property
    def letter(self) -> str:
        """The field of a shape."""
        return self.name[0]

    def shape(self, size: int) -> Shape:
        """The shape at one size."""
        grown: dict[str, Any] = {"name": f"{self.letter} = {size:,}", self.letter: size}
        return self.base._replace(**grown)


def doublings(first: int, last: int) -> tuple[int, ...]:
    """first, 2 first, 4 first, ... up to last, both powers of two times ``first``."""
    return tuple(first << step for step in range((last // first).bit_length()))


TEN_MILLION = 10_000_000
AXES = {
    "rows": Axis("N", "nearest", Shape("", 1, 0, 1024, 64), doublings(2**12, 2**21)),
    "stream": Axis("N, stream", "nearest", Shape("", 1, 0, 1024, 64), (*doublings(2**16, 2**23), TEN_MILLION), True),
    "k-means": Axis(
        "N, stream", "kmeans_stream", Shape("", 1, 0, 256, 64), (*doublings(2**18, 2**22), TEN_MILLION), True
    ),
    "codes": Axis("K", "nearest", Shape("", 1, 2**15, 0, 64), doublings(2**6, 2**15)),
    "dimensions": Axis("D", "nearest", Shape("", 1, 2**15, 1024, 0), doublings(8, 1024)),
    "stages": Axis("Q", "residual_nearest", Shape("", 1, 2**13, 1024, 64), doublings(1, 32)),
    "groups": Axis("G", "nearest", Shape("", 0, 2**13, 512, 8), doublings(1, 64)),
}


class Stream:
    """Rows in blocks, made one at a time: the first block moved by a vector of its own, so that all rows differ.

    Args:
        shape: N rows of dimension D.
        seed: of the numbers.
    """

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.rows, self.spent = shape.N, 0.0
        random = torch.Generator().manual_seed(seed)
        self._block = torch.randn(min(shape.N, BLOCK), shape.D, generator=random)
        self._moves = torch.randn(-(-shape.N // BLOCK), shape.D, generator=random)

    def __iter__(self) -> Iterator[Tensor]:
        """(at most BLOCK, D) tensors, N rows together; ``spent`` counts the seconds that their making takes."""
        for number, move in enumerate(self._moves):
            start = time.perf_counter()
            block = self._block[: self.rows - number * BLOCK] + move
            self.spent += time.perf_counter() - start
            yield block
            del block


def search(x: Tensor, codebooks: Tensor, *, residual: bool) -> Tensor:
    """(G, N, D) and (G, Q, K, D) -> indices (G, N, Q)."""
    if residual:
        return F.residual_nearest(x, codebooks).indices
    return F.nearest(x, codebooks[:, 0]).indices.unsqueeze(-1)


def search_stream(shape: Shape, codebook: Tensor) -> Elapsed:
    """Searches a stream's rows block by block and counts how often each code is found."""
    stream, counts, spent = Stream(shape), torch.zeros(shape.K, dtype=torch.int64), 0.0
    for block in stream:
        start = time.perf_counter()
        indices = F.nearest(block, codebook).indices
        spent += time.perf_counter() - start
        counts += torch.bincount(indices, minlength=shape.K)
    if int(counts.sum()) != shape.N:
        raise SystemExit(f"gate: {int(counts.sum())} of {shape.N} rows of the stream got a code")
    return Elapsed(1e3 * spent)


def fit_stream(shape: Shape, codebook: Tensor) -> Elapsed:
    """One step of Lloyd's algorithm from these codes, then the inertia: two searches, and a pass that counts rows."""
    stream = Stream(shape)
    start = time.perf_counter()
    fitted = kmeans_stream(lambda: stream, shape.K, iters=1, init=codebook)
    spent = time.perf_counter() - start - stream.spent
    if fitted.rows != shape.N:
        raise SystemExit(f"gate: k-means met {fitted.rows} of {shape.N} rows of the stream")
    return Elapsed(1e3 * spent)


def call(axis: Axis, shape: Shape, contender: str = "") -> Callable[[], object]:
    """What is timed at one size: ours, or the peer's search by name; data are made here."""
    x, codebooks = make_data(shape._replace(N=1) if axis.stream else shape)
    if axis.stream:
        return partial(search_stream if axis.op == "nearest" else fit_stream, shape, codebooks[0, 0])
    if contender:
        return partial(peers.torch_searches(compiled=False)[contender], x.contiguous(), codebooks)
    return partial(search, x, codebooks, residual=axis.op == "residual_nearest")


def contenders(axis: Axis, size: int) -> tuple[str, ...]:
    """Ours, and the peer where its scores fit and rows do not come in a stream."""
    shape = axis.shape(size)
    return ("",) if axis.stream or shape.G * shape.N * shape.K > MATRIX else ("", PEER)


def gate(axis: Axis, size: int) -> int:
    """How many of the first rows get a code that is farther than the oracle's."""
    shape = axis.shape(size)
    shape = shape._replace(N=min(shape.N, GATED))
    x, codebooks = make_data(shape)
    if axis.stream:
        x = next(iter(Stream(shape))).unsqueeze(0)
    return excess(x.contiguous(), codebooks, search(x, codebooks, residual=axis.op == "residual_nearest"))


def peak_here(axis: Axis, size: int, contender: str) -> float | None:
    """MiB that a call adds at its peak to this process, which has done one small call of the same kind before."""
    with torch.no_grad():
        shape = axis.shape(size)
        call(axis, shape._replace(N=min(shape.N, 256)), contender)()
        return peak_growth(call(axis, shape, contender))


def print_peaks(axis: Axis) -> None:
    """A line of JSON for each size and contender, measured in a copy of this process, which has computed nothing."""
    for size in axis.sizes:
        for who in contenders(axis, size):
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                print(json.dumps([size, who, peak_here(axis, size, who)]), flush=True)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise SystemExit(f"the process that measures memory at {axis.shape(size).name} failed")


def peaks(key: str) -> dict[tuple[int, str], float | None]:
    """Peak memory by size and contender of an axis, each in a process of its own; nothing where none can fork."""
    if not hasattr(os, "fork"):
        return {}
    root = Path(__file__).resolve().parent.parent
    checkout = (root / "fastvq" / "_checkout.py").exists()
    command = [sys.executable, "-m", "benchmarks.scaling" if checkout else "fastvq.benchmarks.scaling"]
    command += ["--memory-of", key]
    found = subprocess.run(
        command,
        cwd=root if checkout else None,
        env=os.environ | GIVEN_BACK,
        capture_output=True,
        text=True,
        check=True,
    )
    return {(size, who): held for size, who, held in map(json.loads, found.stdout.splitlines())}


def floor(axis: Axis, shape: Shape) -> tuple[float | None, str]:
    """The least milliseconds for a search at this size, and which limit that is; k-means makes two of them."""
    passes = 2 if axis.op == "kmeans_stream" else 1
    rate = machine.fma_rate()
    computed = 1e3 * passes * shape.operations / rate if rate else 0.0
    moved = 1e3 * passes * shape.io_bytes / machine.copy_rate(shape.io_bytes)
    return (computed, "float32 multiply-adds") if computed > moved else (moved, MOVED)


def growth(costs: Sequence[float]) -> float:
    """How far any cost lies above the least at a smaller size; 1 where none does."""
    return max([1.0, *(cost / min(costs[:place]) for place, cost in enumerate(costs) if place)])


def memory_limit(axis: Axis, shape: Shape) -> float:
    """MiB that a call may add: a little more than rows, codes and indices take, in a stream those of the blocks that
    are there at once.
    """
    held = shape._replace(N=BLOCKS[axis.op] * BLOCK) if axis.stream else shape
    return held.io_bytes / 2**20 + SPARE_MIB


def faults(axis: Axis, rows: Sequence[Row]) -> list[str]:
    """A sentence for each way in which our rows of an axis, in the order of its sizes, grow faster than they may."""
    own = [(row, Shape(row.shape, row.G, row.N, row.K, row.D, row.Q)) for row in rows if not row.peer]
    found = []
    rise = growth([unit_cost(row.p20_ms, axis.letter, shape) for row, shape in own])
    if rise > MARGIN:
        found.append(f"{axis.op}, {axis.name}: the cost of a row grows {rise:.2f} times, expected at most {MARGIN}")
    for row, shape in own:
        limit = memory_limit(axis, shape)
        if row.peak_mib is not None and row.peak_mib > limit:
            found.append(
                f"{axis.op}, {axis.name}: {row.peak_mib:.0f} MiB at {row.shape}, expected at most {limit:.0f} MiB"
            )
    return found


def run(
    axis: Axis, memory: Mapping[tuple[int, str], float | None], *, reps: int = 9, seconds: float = 40.0
) -> list[Row]:
    """Gates and times every size of an axis; ``memory`` is what :func:`peaks` found."""
    wrong = {size: gate(axis, size) for size in axis.sizes}
    if any(wrong.values()):
        raise SystemExit(f"gate: codes that are not the nearest as {axis.name} of {axis.op} grows: {wrong}")
    entries = [(size, who) for size in axis.sizes for who in contenders(axis, size)]
    with torch.no_grad():
        calls = {f"{size} {who}": call(axis, axis.shape(size), who) for size, who in entries}
        timings = interleave(calls, reps=reps, seconds=seconds)
    implementation = fastvq.ops.explain("cpu")["nearest"][0]
    rows, least = [], {who: float("inf") for _, who in entries}
    around = ", ".join(
        f"{name} {value:,}" for name, value in axis.base._asdict().items() if name in "GNKDQ" and value
    )
    print(f"{axis.op}, {axis.name} grows; {around}")
    for size, who in entries:
        shape, timing = axis.shape(size), timings[f"{size} {who}"]
        limit, kind = floor(axis, shape)
        held = memory.get((size, who))
        rows.append(
            timed(
                shape,
                timing,
                op=axis.op,
                pass_=f"{SCALING}{axis.name}",
                impl="" if who else implementation,
                precision="" if who else "exact",
                peer=who,
                peer_version=torch.__version__ if who else "",
                floor_ms=limit,
                floor_kind=kind,
                peak_mib=held,
                mismatch_rows=None if who else wrong[size],
            )
        )
        cost = unit_cost(timing.p20_ms, axis.letter, shape)
        least[who] = min(least[who], cost)
        print(
            f"  {size:>10,} {who or 'fastvq':14s} {timing.median_ms:10.2f} ms ({timing.p20_ms:.2f} to "
            f"{timing.p80_ms:.2f})  {cost:9.3f} ns a unit, {cost / least[who]:.2f} of the least so far"
            + ("" if held is None else f"  {held:8.1f} MiB"),
            flush=True,
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where the cost of a row stays flat on every axis, 1 where it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="what grows")
    parser.add_argument("--reps", type=int, default=9, help="rounds of an axis; at least three are run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    parser.add_argument("--memory-of", choices=list(AXES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of:
        print_peaks(AXES[options.memory_of])
        return 0
    failures = []
    for key in options.axes:
        rows = run(AXES[key], peaks(key), reps=options.reps)
        write_rows(options.out, rows)
        failures += faults(AXES[key], rows)
    for failure in failures:
        print(f"NOT FLAT: {failure}", file=sys.stderr)
    if not failures:
        print(f"Flat: no cost of a row lies more than {MARGIN} times above the least at a smaller size.")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
