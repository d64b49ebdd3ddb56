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
Contenders that let the C library keep its heap, a setting of a whole process, always have one of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
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
from fastvq.benchmarks.own_process import WEIGHED, OwnProcess, Trained, serve
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
from fastvq.models.training.heap import kept_heap
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "training_step.csv"
_ROOT = Path(__file__).resolve().parent.parent


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
    contender: Callable[[Setup], Trained]
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
    with contextlib.ExitStack() as processes:

        def begin(setup: Setup) -> Trained | OwnProcess:
            return processes.enter_context(own_process(case, setup)) if setup.kept_heap else case.contender(setup)

        contenders = {setup.name: begin(setup) for setup in chosen}
        calls: dict[str, Callable[[], object]] = {name: each.advance for name, each in contenders.items()}
        steps = interleave(calls, reps=reps, seconds=seconds)  # its first round does k-means and first allocations
        wrong = {setup.name: contenders[setup.name].wrong_codes() for setup in chosen if setup.quantizer == OURS}
        passes = {name: each.passes(steps[name].reps) for name, each in contenders.items()}
    for name, count in wrong.items():
        if count:
            raise SystemExit(f"gate: {count} rows of {name} got a code that is not the nearest")
    floor = steps[WITHOUT].median_ms
    best = min((steps[name].median_ms for name in (GROUPED, HEADS) if name in steps), default=None)
    rows = []
    for setup in chosen:
        name, step, parts = setup.name, steps[setup.name], passes[setup.name]
        rows.append(row(setup, case, "train-step", step, floor=floor, wrong=wrong.get(name)))
        rows += [row(setup, case, pass_, part, wrong=wrong.get(name)) for pass_, part in parts.items()]
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


def own_process(case: Case, setup: Setup) -> OwnProcess:
    """A contender in a process of its own."""
    module = checkout_module("training_step")
    command = [sys.executable, "-m", module, *case.options, "--contender", setup.name]
    return OwnProcess(command, setup.name, _ROOT)


def memory_rows(case: Case, chosen: Sequence[Setup]) -> list[Row]:
    """The memory of a step of each contender, each in a fresh process."""
    rows = []
    for setup in chosen:
        with own_process(case, setup) as contender:
            ms, peak = contender.memory()
        rows.append(row(setup, case, "train-step-memory", Timing(WEIGHED, ms, ms, ms), peak=peak))
        print(f"{setup.name:40s} {peak or float('nan'):8.1f} MiB more at the peak of a step", flush=True)
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
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # whom a child plays
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    options = parser.parse_args(arguments)
    if options.heatmaps:
        frames, size = options.heatmaps
        cases = [heatmap_case(heatmap_settings(frames, size, options.heatmap_batch_size))]
        chosen, known = heatmap_setups(), heatmap_setups()
    else:
        cases = [motion_case(MotionVQVAEConfig(width=w), n) for w in options.width for n in options.batch_size]
        chosen, known = setups(not options.few, options.compile), setups(True, True)
    if options.contender is not None:
        setup = {setup.name: setup for setup in known}[options.contender]
        with kept_heap() if setup.kept_heap else contextlib.nullcontext():
            serve(cases[0].contender(setup))
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
