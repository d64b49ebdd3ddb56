"""``fastvq evaluate``: how well a tokenizer keeps motions, or how good a generator's are."""

from __future__ import annotations

from fastvq.models.commands import common, evaluate_generator, heatmap_vqgan
from fastvq.models.commands.options import Evaluate
from fastvq.models.commands.results import metrics, print_table
from fastvq.models.errors import UserError
from fastvq.models.evaluation.evaluate import evaluate
from fastvq.models.evaluation.official_evaluator import open_evaluator


def run(command: Evaluate) -> int:
    """Evaluates; returns the exit code."""
    if command.json is not None:
        common.check_new_file(command.json, overwrite=command.overwrite)
    if command.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {command.batch_size}")
    if evaluate_generator.is_generator(command.checkpoint):
        return evaluate_generator.run(command)
    if command.attributes:
        raise UserError(f"--attributes are those of generated motions, and {command.checkpoint} is no generator")
    if command.data is None:
        raise UserError("a tokenizer is measured on motions: give --data")
    if heatmap_vqgan.is_heatmap_model(command.checkpoint):
        return heatmap_vqgan.evaluate(command)
    if command.windows is not None:
        raise UserError("--windows is for heatmap models, other tokenizers are measured on whole clips: leave it out")
    console = common.make_console()
    model = common.load_model(command.checkpoint, command.device)
    evaluator = None if command.evaluator is None else open_evaluator(command.evaluator).to(model.mean.device)
    split = None if command.split == "all" else command.split
    clips = common.read_features(
        command.data, console, model.config, split=split, mapping=command.mapping, scale=command.scale
    )
    with common.progress_bar(console, "evaluating") as bar:
        task = bar.add_task("evaluating", total=len(clips), name="")
        result = evaluate(
            model,
            clips,
            batch_size=command.batch_size,
            evaluator=evaluator,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    result["split"] = command.split
    if command.json is not None:
        common.write_json(command.json, result)
    print_table(metrics(result, model.config), console, f"{len(clips)} clips, split {command.split}")
    if command.json is not None:
        console.print(f"Numbers: {command.json}", markup=False)
    return 0
