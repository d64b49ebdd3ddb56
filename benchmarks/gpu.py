"""The suite for a card: ``python -m benchmarks.gpu --out DIR``, within nine minutes, torch and rich installed.

First the gate: every Triton kernel against the oracle on the card itself. Then the registry's cases for a card, with
their floors and every peer that is there, and what a training loop relies on: no host sync, capture in a CUDA graph,
the same bits on every run. Written to DIR: ``gate.txt``, ``behaviour.txt``, and the rows ``registry.csv``. Without a
card it says so and exits 2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fastvq.benchmarks.behaviour import run_behaviours
from fastvq.benchmarks.gate import QUICK_SIZES, SIZES, gate
from fastvq.benchmarks.run import Settings, bench, make_console


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where the gate and all behaviours hold, 1 where one does not, 2 without a card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="small sizes in the gate, and no torch.compile")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA or ROCm device, and torch finds none here", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    device, begin = "cuda", time.perf_counter()
    failed = run_gate(device, options.out / "gate.txt", quick=options.quick)
    print(f"gate: {time.perf_counter() - begin:.0f} s", flush=True)
    failed += run_behaviours(device, options.out / "behaviour.txt")
    settings = Settings(device, seconds=4.0, compiled=not options.quick)
    failed += bench(make_console(), settings, out=options.out / "registry.csv")
    print(f"{time.perf_counter() - begin:.0f} s in all, {failed} failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
