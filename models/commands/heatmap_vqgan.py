"""``fastvq train heatmap-vqgan``, and ``fastvq evaluate`` of what it made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from fastvq.models.commands import common
from fastvq.models.commands.options import Evaluate
from fastvq.models.commands.train_options import Train
from fastvq.models.errors import UserError
from fastvq.models.evaluation.heatmap_vqgan import evaluate_heatmaps
from fastvq.models.kinds import kind_of
from fastvq.models.motion.clip import Clip
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.config import check_integer
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGAN, HeatmapVQGANConfig
from fastvq.models.training.heatmap_data import prepare_joints
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig, settings_of, train_heatmaps
from fastvq.models.training.processes import Processes

# Frames times rows times columns that a model is given at once; more would only take memory.
MOST_PIXELS = 1 << 22
# Measured at the end of a training, evenly spread over the test split; finding joints takes long.
REPORT_WINDOWS = 256


def is_heatmap_model(checkpoint: str) -> bool:
    """Whether a folder, or a repository on the hub, holds a heatmap tokenizer.

    Raises:
        UserError: it is not there, or its ``config.json`` is missing or damaged.
    """
    return bool(kind_of(checkpoint) == HeatmapVQGANConfig.kind)


def load_model(checkpoint: str, device: str) -> tuple[HeatmapVQGAN, HeatmapTrainConfig]:
    """A trained heatmap tokenizer in evaluation mode, and the settings of its training.

    Raises:
        UserError: files are missing or damaged, or there is no such device.
    """
    chosen = common.choose_device(device)
    folder = pretrained.locate(checkpoint, files=(pretrained.CONFIG,))
    config = settings_of(folder)
    return HeatmapVQGAN.from_pretrained(folder).to(chosen), config


def windows_at_once(model: HeatmapVQGAN, wanted: int) -> int:
    """How many windows go through a model together: as many as wanted, but fewer of large ones.

    Raises:
        UserError: none are wanted.
    """
    if wanted < 1:
        raise UserError(f"--batch-size must be at least 1, got {wanted}")
    pixels = model.config.frames * model.config.size**2
    return max(1, min(wanted, MOST_PIXELS // pixels))


def train(command: Train, config: HeatmapTrainConfig, console: Console, processes: Processes) -> int:
    """Trains; returns the exit code."""
    clips = read_clips(command, console, config, least=config.stretch[0])
    held_out = [clip for clip in clips if clip.split == "test"]
    console.print(f"{len(clips)} clips: {sum(clip.split == 'train' for clip in clips)} train, {len(held_out)} test")
    if not command.resume:
        processes.on_main(partial(common.make_room_for_run, command.out, overwrite=command.overwrite))
    result = train_heatmaps(config, clips, command.out, resume=command.resume, console=console)
    processes.leave()
    if result.interrupted:
        folder = shlex.quote(str(command.out))
        console.print(
            f"Go on with: fastvq train {config.model.kind}{common.data_option(command)} --out {folder} --resume"
        )
        return 130
    if not processes.main:
        return 0
    long = [clip for clip in held_out if clip.frames >= config.model.frames]
    if long and not command.skip_report:
        evaluation = _evaluated(result.model, long, config, console, most_windows=REPORT_WINDOWS)
        common.write_json(command.out / "evaluation.json", {**evaluation, "split": "test"})
    elif not command.skip_report:
        console.print("There is no test clip as long as a window, so nothing was measured.")
    console.print(f"Model:  {command.out}", markup=False)
    return 0


def evaluate(command: Evaluate) -> int:
    """Evaluates; returns the exit code."""
    if command.evaluator is not None:
        raise UserError("--evaluator measures motions of the other kinds, not heatmaps: leave it out")
    if command.windows is not None:
        check_integer("--windows", command.windows, 1)
    console = common.make_console()
    model, config = load_model(command.checkpoint, command.device)
    split = None if command.split == "all" else command.split
    clips = read_clips(command, console, config, least=config.model.frames, split=split)
    result = _evaluated(
        model,
        clips,
        config,
        console,
        batch_size=windows_at_once(model, command.batch_size),
        most_windows=command.windows,
    )
    result["split"] = command.split
    if command.json is not None:
        common.write_json(command.json, result)
        console.print(f"Numbers: {command.json}", markup=False)
    return 0


class Source(Protocol):
    """Options that say where motions are."""

    @property
    def data(self) -> Path | None: ...
    @property
    def mapping(self) -> Path | None: ...
    @property
    def scale(self) -> float | None: ...


def read_clips(
    source: Source, console: Console, config: HeatmapTrainConfig, *, least: int, split: str | None = None
) -> list[Clip]:
    """Joints at a model's frame rate, cut where a body jumps; what was mapped, cut or left out is printed.

    Raises:
        UserError: no clip has as many frames as are needed.
    """
    if isinstance(source, Train):
        read = common.training_clips(source, console, fps=config.fps, seed=config.seed)
    else:
        assert source.data is not None
        read = common.read_clips(
            source.data, console, fps=config.fps, split=split, mapping=source.mapping, scale=source.scale
        )
    notes: list[str] = []
    clips = prepare_joints(read, fps=config.fps, least=least, notes=notes)
    common.print_notes(notes, console)
    if not clips:
        raise UserError(f"none of the {len(read)} clips has {least} frames without a jump: give longer motions")
    return clips


def _evaluated(
    model: HeatmapVQGAN,
    clips: Sequence[Clip],
    config: HeatmapTrainConfig,
    console: Console,
    *,
    batch_size: int = 4,
    most_windows: int | None = None,
) -> dict[str, Any]:
    with common.progress_bar(console, "evaluating") as bar:
        task = bar.add_task("evaluating", total=None, name="")
        found = evaluate_heatmaps(
            model,
            clips,
            config.heatmaps,
            batch_size=batch_size,
            most_windows=most_windows,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    other = "" if found["keypoint_px_other"] is None else f", {found['keypoint_px_other']:.2f} px in another window"
    rows = (
        ("SSIM", f"{found['ssim']:.4f}"),
        ("PSNR", f"{found['psnr']:.2f} dB"),
        ("L1", f"{found['l1']:.5f}"),
        ("T-Std", f"{found['t_std']:.4f}"),
        (
            "Joints",
            f"median {found['keypoint_px']:.2f} px, {found['keypoints_found']:.1%} found "
            f"({found['keypoint_px_original']:.2f} px in the heatmaps themselves{other})",
        ),
        (
            "Codes",
            f"perplexity {found['perplexity']:.0f} of {model.config.codebook_size}, {found['utilisation']:.1%} used",
        ),
    )
    console.print(f"{found['windows']} windows of {len(clips)} clips")
    for name, text in rows:
        console.print(f"  {name:<7} {text}", markup=False)
    return found
