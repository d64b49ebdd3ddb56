"""``fastvq evaluate`` of a generator: does it do what texts say, how real does it look, how fast is it?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fastvq.models.commands import common
from fastvq.models.commands.generate import sampling_of
from fastvq.models.commands.options import Evaluate
from fastvq.models.commands.passes import encode_clips
from fastvq.models.errors import UserError
from fastvq.models.evaluation.attributes import NAMES, asked, attribute_accuracy
from fastvq.models.evaluation.evaluator import MotionTextEvaluator
from fastvq.models.evaluation.generation import FORMAT, Generate, Protocol, evaluate_generation, generation_speed
from fastvq.models.evaluation.official_evaluator import open_evaluator
from fastvq.models.generators.kinds import GENERATORS
from fastvq.models.generators.motions import TextToMotion
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.config import check_integer
from fastvq.models.training.data import FeatureClip

LABELS = {
    "top1": "R-precision, top 1",
    "top2": "R-precision, top 2",
    "top3": "R-precision, top 3",
    "mm_dist": "MM-Dist",
    "fid": "FID",
    "diversity": "Diversity",
    "multimodality": "MultiModality",
}
SOURCES = {"generated": "generated", "reconstructed": "tokenizer", "real": "real", "shuffled": "chance"}


def is_generator(checkpoint: str) -> bool:
    """Whether a folder holds a generator."""
    folder = Path(checkpoint)
    return (folder / pretrained.CONFIG).is_file() and pretrained.read_config(folder).get("kind") in GENERATORS


def run(command: Evaluate) -> int:
    """Evaluates; returns the exit code."""
    if command.evaluator is None and not command.attributes:
        raise UserError("a generator is measured with --evaluator, --attributes or both: give one")
    check_integer("--seed", command.seed, 0, 2**31)
    protocol = Protocol(repeats=command.repeats, multimodality_texts=command.multimodality, seed=command.seed)
    console = common.make_console()
    device = common.choose_device(command.device)
    model = TextToMotion.open(command.checkpoint, device=device)
    evaluator = None if command.evaluator is None else open_evaluator(command.evaluator).to(device)
    clips, known = _clips(command, model, console)
    generate = features_of(model, command)
    result: dict[str, Any] = {
        "format": FORMAT,
        "split": command.split,
        "kind": model.generator.config.kind,
        "sampling": dataclasses.asdict(sampling_of(command, model)),
    }
    if command.attributes:
        result["attributes"] = attributes_of(model, command, clips, known)
        show_attributes(result["attributes"], console)
    if evaluator is not None:
        result |= _protocol(model, generate, clips, evaluator, protocol, console)
        show_protocol(result, console, f"{len(clips)} clips, split {command.split}")
    texts = list(dict.fromkeys(clip.text for clip in clips if clip.text.strip()))
    if texts:
        result |= generation_speed(generate, texts, model.fps)
        for row in result["speed"]:
            console.print(
                f"{row['batch']} at once: {row['frames_per_second']:,.0f} frames a second, "
                f"{row['real_time']:.1f} times as fast as they are played"
            )
    if command.json is not None:
        common.write_json(command.json, result)
        console.print(f"Numbers: {command.json}", markup=False)
    return 0


def features_of(model: TextToMotion, command: Evaluate) -> Generate:
    """The generator as the protocol takes it, in the weights' own precision."""
    sampling = sampling_of(command, model)

    def generate(texts: Sequence[str], seed: int) -> list[np.ndarray]:
        made = model.generate(texts, sampling=sampling, seed=seed, batch_size=64, precision="fast")
        return [motion.features for motion in made]

    return generate


def _clips(command: Evaluate, model: TextToMotion, console: Console) -> tuple[list[FeatureClip], set[str]]:
    """The clips to measure on, and the captions that the data's train split has.

    Raises:
        UserError: There are none.
    """
    config = model.tokenizer.config
    split = None if command.split == "all" else command.split
    options: dict[str, Any] = {"mapping": command.mapping, "scale": command.scale}
    if command.data is not None:
        clips = common.read_features(command.data, console, config, split=split, **options)
        # Which captions training had is the question of what it was not trained on.
        others = [] if split in (None, "train") else _train_split(command.data, console, options)
        return clips, {clip.text for clip in others}
    check_integer("--clips", command.clips, 1)
    made = generate_clips(command.clips, seed=command.seed, fps=config.fps, held_out="captions")
    chosen = [clip for clip in made if split in (None, clip.split)]
    if not chosen:
        raise UserError(f"none of {command.clips} made-up motions is of the split {command.split!r}: raise --clips")
    console.print(f"No --data: {len(chosen)} of {command.clips} made-up motions, split {command.split}.")
    known = {clip.text for clip in made if clip.split == "train"} if split not in (None, "train") else set()
    return common.prepare(chosen, console, fps=config.fps, form=config.features), known


