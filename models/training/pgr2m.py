"""The training of a :class:`~fastvq.models.tokenizers.pgr2m.PGR2MTokenizer`: its loss and its recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvq.models.motion.feature_formats import format_of
from fastvq.models.tokenizers.pgr2m import PGR2MConfig
from fastvq.models.training.config import TrainConfig, check_choice
from fastvq.models.training.losses import LossTerms, Pair, frame_mean

VelMode = Literal["positions", "velocities", "differences"]


@dataclass(frozen=True)
class PGR2MLossWeights(LossTerms):
    """Weights of PGR2M's smooth-L1 terms; the file with the paper's own is not public, and these are CoMo's."""

    reconstruction: float = 1.0
    """All features, normalised."""
    velocity: float = 0.5
    """What vel_mode says."""
    vel_mode: VelMode = "positions"
    """What the velocity term compares: positions of the joints (so does the published default, whatever its name),
    their velocities, or the differences of all features from frame to frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("loss.vel_mode", self.vel_mode, get_args(VelMode))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of the terms, in order."""
        return ("reconstruction", "velocity")

    def terms(self, motion: Pair, mask: Tensor | None) -> Tensor:
        """(2,) means over the real frames."""
        errors = frame_mean(F.smooth_l1_loss(motion.reconstruction, motion.target, reduction="none"), mask)
        if self.vel_mode == "differences":
            velocity = motion.step_errors(slice(None), mask)
        else:
            block = "joint_position" if self.vel_mode == "positions" else "joint_velocity"
            velocity = errors[format_of(len(errors)).slices[block]]
        return torch.stack([errors.mean(), velocity.mean()])


@dataclass(frozen=True)
class PGR2MTrainConfig(TrainConfig):
    """Settings of the training, the published ones (arXiv 2512.22464)."""

    model: PGR2MConfig = field(default_factory=PGR2MConfig)
    loss: PGR2MLossWeights = field(default_factory=PGR2MLossWeights)
    batch_size: int = 256
    """Windows per step."""
    lr: float = 1e-4
    """Learning rate of AdamW."""
    milestones: tuple[int, ...] = (200_000,)
    """Steps after which the learning rate is multiplied by gamma."""
    decay_warmup: bool = True
    """Averages of how much each code is used begin with a short memory: a deviation, without which codes that latents
    have grown away from are found too late to be replaced, and a stage falls to a fifth of its codes."""
