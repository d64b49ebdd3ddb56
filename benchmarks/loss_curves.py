"""Do the fast and the plain run learn alike? Short trainings of both, with several seeds for the noise between runs.

Run ``python -m benchmarks.loss_curves``; it takes about two minutes on two cores, needs no quiet machine, and writes
``benchmarks/results/cpu/training_step.json``, whose curves ``benchmarks.report`` draws. The plain run is the float32
trainer with vector-quantize-pytorch, the fast one has our quantizer and all levers
(:mod:`fastvq.benchmarks.training_contenders`). Motions are made up, or read from ``--data``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvq.benchmarks.rows import environment
from fastvq.benchmarks.training_contenders import GROUPED, LEVERS, Contender, Setup, training_clips
from fastvq.models import storage
from fastvq.models.motion.load import load_clips
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.training.data import FeatureClip, prepare_clips

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "training_step.json"
SCHEMA = "fastvq-bench-runs/1"
RUNS = {"plain": Setup(GROUPED), "fast": LEVERS[-1]}


def curve(
    setup: Setup,
    config: MotionVQVAEConfig,
    clips: Sequence[FeatureClip],
    *,
    batch_size: int,
    steps: int,
    every: int,
    seed: int,
) -> list[float]:
    """Unweighted smooth-L1 reconstruction losses of one training, each the mean over ``every`` steps."""
    contender = Contender(setup, config, clips, batch_size, seed)
    losses = [float(contender.advance()) for _ in range(steps)]
    return [statistics.fmean(losses[start : start + every]) for start in range(0, steps, every)]


def within(plain: Sequence[Sequence[float]], fast: Sequence[Sequence[float]]) -> dict[str, float]:
    """How far apart the two kinds of run are, beside how far apart runs of the plain kind are.

    Returns:
        Over the second half of the curves: the mean loss of either kind, their difference, and the standard
        deviation of the plain runs between seeds.
    """
    means = {
        kind: [statistics.fmean(run[len(run) // 2 :]) for run in runs]
        for kind, runs in (("plain", plain), ("fast", fast))
    }
    average = {kind: statistics.fmean(values) for kind, values in means.items()}
    return {
        **average,
        "difference": average["fast"] - average["plain"],
        "plain_deviation": statistics.stdev(means["plain"]) if len(plain) > 1 else float("nan"),
    }


def write(path: Path, facts: Mapping[str, object]) -> None:
    """Puts the facts of a run beside those that the file holds already."""
    held: dict[str, Any] = {"schema": SCHEMA, "runs": {}}
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
    held["runs"][uuid.uuid4().hex[:12]] = facts
    storage.write_text(path, json.dumps(held, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128, help="channels of the convolutions")
    parser.add_argument("--batch-size", type=int, default=16, help="windows in a batch")
    parser.add_argument("--steps", type=int, default=96, help="of each training")
    parser.add_argument("--every", type=int, default=6, help="steps that a point of a curve is the mean of")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--data", type=Path, help="motions to learn from; made-up ones if absent")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file that gets the curves")
    options = parser.parse_args(arguments)
    config = MotionVQVAEConfig(width=options.width)
    if options.data is None:
        clips = training_clips()
    else:
        clips = [
            clip for clip in prepare_clips(load_clips(options.data, fps=config.fps).clips) if clip.split == "train"
        ]
    found: dict[str, list[list[float]]] = {kind: [] for kind in RUNS}
    for seed in range(options.seeds):
        for kind, setup in RUNS.items():
            sizes = {"batch_size": options.batch_size, "steps": options.steps, "every": options.every}
            found[kind].append(curve(setup, config, clips, seed=seed, **sizes))
            print(f"seed {seed} {kind:6s} ends at {found[kind][-1][-1]:.4f}", flush=True)
    summary = within(found["plain"], found["fast"])
    print(", ".join(f"{name} {value:.4f}" for name, value in summary.items()))
    motions = "made-up motions" if options.data is None else f"motions of {options.data.name}"
    title = f"Width {options.width}, {options.batch_size} windows, {motions}"
    points = list(range(options.every, options.steps + options.every, options.every))
    curves = {
        f"{kind}, seed {seed}": {"steps": points, "loss": run}
        for kind, runs in found.items()
        for seed, run in enumerate(runs)
    }
    setups = {kind: {"quantizer": setup.quantizer, "lever": setup.lever} for kind, setup in RUNS.items()}
    write(options.out, {"losses": {title: curves}, "summary": summary, "setups": setups, **environment("cpu")})


if __name__ == "__main__":
    main()
