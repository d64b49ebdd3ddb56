"""Runs of the heatmap VQ-GAN on joints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fastvq.models.claims.trials import Ended
from fastvq.models.evaluation.heatmap_vqgan import evaluate_heatmaps
from fastvq.models.motion.clip import Clip
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN, HeatmapVQGANConfig
from fastvq.models.training.adversarial import AdversarialWeights
from fastvq.models.training.config import fastest_precision
from fastvq.models.training.heatmap_data import fingerprint_joints
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig, train_heatmaps

if TYPE_CHECKING:
    from fastvq.models.claims.study import Run, Study

# Of the test split, evenly spread; joints are slow to find.
WINDOWS = 64


class HeatmapTrials:
    """See :class:`fastvq.models.claims.trials.Trials`; clips have joints at the frame rate of training."""

    metrics: Mapping[str, str] = {
        "ssim": "SSIM",
        "psnr": "PSNR, dB",
        "l1": "L1",
        "t_std": "T-Std",
        "keypoint_px": "joint distance, px (median)",
        "keypoint_px_other": "the same in another window",
        "keypoints_found": "joints found, share",
        "perplexity": "perplexity",
        "utilisation": "utilisation",
    }
    originals: Mapping[str, str] = {"keypoint_px": "keypoint_px_original"}
    measured = (
        f"Measured are {WINDOWS} windows, evenly spread over the split. Joints are looked for within 4 pixels of "
        "where they are, so that another pose does not do badly either; what that comes to stands beside it."
    )

    def config(self, study: Study, run: Run, *, seed: int, steps: int, width: int) -> HeatmapTrainConfig:
        """The short recipe: as few levels as the halvings need, at least two, the first of ``width`` channels and the
        others of twice as many; and Adam at 2e-3.

        Raises:
            UserError: settings that no run can have.
        """
        given = {**study.model, **run.model}
        levels = max(2, given.get("down_stages", HeatmapVQGANConfig.down_stages))
        model = {
            "channels": (width, *(2 * width,) * (levels - 1)),
            "latent_channels": 2 * width,
            "code_dim": 2 * width,
            "norm_groups": math.gcd(width, 8),
            **given,
        }
        values: dict[str, Any] = {
            "lr": 2e-3,
            "precision": fastest_precision(),
            "discriminator_width": width,
            "discriminator_layers": 2,
            "checkpoint_every": max(1, steps // 4),
            "keep_checkpoints": 1,
            **study.training,
            **run.training,
        }
        loss = {**study.training.get("loss", {}), **run.training.get("loss", {})}
        # As a share of the steps, since so few are taken.
        loss["start"] = int(loss.get("start", 0.5) * steps)
        values["loss"] = dataclasses.replace(AdversarialWeights(), **loss)
        return HeatmapTrainConfig(**{**values, "model": HeatmapVQGANConfig(**model), "steps": steps, "seed": seed})

    def fingerprint(self, clips: Sequence[Clip]) -> str:
        """Of names, splits and joints."""
        return fingerprint_joints(clips)

    def train(
        self, config: HeatmapTrainConfig, clips: Sequence[Clip], folder: Path, *, resume: bool, console: Console
    ) -> Ended:
        """As :func:`fastvq.models.training.heatmap_vqgan.train_heatmaps`."""
        result = train_heatmaps(config, clips, folder, resume=resume, console=console)
        return Ended(result.model, result.interrupted)

    def measure(
        self, config: HeatmapTrainConfig, model: HeatmapVQGAN, clips: Sequence[Clip], streams: int | None
    ) -> dict[str, Any]:
        """:func:`fastvq.models.evaluation.heatmap_vqgan.evaluate_heatmaps` of some windows, no more than steps."""
        long = [clip for clip in clips if clip.frames >= config.model.frames]
        return evaluate_heatmaps(model, long, config.heatmaps, most_windows=min(WINDOWS, config.steps))

    def sizes(self, config: HeatmapTrainConfig, streams: int | None) -> dict[str, Any]:
        """width, downsample and codes_per_second of a run."""
        model = config.model
        return {
            "width": model.channels[0],
            "downsample": model.downsample,
            "codes_per_second": math.prod(model.token_shape) * config.fps / model.frames,
        }

    def fps(self, config: HeatmapTrainConfig) -> float:
        """Frames a second."""
        return config.fps

    def seconds(self, config: HeatmapTrainConfig, clip: Clip) -> float:
        """How long a clip is."""
        return clip.frames / clip.fps

    def recipe(self, config: HeatmapTrainConfig) -> str:
        """The training in words."""
        model, channels = config.model, " ".join(map(str, config.model.channels))
        return (
            f"{config.steps:,} steps, batches of {config.batch_size}, windows of {model.frames} frames of "
            f"{model.size} x {model.size} pixels, sigma {config.sigma:g} px, channels {channels}, "
            f"{config.precision}, Adam at {config.lr:g}"
        )

    def notes(self, config: HeatmapTrainConfig, minutes: float) -> list[str]:
        """Why sizes differ from the paper's."""
        return [
            f"the published models were trained for ten epochs of CMU Panoptic on windows of 64 frames of 128 x 128 "
            f"pixels; these on {minutes:.1f} minutes of other motions for {config.steps:,} steps of "
            f"{'one window' if config.batch_size == 1 else f'{config.batch_size} windows'}.",
        ]
