"""What takes part in the benchmark of a training step: quantizers, and the levers of our trainer beyond them.

All start from the same weights and see the same batches. The plain trainer is what most repositories have: float32,
``torch.nn.Conv1d``, ``torch.optim.AdamW`` as it comes. vector-quantize-pytorch takes part in both forms that fit the
model, set up as its users would: ``GroupedResidualVQ`` with one quantizer a group, and ``VectorQuantize`` with a head
and a codebook of its own a group; k-means initialisation, EMA 0.99, our commitment weight, gradients straight
through, and the dead-code threshold that equals ours (a share of the mean number of rows a code).
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

import fastvq
from fastvq import Quantized
from fastvq.benchmarks.nearest import excess
from fastvq.benchmarks.peers import VQP, installed
from fastvq.benchmarks.timing import Timing
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.nn.conv import ConvImplementation, set_implementation
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.tokenizers.motion_vqvae import MotionVQVAE
from fastvq.models.training.config import LossWeights, Precision
from fastvq.models.training.data import FeatureClip, feature_statistics, prepare_clips
from fastvq.models.training.optimizer import DenseAdamW
from fastvq.models.training.sections import SectionTimer
from fastvq.models.training.step import TrainingStep
from fastvq.models.training.windows import WindowSampler

WINDOW = 64
CPU = torch.device("cpu")
OURS, GROUPED, HEADS, WITHOUT = "fastvq", VQP, f"{VQP} heads", "no quantizer"
ALL = "all levers"


@dataclass(frozen=True)
class Setup:
    """A quantizer, and how the trainer around it is set.

    Attributes:
        quantizer: one of the four names above.
        lever: what differs from the plain trainer; "" for nothing.
    """

    quantizer: str = OURS
    lever: str = ""
    precision: Precision = "fp32"
    conv: ConvImplementation = "conv1d"
    fused: bool = False
    kept_heap: bool = False
    compile: bool = False

    @property
    def name(self) -> str:
        """Names the contender."""
        return f"{self.quantizer}, {self.lever}" if self.lever else self.quantizer


QUANTIZERS = (Setup(), Setup(WITHOUT), Setup(GROUPED), Setup(HEADS))
LEVERS = (
    Setup(lever="fused AdamW", fused=True),
    Setup(lever="convolutions as products", conv="taps"),
    Setup(lever="bf16", precision="bf16"),
    Setup(lever="kept heap", kept_heap=True),
    Setup(lever=ALL, precision="bf16", conv="taps", fused=True, kept_heap=True),
)
COMPILED = (
    Setup(lever="torch.compile", compile=True),
    replace(LEVERS[-1], lever=f"{ALL} and torch.compile", compile=True),
)


def setups(levers: bool, compiled: bool) -> list[Setup]:
    """Who takes part: the quantizers, those of peers only where they are installed, then the levers."""
    known = [setup for setup in QUANTIZERS if setup.quantizer not in (GROUPED, HEADS) or installed(VQP)]
    return [*known, *(LEVERS if levers else LEVERS[-1:]), *(COMPILED if compiled else ())]


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
    """vector-quantize-pytorch under our calling convention.

    Args:
        config: of the model.
        rows: latents in a batch.
        heads: the form with heads instead of the grouped one.
    """

    def __init__(self, config: MotionVQVAEConfig, rows: int, *, heads: bool) -> None:
        super().__init__()
        import vector_quantize_pytorch as peer

        with contextlib.suppress(ImportError):  # it logs a line a group where a batch has fewer rows than codes
            from loguru import logger

            logger.disable("vector_quantize_pytorch")
        self.heads = heads
        common = {
            "codebook_size": config.codebook_size,
            "decay": config.decay,
            "commitment_weight": config.commitment_weight,
            "kmeans_init": True,
            "rotation_trick": False,  # gradients straight through, as in ours
            "threshold_ema_dead_code": config.dead_below * rows / config.codebook_size,
        }
        if heads:
            self.inner = peer.VectorQuantize(
                config.output_dim,
                codebook_dim=config.code_dim,
                heads=config.groups,
                separate_codebook_per_head=True,
                **common,
            )
        else:
            self.inner = peer.GroupedResidualVQ(
                dim=config.output_dim, groups=config.groups, num_quantizers=1, **common
            )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes; the loss is the mean over the groups."""
        quantized, indices, losses = self.inner(x)
        if not self.heads:
            indices = indices[..., 0].movedim(0, -1)
        return Quantized(quantized, indices, losses.mean())


