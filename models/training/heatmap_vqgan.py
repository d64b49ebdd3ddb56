"""Trains a :class:`~fastvq.models.tokenizers.heatmap_vqgan.HeatmapVQGAN` against a discriminator, or without one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from fastvq import metrics
from fastvq.models.errors import UserError
from fastvq.models.heatmaps.format import HeatmapFormat, Projection
from fastvq.models.heatmaps.placement import Camera
from fastvq.models.heatmaps.render import SIGMA
from fastvq.models.motion.clip import Clip
from fastvq.models.nn.patch_discriminator import PatchDiscriminator3d
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.config import check_integer, check_number
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapReconstruction, HeatmapVQGAN, HeatmapVQGANConfig
from fastvq.models.training.adversarial import (
    AdversarialWeights,
    GeneratorLosses,
    discriminator_loss,
    generator_losses,
)
from fastvq.models.training.config import RunConfig
from fastvq.models.training.heatmap_data import JointWindowSampler, fingerprint_joints
from fastvq.models.training.loop import TrainingLoop, Workplace, workplace
from fastvq.models.training.perceptual import GradientDifference, Perceptual


@dataclass(frozen=True)
class HeatmapTrainConfig(RunConfig):
    """A run of :func:`train_heatmaps`; the defaults are the published recipe for the views of a volume.

    The paper trains for ten epochs of data that are not to be had, so the number of steps is ours.

    Raises:
        UserError: a value that no run can have, naming it.
    """

    model: HeatmapVQGANConfig = field(default_factory=HeatmapVQGANConfig)
    loss: AdversarialWeights = field(default_factory=AdversarialWeights)
    steps: int = 100_000
    """Optimizer steps."""
    batch_size: int = 1
    """Windows per step."""
    lr: float = 2.25e-5
    """Learning rate of both Adams, the model's and the discriminator's."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Moments of both Adams."""
    milestones: tuple[int, ...] = ()
    """Steps after which both learning rates are multiplied by gamma; none is published."""
    gamma: float = 0.25
    """Factor of the learning rates at each milestone."""
    fps: float = 30.0
    """Frame rate of the motion."""
    stretch: tuple[int, int] = (16, 300)
    """Fewest and most frames of motion that a window shows, at even distances."""
    projection: Projection = "volume"
    """volume and analytic are three views of a volume, plane what each camera sees."""
    azimuths: tuple[float, ...] = (0.0,)
    """Degrees about the vertical of each camera of plane; 0 stands in front."""
    sigma: float = SIGMA
    """Of a limb's Gaussian, in pixels."""
    random_scores: bool = True
    """Draw how sure each joint is, as the paper does; otherwise all limbs are as bright."""
    discriminator_width: int = 64
    """Channels of the discriminator's first convolution."""
    discriminator_layers: int = 3
    """Convolutions of the discriminator with batch normalisation."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("fps", self.fps, 0.1, 1000)
        check_number("gamma", self.gamma, 0, 1, above=True)
        for milestone in self.milestones:
            check_integer("milestones", milestone, 1)
        for name in ("discriminator_width", "discriminator_layers"):
            check_integer(name, getattr(self, name), 1)
        if len(self.stretch) != 2 or not 2 <= self.stretch[0] <= self.stretch[1]:
            raise UserError(f"stretch must be two numbers of frames, from 2 up and in order, got {self.stretch!r}")
        if not self.azimuths:
            raise UserError("azimuths must name at least one camera, got none: 0 stands in front")
        channels = self.heatmaps.channels
        if channels != self.model.in_channels:
            raise UserError(
                f"in_channels must be the {channels} views of the heatmaps, got {self.model.in_channels}: "
                f"use in_channels {channels}, or other cameras"
            )
        least = 2 ** (self.discriminator_layers + 1)
        if self.loss.factor and min(self.model.frames, self.model.size) < least:
            raise UserError(
                f"a discriminator of {self.discriminator_layers} layers needs windows of at least {least} frames, "
                f"rows and columns, got {self.model.frames} frames of {self.model.size}: use fewer "
                "discriminator_layers"
            )
        patches = self.batch_size
        for length in (self.model.frames, self.model.size, self.model.size):
            patches *= length // 2**self.discriminator_layers - 1
        if self.loss.factor and patches == 1:
            raise UserError(
                "the discriminator's batch normalisation needs more than one value of a channel, and a single "
                f"window of {self.model.frames} frames of {self.model.size} leaves it one: use a larger batch_size, "
                "or fewer discriminator_layers"
            )

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step (counted from 0)."""
        return self.lr * self.gamma ** sum(step >= milestone for milestone in self.milestones)

    @property
    def heatmaps(self) -> HeatmapFormat:
        """What the heatmaps are like."""
        return HeatmapFormat(
            size=self.model.size,
            sigma=self.sigma,
            projection=self.projection,
            cameras=tuple(Camera(azimuth) for azimuth in self.azimuths),
        )


