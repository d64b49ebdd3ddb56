"""Losses of the adversarial VQ-GAN on heatmaps (2025, arXiv 2509.19252; VQ-GAN, Esser et al. 2021, section 3.1).

Generator: w_1 L1 + w_2 L2 + w_p perceptual + quantizer + f lambda g, with g = -mean D(fake). Discriminator: f / 2
(mean relu(1 - D(real)) + mean relu(1 + D(fake))). lambda = w_a |d rec / d last| / (|d g / d last| + 1e-4), at most
w_a 10^4, rec the first three terms, and the gradients those of the last layer's weight. f is 0 before the start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvq.models.tokenizers.config import check_integer, check_number
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapReconstruction
from fastvq.models.training.perceptual import GradientDifference, Perceptual

MOST_WEIGHT = 1e4


@dataclass(frozen=True)
class AdversarialWeights:
    """Weights of the terms; the defaults are those published for the views of a volume and for several cameras.

    Raises:
        UserError: a weight that is negative or no number.
    """

    l1: float = 1.0
    """Mean absolute difference."""
    l2: float = 0.0
    """Mean squared difference; 0 is published. Its gradient is that of the pixels that are wrong, while that of l1 is
    as large for nearly black ones as for missing limbs: short trainings get somewhere with this one."""
    foreground: float = 0.0
    """In l1 and l2 a pixel weighs 1 + foreground times how bright it should be; 0 is published. Heatmaps are nearly
    black, and a black picture is where short trainings otherwise stay."""
    perceptual: float = 1.0
    """Perceptual term."""
    adversarial: float = 0.8
    """Of the adversarial term beside the gradient of the first two."""
    factor: float = 1.0
    """Of all that has to do with the discriminator; 0 trains without one, 0.5 is published for a single camera."""
    start: int = 2000
    """Step from which the discriminator takes part; 24000 is published for a single camera."""

    def __post_init__(self) -> None:
        for name in ("l1", "l2", "foreground", "perceptual", "adversarial", "factor"):
            check_number(f"loss.{name}", getattr(self, name), 0)
        check_integer("loss.start", self.start, 0)

    def takes_part(self, step: int) -> bool:
        """Whether the discriminator is trained, and heard, at a step (counted from 0)."""
        return self.factor > 0 and step >= self.start


class GeneratorLosses(NamedTuple):
    """What :func:`generator_losses` returns; all scalars, detached but for the total.

    Attributes:
        total: to minimise.
        l1, perceptual, quantizer: unweighted terms.
        adversarial: -mean D(fake), 0 where the discriminator takes no part.
        adversarial_weight: lambda, 0 where the discriminator takes no part.
    """

    total: Tensor
    l1: Tensor
    perceptual: Tensor
    quantizer: Tensor
    adversarial: Tensor
    adversarial_weight: Tensor


def generator_losses(
    result: HeatmapReconstruction,
    heatmaps: Tensor,
    last_weight: Tensor,
    weights: AdversarialWeights,
    *,
    discriminator: nn.Module | None = None,
    perceptual: Perceptual | None = None,
    mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> GeneratorLosses:
    """The loss of encoder, codes and decoder.

    Args:
        result: of the model, with gradient.
        heatmaps: (B, C, T, H, W), what it should be.
        last_weight: of the decoder's last layer.
        weights: of the terms.
        discriminator: (B, C, T, H, W) -> scores; None where it takes no part. Its weights get no gradients.
        perceptual: :class:`~fastvq.models.training.perceptual.GradientDifference` if absent.
        mean: of a gradient over the processes that share a batch.
    """
    perceptual = GradientDifference() if perceptual is None else perceptual
    fake = result.heatmaps.to(heatmaps.dtype)
    l1, looks = F.l1_loss(fake, heatmaps), perceptual(fake, heatmaps)
    reconstruction = weights.l1 * l1 + weights.perceptual * looks
    if weights.l2 or weights.foreground:
        error, bright = (fake - heatmaps).abs(), 1 + weights.foreground * heatmaps
        differences = weights.l1 * (error * bright).mean() + weights.l2 * (error.square() * bright).mean()
        reconstruction = differences + weights.perceptual * looks
    total = reconstruction + result.loss
    adversarial = weight = total.new_zeros(())
    if discriminator is not None:
        with _frozen(discriminator):
            adversarial = -discriminator(fake).float().mean()
        weight = weights.adversarial * adaptive_weight(reconstruction, adversarial, last_weight, mean)
        total = total + weights.factor * weight * adversarial
    return GeneratorLosses(total, *(x.detach() for x in (l1, looks, result.loss, adversarial, weight)))


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_weight: Tensor,
    mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """|d reconstruction / d last| / (|d adversarial / d last| + 1e-4), at most 10^4, detached.

    Processes that share a batch agree on it where ``mean`` gives the mean of a gradient over them.
    """
    grads = [torch.autograd.grad(x, last_weight, retain_graph=True)[0] for x in (reconstruction, adversarial)]
    norms = [gradient.norm() for gradient in mean(torch.stack(grads))]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, MOST_WEIGHT).detach()


def discriminator_loss(discriminator: nn.Module, fake: Tensor, real: Tensor, weights: AdversarialWeights) -> Tensor:
    """The hinge loss of the discriminator, a scalar.

    Args:
        discriminator: (B, C, T, H, W) -> scores.
        fake, real: (B, C, T, H, W); the first is detached here.
        weights: of the terms.
    """
    scores = [discriminator(x).float() for x in (real, fake.detach().to(real.dtype))]
    return weights.factor * 0.5 * (F.relu(1 - scores[0]).mean() + F.relu(1 + scores[1]).mean())


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Within the block what is computed has no gradients to the module's parameters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
