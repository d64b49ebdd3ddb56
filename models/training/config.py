"""All settings of a training run, as one dataclass that the command line and the run folder share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from fastvq.models.errors import UserError
from fastvq.models.nn.conv import ConvImplementation
from fastvq.models.tokenizers.config import MotionVQVAEConfig, TokenizerConfig, check_integer, check_number
from fastvq.models.tokenizers.saved_config import SavedConfig
from fastvq.models.training.losses import LossTerms, LossWeights

Precision = Literal["fp32", "bf16"]
ShortClips = Literal["skip", "pad"]

# Settings that a resumed run may change: none of them moves the weights at a given step.
RESUMABLE = ("steps", "checkpoint_every", "keep_checkpoints", "log_every", "profile_sections")


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it trains.

    Raises:
        UserError: a value that no run can have, naming it.
    """

    model: SavedConfig = field(default_factory=MotionVQVAEConfig)
    steps: int = 300_000
    """Optimizer steps."""
    batch_size: int = 128
    """Windows per step."""
    lr: float = 2e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Moments of the optimizer."""
    precision: Precision = "fp32"
    """bf16 runs the convolutions under autocast; weights, codebooks and losses stay float32."""
    seed: int = 0
    """Seed of weights, windows and codebook initialisation."""
    checkpoint_every: int = 5000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay."""
    log_every: int = 50
    """Steps between rows of metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "keep_checkpoints", "log_every"):
            check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_number("lr", self.lr, 0, above=True)
        if len(self.betas) != 2:
            raise UserError(f"betas must be two numbers, got {self.betas!r}")
        for beta in self.betas:
            check_number("betas", beta, 0, 1, below=True)
        check_choice("precision", self.precision, get_args(Precision))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    def check_resumes(self, earlier: Mapping[str, Any]) -> None:
        """Compares with the settings that a run was started with, as :meth:`to_dict` gave them.

        A setting that did not exist then was at what is its default now.

        Raises:
            UserError: settings differ that a resumed run may not change, naming them.
        """
        mine, theirs = flat(self.to_dict()), {**flat(type(self)().to_dict()), **flat(earlier)}
        changed = [
            f"{name} (was {theirs.get(name)!r}, is {mine.get(name)!r})"
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name) and name not in RESUMABLE
        ]
        if changed:
            raise UserError(f"cannot resume with other settings: {', '.join(changed)}; start a new run instead")


@dataclass(frozen=True)
class ScheduledConfig(RunConfig):
    """A run of AdamW whose learning rate rises linearly, then falls in steps.

    Raises:
        UserError: a value that no run can have, naming it.
    """

    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    warmup: int = 1000
    """Steps over which the learning rate rises linearly."""
    milestones: tuple[int, ...] = ()
    """Steps after which the learning rate is multiplied by gamma."""
    gamma: float = 0.05
    """Factor of the learning rate at each milestone."""
    grad_clip: float | None = None
    """Largest norm of the gradient; no limit if absent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("warmup", self.warmup, 0)
        check_number("gamma", self.gamma, 0, 1, above=True)
        check_number("weight_decay", self.weight_decay, 0)
        for milestone in self.milestones:
            check_integer("milestones", milestone, 1)
        if self.grad_clip is not None:
            check_number("grad_clip", self.grad_clip, 0, above=True)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step (counted from 0): linear warm-up, then times gamma at each milestone."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.lr * warm * self.gamma ** sum(step >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class TrainConfig(ScheduledConfig):
    """A run of :func:`fastvq.models.training.trainer.train`; the defaults are the
    multi-group motion VQ-VAE's published recipe, and other kinds have theirs in a subclass.

    Raises:
        UserError: a value that no run can have, naming it.
    """

    model: TokenizerConfig = field(default_factory=MotionVQVAEConfig)
    loss: LossTerms = field(default_factory=LossWeights)
    start_from: str | None = None
    """A run or saved model whose weights, codebooks and feature statistics training starts from."""
    window: int = 64
    """Frames of a window."""
    short_clips: ShortClips = "skip"
    """What becomes of clips that are shorter than the window: left out of training, or padded and masked."""
    mirror: bool = False
    """Show each window mirrored left to right with probability one half."""
    speeds: tuple[float, ...] = (1.0,)
    """Play each window at one of these speeds, drawn at random; 2 is twice as fast."""
    turn: bool = False
    """Turn each window about the vertical by a random angle."""
    milestones: tuple[int, ...] = (50_000, 400_000)
    """Steps after which the learning rate is multiplied by gamma."""
    decay_warmup: bool = False
    """Codebooks' moving averages begin with a short memory: at step t the decay is (1 + t) / (10 + t) or the model's,
    whichever is less."""
    conv: ConvImplementation = "auto"
    """Form of the convolutions; auto is taps for bf16 on a CPU, conv1d otherwise."""
    compile: bool = False
    """Compile encoder and decoder with torch.compile; without a compiler a line says so, and training goes on."""
    profile_sections: bool = False
    """Time the sections of a step; synchronises the device, so the run is slower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("window", self.window, self.model.downsample)
        if self.window % self.model.downsample:
            raise UserError(
                f"window must be a multiple of the {self.model.downsample} frames of a token, got {self.window}: "
                f"use {self.window // self.model.downsample * self.model.downsample}"
            )
        if not self.speeds:
            raise UserError("speeds must name at least one speed, got none: 1 is the recorded one")
        for speed in self.speeds:
            check_number("speeds", speed, 0.1, 10)
        check_choice("short_clips", self.short_clips, get_args(ShortClips))
        check_choice("conv", self.conv, get_args(ConvImplementation))

    def codebook_decay(self, step: int, decay: float) -> float:
        """The decay of the codebooks' moving averages at a step (counted from 0), ``decay`` in the long run."""
        return min(decay, (1 + step) / (10 + step)) if self.decay_warmup else decay


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, ``model.width`` and the like; tuples as lists, as JSON has them."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result.update(flat(value, f"{prefix}{name}."))
        else:
            result[prefix + name] = list(value) if isinstance(value, tuple) else value
    return result


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises a UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def fastest_precision(device: torch.device | None = None) -> Precision:
    """bf16 where the device multiplies it in hardware: a CPU with AVX-512 BF16 or AMX, a GPU from Ampere on."""
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    if device.type == "cpu":
        found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if found.get("avx512_bf16") or found.get("amx_bf16") else "fp32"
    return "fp32"