def settings_of(folder: Path) -> HeatmapTrainConfig:
    """The settings that a model was trained with, read back from its folder.

    Args:
        folder: a run folder, a checkpoint in one, or any with a ``config.json``; of a model that was saved without
            the settings of a training, those of heatmaps as they are by default.

    Raises:
        UserError: ``config.json`` is missing or damaged, or of another version.
    """
    values = pretrained.read_config(folder)
    source = str(folder / pretrained.CONFIG)
    model = HeatmapVQGANConfig.from_dict(values, source)
    stored = values.get("training") or {"loss": {"factor": 0.0}}
    if not isinstance(stored, dict):
        raise UserError(f"{source}: training must be an object of settings, got {type(stored).__name__}")
    training: dict[str, Any] = dict(stored)
    unknown = sorted(set(training) - {entry.name for entry in dataclasses.fields(HeatmapTrainConfig)})
    if unknown:
        raise UserError(f"{source} has settings that this version of fastvq does not know: {', '.join(unknown)}")
    training = {name: tuple(value) if isinstance(value, list) else value for name, value in training.items()}
    try:
        loss = AdversarialWeights(**training.pop("loss", {}))
    except TypeError as error:
        raise UserError(f"{source} has a loss that this version of fastvq does not know ({error})") from error
    try:
        return HeatmapTrainConfig(**{**training, "model": model, "loss": loss})
    except (UserError, TypeError) as error:  # a number where there must be several is a TypeError
        raise UserError(f"{source}: {error}") from error


@dataclass(frozen=True)
class HeatmapRunResult:
    """What a run came to.

    Attributes:
        out: the run folder.
        step: steps done, those before a resume included.
        interrupted: stopped by Ctrl-C or a termination signal before ``config.steps``.
        seconds: of this process's training loop.
        clips: of the train split that are long enough.
        metrics: the last row of ``metrics.jsonl`` that this process wrote; empty if none.
        model: the trained model, in evaluation mode.
    """

    out: Path
    step: int
    interrupted: bool
    seconds: float
    clips: int
    metrics: dict[str, Any] = field(repr=False)
    model: HeatmapVQGAN = field(repr=False)


def train_heatmaps(
    config: HeatmapTrainConfig,
    clips: Sequence[Clip],
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    perceptual: Perceptual | None = None,
) -> HeatmapRunResult:
    """Trains on the clips whose split is "train" and writes a run folder.

    In every step the model moves first, then the discriminator, shown the reconstruction that the model was moved by.
    A run that was stopped and is resumed ends with the weights, bit for bit, of one that was not. Several processes
    share every batch as :func:`fastvq.models.training.trainer.train` tells; they agree on the adaptive weight.

    Args:
        config: all settings.
        clips: motions at ``config.fps``, such as :func:`fastvq.models.training.heatmap_data.prepare_joints` gives.
        out: the run folder.
        resume: go on from the newest checkpoint in ``out``; from the start where there is none.
        console: shows progress; None is silent.
        perceptual: :class:`~fastvq.models.training.perceptual.GradientDifference` if absent; a resumed run needs the
            same again, which is not checked.

    Raises:
        UserError: no clip is long enough, and what :meth:`fastvq.models.training.loop.TrainingLoop.go` raises.
    """
    clips = [clip for clip in clips if clip.split == "train"]
    with workplace(out, resume=resume, console=console) as place:
        run = _HeatmapRun(config, clips, place, perceptual)
        ended = run.go(resume=resume)
    return HeatmapRunResult(
        out=run.folder.path,
        step=run.step,
        interrupted=ended.interrupted,
        seconds=ended.seconds,
        clips=len(run.sampler.clips),
        metrics=ended.row,
        model=run.model.eval(),
    )


class _StepResult(NamedTuple):
    generator: GeneratorLosses
    discriminator: Tensor
    indices: Tensor


