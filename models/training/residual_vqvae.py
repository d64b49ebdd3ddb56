"""The training of a :class:`~fastvq.models.tokenizers.residual_vqvae.ResidualVQVAE`: its loss and its recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvq.models.motion.feature_formats import FeatureFormat, format_of
from fastvq.models.tokenizers.residual_vqvae import ResidualVQVAEConfig
from fastvq.models.training.config import TrainConfig
from fastvq.models.training.losses import LossTerms, Pair, frame_mean


@dataclass(frozen=True)
class ResidualLossWeights(LossTerms):
    """Weights of the smooth-L1 terms of T2M-HiFiGPT; the paper names them, the numbers are those usual for motion."""

    reconstruction: float = 1.0
    """All features, normalised."""
    velocity: float = 0.5
    """Their differences from frame to frame (T2M-GPT, Zhang et al. 2023, section 3.1)."""
    bone: float = 0.1
    """Lengths of the bones, in metres."""

    def terms(self, motion: Pair, mask: Tensor | None) -> Tensor:
        """(3,) means over the real frames."""
        errors = F.smooth_l1_loss(motion.reconstruction, motion.target, reduction="none")
        form = format_of(motion.target.shape[-1])
        given, wanted = (bone_lengths(motion.denormalise(x), form) for x in (motion.reconstruction, motion.target))
        bones = F.smooth_l1_loss(given, wanted, reduction="none")
        values = [frame_mean(errors, mask), motion.step_errors(slice(None), mask), frame_mean(bones, mask)]
        return torch.stack([value.mean() for value in values])


def bone_lengths(features: Tensor, form: FeatureFormat) -> Tensor:
    """Lengths of the bones in the joint positions that features hold.

    Args:
        features: (..., C), not normalised.
        form: what they are.

    Returns:
        (..., J - 1) metres.
    """
    joints = features[..., form.slices["joint_position"]].unflatten(-1, (-1, 3))
    if "root_height" in form.slices:  # positions that leave the root out, which stands above the origin
        joints = torch.cat([F.pad(features[..., form.slices["root_height"]], (1, 1)).unsqueeze(-2), joints], dim=-2)
    return torch.linalg.vector_norm(joints[..., 1:, :] - joints[..., list(form.parents[1:]), :], dim=-1)


@dataclass(frozen=True)
class ResidualTrainConfig(TrainConfig):
    """Settings of the training; what the paper leaves open is as in T2M-GPT."""

    model: ResidualVQVAEConfig = field(default_factory=ResidualVQVAEConfig)
    loss: ResidualLossWeights = field(default_factory=ResidualLossWeights)
    batch_size: int = 256
    """Windows per step."""
    milestones: tuple[int, ...] = (200_000,)
    """Steps after which the learning rate is multiplied by gamma."""
    decay_warmup: bool = True
    """Codebooks' moving averages begin with a short memory: a deviation, without which latents that grow faster than
    the averages follow share a few codes for the first hundred steps."""
