"""A whole training step of a model: by quantizer, by lever of the trainer, by section, and its memory.

Run ``python -m benchmarks.training_step`` on a quiet machine; it takes about three minutes on two cores and appends
its rows to ``benchmarks/results/cpu/training_step.csv``. ``--width 512 1024 --batch-size 16 128`` measures all four
sizes of the published model, which takes a quarter of an hour. Contenders take turns
(:mod:`fastvq.benchmarks.training_contenders` says who they are). ``--heatmaps 16 64`` measures the heatmap VQ-GAN and
its discriminator instead, the published channels on windows of 16 frames of 64 x 64
(:mod:`fastvq.benchmarks.heatmap_contenders`).

Rows are ``train-step`` for whole steps; ``train-step:SECTION`` for their parts, which add up to them;
``train-step-backward:PART`` for the parts of the backward section; ``quantizer`` for the quantizer's forward, update
and backward together; and ``train-step-memory`` for the memory of one step, and its time, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastvq
from fastvq.benchmarks import peers
from fastvq.benchmarks.heatmap_contenders import (
    HeatmapContender,
    heatmap_clips,
    heatmap_settings,
    heatmap_setups,
)
from fastvq.benchmarks.resident import peak_growth
from fastvq.benchmarks.rows import Row, write_rows
from fastvq.benchmarks.timing import Timing, interleave
from fastvq.benchmarks.training_contenders import (
    GROUPED,
    HEADS,
    OURS,
    WINDOW,
    WITHOUT,
    Contender,
    Setup,
    setups,
    training_clips,
)
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "training_step.csv"
_ROOT = Path(__file__).resolve().parent.parent
STEPS_WEIGHED = 5


def checkout_module(name: str) -> str:
    """What ``python -m`` calls a benchmark by: a checkout runs its own files, installed or not."""
    return f"{'benchmarks' if (_ROOT / 'pyproject.toml').exists() else 'fastvq.benchmarks'}.{name}"


@dataclass(frozen=True)
class Case:
    """A model at one size.

    Attributes:
        op, shape, groups, rows, codes, code_dim: of its rows.
        contender: makes one.
        options: by which a child process knows the case.
    """

    op: str
    shape: str
    groups: int
    rows: int
    codes: int
    code_dim: int
    contender: Callable[[Setup], Contender | HeatmapContender]
    options: tuple[str, ...]


def motion_case(config: MotionVQVAEConfig, batch_size: int) -> Case:
    """The motion tokenizer."""
    return Case(
        op="motion-vqvae",
        shape=f"width {config.width}, {batch_size} windows of {WINDOW}",
        groups=config.groups,
        rows=batch_size * WINDOW // config.downsample,
        codes=config.codebook_size,
        code_dim=config.code_dim,
        contender=lambda setup: Contender(setup, config, training_clips(), batch_size),
        options=("--width", str(config.width), "--batch-size", str(batch_size)),
    )


def heatmap_case(config: HeatmapTrainConfig) -> Case:
    """The heatmap VQ-GAN with its discriminator."""
    model = config.model
    windows = "1 window" if config.batch_size == 1 else f"{config.batch_size} windows"
    return Case(
        op="heatmap-vqgan",
        shape=f"{windows} of {model.frames} x {model.size} x {model.size}, F{model.downsample}",
        groups=1,
        rows=config.batch_size * math.prod(model.token_shape),
        codes=model.codebook_size,
        code_dim=model.code_dim,
        contender=lambda setup: HeatmapContender(setup, config, heatmap_clips(config)),
        options=(
            *("--heatmaps", str(model.frames), str(model.size)),
            *("--heatmap-batch-size", str(config.batch_size)),
        ),
    )


def row(
    setup: Setup,
    case: Case,
    pass_: str,
    timing: Timing,
    *,
    floor: float | None = None,
    peak: float | None = None,
    wrong: int | None = None,
) -> Row:
    """The row of one contender and one pass."""
    ours = setup.quantizer == OURS
    implementation = fastvq.ops.explain("cpu")["nearest"][0]
    return Row(
        op=case.op,
        pass_=pass_,
        shape=case.shape,
        G=case.groups,
        N=case.rows,
        K=case.codes,
        D=case.code_dim,
        Q=1,
        dtype="bfloat16" if setup.precision == "bf16" else "float32",
        precision="exact" if ours else "",
        impl=", ".join(part for part in (implementation, setup.lever) if part) if ours else "",
        peer="" if ours else setup.quantizer,
        peer_version=peers.version(setup.quantizer) if setup.quantizer in (GROUPED, HEADS) else "",
        reps=timing.reps,
        median_ms=timing.median_ms,
        p20_ms=timing.p20_ms,
        p80_ms=timing.p80_ms,
        floor_ms=floor,
        floor_kind="" if floor is None else "the plain step without a quantizer",
        peak_mib=peak,
        mismatch_rows=wrong,
        gate="pass",
    )


def time_steps(case: Case, chosen: Sequence[Setup], reps: int, seconds: float) -> list[Row]:
    """Times the contenders at one size, in turns, whole and by section."""
    contenders = {setup.name: case.contender(setup) for setup in chosen}
    calls: dict[str, Callable[[], object]] = {name: each.advance for name, each in contenders.items()}
    steps = interleave(calls, reps=reps, seconds=seconds)  # its first round does k-means and first allocations
    wrong = {name: each.wrong_codes() for name, each in contenders.items() if each.setup.quantizer == OURS}
    for name, count in wrong.items():
        if count:
            raise SystemExit(f"gate: {count} rows of {name} got a code that is not the nearest")
    floor = steps[WITHOUT].median_ms
    best = min((steps[name].median_ms for name in (GROUPED, HEADS) if name in steps), default=None)
    rows = []
    for name, step in steps.items():
        contender = contenders[name]
        parts = contender.passes(step.reps)
        rows.append(row(contender.setup, case, "train-step", step, floor=floor, wrong=wrong.get(name)))
        rows += [row(contender.setup, case, pass_, part, wrong=wrong.get(name)) for pass_, part in parts.items()]
        against = "" if best is None else f"  {best / step.median_ms:5.2f}x the faster peer"
        sections = ", ".join(
            f"{pass_.partition(':')[2]} {part.median_ms:.1f}"
            for pass_, part in parts.items()
            if pass_.startswith("train-step:")
        )
        alone = f", quantizer with its backward {parts['quantizer'].median_ms:.2f}" if "quantizer" in parts else ""
        print(f"{name:40s} {step.median_ms:8.1f} ms a step ({step.p20_ms:.1f} to {step.p80_ms:.1f}){against}")
        print(f"    {sections}{alone}", flush=True)
    return rows


def memory_of(case: Case, setup: Setup) -> dict[str, float | None]:
    """MiB by which a step raises this process's memory, after two steps, and its milliseconds: medians of five steps.

    What an allocator keeps in reserve differs from step to step by more than two quantizers do.
    """
    contender = case.contender(setup)
    for _ in range(2):
        contender.advance()
    peaks, times = [], []
    for _ in range(STEPS_WEIGHED):
        begin = time.perf_counter()
        peaks.append(peak_growth(contender.advance))
        times.append(1e3 * (time.perf_counter() - begin))
    known = [peak for peak in peaks if peak is not None]
    return {"ms": statistics.median(times), "peak_mib": statistics.median(known) if known else None}


def memory_rows(case: Case, chosen: Sequence[Setup]) -> list[Row]:
    """The memory of a step of each contender, each in a fresh process."""
    rows = []
    for setup in chosen:
        command = [sys.executable, "-m", checkout_module("training_step"), *case.options, "--memory-of", setup.name]
        done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        timing = Timing(STEPS_WEIGHED, found["ms"], found["ms"], found["ms"])
        rows.append(row(setup, case, "train-step-memory", timing, peak=found["peak_mib"]))
        print(f"{setup.name:40s} {found['peak_mib'] or float('nan'):8.1f} MiB more at the peak of a step", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[512], help="channels of the convolutions")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16], help="windows in a batch")
    parser.add_argument("--reps", type=int, default=15, help="steps of each contender")
    parser.add_argument("--seconds", type=float, default=90.0, help="no new round after this long")
    parser.add_argument("--only", choices=("time", "memory"), help="leave the other out")
    parser.add_argument("--few", action="store_true", help="of the levers only all together")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; a minute or two for each size")
    parser.add_argument(
        "--heatmaps", type=int, nargs=2, metavar=("FRAMES", "SIZE"), help="the heatmap VQ-GAN on such windows instead"
    )
    parser.add_argument("--heatmap-batch-size", type=int, default=1, help="of those windows")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # what the parent asks its children for
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    options = parser.parse_args(arguments)
    if options.heatmaps:
        frames, size = options.heatmaps
        cases = [heatmap_case(heatmap_settings(frames, size, options.heatmap_batch_size))]
        chosen, known = heatmap_setups(), heatmap_setups()
    else:
        cases = [motion_case(MotionVQVAEConfig(width=w), n) for w in options.width for n in options.batch_size]
        chosen, known = setups(not options.few, options.compile), setups(True, True)
    if options.memory_of is not None:
        named = {setup.name: setup for setup in known}
        print(json.dumps(memory_of(cases[0], named[options.memory_of])))
        return
    for case in cases:
        print(f"{case.op}, {case.shape}", flush=True)
        rows = []
        if options.only != "memory":
            rows += time_steps(case, chosen, options.reps, options.seconds)
        if options.only != "time":
            rows += memory_rows(case, chosen)
        write_rows(options.out, rows)


if __name__ == "__main__":
    main()
