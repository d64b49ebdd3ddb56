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
from fastvq.models.training.data import FeatureClip
from fastvq.models.training.evaluator import SHORT, EvaluatorTraining, train_evaluator


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
    _check_folder(command.out, overwrite=command.overwrite)
    device = common.choose_device(command.device)
    form = format_of(command.input_dim)
    read = common.read_clips(command.data, console, fps=form.fps)
    clips = common.prepare(read, console, fps=form.fps, form=form)
    name = command.name or command.data.resolve().name
    evaluator, facts = train_with_bar(config, clips, console, data=name, training=training, device=device)
    evaluator.save(command.out, facts)
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


def _check_folder(path: Path, *, overwrite: bool) -> None:
    if not (overwrite and (path / CONFIG).is_file()):
        if overwrite and path.is_dir() and any(path.iterdir()):
            raise UserError(f"the folder {path} holds no evaluator, and is left alone: choose another folder")
        common.check_new_folder(path, overwrite=False)
    try:  # now, rather than after hours of training
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}): choose another place or make room"
        ) from error
