"""``fastvq evaluate``: how well a tokenizer keeps motions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastvq.models.commands import common
from fastvq.models.commands.results import metrics, print_table
from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluate import evaluate


@dataclass(frozen=True)
class Evaluate:
    """Measure how well a tokenizer keeps motions: joint error, reconstruction loss, use of the codes, speed."""

    checkpoint: str
    """A run folder, a folder of save_pretrained, or a name on the Hugging Face Hub."""
    data: Path
    """Motions: a file or folder of BVH, ASF/AMC, joint arrays or 272-dimensional features."""
    split: str = "test"
    """The split to measure: train, test, another one that the data names, or all."""
    json: common.OptionalPath = None
    """File for the numbers."""
    mapping: common.OptionalPath = None
    """JSON file of {SMPL joint: joint of your skeleton}, where joint names say too little."""
    batch_size: int = 16
    """Clips encoded at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace --json if it exists."""


def main(arguments: Sequence[str]) -> int:
    """Evaluates; returns the exit code."""
    command = common.parse(Evaluate, "evaluate", arguments)
    if command.json is not None:
        common.check_new_file(command.json, overwrite=command.overwrite)
    if command.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {command.batch_size}")
    console = common.make_console()
    model = common.load_model(command.checkpoint, command.device)
    fps = model.config.fps
    split = None if command.split == "all" else command.split
    clips = common.prepare(
        common.read_clips(command.data, console, fps=fps, split=split, mapping=command.mapping), console, fps=fps
    )
    with common.progress_bar(console, "evaluating") as bar:
        task = bar.add_task("evaluating", total=len(clips), name="")
        result = evaluate(
            model,
            clips,
            batch_size=command.batch_size,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    result["split"] = command.split
    if command.json is not None:
        common.write_json(command.json, result)
    print_table(metrics(result, model.config.codebook_size), console, f"{len(clips)} clips, split {command.split}")
    if command.json is not None:
        console.print(f"Numbers: {command.json}", markup=False)
    return 0
