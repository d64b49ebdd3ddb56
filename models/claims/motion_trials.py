"""Runs of tokenizers of motion features, as ``fastvq.models.kinds`` lists them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fastvq.models.claims.trials import Ended
from fastvq.models.evaluation.evaluate import evaluate
from fastvq.models.kinds import KINDS
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.config import TrainConfig, fastest_precision
from fastvq.models.training.data import FeatureClip, fingerprint
from fastvq.models.training.trainer import train

if TYPE_CHECKING:
    from fastvq.models.claims.study import Run, Study


class MotionTrials:
    """See :class:`fastvq.models.claims.trials.Trials`; clips are features as the runs' models take them."""

    metrics: Mapping[str, str] = {
        "mpjpe_mm": "joint error, mm",
        "pa_mpjpe_mm": "pose error, mm after Procrustes",
        "accel_error_mm": "acceleration error, mm/frame²",
        "recon_smooth_l1": "smooth L1",
        "foot_skate": "foot skate, share of frames",
        "bone_drift_mm": "bone drift, mm",
        "fid": "FID (fastvq evaluator)",
        "top1": "Top-1 (fastvq evaluator)",
        "perplexity": "perplexity",
        "utilisation": "utilisation",
    }
    originals: Mapping[str, str] = {"foot_skate": "foot_skate_original", "top1": "original_top1"}
    measured = "Feet skate that move at more than 0.5 m/s below 5 cm."

    def config(self, study: Study, run: Run, *, seed: int, steps: int, width: int) -> TrainConfig:
        """The short recipe warms up over a twentieth of the steps and lowers the rate fourfold after 70 % and 90 %.

        Raises:
            UserError: settings that no run can have.
        """
        kind = KINDS[run.kind]
        model = kind.tokenizer.config_class(**{"width": width, "output_dim": width, **study.model, **run.model})
        values: dict[str, Any] = {
            "batch_size": 32,
            "lr": 1e-3,
            "gamma": 0.25,
            "warmup": steps // 20,
            "milestones": (7 * steps // 10 + 1, 9 * steps // 10 + 1),
            "mirror": True,
            "short_clips": "pad",
            "precision": fastest_precision(),
            "checkpoint_every": steps,
            "keep_checkpoints": 1,
            **study.training,
            **run.training,
        }
        if "loss" in values:
            values["loss"] = dataclasses.replace(kind.training().loss, **values["loss"])
        return kind.training(**{**values, "model": model, "steps": steps, "seed": seed})

    def fingerprint(self, clips: Sequence[FeatureClip]) -> str:
        """Of names, splits and features."""
        return fingerprint(clips)

    def train(
        self, config: TrainConfig, clips: Sequence[FeatureClip], folder: Path, *, resume: bool, console: Console
    ) -> Ended:
        """As :func:`fastvq.models.training.trainer.train`."""
        result = train(config, clips, folder, resume=resume, console=console)
        return Ended(result.model, result.interrupted)

    def measure(
        self, config: TrainConfig, model: MotionTokenizer, clips: Sequence[FeatureClip], streams: int | None
    ) -> dict[str, Any]:
        """:func:`fastvq.models.evaluation.evaluate.evaluate` with the first streams."""
        return evaluate(model, clips, streams=streams)

    def sizes(self, config: TrainConfig, streams: int | None) -> dict[str, Any]:
        """width, downsample and codes_per_second of a run."""
        model = config.model
        held = model.streams if streams is None else streams
        return {
            "width": model.width,
            "downsample": model.downsample,
            "codes_per_second": held * model.fps / model.downsample,
        }

    def fps(self, config: TrainConfig) -> float:
        """Frames a second."""
        return config.model.fps

    def seconds(self, config: TrainConfig, clip: FeatureClip) -> float:
        """How long a clip is."""
        return len(clip.features) / config.model.fps

    def recipe(self, config: TrainConfig) -> str:
        """The training in words."""
        return (
            f"{config.steps:,} steps of {config.batch_size} windows of {config.window} frames, width "
            f"{config.model.width}, {config.precision}, AdamW at {config.lr:g}"
        )

    def notes(self, config: TrainConfig, minutes: float) -> list[str]:
        """Why sizes differ from the paper's."""
        return [
            f"the published models were trained on HumanML3D or KIT-ML until they no longer improved; these on "
            f"{minutes:.1f} minutes for {config.steps:,} steps of {config.batch_size} windows, "
            f"with width {config.model.width}.",
            "published FIDs are those of the official evaluator, whose features ours does not have: only the "
            "direction and the ratio of two FIDs say anything beside them.",
        ]