class _HeatmapRun(TrainingLoop):
    """The state of a run between steps."""

    config: HeatmapTrainConfig
    model: HeatmapVQGAN

    def __init__(
        self,
        config: HeatmapTrainConfig,
        clips: Sequence[Clip],
        place: Workplace,
        perceptual: Perceptual | None,
    ) -> None:
        super().__init__(config, place, fingerprint_joints(clips))
        self.sampler = JointWindowSampler(
            clips,
            frames=config.model.frames,
            batch_size=config.batch_size,
            seed=config.seed,
            stretch=config.stretch,
            random_scores=config.random_scores,
            part=self.processes.part(config.batch_size),
        )
        self.format = config.heatmaps
        self.perceptual = GradientDifference() if perceptual is None else perceptual
        torch.manual_seed(config.seed)
        self.model = HeatmapVQGAN(config.model).to(self.device).train()
        self.model.set_checkpointing(config.checkpointing)
        self.optimizer = self._adam(self.model)
        self.discriminator: PatchDiscriminator3d | None = None
        if config.loss.factor:
            self.discriminator = PatchDiscriminator3d(
                config.model.in_channels, width=config.discriminator_width, layers=config.discriminator_layers
            ).to(self.device)
            self.judge_optimizer = self._adam(self.discriminator)
        self._reset()

    def _adam(self, module: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(module.parameters(), lr=self.config.lr, betas=self.config.betas)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        if self.discriminator is None:
            return {"optimizer": self.optimizer}
        return {"optimizer": self.optimizer, "discriminator_optimizer": self.judge_optimizer}

    def other_modules(self) -> dict[str, nn.Module]:
        return {} if self.discriminator is None else {"discriminator": self.discriminator}

    def advance(self) -> _StepResult:
        """One step of the model, then one of the discriminator."""
        weights = self.config.loss
        for optimizer in self.optimizers().values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate(self.step)
        joints, scores = self.sampler.batch(self.step)
        heatmaps = self.format.render(joints.to(self.device), None if scores is None else scores.to(self.device))
        judge = self.discriminator if weights.takes_part(self.step) else None
        result = self._reconstruct(heatmaps)
        with self._mixed():
            losses = generator_losses(
                result,
                heatmaps,
                self.model.last_weight,
                weights,
                discriminator=judge,
                perceptual=self.perceptual,
                mean=self.processes.mean,
            )
        losses.total.backward()
        self.average(self.model.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()
        judged = losses.total.new_zeros(())
        if judge is not None:
            with self._mixed():
                judged = discriminator_loss(judge, result.heatmaps, heatmaps, weights)
            judged.backward()
            self.average(judge.parameters())
            self.judge_optimizer.step()
            self.judge_optimizer.zero_grad()
        self.step += 1
        total = losses._replace(total=losses.total.detach())
        return _StepResult(total, judged.detach(), result.indices)

    def _reconstruct(self, heatmaps: Tensor) -> HeatmapReconstruction:
        """The model's forward pass, its convolutions in 16 bits where that is asked for."""
        with self._mixed():
            latents = self.model.latents(heatmaps)
        quantized, indices, loss = self.model.quantizer(latents)
        with self._mixed():
            return HeatmapReconstruction(self.model.heatmaps(quantized).float(), indices, loss)

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16")

    def _reset(self) -> None:
        self.sums = torch.zeros(len(GeneratorLosses._fields) + 1, device=self.device)
        self.counts = torch.zeros(1, self.config.model.codebook_size, dtype=torch.int64, device=self.device)
        self.since, self.steps = time.perf_counter(), 0

    def record(self, losses: _StepResult) -> None:
        """Takes a step into the next row."""
        self.sums += self.share * torch.stack([*losses.generator, losses.discriminator])
        self.counts += metrics.code_counts(losses.indices.unsqueeze(-1), self.config.model.codebook_size)
        self.steps += 1

    def row(self) -> dict[str, Any]:
        """Means over the steps since the last row; perplexity and utilisation are those of all their codes."""
        values = (self.processes.sum_(self.sums) / self.steps).tolist()
        self.processes.sum_(self.counts)
        names = ("loss", *GeneratorLosses._fields[1:], "discriminator")
        row = {
            "step": self.step,
            **dict(zip(names, values, strict=True)),
            "perplexity": float(metrics.perplexity(self.counts).mean()),
            "utilisation": float(metrics.utilisation(self.counts).mean()),
            "lr": self.config.learning_rate(self.step - 1),
            "steps_per_second": self.steps / (time.perf_counter() - self.since),
        }
        self._reset()
        return row
