"""What studies of all kinds share on the command line: the evaluator of their motions, and rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastvq.models.commands.options import Reproduce
from fastvq.models.commands.train_evaluator import print_facts, train_with_bar
from fastvq.models.evaluation.embedding import check_takes
from fastvq.models.evaluation.evaluator import (
    CONFIG,
    SMALL,
    EvaluatorConfig,
    MotionTextEvaluator,
    load_evaluator,
    read_facts,
)
from fastvq.models.evaluation.official_evaluator import open_evaluator
from fastvq.models.training.data import FeatureClip, fingerprint
from fastvq.models.training.evaluator import SHORT


def evaluator_of(
    command: Reproduce, clips: Sequence[FeatureClip], input_dim: int, out: Path, console: Console
) -> tuple[MotionTextEvaluator | None, dict[str, Any]]:
    """The evaluator that was given, that of the data if it was trained before, or one that is trained now, and facts
    of its training; None where the motions have no descriptions to learn from."""
    if command.evaluator is not None:
        own, given = command.evaluator.is_dir(), open_evaluator(command.evaluator)
        check_takes(given, input_dim)
        return given, read_facts(command.evaluator)["training"] if own else {}
    if len({clip.text for clip in clips if clip.split == "train" and clip.text.strip()}) < 2:
        console.print("The motions have no descriptions, so that there is no evaluator and no FID.")
        return None, {}
    folder = out.parent / f"evaluator-{fingerprint(clips)[:8]}{'-quick' if command.quick else ''}"
    if not (folder / CONFIG).is_file():
        training = replace(SHORT, movement_steps=5, match_steps=5) if command.quick else SHORT
        data = "made-up motions" if command.data is None else command.data.resolve().name
        config = EvaluatorConfig(input_dim=input_dim, **SMALL)
        trained, facts = train_with_bar(config, clips, console, data=data, training=training)
        trained.save(folder, facts)
    console.print(f"Evaluator: {folder}", markup=False)
    learnt = read_facts(folder)["training"]
    print_facts(learnt, console)
    return load_evaluator(folder), learnt


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _short(row.get(name, "")) for name in columns} for row in rows)
    return text.getvalue()


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
