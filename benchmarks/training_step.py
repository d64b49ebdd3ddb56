"""A whole training step of the motion tokenizer, with our quantizer, with vector-quantize-pytorch's, and with none.

Run ``python -m benchmarks.training_step`` on a quiet machine; it takes about two minutes on two cores and appends
its rows to ``benchmarks/results/cpu/training_step.csv``. All contenders start from the same weights, see the same
batches and take turns. ``train-step`` rows time data, forward, backward and optimizer; ``quantizer`` rows time the
quantizer alone, forward and backward, inside those very steps.

The peer is set up as its users would for this model: ``GroupedResidualVQ`` with one quantizer a group, k-means
initialisation, EMA 0.99, the same commitment weight and the dead-code threshold that equals ours (a share of the
mean number of rows a code).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

import fastvq
from fastvq import Quantized
from fastvq.benchmarks.nearest import excess
from fastvq.benchmarks.rows import Row, write_rows
from fastvq.benchmarks.timing import Timing, interleave
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.training.config import LossWeights, Precision
from fastvq.models.training.data import feature_statistics, prepare_clips
from fastvq.models.training.sections import SectionTimer
from fastvq.models.training.step import TrainingStep
from fastvq.models.training.windows import WindowSampler

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "training_step.csv"
WINDOW = 64
PEER = "vector-quantize-pytorch"
WITHOUT = "no quantizer"
CPU = torch.device("cpu")


class NoQuantizer(nn.Module):
    """Hands latents on as they are."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """x -> x, no codes, no loss."""
        indices = torch.zeros(*x.shape[:-1], self.groups, dtype=torch.int64)
        return Quantized(x, indices, x.new_zeros(()))


class PeerQuantizer(nn.Module):
    """vector-quantize-pytorch's grouped quantizer under our calling convention."""

    def __init__(self, config: MotionVQVAEConfig, rows: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import GroupedResidualVQ

        with contextlib.suppress(ImportError):  # it logs a line a group where a batch has fewer rows than codes
            from loguru import logger

            logger.disable("vector_quantize_pytorch")
        self.inner = GroupedResidualVQ(
            dim=config.output_dim,
            groups=config.groups,
            num_quantizers=1,
            codebook_size=config.codebook_size,
            decay=config.decay,
            commitment_weight=config.commitment_weight,
            kmeans_init=True,
            threshold_ema_dead_code=config.dead_below * rows / config.codebook_size,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes; the loss is the mean over the groups."""
        quantized, indices, losses = self.inner(x)
        return Quantized(quantized, indices[..., 0].movedim(0, -1), losses.mean())


class Contender:
    """A model with its optimizer, trained step after step."""

    def __init__(self, model: MotionVQVAE, sampler: WindowSampler, precision: Precision) -> None:
        self.timer = SectionTimer(True, CPU)
        self.step = TrainingStep(model, LossWeights(), precision, self.timer).train()
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.sampler, self.number = sampler, 0

    def advance(self) -> None:
        """One step."""
        losses = self.step(self.sampler.batch(self.number).motion)
        with self.timer.backward("encoder_backward"):
            losses.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.number += 1

    def quantizer(self, last: int) -> Timing:
        """Its quantizer's forward and backward time in the last steps."""
        pairs = zip(self.timer.seconds["quantizer"], self.timer.seconds["quantizer_backward"], strict=True)
        values = [1e3 * (forward + backward) for forward, backward in pairs][-last:]
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return Timing(len(values), statistics.median(values), fifths[0], fifths[3])


def contenders(config: MotionVQVAEConfig, batch_size: int, precision: Precision) -> dict[str, Contender]:
    """The three models, equal but for their quantizers; the peer only where it is installed."""
    clips = [clip for clip in prepare_clips(generate_clips(40, seed=0)) if clip.split == "train"]
    sampler = WindowSampler(clips, window=WINDOW, batch_size=batch_size, seed=0)
    mean, std = feature_statistics(clips)
    torch.manual_seed(0)
    ours = MotionVQVAE(config, mean=mean, std=std)
    rows = batch_size * WINDOW // config.downsample
    quantizers: dict[str, Callable[[], nn.Module]] = {WITHOUT: lambda: NoQuantizer(config.groups)}
    if importlib.util.find_spec("vector_quantize_pytorch"):
        quantizers[PEER] = lambda: PeerQuantizer(config, rows)
    models = {"fastvq": ours}
    for name, make in quantizers.items():
        models[name] = copy.deepcopy(ours)
        models[name].quantizer = cast(fastvq.GroupedVQ, make())
    return {name: Contender(model, sampler, precision) for name, model in models.items()}


def wrong_codes(contender: Contender) -> int:
    """How many rows of a batch get a code that is not the nearest."""
    model = contender.step.model
    with torch.no_grad():
        latents = model.encoder(model.normalise(contender.sampler.batch(0).motion))
        indices = model.quantizer.encode(latents)
    groups = model.config.groups
    rows = latents.reshape(-1, groups, model.config.code_dim).transpose(0, 1).contiguous()
    return excess(rows, model.quantizer.codebook.unsqueeze(1), indices.reshape(-1, groups).t().unsqueeze(-1))


def run(config: MotionVQVAEConfig, batch_size: int, precision: Precision, reps: int, seconds: float) -> list[Row]:
    """Times the contenders at one size and precision."""
    models = contenders(config, batch_size, precision)
    calls: dict[str, Callable[[], object]] = {name: model.advance for name, model in models.items()}
    for call in calls.values():  # k-means and first allocations
        call()
    steps = interleave(calls, reps=reps, seconds=seconds)
    wrong = wrong_codes(models["fastvq"])
    if wrong:
        raise SystemExit(f"gate: {wrong} rows got a code that is not the nearest")
    floor = steps[WITHOUT].median_ms
    implementation = fastvq.ops.explain("cpu")["nearest"][0]
    rows = []
    for name, step in steps.items():
        ours = name == "fastvq"
        timings = {"train-step": step}
        if name != WITHOUT:
            timings["quantizer"] = models[name].quantizer(step.reps)
        for pass_, timing in timings.items():
            whole = pass_ == "train-step"
            rows.append(
                Row(
                    op="motion-vqvae",
                    pass_=pass_,
                    shape=f"width {config.width}, {batch_size} windows of {WINDOW}",
                    G=config.groups,
                    N=batch_size * WINDOW // config.downsample,
                    K=config.codebook_size,
                    D=config.code_dim,
                    Q=1,
                    dtype="bfloat16" if precision == "bf16" else "float32",
                    precision="exact" if ours else "",
                    impl=implementation if ours else "",
                    peer="" if ours else name,
                    peer_version=importlib.metadata.version(name) if name == PEER else "",
                    reps=timing.reps,
                    median_ms=timing.median_ms,
                    p20_ms=timing.p20_ms,
                    p80_ms=timing.p80_ms,
                    floor_ms=floor if whole else None,
                    floor_kind="the same step without a quantizer" if whole else "",
                    peak_mib=None,
                    mismatch_rows=wrong if ours else None,
                    gate="pass",
                )
            )
        share = timings.get("quantizer")
        print(
            f"width {config.width} {precision}  {name:24s} {step.median_ms:8.1f} ms a step "
            f"({step.p20_ms:.1f} to {step.p80_ms:.1f})"
            + (f"  quantizer {share.median_ms:7.2f} ms = {share.median_ms / step.median_ms:5.1%}" if share else ""),
            flush=True,
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[512], help="channels of the convolutions")
    parser.add_argument("--batch-size", type=int, default=16, help="windows in a batch")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--reps", type=int, default=25, help="steps of each contender")
    parser.add_argument("--seconds", type=float, default=60.0, help="no new round after this long")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file that gets the rows")
    options = parser.parse_args(arguments)
    rows = []
    for width in options.width:
        for precision in options.precision:
            config = MotionVQVAEConfig(width=width)
            rows += run(config, options.batch_size, precision, options.reps, options.seconds)
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
