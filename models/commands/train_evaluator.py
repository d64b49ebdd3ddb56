"""``fastvq train-evaluator``: what an FID is taken from, trained on one's own motions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastvq.models.commands import common
from fastvq.models.commands.options import TrainEvaluator
from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluator import CONFIG, SMALL, EvaluatorConfig, MotionTextEvaluator
from fastvq.models.motion.feature_formats import format_of
from fastvq.models.tokenizers import pretrained
from fastvq.models.training.data import FeatureClip
from fastvq.models.training.evaluator import SHORT, EvaluatorTraining, train_evaluator

KEPT = "training.pt"
FILES = (CONFIG, pretrained.SAFETENSORS, pretrained.MEAN, pretrained.STD, KEPT)


def run(command: TrainEvaluator) -> int:
    """Trains; returns the exit code."""
    console = common.make_console()
    training = dataclasses.replace(
        SHORT if command.small else EvaluatorTraining(),
        seed=command.seed,
        **_given(command, "movement_steps", "match_steps", "lr"),
    )
    sizes = {
        **(SMALL if command.small else {}),
        **_given(command, "movement_hidden", "movement_dim", "motion_hidden", "text_hidden", "embedding_dim"),
    }
    config = EvaluatorConfig(input_dim=command.input_dim, window=command.window, stride=command.stride, **sizes)
    kept_in = command.out / KEPT
    _check_folder(command.out, overwrite=command.overwrite, resume=command.resume)
    device = common.choose_device(command.device)
    form = format_of(command.input_dim)
    read = common.read_clips(command.data, console, fps=form.fps, mapping=command.mapping, scale=command.scale)
    clips = common.prepare(read, console, fps=form.fps, form=form)
    name = command.name or command.data.resolve().name
    try:
        evaluator, facts = train_with_bar(
            config, clips, console, data=name, training=training, device=device, kept_in=kept_in
        )
    except KeyboardInterrupt:
        console.print(f"Stopped; the training is kept in {kept_in}. The same command with --resume goes on.")
        return 130
    evaluator.save(command.out, facts)  # in place of what was kept
    print_facts(facts, console)
    console.print(f"Evaluator: {command.out}", markup=False)
    return 0


def _given(command: TrainEvaluator, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(command, name)) is not None}


def train_with_bar(
    config: EvaluatorConfig,
    clips: Sequence[FeatureClip],
    console: Console,
    *,
    data: str,
    training: EvaluatorTraining,
    device: torch.device | None = None,
    kept_in: Path | None = None,
) -> tuple[MotionTextEvaluator, dict[str, Any]]:
    """:func:`fastvq.models.training.evaluator.train_evaluator` with a progress bar."""
    with common.progress_bar(console, "training the evaluator") as bar:
        task = bar.add_task("evaluator", total=None, name="")
        return train_evaluator(
            config,
            clips,
            data=data,
            training=training,
            device=device,
            kept_in=kept_in,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def print_facts(facts: Mapping[str, Any], console: Console) -> None:
    """What was learnt, and how well motions of the test split and descriptions find each other."""
    console.print(
        f"Evaluator: {facts['descriptions']} descriptions of {facts['clips']} clips, "
        f"{facts['movement_steps']} and {facts['match_steps']} steps, {facts['seconds']:.0f} s"
    )
    test = facts["test"]
    if test:
        console.print(
            f"Of 32 descriptions the nearest to a test motion is its own {test['top1']:.0%} of the time (one of the "
            f"nearest three {test['top3']:.0%}); by chance {test['chance_top1']:.0%}."
        )


def _check_folder(path: Path, *, overwrite: bool, resume: bool) -> None:
    held = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    strangers = sorted(name for name in held - set(FILES) if not name.endswith(".partial"))
    if (overwrite or resume) and strangers:
        raise UserError(
            f"the folder {path} holds {strangers[0]}, which is no part of an evaluator, and is left alone: choose "
            "another folder"
        )
    if resume and KEPT not in held:
        raise UserError(f"{path} keeps no training to go on with: leave out --resume")
    if KEPT in held and not (overwrite or resume):
        raise UserError(f"{path} keeps a training that was stopped: add --resume, or --overwrite to start anew")
    common.check_new_folder(path, overwrite=overwrite or resume)
    try:  # now, rather than after hours of training
        path.parent.mkdir(parents=True, exist_ok=True)
        if KEPT in held and not resume:
            (path / KEPT).unlink()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}): choose another place or make room"
        ) from error