def _train_split(data: Path, console: Console, options: Mapping[str, Any]) -> list[Clip]:
    try:
        return common.read_clips(data, console, fps=None, split="train", **options)
    except UserError:  # the data have no such split
        return []


def attributes_of(
    model: TextToMotion, command: Evaluate, clips: Sequence[FeatureClip], known: set[str]
) -> dict[str, Any]:
    """Accuracy of the attributes over a motion for each clip's caption.

    Raises:
        UserError: No clip has a procedural caption.
    """
    told = [clip for clip in clips if asked(clip.text) is not None]
    captions = [clip.text for clip in told]
    if not captions:
        raise UserError(
            f"--attributes needs procedural captions, such as 'a person walks forward', and none of the {len(clips)} "
            "clips has one: leave it out"
        )
    form = model.tokenizer.config.features
    joints = [form.to_smpl(rows) for rows in features_of(model, command)(captions, command.seed)]
    found = {"whole": attribute_accuracy(captions, joints, model.fps)}
    for name, wanted in (("seen", True), ("unseen", False)):
        chosen = [index for index, text in enumerate(captions) if (text in known) is wanted]
        found[name] = attribute_accuracy([captions[i] for i in chosen], [joints[i] for i in chosen], model.fps)
    found["real"] = attribute_accuracy(captions, [clip.joints for clip in told], model.fps)
    return found


def _protocol(
    model: TextToMotion,
    generate: Generate,
    clips: Sequence[FeatureClip],
    evaluator: MotionTextEvaluator,
    protocol: Protocol,
    console: Console,
) -> dict[str, Any]:
    reconstructed = [
        features[: len(clip.features)]
        for clip, features in zip(clips, model.decode(encode_clips(model.tokenizer, clips, console)), strict=True)
    ]
    with common.progress_bar(console, "generating") as bar:
        task = bar.add_task("generating", total=protocol.repeats, name="")
        return evaluate_generation(
            generate,
            clips,
            evaluator,
            protocol=protocol,
            reconstructed=reconstructed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def show_attributes(found: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Shares that are right, with their 95 % intervals and the numbers that they are of."""
    columns = {"whole": "generated", "seen": "captions of training", "unseen": "captions that it never had"}
    columns = {name: label for name, label in columns.items() if found[name]["count"]}
    if len(columns) == 2:  # one of them is the whole
        del columns["whole"]
    table = Table(title="Does what was asked", title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("attribute")
    for label in (*columns.values(), "the clips themselves"):
        table.add_column(label, justify="right")
    for name in (*NAMES, "all"):
        table.add_row(name, *(_share(found[column], name) for column in (*columns, "real")))
    console.print(table, soft_wrap=False)


def _share(found: Mapping[str, Any], name: str) -> str:
    if name not in found:
        return ""
    low, high = found[f"{name}_interval"]
    return f"{found[name]:.1%} ({low:.0%} to {high:.0%}) of {found.get(f'{name}_count', found['count'])}"


def show_protocol(result: Mapping[str, Any], console: Console, title: str) -> None:
    """The protocol's numbers, mean ± half of the 95 % interval, and what they fall short of."""
    rows = {source: label for source, label in SOURCES.items() if result.get(source)}
    table = Table(
        title=f"{title}, by the {result['evaluator']}", title_justify="left", title_style="bold", pad_edge=False
    )
    table.add_column("measure")
    for label in rows.values():
        table.add_column(label, justify="right")
    for name, label in LABELS.items():
        cells = [number(result[source].get(name)) for source in rows]
        if any(cells):
            table.add_row(label, *cells)
    console.print(table, soft_wrap=False)
    common.print_notes(
        [*result["notes"], "they compare with numbers of this evaluator on these clips only, never with a paper's"],
        console,
    )


def number(found: Mapping[str, float] | None) -> str:
    """0.412 ± 0.013; empty without a measurement."""
    if found is None:
        return ""
    mean = f"{found['mean']:.3f}"
    return f"{mean} ± {found['ci95']:.3f}" if "ci95" in found else mean
