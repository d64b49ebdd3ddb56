"""``fastvq reproduce``: a system's claims beside what training it here says of them."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastvq.models.claims.generator_study import GeneratorStudy
from fastvq.models.claims.runner import reproduce
from fastvq.models.claims.studies import study as find_study
from fastvq.models.claims.study import Study
from fastvq.models.claims.verdict import judge, markdown
from fastvq.models.commands import common, reproduce_generator
from fastvq.models.commands.claims_evaluator import csv_text, evaluator_of
from fastvq.models.commands.options import Reproduce
from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluate import evaluate
from fastvq.models.evaluation.evaluator import (
    MotionTextEvaluator,
    identity,
)
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.storage import write_text
from fastvq.models.tokenizers.config import check_integer
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.config import RunConfig, TrainConfig
from fastvq.models.training.data import FeatureClip
from fastvq.models.training.environment import device_name
from fastvq.models.training.heatmap_data import prepare_joints
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig

PROCEDURAL_CLIPS = 400
# Of --quick.
QUICK_CLIPS, QUICK_STEPS, QUICK_WIDTH = 40, 4, 16


def run(command: Reproduce) -> int:
    """Trains, measures and decides; returns the exit code."""
    study = find_study(command.system)
    if isinstance(study, GeneratorStudy):
        return reproduce_generator.run(command, study)
    if command.tokenizer is not None:
        raise UserError(f"--tokenizer is for studies of generators, and {study.name} trains tokenizers: leave it out")
    quick = command.quick
    steps = (QUICK_STEPS if quick else study.steps) if command.steps is None else command.steps
    width = (QUICK_WIDTH if quick else study.width) if command.width is None else command.width
    seeds = command.seeds or (study.seeds[:1] if quick else study.seeds)
    check_integer("--steps", steps, 2)
    check_integer("--width", width, 1)
    for seed in seeds:
        check_integer("--seeds", seed, 0, 2**63 - 1)
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds must differ, got {' '.join(map(str, seeds))}")
    out = Path("runs") / f"reproduce-{study.name}" if command.out is None else command.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder")
    console = common.make_console()
    config = study.config(study.runs[0], seed=seeds[0], steps=steps, width=width)
    motions = config if isinstance(config, TrainConfig) else None
    if command.evaluator is not None and motions is None:
        raise UserError(f"--evaluator measures motions, which {study.name} does not reconstruct: leave it out")
    clips = _clips(command, config, console)
    rows = []
    evaluator: MotionTextEvaluator | None = None
    learnt: dict[str, Any] = {}
    try:
        if motions is not None:
            evaluator, learnt = evaluator_of(command, clips, motions.model.input_dim, out, console)

        def measure(model: MotionTokenizer, held_out: Sequence[FeatureClip], streams: int | None) -> dict[str, Any]:
            return evaluate(model, held_out, streams=streams, evaluator=evaluator)

        for row in reproduce(
            study,
            clips,
            out,
            seeds=seeds,
            steps=steps,
            width=width,
            console=console,
            measure=None if motions is None else measure,
            measured_by=identity(evaluator) if evaluator else "",
        ):
            rows.append(row)
    except KeyboardInterrupt:
        console.print("The same command goes on from here.")
        return 130
    facts = _facts(command, study, clips, config, seeds)
    if evaluator is not None:
        facts["FID"] = _fid(evaluator, learnt, clips)
    notes = study.trials.notes(config, _minutes(study, clips, config, "train"))
    page = markdown(study, rows, facts, [*_quick(command), *notes])
    table, text = out / f"claims_{study.name}.csv", out / f"claims_{study.name}.md"
    write_text(table, csv_text(rows, study.columns()))
    write_text(text, page)
    _show(study, rows, console)
    for note in _quick(command):
        console.print(note)
    console.print(f"Table:  {text}\nRows:   {table}", markup=False)
    return 0


def _fid(evaluator: MotionTextEvaluator, learnt: Mapping[str, Any], clips: Sequence[FeatureClip]) -> str:
    """What the FIDs are, in words."""
    counts = [len(evaluator.windows(clip.features)) for clip in clips if clip.split == "test"]
    frames = evaluator.config.window
    text = (
        f"{evaluator.name}, {evaluator.config.embedding_dim} dimensions, over {sum(counts):,} "
        f"{f'overlapping windows of {frames} frames' if frames else 'whole clips'}, of the "
        f"{sum(map(bool, counts))} test clips that are long enough"
    )
    test = learnt.get("test") or {}
    if "top1" in test:
        text += (
            f"; of 32 descriptions it finds a test motion's own first {test['top1']:.0%} of the time "
            f"(by chance {test['chance_top1']:.0%})"
        )
    return text


def _clips(command: Reproduce, config: RunConfig, console: Console) -> list[Any]:
    """What the study's runs learn from: features of motions, or joints for heatmaps."""
    if command.data is None:
        console.print(
            "There is no --data: the motions are made up by a generator, and claims about people's are not tested."
        )
        made = generate_clips(QUICK_CLIPS if command.quick else PROCEDURAL_CLIPS, seed=0)
    if isinstance(config, HeatmapTrainConfig):
        read = made if command.data is None else common.read_clips(command.data, console, fps=config.fps)
        clips = prepare_joints(read, fps=config.fps, least=config.stretch[0])
        if not clips:
            raise UserError(f"none of the {len(read)} clips has {config.stretch[0]} frames: give longer motions")
        return clips
    assert isinstance(config, TrainConfig)
    if command.data is not None:
        return common.read_features(command.data, console, config.model)
    return common.prepare(made, console, fps=config.model.fps, form=config.model.features)


def _facts(
    command: Reproduce, study: Study, clips: Sequence[Any], config: RunConfig, seeds: Sequence[int]
) -> dict[str, str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = "made-up motions" if command.data is None else "motions"
    test = sum(clip.split == "test" for clip in clips)
    width = study.trials.sizes(config, None)["width"]
    words = ["fastvq", "reproduce", command.system, "--data", "MOTIONS"][: 3 if command.data is None else 5]
    words += ["--quick"] if command.quick else []
    words += ["--evaluator", "EVALUATOR"] if command.evaluator is not None else []
    words += ["--steps", str(config.steps), "--width", str(width), "--seeds", *map(str, seeds)]
    return {
        "Data": f"{len(clips)} {kind} at {study.trials.fps(config):g} frames a second, "
        f"{_minutes(study, clips, config):.1f} minutes; {test} of them are the test split, which is all that is "
        "measured and is never trained on",
        "Training": study.trials.recipe(config),
        "Machine": f"{device_name(device)}, {torch.get_num_threads()} "
        f"{'thread' if torch.get_num_threads() == 1 else 'threads'}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "Command": f"`{shlex.join(words)}`",
    }


def _quick(command: Reproduce) -> list[str]:
    """What is to be said of toy sizes."""
    return ["--quick only shows that everything runs: the verdicts mean nothing."] if command.quick else []


def _minutes(study: Study, clips: Sequence[Any], config: RunConfig, split: str | None = None) -> float:
    return sum(study.trials.seconds(config, clip) for clip in clips if split in (None, clip.split)) / 60


def _show(study: Study, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = Table(title=study.title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("claim")
    table.add_column("measured", no_wrap=True, justify="right")
    table.add_column("", no_wrap=True, style="bold")
    for claim in study.claims:
        verdict = judge(claim, rows)
        ends = [f"{figure:.4g}" for figure in (verdict.measured[:1] + verdict.measured[-1:])]
        table.add_row(claim.sentence, " → ".join(ends), verdict.outcome)
    console.print(table, soft_wrap=False)
