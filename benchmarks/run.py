"""Runs the registry: the gate, peak memory, and times taken in turns, one case after another.

``python -m benchmarks.run`` does on a bare checkout what ``fastvq bench`` does; see ``--help``. On a CPU peak memory
is the growth of resident memory during one call (:mod:`fastvq.benchmarks.resident`), on a GPU that of torch's
allocator. Both count results.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import fastvq
from fastvq.benchmarks import compare, machine, peers, registry, resident, table
from fastvq.benchmarks.contest import Call, Contest
from fastvq.benchmarks.registry import Case
from fastvq.benchmarks.rows import MOVED, Row, as_text, check_rows_file, read_rows, timed, write_rows
from fastvq.benchmarks.shapes import Shape
from fastvq.benchmarks.timing import Measure, Timing, event_measure, interleave, wall_ms

_log = logging.getLogger(__name__)
BURST = 0.1  # seconds of one turn of a contender
QUICK_TURNS = 20
STEADY = 0.02  # standard error of a ratio, below which a case has been measured
# A float32 product that keeps its accuracy takes three float16 ones on tensor cores.
PRODUCTS = 3


class GateError(RuntimeError):
    """A result of ours is wrong, so nothing of its case is timed."""


class Settings(NamedTuple):
    """How a case is run."""

    device: str = "cpu"
    reps: int = 200
    seconds: float = 8.0
    compiled: bool = True
    quick: bool = False


def floor(case: Case, device: str) -> tuple[float | None, str]:
    """The least milliseconds that this machine allows a case, and which limit that is.

    Operations over the measured rate of float32 multiply-adds (on a GPU three times over that of float16 products),
    bytes over the measured rate of copies as large; the longer of both.
    """
    operations, size = case.op.operations(case.shape), case.op.io_bytes(case.shape)
    if device == "cpu":
        rate, copy, what = machine.fma_rate(), machine.copy_rate(size), "float32 multiply-adds"
    else:
        rate, copy = machine.cuda_product_rate(device) / PRODUCTS, machine.cuda_copy_rate(device)
        what = f"{PRODUCTS} float16 products"
    moved = 1e3 * size / copy
    computed = 1e3 * operations / rate if rate else 0.0
    return (computed, what) if computed > moved else (moved, MOVED)


def run_case(case: Case, settings: Settings = Settings(), *, measure: Measure = wall_ms) -> list[Row]:  # noqa: B008
    """The rows of a case, ours first.

    Raises:
        GateError: a result of ours differs from the oracle's or the reference's.
    """
    device = settings.device
    if device == "cpu":
        machine.fma_rate(turns=2)
    torch.compiler.reset()  # it gives up on a function that it has compiled for many shapes
    contest = case.prepare(device, compiled=settings.compiled)
    with contextlib.ExitStack() as stack:
        calls, wrong, peak = _judged(case, contest, device, stack)
        timings = interleave(
            calls,
            reps=QUICK_TURNS if settings.quick else settings.reps,
            seconds=settings.seconds,
            burst=0.0 if settings.quick else BURST,
            steady=STEADY,
            measure=measure,
        )
    least, kind = floor(case, device)
    implementation = _implementation(case, device)
    rows = []
    for name, timing in timings.items():
        own = name.startswith("fastvq")
        rows.append(
            timed(
                case.shape,
                timing,
                op=case.op.name,
                pass_=case.op.pass_,
                dtype="float16" if name.endswith("fp16") else "float32",
                impl=implementation if own else "",
                precision=name.removeprefix("fastvq").strip() if own else "",
                peer="" if own else name,
                peer_version="" if own else peers.version(name),
                floor_ms=least,
                floor_kind=kind,
                peak_mib=peak[name],
                mismatch_rows=wrong[name],
            )
        )
    return rows


def _judged(
    case: Case, contest: Contest, device: str, stack: contextlib.ExitStack
) -> tuple[dict[str, Call], dict[str, int], dict[str, float | None]]:
    """Runs every contender twice: for its result, which is compared, and for its memory."""
    calls: dict[str, Call] = {f"fastvq {precision}".strip(): call for precision, call in contest.ours.items()}
    wrong: dict[str, int] = {}
    for number, (name, call) in enumerate(calls.items()):
        wrong[name] = contest.wrong("", call())
        if number == 0 and wrong[name]:
            raise GateError(f"{case.name}: {wrong[name]} rows of ours are wrong")
    for name, call in contest.peers.items():
        try:
            wrong[name] = contest.wrong(name, call())
        except (RuntimeError, MemoryError) as error:  # out of memory; torch.compile without a compiler
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            _log.warning("%s: %s is left out: %s", case.name, name, reason)
        else:
            calls[name] = call
    peak = {name: _peak(call, device) for name, call in calls.items()}
    if contest.faiss is not None:
        faiss = stack.enter_context(contest.faiss())
        calls["faiss"] = faiss.elapsed
        faiss.milliseconds()
        wrong["faiss"], peak["faiss"] = contest.wrong("faiss", faiss.result()), faiss.peak_mib()
    return calls, wrong, peak


def _peak(call: Call, device: str) -> float | None:
    if device == "cpu":
        return resident.peak_growth(call)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return float(torch.cuda.max_memory_allocated(device) - before) / 2**20


def _implementation(case: Case, device: str) -> str:
    known = fastvq.ops.explain(device)
    return known.get(case.op.name, known["nearest"])[0]


def machine_rows(device: str) -> list[Row]:
    """What the machine can do, as rows of the op "machine", each the time of one operation at its best rate."""
    if device == "cpu":
        rates = {f"product, {name}": rate for name, rate in machine.product_rates().items()}
        size, copy = machine.PRODUCT, machine.copy_rate()
        fma = machine.fma_rate()
        if fma:
            rates = {"float32 multiply-adds": fma, **rates}
    else:
        size, copy = 8192, machine.cuda_copy_rate(device)
        rates = {"product, float16": machine.cuda_product_rate(device)}
    product = Shape(f"{size} x {size} x {size}", 1, size, size, size)
    found = {name: (product, 2 * size**3 / rate) for name, rate in rates.items()}
    found["copy"] = (Shape("512 MiB", 1, machine.LARGEST_COPY, 1, 1), machine.LARGEST_COPY / copy)
    rows = []
    for name, (shape, seconds) in found.items():
        timing = Timing(1, 1e3 * seconds, 1e3 * seconds, 1e3 * seconds)
        rows.append(timed(shape, timing, op="machine", pass_=name, impl="machine"))
    return rows


def bench(
    console: Console,
    settings: Settings,
    *,
    ops: Sequence[str] = (),
    shapes: Sequence[str] = (),
    out: Path | None = None,
    html: Path | None = None,
    measure: Measure | None = None,
) -> int:
    """Runs the cases with these ops and shapes, prints the table, and writes rows and page.

    Returns:
        0; 1 where a case failed or a result of ours was wrong, which is not timed; 130 after an interrupt, which ends
        the run with what has been measured.

    Raises:
        ValueError: no such op, shape or device; no time; a file that cannot be written, or holds other rows.
    """
    if settings.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device {settings.device} needs a GPU, and torch finds none here: use cpu")
    if not 0 < settings.seconds < math.inf:
        raise ValueError(f"seconds must be a positive number, got {settings.seconds}")
    if out is not None:
        check_rows_file(out)
    if html is not None and html.is_dir():
        raise ValueError(f"{html} is a folder: give a file for the page")
    chosen = registry.cases(settings.device, ops, shapes)
    if settings.quick:
        chosen = [case.small() for case in chosen]
    if measure is None:
        measure = wall_ms if settings.device == "cpu" else event_measure(settings.device)
    begin = time.perf_counter()
    timed_cases: list[tuple[Case, list[Row]]] = []
    failures, done = [], 0
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(chosen))
        for case in chosen:
            bar.update(task, description=case.name)
            try:
                timed_cases.append((case, run_case(case, settings, measure=measure)))
            except GateError as error:
                failures.append(f"GATE FAILED, not timed: {error}")
            except KeyboardInterrupt:
                break
            except Exception as error:  # what the other cases have shown is kept
                _log.debug("%s failed", case.name, exc_info=True)
                reason = str(error).strip().partition("\n")[0]
                failures.append(f"FAILED, not timed: {case.name}: {type(error).__name__}: {reason}")
            done += 1
            bar.advance(task)
    rows = machine_rows(settings.device)
    for case, found in timed_cases:  # floors by the best that the machine has shown by now
        least, kind = floor(case, settings.device)
        rows += [replace(row, floor_ms=least, floor_kind=kind) for row in found]
    text = as_text(rows, settings.device)
    table.show(text, console)
    console.print(f"{done} of {len(chosen)} cases in {time.perf_counter() - begin:.0f} s.", style="dim")
    for failure in failures:
        console.print(failure, style="bold red")
    if out is not None:
        write_rows(out, rows, settings.device)
        console.print(f"Rows: {out}")
    if html is not None:
        from fastvq.benchmarks import report

        report.write_page(text, html)
        console.print(f"Page: {html}")
    return 130 if done < len(chosen) else int(bool(failures))


def compare_files(before: Path, after: Path, console: Console) -> int:
    """:func:`fastvq.benchmarks.compare.show` of two CSV files.

    Raises:
        ValueError: no such file, another schema, or nothing in common.
    """
    for path in (before, after):
        if not path.is_file():
            raise ValueError(f"{path} is no file: give a CSV file of benchmark rows")
    return compare.show(read_rows(before), read_rows(after), console)


def make_console() -> Console:
    """Standard output: numbers not coloured, brackets left alone; in a file as wide as the table."""
    width = None if sys.stdout.isatty() else 100
    return Console(width=width, highlight=False, soft_wrap=True, markup=False, emoji=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("--ops", nargs="+", default=(), help="which ops and modules; all if absent")
    parser.add_argument("--shapes", nargs="+", default=(), help="which shapes; all if absent")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="CSV file that gets the rows")
    parser.add_argument("--html", type=Path, help="page with plots to write")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="CSV", help="show what moved between two files")
    parser.add_argument("--seconds", type=float, default=Settings().seconds, help="of rounds for each case")
    parser.add_argument("--quick", action="store_true", help="toy sizes, without torch.compile")
    options = parser.parse_args(arguments)
    console = make_console()
    try:
        if options.compare:
            return compare_files(options.compare[0], options.compare[1], console)
        settings = Settings(options.device, seconds=options.seconds, compiled=not options.quick, quick=options.quick)
        return bench(console, settings, ops=options.ops, shapes=options.shapes, out=options.out, html=options.html)
    except (ValueError, OSError) as error:
        print(f"benchmarks.run: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
