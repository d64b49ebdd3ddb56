"""One training step of the heatmap VQ-GAN at its published size: its time, and the memory of its process.

Run ``python -m benchmarks.heatmap_full_size``; it takes some minutes on two cores and appends a row for each
downsampling to ``benchmarks/results/cpu/heatmap_full_size.csv``. The step is that of ``fastvq train heatmap-vqgan``:
a window of 64 frames of three views of 128 x 128, encoder, quantizer, decoder, all losses, the discriminator, and
both optimizers, with activations of the blocks computed again in the backward pass. The discriminator takes part from
the first step on; the run, its folder and its checkpoints included, is a process of its own, whose largest resident
memory is what ``peak_mib`` says.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fastvq
from fastvq.benchmarks.rows import Row, write_rows
from fastvq.benchmarks.training_step import checkout_module
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGANConfig
from fastvq.models.training.adversarial import AdversarialWeights
from fastvq.models.training.config import Precision
from fastvq.models.training.heatmap_data import prepare_joints
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig, train_heatmaps

_ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "heatmap_full_size.csv"


def train(model: HeatmapVQGANConfig, precision: Precision, steps: int) -> dict[str, float]:
    """Trains in this process: milliseconds of the last step, and the largest resident memory so far, MiB."""
    config = HeatmapTrainConfig(
        model=model,
        loss=AdversarialWeights(start=0),
        steps=steps,
        precision=precision,
        checkpointing=True,
        log_every=1,
        checkpoint_every=steps,
    )
    clips = prepare_joints(generate_clips(10, seed=0), fps=config.fps, least=config.stretch[0])
    with tempfile.TemporaryDirectory() as folder:
        result = train_heatmaps(config, clips, Path(folder) / "run")
    assert result.metrics["discriminator"] > 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform != "darwin" else 1024)
    return {"ms": 1e3 / result.metrics["steps_per_second"], "peak_mib": peak / 1024}


def row(model: HeatmapVQGANConfig, precision: Precision, steps: int, found: dict[str, float]) -> Row:
    """The row of one size."""
    return Row(
        op="heatmap-vqgan",
        pass_="train-step-full-size",
        shape=f"F{model.downsample}, 1 window of {model.frames} x {model.size} x {model.size}",
        G=1,
        N=model.token_shape[0] * model.token_shape[1] * model.token_shape[2],
        K=model.codebook_size,
        D=model.code_dim,
        Q=1,
        dtype="bfloat16" if precision == "bf16" else "float32",
        precision="exact",
        impl=f"{fastvq.ops.explain('cpu')['nearest'][0]}, checkpointing",
        peer="",
        peer_version="",
        reps=1,
        median_ms=found["ms"],
        p20_ms=found["ms"],
        p80_ms=found["ms"],
        floor_ms=None,
        floor_kind="",
        peak_mib=found["peak_mib"],
        mismatch_rows=None,
        gate="",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--down-stages", type=int, nargs="+", default=[3], help="3 is F8, 4 F16, 5 F32")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=1, help="of which the last is the one that is told of")
    parser.add_argument("--size", type=int, default=128, help="rows and columns; the published size is 128")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    options = parser.parse_args(arguments)
    for stages in options.down_stages:
        model = HeatmapVQGANConfig(down_stages=stages, size=options.size)
        if options.in_this_process:
            print(json.dumps(train(model, options.precision, options.steps)))
            continue
        given = ["--down-stages", str(stages), "--precision", options.precision, "--steps", str(options.steps)]
        command = [sys.executable, "-m", checkout_module("heatmap_full_size"), *given, "--size", str(options.size)]
        done = subprocess.run(
            [*command, "--in-this-process"], cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        write_rows(options.out, [row(model, options.precision, options.steps, found)])
        print(
            f"F{model.downsample}: {found['ms'] / 1e3:.1f} s a step, {found['peak_mib'] / 1024:.2f} GiB at the peak"
        )


if __name__ == "__main__":
    main()
