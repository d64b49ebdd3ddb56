"""The training of a :class:`~fastvq.models.tokenizers.pose_residual_vqvae.PoseResidualVQVAE`: its loss and recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvq.models.tokenizers.pose_residual_vqvae import PoseResidualVQVAEConfig
from fastvq.models.training.config import TrainConfig
from fastvq.models.training.losses import LossTerms, Pair, frame_mean


@dataclass(frozen=True)
class PoseLossWeights(LossTerms):
    """Weights of the smooth-L1 terms (2508.14561; the weight of the velocity is CoMo's)."""

    reconstruction: float = 1.0
    """All features, normalised."""
    velocity: float = 0.5
    """Their differences from frame to frame."""

    def terms(self, motion: Pair, mask: Tensor | None) -> Tensor:
        """(2,) means over the real frames."""
        errors = F.smooth_l1_loss(motion.reconstruction, motion.target, reduction="none")
        return torch.stack([frame_mean(errors, mask).mean(), motion.step_errors(slice(None), mask).mean()])


@dataclass(frozen=True)
class PoseResidualTrainConfig(TrainConfig):
    """Settings of the training; what the paper leaves open is as in CoMo and PGR2M."""

    model: PoseResidualVQVAEConfig = field(default_factory=PoseResidualVQVAEConfig)
    loss: PoseLossWeights = field(default_factory=PoseLossWeights)
    batch_size: int = 256
    """Windows per step."""
    lr: float = 1e-4
    """Learning rate of AdamW."""
    milestones: tuple[int, ...] = (200_000,)
    """Steps after which the learning rate is multiplied by gamma."""
    decay_warmup: bool = True
    """Codebooks' moving averages begin with a short memory: a deviation, without which latents that grow faster than
    the averages follow share a few codes for the first hundred steps."""
