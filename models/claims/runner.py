"""Trains and measures the runs of a study; what its folder holds already is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastvq.models.claims.study import Run, Study, View
from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluate import evaluate
from fastvq.models.files import parse_json
from fastvq.models.storage import write_text
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.config import TrainConfig
from fastvq.models.training.data import FeatureClip, fingerprint
from fastvq.models.training.run_folder import RunFolder
from fastvq.models.training.trainer import train

FORMAT = "fastvq-claims-run/1"
# What is taken from an evaluation into the table, in its order; a metric that was not measured is left empty. A study
# names further ones.
METRICS = (
    "mpjpe_mm",
    "pa_mpjpe_mm",
    "accel_error_mm",
    "recon_smooth_l1",
    "foot_skate",
    "bone_drift_mm",
    "fid",
    "top1",
    "perplexity",
    "utilisation",
)
# Of the motions themselves, beside which that of what became of them stands.
ORIGINAL = {"foot_skate": "foot_skate_original", "top1": "original_top1"}
COLUMNS = (
    *("study", "run", "streams", "kind", "seed", "steps", "seconds", "width", "parameters", "downsample"),
    *("codes_per_second", "train_perplexity", *METRICS, *ORIGINAL.values()),
)
Row = dict[str, Any]
Measure = Callable[[MotionTokenizer, Sequence[FeatureClip], int | None], Mapping[str, Any]]


def plain_measure(model: MotionTokenizer, clips: Sequence[FeatureClip], streams: int | None) -> dict[str, Any]:
    """:func:`fastvq.models.evaluation.evaluate.evaluate` with the first streams."""
    return evaluate(model, clips, streams=streams)


def reproduce(
    study: Study,
    clips: Sequence[FeatureClip],
    out: Path,
    *,
    seeds: Sequence[int],
    steps: int,
    width: int,
    console: Console,
    measure: Measure = plain_measure,
    measured_by: str = "",
) -> Iterator[Row]:
    """Yields a row for each run, seed and view as soon as it is measured.

    Args:
        study: what to train and measure.
        clips: features as the runs' models take them; the split "train" is learnt from, "test" is measured.
        out: a folder; ``<run>_seed<seed>/`` is a run folder of the trainer, ``<run>_seed<seed>.json`` its rows.
        seeds, steps, width: of every run.
        console: shows progress.
        measure: an evaluation of a model on clips with its first streams.
        measured_by: names what ``measure`` depends on besides these, so that rows of another are not taken for these.

    Raises:
        UserError: no test clip, settings that cannot be, a run in ``out`` with other settings or data.
        KeyboardInterrupt: training was stopped; calling this again goes on.
    """
    held_out = [clip for clip in clips if clip.split == "test"]
    if not held_out:
        raise UserError("the data has no test split to measure claims on: give data that names one")
    data = fingerprint(clips)
    for seed in seeds:
        for run in study.runs:
            config = study.config(run, seed=seed, steps=steps, width=width)
            key = _key(config, run, data, [measured_by, *COLUMNS, *study.metrics])
            file = out / f"{run.name}_seed{seed}.json"
            rows = _read(file, key)
            if rows is None:
                console.print(f"{study.name} {run.name}, seed {seed}: {config.model.summary}, {steps:,} steps")
                rows = _rows(study, run, config, clips, held_out, out / f"{run.name}_seed{seed}", console, measure)
                write_text(file, json.dumps({"format": FORMAT, "key": key, "rows": rows}, indent=2) + "\n")
            yield from rows


def _rows(
    study: Study,
    run: Run,
    config: TrainConfig,
    clips: Sequence[FeatureClip],
    held_out: Sequence[FeatureClip],
    folder: Path,
    console: Console,
    measure: Measure,
) -> list[Row]:
    started = RunFolder(folder).last() is not None
    if started:
        try:
            config.check_resumes(RunFolder(folder).training_config())
        except UserError as error:
            raise UserError(f"{error}: choose another --out, or remove {folder}") from error
    result = train(config, clips, folder, resume=started, console=console)
    if result.interrupted:
        raise KeyboardInterrupt
    model, rows, log = result.model, [], _log(folder / "metrics.jsonl")
    for streams in run.streams:
        found = measure(model, held_out, streams)
        held = config.model.streams if streams is None else streams
        rows.append(
            {
                "study": study.name,
                "run": run.name,
                "streams": "all" if streams is None else streams,
                "kind": run.kind,
                "seed": config.seed,
                "steps": config.steps,
                "seconds": round(training_seconds(log), 1),
                "width": config.model.width,
                "parameters": sum(weight.numel() for weight in model.parameters()),
                "downsample": config.model.downsample,
                "codes_per_second": held * config.model.fps / config.model.downsample,
                # Of the last steps, by the run's own log; absent without learned codes.
                **({"train_perplexity": log[-1]["perplexity"]} if "perplexity" in log[-1] else {}),
                **{name: found[name] for name in (*METRICS, *ORIGINAL.values(), *study.metrics) if name in found},
            }
        )
    return rows


def _log(metrics: Path) -> list[Row]:
    return [parse_json(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def training_seconds(log: Sequence[Row]) -> float:
    """Seconds of a run's steps by the rows of its own log, those before a resume included, checkpoints not."""
    total, before = 0.0, 0
    for row in log:
        total += (row["step"] - before) / row["steps_per_second"]
        before = row["step"]
    return total


def view_of(row: Mapping[str, Any]) -> View:
    """The view that a row is of."""
    return View(row["run"], None if row["streams"] == "all" else int(row["streams"]))


def _key(config: TrainConfig, run: Run, data: str, measured_by: Sequence[str]) -> str:
    """Changes with everything that rows depend on."""
    parts = [config.to_dict(), config.model.kind, list(run.streams), data, list(measured_by)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(file: Path, key: str) -> list[Row] | None:
    """The rows that a file holds; None where there are none, or those of other settings, data or metrics."""
    if not file.is_file():
        return None
    try:
        values = parse_json(file.read_text(encoding="utf-8"))
        found: list[Row] = values["rows"]
        return found if values["format"] == FORMAT and values["key"] == key else None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): remove it, and the run is measured again") from error
