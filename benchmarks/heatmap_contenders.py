"""What takes part in the benchmark of a training step of the heatmap VQ-GAN: its quantizer, a peer's, and none.

As :mod:`fastvq.benchmarks.training_contenders`, of the model that quantizes volumes: the step is that of
``fastvq train heatmap-vqgan``, with the discriminator from the first step on. vector-quantize-pytorch takes part with
a codebook that learns by gradients, as the model's does; its loss weighs codes and latents alike, at the same cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

import fastvq
from fastvq import Quantized
from fastvq.benchmarks.nearest import excess
from fastvq.benchmarks.peers import VQP, installed
from fastvq.benchmarks.timing import Timing
from fastvq.benchmarks.training_contenders import CPU, OURS, WITHOUT, Setup, sum_of
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.nn.patch_discriminator import PatchDiscriminator3d
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapReconstruction, HeatmapVQGAN, HeatmapVQGANConfig
from fastvq.models.training.adversarial import AdversarialWeights, discriminator_loss, generator_losses
from fastvq.models.training.heatmap_data import JointWindowSampler, prepare_joints
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig
from fastvq.models.training.sections import SectionTimer

PEER = VQP
SECTIONS = ("data", "encoder", "quantizer", "decoder", "losses", "backward", "optimizer", "discriminator")


def heatmap_setups() -> list[Setup]:
    """Who takes part; the peer only where it is installed."""
    peers = [Setup(PEER)] if installed(VQP) else []
    return [Setup(), Setup(WITHOUT), *peers, Setup(lever="bf16", precision="bf16")]


def heatmap_settings(frames: int, size: int, batch_size: int) -> HeatmapTrainConfig:
    """The published recipe, with the discriminator from the first step on, for windows of other sizes."""
    return HeatmapTrainConfig(
        model=HeatmapVQGANConfig(frames=frames, size=size),
        loss=AdversarialWeights(start=0),
        batch_size=batch_size,
    )


def heatmap_clips(config: HeatmapTrainConfig) -> list[Clip]:
    """Made-up motions, always the same."""
    return prepare_joints(generate_clips(20, seed=0), fps=config.fps, least=config.stretch[0])


class NoVolumeQuantizer(nn.Module):
    """Hands latents on as they are."""

    def forward(self, x: Tensor) -> Quantized:
        """x -> x, no codes, no loss."""
        return Quantized(x, torch.zeros(x[:, 0].shape, dtype=torch.int64), x.new_zeros(()))


class PeerVolumeQuantizer(nn.Module):
    """vector-quantize-pytorch on volumes, under our calling convention."""

    def __init__(self, config: HeatmapVQGANConfig) -> None:
        super().__init__()
        import vector_quantize_pytorch as peer

        self.inner = peer.VectorQuantize(
            config.code_dim,
            config.codebook_size,
            accept_3d_fmap=True,
            learnable_codebook=True,
            ema_update=False,
            commitment_weight=1.0,
            rotation_trick=False,  # gradients straight through, as in ours
        )

    def forward(self, x: Tensor) -> Quantized:
        """Quantizes (B, C, T, H, W)."""
        quantized, indices, loss = self.inner(x)
        return Quantized(quantized, indices, loss.squeeze())


class HeatmapContender:
    """A model and its discriminator with their optimizers, trained step after step.

    Args:
        setup: quantizer and precision.
        config: of the training.
        clips: what it learns from.
    """

    def __init__(self, setup: Setup, config: HeatmapTrainConfig, clips: Sequence[Clip]) -> None:
        self.setup, self.config = setup, config
        self.sampler = JointWindowSampler(
            clips,
            frames=config.model.frames,
            batch_size=config.batch_size,
            seed=config.seed,
            stretch=config.stretch,
            random_scores=config.random_scores,
        )
        torch.manual_seed(config.seed)
        self.model = HeatmapVQGAN(config.model).train()
        self.judge = PatchDiscriminator3d(
            config.model.in_channels, width=config.discriminator_width, layers=config.discriminator_layers
        )
        if setup.quantizer != OURS:
            other = NoVolumeQuantizer() if setup.quantizer == WITHOUT else PeerVolumeQuantizer(config.model)
            self.model.quantizer = cast(fastvq.VectorQuantize, other)
        self.optimizers = [
            torch.optim.Adam(module.parameters(), lr=config.lr, betas=config.betas)
            for module in (self.model, self.judge)
        ]
        self.timer = SectionTimer(True, CPU)
        self.number = 0

    def heatmaps(self) -> Tensor:
        """The windows of the step in hand."""
        joints, scores = self.sampler.batch(self.number)
        return self.config.heatmaps.render(joints, scores)

    def advance(self) -> Tensor:
        """One step of both; the generator's loss."""
        timer, model, weights = self.timer, self.model, self.config.loss
        with timer.section("data"):
            heatmaps = self.heatmaps()
        with timer.section("encoder"), self._mixed():
            latents = model.latents(heatmaps)
        with timer.section("quantizer"):
            quantized, indices, loss = model.quantizer(latents)
        with timer.section("decoder"), self._mixed():
            result = HeatmapReconstruction(model.heatmaps(quantized).float(), indices, loss)
        with timer.section("losses"), self._mixed():  # two passes back to the last layer among them
            losses = generator_losses(result, heatmaps, model.last_weight, weights, discriminator=self.judge)
        timer.split_backward(quantized, "decoder_backward")
        timer.split_backward(latents, "quantizer_backward")
        with timer.section("backward"), timer.backward("encoder_backward"):
            losses.total.backward()
        with timer.section("discriminator"):
            with self._mixed():
                judged = discriminator_loss(self.judge, result.heatmaps, heatmaps, weights)
            judged.backward()
        with timer.section("optimizer"):
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        self.number += 1
        return losses.total.detach()

    def passes(self, last: int) -> dict[str, Timing]:
        """Its last steps by pass, as :meth:`fastvq.benchmarks.training_contenders.Contender.passes` names them."""
        seconds = {name: values[-last:] for name, values in self.timer.seconds.items()}
        found = {}
        if self.setup.quantizer != WITHOUT:
            found["quantizer"] = sum_of(seconds["quantizer"], seconds["quantizer_backward"])
        for name in SECTIONS:
            found[f"train-step:{name}"] = sum_of(seconds[name])
        for name in ("decoder", "quantizer", "encoder"):
            found[f"train-step-backward:{name}"] = sum_of(seconds[f"{name}_backward"])
        return found

    def wrong_codes(self) -> int:
        """How many rows of a batch get a code that is not the nearest."""
        with torch.no_grad():
            latents = self.model.latents(self.heatmaps())
            indices = self.model.quantizer.encode(latents)
        rows = latents.movedim(1, -1).reshape(1, -1, latents.shape[1])
        return excess(rows, self.model.quantizer.codebook.detach().unsqueeze(1), indices.reshape(1, -1, 1))

    def _mixed(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.setup.precision == "bf16")
