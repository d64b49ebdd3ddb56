"""What follows training: held-out clips are measured, turned into tokens, and shown in the run's report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fastvq.models.commands.common import progress_bar, write_json
from fastvq.models.commands.passes import Reconstruction, encode_clips, reconstruct, spread
from fastvq.models.commands.results import metrics, print_table, uses
from fastvq.models.evaluation.evaluate import evaluate
from fastvq.models.rendering.charts import Series
from fastvq.models.rendering.report import Curves, Report, Usage, write_report
from fastvq.models.rendering.scene import Scene, Track
from fastvq.models.tokenizers.code_use import count_codes
from fastvq.models.tokenizers.config import TokenizerConfig
from fastvq.models.tokenizers.token_file import write_tokens
from fastvq.models.training.data import FeatureClip
from fastvq.models.training.trainer import RunResult

SHOWN_CLIPS = 6
SHOWN_SECONDS = 10.0


def finish_run(
    result: RunResult, clips: Sequence[FeatureClip], console: Console, *, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes ``evaluation.json``, ``tokens.safetensors`` and ``report.html``, and prints the table.

    Args:
        result: of the training.
        clips: the held-out ones.
        console: for progress and the table.
        notes: sentences for the report.

    Returns:
        The evaluation.
    """
    model = result.model
    with progress_bar(console, "evaluating") as bar:
        task = bar.add_task("evaluating", total=len(clips), name="")
        evaluation = evaluate(
            model, clips, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    evaluation["split"] = "test"
    write_json(result.out / "evaluation.json", evaluation)
    tokens = encode_clips(model, clips, console)
    write_tokens(
        result.out / "tokens.safetensors",
        model,
        [(clip.name, len(clip.features), codes) for clip, codes in zip(clips, tokens, strict=True)],
    )
    rows = metrics(evaluation, model.config)
    print_table(rows, console, f"{len(clips)} held-out clips, after {result.step:,} steps")
    environment = json.loads((result.out / "environment.json").read_text(encoding="utf-8"))
    config = json.loads((result.out / "config.json").read_text(encoding="utf-8"))
    counts = count_codes(torch.cat([codes.t() for codes in tokens]), model.config).cpu().numpy()
    program, *options = shlex.split(environment.pop("command", "")) or ["fastvq"]
    report = Report(
        title="Motion tokenizer",
        summary=_summary(result, len(clips)),
        metrics=rows,
        scenes=[_scene(one, model.config.fps) for one in representative(reconstruct(model, clips))],
        curves=_curves(result.out / "metrics.jsonl", result.terms, model.config),
        usage=Usage(counts, "the held-out clips", stream=model.config.stream, pooled=model.config.pooled)
        if len(counts)
        else None,
        config=_settings(config),
        environment=environment,
        command=shlex.join([Path(program).name, *options]),
        notes=notes,
        scenes_note="The clips shown go from the smallest error to the largest of those held out.",
    )
    write_report(result.out / "report.html", report)
    return evaluation


def representative(found: Sequence[Reconstruction], count: int = SHOWN_CLIPS) -> list[Reconstruction]:
    """From the smallest error to the largest in even steps; clips below a second only for want of others."""
    long = [one for one in found if len(one.joints) >= 30]
    ranked = sorted(long if len(long) >= count else found, key=lambda one: one.mpjpe_mm)
    return [ranked[index] for index in spread(len(ranked), count)]


def _scene(one: Reconstruction, fps: float) -> Scene:
    frames = int(SHOWN_SECONDS * fps)
    drift = 100 * float(np.linalg.norm((one.joints[-1, 0] - one.clip.joints[-1, 0])[[0, 2]]))
    cropped = (
        f"; first {SHOWN_SECONDS:.0f} of {len(one.joints) / fps:.0f} s shown" if len(one.joints) > frames else ""
    )
    return Scene(
        name=one.clip.name,
        fps=fps,
        tracks=(Track("Original", one.clip.joints[:frames]), Track("Reconstruction", one.joints[:frames])),
        caption=one.clip.text,
        note=f"{one.mpjpe_mm:.1f} mm; place off by {drift:.0f} cm at the end{cropped}",
    )


def _summary(result: RunResult, tested: int) -> str:
    config = result.model.config
    return (
        f"{config.summary}, trained for {result.step:,} steps on {result.clips_used} clips ("
        f"{result.frames / config.fps / 60:.1f} minutes of motion) and measured on {tested} clips that "
        "it has not seen."
    )


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` as two lists, without the model's settings a second time among those of the training."""
    training = {name: value for name, value in config["training"].items() if name != "model"}
    model = {name: value for name, value in config.items() if name not in ("format", "kind", "training")}
    return {"model": model, "training": training}


def _curves(path: Path, terms: Sequence[str], config: TokenizerConfig) -> list[Curves]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows]

    def line(label: str, key: str) -> Series:
        return Series(label, steps, [row.get(key, float("nan")) for row in rows])

    use = Curves(
        "Perplexity in training",
        "perplexity (codes)",
        [line("perplexity", "perplexity")],
        log=False,
        note=f"Codes used evenly by {uses(config)}.",
    )
    return [
        Curves(
            "Reconstruction loss",
            "smooth-L1",
            [line("all features", "recon_smooth_l1")],
            note="Of the normalised features, mean over all.",
        ),
        Curves(
            "Its parts",
            "smooth-L1",
            [line(name.replace("_", " "), name) for name in terms],
            note="Mean over each part's own features, before weighting.",
        ),
        *([use] if config.streams > config.parsed else []),
        Curves("Speed", "steps per second", [line("speed", "steps_per_second")], log=False),
    ]
