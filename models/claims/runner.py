"""Trains and measures the runs of a study; what its folder holds already is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastvq.models.claims.study import COLUMNS, Run, Study, View
from fastvq.models.errors import UserError
from fastvq.models.files import parse_json
from fastvq.models.storage import write_text
from fastvq.models.training.config import RunConfig
from fastvq.models.training.run_folder import RunFolder

FORMAT = "fastvq-claims-run/1"
Row = dict[str, Any]
Measure = Callable[[Any, Sequence[Any], int | None], Mapping[str, Any]]


def reproduce(
    study: Study,
    clips: Sequence[Any],
    out: Path,
    *,
    seeds: Sequence[int],
    steps: int,
    width: int,
    console: Console,
    measure: Measure | None = None,
    measured_by: str = "",
) -> Iterator[Row]:
    """Yields a row for each run, seed and view as soon as it is measured.

    Args:
        study: what to train and measure.
        clips: as the study's trials take them; the split "train" is learnt from, "test" is measured.
        out: a folder; ``<run>_seed<seed>/`` is a run folder of the trainer, ``<run>_seed<seed>.json`` its rows.
        seeds, steps, width: of every run; the first seeds only of a run that says so.
        console: shows progress.
        measure: an evaluation of a model on clips with its first streams; that of the trials if absent.
        measured_by: names what ``measure`` depends on besides these, so that rows of another are not taken for these.

    Raises:
        UserError: no test clip, settings that cannot be, a run in ``out`` with other settings or data.
        KeyboardInterrupt: training was stopped; calling this again goes on.
    """
    held_out = [clip for clip in clips if clip.split == "test"]
    if not held_out:
        raise UserError("the data has no test split to measure claims on: give data that names one")
    data = study.trials.fingerprint(clips)
    for number, seed in enumerate(seeds):
        for run in study.runs:
            if run.seeds is not None and number >= run.seeds:
                continue
            config = study.config(run, seed=seed, steps=steps, width=width)
            key = _key(config, run, data, [measured_by, *study.columns()])
            file = out / f"{run.name}_seed{seed}.json"
            rows = read_rows(file, key, FORMAT)
            if rows is None:
                console.print(f"{study.name} {run.name}, seed {seed}: {config.model.summary}, {steps:,} steps")
                rows = _rows(study, run, config, clips, held_out, out / f"{run.name}_seed{seed}", console, measure)
                write_text(file, json.dumps({"format": FORMAT, "key": key, "rows": rows}, indent=2) + "\n")
            yield from rows


def _rows(
    study: Study,
    run: Run,
    config: RunConfig,
    clips: Sequence[Any],
    held_out: Sequence[Any],
    folder: Path,
    console: Console,
    measure: Measure | None,
) -> list[Row]:
    started = RunFolder(folder).last() is not None
    if started:
        try:
            config.check_resumes(RunFolder(folder).training_config())
        except UserError as error:
            raise UserError(f"{error}: choose another --out, or remove {folder}") from error
    model, interrupted = study.trials.train(config, clips, folder, resume=started, console=console)
    if interrupted:
        raise KeyboardInterrupt
    rows, log, columns = [], read_log(folder / "metrics.jsonl"), study.columns()
    for streams in run.streams:
        if measure is None:
            found = study.trials.measure(config, model, held_out, streams)
        else:
            found = measure(model, held_out, streams)
        rows.append(
            {
                "study": study.name,
                "run": run.name,
                "streams": "all" if streams is None else streams,
                "kind": run.kind,
                "seed": config.seed,
                "steps": config.steps,
                "seconds": round(training_seconds(log), 1),
                "parameters": sum(weight.numel() for weight in model.parameters()),
                **study.trials.sizes(config, streams),
                # Of the last steps, by the run's own log; absent without learned codes.
                **({"train_perplexity": log[-1]["perplexity"]} if "perplexity" in log[-1] else {}),
                **{name: value for name, value in found.items() if name in columns[len(COLUMNS) :]},
            }
        )
    return rows


def read_log(metrics: Path) -> list[Row]:
    """The rows of a run's ``metrics.jsonl``."""
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


def _key(config: RunConfig, run: Run, data: str, measured_by: Sequence[str]) -> str:
    """Changes with everything that rows depend on."""
    parts = [config.to_dict(), config.model.kind, list(run.streams), data, list(measured_by)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_rows(file: Path, key: str, written_as: str) -> list[Row] | None:
    """The rows that a file of the format ``written_as`` holds; None where there are none, or those of another key.

    Raises:
        UserError: it is damaged.
    """
    if not file.is_file():
        return None
    try:
        values = parse_json(file.read_text(encoding="utf-8"))
        found: list[Row] = values["rows"]
        return found if values["format"] == written_as and values["key"] == key else None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): remove it, and the run is measured again") from error
