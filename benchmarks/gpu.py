"""The suite for a card: ``python -m benchmarks.gpu --out DIR``, within nine minutes, nothing installed but torch.

First the gate: every Triton kernel against the oracle on the card itself. Then the searches and whole quantizers in
training, against their floors and against every peer that is there, and what a training loop relies on: no host
sync, capture in a CUDA graph, the same bits on every run. Written to DIR: ``gate.txt``, ``behaviour.txt``, and the
rows ``nearest.csv``, ``quantizers.csv`` and ``updates.csv``. Without a card it says so and exits 2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastvq import functional as F
from fastvq.benchmarks import machine, peers, quantizers
from fastvq.benchmarks.behaviour import run_behaviours
from fastvq.benchmarks.gate import QUICK_SIZES, SIZES, gate
from fastvq.benchmarks.nearest import excess, ours
from fastvq.benchmarks.rows import Row, timed, write_rows
from fastvq.benchmarks.shapes import CUDA, Shape, make_data
from fastvq.benchmarks.timing import Measure, interleave

MATRIX_LIMIT = 48 * 2**30  # bytes of scores beyond which peers that write them are left out


def event_measure(device: str) -> Measure:
    """Milliseconds between two events on the device, its second-level cache written over before each call."""
    wipe = torch.empty(2**28, dtype=torch.int8, device=device)

    def measure(call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wipe.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return measure


def run_gate(device: str, path: Path, *, quick: bool) -> int:
    """Writes the gate's failures and its summary; returns the number of failed checks."""
    impl = importlib.import_module("fastvq.kernels.triton")
    checks = list(gate(impl, device, QUICK_SIZES if quick else SIZES))
    failed = [check for check in checks if check.mismatches]
    lines = [f"{check.name}: {check.mismatches} of {check.rows}" for check in failed]
    rows = sum(check.rows for check in checks)
    lines.append(f"{len(checks) - len(failed)} of {len(checks)} checks passed, {rows} rows")
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines[-20:]), flush=True)
    return len(failed)


def floor_ms(shape: Shape, product_rate: float, copy_rate: float) -> float:
    """The least time for exact codes: rows, codes and indices once, and three float16 products for float32 ones."""
    return 1e3 * max(3 * shape.operations / product_rate, shape.io_bytes / copy_rate)


def search_rows(shapes: Sequence[Shape], device: str, measure: Measure, rates: tuple[float, float]) -> list[Row]:
    """Times the searches; a peer that would write more scores than fit is left out."""
    rows = []
    for shape in shapes:
        x, codebooks = make_data(shape, device)
        dense = x.contiguous()
        calls: dict[str, Callable[[], Tensor]] = {
            "exact": partial(ours, x, codebooks),
            "fast": partial(ours, x, codebooks, precision="fast"),
        }
        if 4 * shape.G * shape.N * shape.K <= MATRIX_LIMIT:
            for name, search in peers.torch_searches().items():
                calls[name] = partial(search, dense, codebooks)
            vqp = peers.vqp_search(shape, codebooks)
            if vqp is not None and 16 * shape.G * shape.N * shape.K <= MATRIX_LIMIT:
                calls[peers.VQP] = partial(vqp, dense, codebooks)
        if peers.installed("flash-kmeans"):
            for half in (False, True):
                calls["flash-kmeans" + " fp16" * half] = peers.flash_kmeans(dense, codebooks, half=half)
        wrong, peak = {}, {}
        for name, call in list(calls.items()):
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            try:
                with torch.no_grad():
                    found = call()
            except (RuntimeError, torch.OutOfMemoryError) as error:
                print(f"{shape.name} {name}: left out, {str(error).splitlines()[0]}", flush=True)
                del calls[name]
                continue
            peak[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
            wrong[name] = excess(dense[:, :8192], codebooks, found[:, :8192])
        with torch.no_grad():
            timings = interleave(calls, reps=15, seconds=12.0, measure=measure)
        floor = floor_ms(shape, *rates)
        for name, timing in timings.items():
            own = name in ("exact", "fast")
            rows.append(
                timed(
                    shape,
                    timing,
                    op="nearest" if shape.Q == 1 else "residual_nearest",
                    pass_="search",
                    dtype="float16" if name.endswith("fp16") else "float32",
                    impl="triton" if own else "",
                    precision=name if own else "",
                    peer="" if own else name,
                    peer_version="" if own else peers.version(name),
                    floor_ms=floor,
                    floor_kind="three float16 products at the measured rate, or the copy of rows and codes",
                    peak_mib=peak[name],
                    mismatch_rows=wrong[name],
                )
            )
            print(
                f"{shape.name:24s} {name:26s} {timing.median_ms:9.3f} ms  {floor / timing.median_ms:5.0%} of floor"
                f"  {timing.median_ms / timings['exact'].median_ms:6.1f}x ours  {wrong[name]} of 8192 wrong",
                flush=True,
            )
        del x, dense, codebooks, calls
        torch.cuda.empty_cache()
    return rows


def update_rows(shapes: Sequence[Shape], device: str, measure: Measure, copy_rate: float) -> list[Row]:
    """Times sums of rows by code and the EMA update, against the bytes that they must move."""
    rows = []
    for shape in shapes:
        x, codebooks = make_data(shape._replace(Q=1), device)
        codes = codebooks[:, 0].contiguous()
        indices = F.nearest(x, codes).indices
        sums, counts = F.segment_sum(x, indices, shape.K)
        state = (codes.clone(), codes.clone(), torch.ones_like(counts))
        entries = codes.numel()
        work: dict[str, tuple[Callable[[], object], int]] = {
            "segment_sum": (
                partial(F.segment_sum, x, indices, shape.K),
                4 * x.numel() + 8 * indices.numel() + 4 * entries,
            ),
            "ema_update_": (partial(F.ema_update_, *state, sums, counts, decay=0.99), 4 * 5 * entries),
        }
        timings = interleave({name: call for name, (call, _) in work.items()}, reps=15, seconds=5.0, measure=measure)
        for name, timing in timings.items():
            floor = 1e3 * work[name][1] / copy_rate
            rows.append(
                timed(
                    shape._replace(Q=1),
                    timing,
                    op=name,
                    pass_="update",
                    impl="triton",
                    floor_ms=floor,
                    floor_kind="bytes at the measured copy rate",
                )
            )
            print(
                f"{shape.name:24s} {name:26s} {timing.median_ms:9.3f} ms  {floor / timing.median_ms:5.0%}", flush=True
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where the gate and all behaviours hold, 1 where one does not, 2 without a card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="small sizes in the gate, and no peers in training")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA or ROCm device, and torch finds none here", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    device, begin = "cuda", time.perf_counter()
    failed = run_gate(device, options.out / "gate.txt", quick=options.quick)
    print(f"gate: {time.perf_counter() - begin:.0f} s", flush=True)
    failed += run_behaviours(device, options.out / "behaviour.txt")
    measure = event_measure(device)
    product, copy = machine.cuda_product_rate(device), machine.cuda_copy_rate(device)
    print(f"measured: {product / 1e12:.0f} TFLOP/s in float16, {copy / 1e12:.2f} TB/s copied", flush=True)
    write_rows(options.out / "nearest.csv", search_rows(CUDA, device, measure, (product, copy)), device)
    write_rows(options.out / "updates.csv", update_rows(CUDA, device, measure, copy), device)
    rows = quantizers.run(CUDA, device=device, reps=9, seconds=12.0, compiled=not options.quick, measure=measure)
    write_rows(options.out / "quantizers.csv", rows, device)
    print(f"{time.perf_counter() - begin:.0f} s in all, {failed} failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