class Contender:
    """A model with its optimizer, trained step after step.

    Args:
        setup: quantizer and levers.
        config: sizes.
        clips: what it learns from.
        batch_size: windows in a batch.
        seed: of weights, codebooks and batches.
    """

    def __init__(
        self, setup: Setup, config: MotionVQVAEConfig, clips: Sequence[FeatureClip], batch_size: int, seed: int = 0
    ) -> None:
        self.setup = setup
        self.sampler = WindowSampler(clips, window=WINDOW, batch_size=batch_size, seed=seed)
        mean, std = feature_statistics(clips)
        torch.manual_seed(seed)
        model = MotionVQVAE(config, mean=mean, std=std)
        rows = batch_size * WINDOW // config.downsample
        if setup.quantizer == WITHOUT:
            model.quantizer = cast(fastvq.GroupedVQ, NoQuantizer(config.groups))
        elif setup.quantizer != OURS:
            peer = PeerQuantizer(config, rows, heads=setup.quantizer == HEADS)
            model.quantizer = cast(fastvq.GroupedVQ, peer)
        set_implementation(model, setup.conv)
        self.timer = SectionTimer(True, CPU)
        if setup.quantizer == OURS:
            self.timer.wrap_method(model.quantizer.codebooks, "update_", "codebook update")
        self.step = TrainingStep(model, LossWeights(), setup.precision, self.timer, compile=setup.compile).train()
        kind = DenseAdamW if setup.fused else torch.optim.AdamW
        self.optimizer = kind(
            model.parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=setup.fused or None
        )
        self.number = 0

    def advance(self) -> Tensor:
        """One step; the unweighted reconstruction loss."""
        timer = self.timer
        with timer.section("data"):
            motion = self.sampler.batch(self.number).motion
        losses = self.step(motion)
        with timer.section("backward"), timer.backward("encoder_backward"):
            losses.total.backward()
        with timer.section("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.number += 1
        return losses.smooth_l1

    def passes(self, last: int) -> dict[str, Timing]:
        """Its last steps by pass: ``train-step:SECTION``, which add up to the step, ``train-step-backward:PART``,
        which add up to its backward section, and ``quantizer``: that part's forward, update and backward."""
        seconds = {name: values[-last:] for name, values in self.timer.seconds.items()}
        found = {}
        if self.setup.quantizer != WITHOUT:
            found["quantizer"] = sum_of(seconds["quantizer"], seconds["quantizer_backward"])
        updates = seconds.get("codebook update")
        if updates:  # inside the quantizer's forward pass
            seconds["quantizer"] = [whole - part for whole, part in zip(seconds["quantizer"], updates, strict=True)]
        for name in ("data", "encoder", "quantizer", "codebook update", "decoder", "losses", "backward", "optimizer"):
            if name in seconds:
                found[f"train-step:{name}"] = sum_of(seconds[name])
        for name in ("losses", "decoder", "quantizer", "encoder"):
            found[f"train-step-backward:{name}"] = sum_of(seconds[f"{name}_backward"])
        return found

    def wrong_codes(self) -> int:
        """How many rows of a batch get a code that is not the nearest."""
        model = self.step.model
        assert isinstance(model, MotionVQVAE)
        with torch.no_grad():
            latents = model.encoder(model.normalise(self.sampler.batch(0).motion))
            indices = model.quantizer.encode(latents)
        groups = model.config.streams
        rows = latents.reshape(-1, groups, latents.shape[-1] // groups).transpose(0, 1).contiguous()
        return excess(rows, model.quantizer.codebook.unsqueeze(1), indices.reshape(-1, groups).t().unsqueeze(-1))


def sum_of(*parts: Sequence[float]) -> Timing:
    """The timing of parts of a step together, given the seconds of each, step by step."""
    values = [1e3 * sum(together) for together in zip(*parts, strict=True)]
    fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values * 4
    return Timing(len(values), statistics.median(values), fifths[0], fifths[3])


def training_clips() -> list[FeatureClip]:
    """Made-up motions, always the same."""
    return [clip for clip in prepare_clips(generate_clips(40, seed=0)) if clip.split == "train"]
