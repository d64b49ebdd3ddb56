"""``fastvq reproduce`` of generators: one tokenizer for all, a generator for each run, claims beside measurements."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fastvq.models.claims.generator_page import generator_page
from fastvq.models.claims.generator_runner import COLUMNS, guided, reproduce_generators, shared_tokenizer
from fastvq.models.claims.generator_study import GeneratorStudy
from fastvq.models.claims.verdict import Rows, judge
from fastvq.models.commands import common
from fastvq.models.commands.claims_evaluator import csv_text, evaluator_of
from fastvq.models.commands.options import Reproduce
from fastvq.models.commands.passes import encode_clips
from fastvq.models.errors import UserError
from fastvq.models.evaluation.attributes import NAMES, asked, attribute_accuracy
from fastvq.models.evaluation.evaluator import MotionTextEvaluator, identity
from fastvq.models.evaluation.generation import Protocol, evaluate_generation
from fastvq.models.generators.kinds import GENERATORS
from fastvq.models.generators.motions import TextToMotion
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.storage import write_text
from fastvq.models.tokenizers.config import TokenizerConfig, check_integer
from fastvq.models.tokenizers.token_file import model_sha256
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.data import FeatureClip
from fastvq.models.training.environment import device_name

PROCEDURAL_CLIPS = 1600
# Of --quick.
QUICK_CLIPS, QUICK_STEPS, QUICK_WIDTH = 60, 4, 16
QUICK_PROTOCOL = Protocol(
    repeats=1, batch=4, multimodality_texts=2, multimodality_generations=2, multimodality_pairs=1
)


def run(command: Reproduce, study: GeneratorStudy) -> int:
    """Trains, measures and decides; returns the exit code."""
    steps = (QUICK_STEPS if command.quick else study.steps) if command.steps is None else command.steps
    dim = (QUICK_WIDTH if command.quick else study.dim) if command.width is None else command.width
    seeds = command.seeds or (study.seeds[:1] if command.quick else study.seeds)
    check_integer("--steps", steps, 2)
    check_integer("--width", dim, 1)
    for seed in seeds:
        check_integer("--seeds", seed, 0, 2**63 - 1)
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds must differ, got {' '.join(map(str, seeds))}")
    out = Path("runs") / f"reproduce-{study.name}" if command.out is None else command.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder")
    for one in study.runs:  # what cannot be is refused before anything is trained
        study.model_config(one, dim)
    console = common.make_console()
    given = None if command.tokenizer is None else common.load_model(command.tokenizer, "cpu")
    tokenizer_width = QUICK_WIDTH if command.quick else study.tokenizer.width
    first = study.tokenizer.config(study.tokenizer.runs[0], seed=study.seeds[0], steps=2, width=tokenizer_width)
    config = first.model if given is None else given.config
    clips = _clips(command, console, config)
    held_out = [clip for clip in clips if clip.split == "test"]
    if not held_out:
        raise UserError("the data has no test split to measure claims on: give data that names one")
    protocol = QUICK_PROTOCOL if command.quick else study.protocol
    rows = []
    try:
        evaluator, _ = evaluator_of(command, clips, config.input_dim, out, console)
        if evaluator is None:
            raise UserError("generators are asked by descriptions, and the motions have none: give others")
        tokenizer = given
        if tokenizer is None:
            tokenizer_steps = QUICK_STEPS if command.quick else study.tokenizer.steps
            tokenizer = shared_tokenizer(
                study, clips, out, steps=tokenizer_steps, width=tokenizer_width, console=console
            )
        measurement = _Measurement(held_out, evaluator, protocol)
        for row in reproduce_generators(
            study,
            clips,
            tokenizer,
            out,
            seeds=seeds,
            steps=steps,
            dim=dim,
            measure=measurement,
            measured_by=json.dumps([identity(evaluator), dataclasses.asdict(protocol)]),
            console=console,
        ):
            rows.append(row)
    except KeyboardInterrupt:
        console.print("The same command goes on from here.")
        return 130
    themselves, notes = measurement.of_clips(tokenizer, console)
    facts = _facts(command, study, clips, tokenizer, evaluator, protocol, seeds=seeds, steps=steps, dim=dim)
    notes = [*_quick(command), *notes, *_notes(study)]
    table, text = out / f"claims_{study.name}.csv", out / f"claims_{study.name}.md"
    write_text(table, csv_text(rows, COLUMNS))
    write_text(text, generator_page(study, rows, themselves, facts, notes))
    _show(study, rows, console)
    for note in _quick(command):
        console.print(note)
    console.print(f"Table:  {text}\nRows:   {table}", markup=False)
    return 0


class _Measurement:
    """Measures generators, and the clips themselves, on the held-out clips."""

    def __init__(self, clips: Sequence[FeatureClip], evaluator: MotionTextEvaluator, protocol: Protocol) -> None:
        self.clips, self.evaluator, self.protocol = clips, evaluator, protocol
        self.told = [clip for clip in clips if asked(clip.text) is not None]

    def __call__(self, model: TextToMotion, guidance: float | None) -> dict[str, float]:
        sampling = guided(model, guidance)

        def generate(texts: Sequence[str], seed: int) -> list[np.ndarray]:
            made = model.generate(texts, sampling=sampling, seed=seed, batch_size=64, precision="fast")
            return [motion.features for motion in made]

        found = evaluate_generation(generate, self.clips, self.evaluator, protocol=self.protocol)
        numbers = _flat(found["generated"])
        if self.told:
            form = model.tokenizer.config.features
            joints = [form.to_smpl(rows) for rows in generate([clip.text for clip in self.told], self.protocol.seed)]
            numbers |= self._attributes(joints, model.fps)
        return numbers

    def of_clips(
        self, tokenizer: MotionTokenizer, console: Console
    ) -> tuple[dict[str, Mapping[str, float]], list[str]]:
        """The same of the clips, of what the tokenizer makes of them and of chance; and notes on the protocol."""
        tokens = encode_clips(tokenizer, self.clips, console)
        decoded = [
            tokenizer.decode(codes)[0, : len(clip.features)].cpu().numpy()
            for codes, clip in zip(tokens, self.clips, strict=True)
        ]
        known = {clip.text: clip.features for clip in self.clips}
        protocol = dataclasses.replace(self.protocol, multimodality_texts=0)
        found = evaluate_generation(
            lambda texts, _: [known[text] for text in texts],
            self.clips,
            self.evaluator,
            protocol=protocol,
            reconstructed=decoded,
        )
        rows = {name: _flat(found[name]) for name in ("real", "reconstructed", "shuffled")}
        if self.told:
            form, fps = tokenizer.config.features, tokenizer.config.fps
            by_clip = {id(clip): rows for clip, rows in zip(self.clips, decoded, strict=True)}
            rows["real"] |= self._attributes([clip.joints for clip in self.told], fps)
            rows["reconstructed"] |= self._attributes([form.to_smpl(by_clip[id(clip)]) for clip in self.told], fps)
        return dict(rows), list(found["notes"])

    def _attributes(self, joints: Sequence[np.ndarray], fps: float) -> dict[str, float]:
        found = attribute_accuracy([clip.text for clip in self.told], joints, fps)
        return {name: found[name] for name in (*NAMES, "all") if name in found}


def _flat(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means by metric, and half of the intervals as <metric>_ci95."""
    means = {name: numbers["mean"] for name, numbers in found.items()}
    return means | {f"{name}_ci95": numbers["ci95"] for name, numbers in found.items() if "ci95" in numbers}


def _clips(command: Reproduce, console: Console, config: TokenizerConfig) -> list[FeatureClip]:
    if command.data is not None:
        return common.read_features(command.data, console, config)
    console.print(
        "There is no --data: the motions are made up by a generator, and claims about people's are not tested."
    )
    count = QUICK_CLIPS if command.quick else PROCEDURAL_CLIPS
    made = generate_clips(count, seed=0, fps=config.fps, held_out="captions")
    return common.prepare(made, console, fps=config.fps, form=config.features)


def _facts(
    command: Reproduce,
    study: GeneratorStudy,
    clips: Sequence[FeatureClip],
    tokenizer: MotionTokenizer,
    evaluator: MotionTextEvaluator,
    protocol: Protocol,
    *,
    seeds: Sequence[int],
    steps: int,
    dim: int,
) -> dict[str, str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    minutes = sum(len(clip.features) for clip in clips) / tokenizer.config.fps / 60
    test = [clip for clip in clips if clip.split == "test"]
    unseen = {clip.text for clip in test} - {clip.text for clip in clips if clip.split == "train"}
    words = ["fastvq", "reproduce", command.system, "--data", "MOTIONS"][: 3 if command.data is None else 5]
    words += ["--quick"] if command.quick else []
    words += ["--evaluator", "EVALUATOR"] if command.evaluator is not None else []
    words += ["--tokenizer", "TOKENIZER"] if command.tokenizer is not None else []
    words += ["--steps", str(steps), "--width", str(dim), "--seeds", *map(str, seeds)]
    config = study.config(study.runs[0], study.model_config(study.runs[0], dim), seed=seeds[0], steps=steps)
    return {
        "Data": f"{len(clips)} {'made-up motions' if command.data is None else 'motions'} at "
        f"{tokenizer.config.fps:g} frames a second, {minutes:.1f} minutes; {len(test)} of them are the test split, "
        f"which is all that is measured and is never trained on; of its {len({clip.text for clip in test})} "
        f"descriptions training never has {len(unseen)}",
        "Tokenizer": f"{tokenizer.config.summary}, sha256 {model_sha256(tokenizer)[:12]}",
        "Training": f"{steps:,} steps of {config.batch_size} motions, width {dim}, {config.precision}, AdamW at "
        f"{config.lr:g}",
        "Drawing": _drawing(study),
        "Measured by": _measured(evaluator, protocol, attributes=any(asked(clip.text) for clip in test)),
        "Machine": f"{device_name(device)}, {torch.get_num_threads()} "
        f"{'thread' if torch.get_num_threads() == 1 else 'threads'}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "Command": f"`{shlex.join(words)}`",
    }


def _measured(evaluator: MotionTextEvaluator, protocol: Protocol, *, attributes: bool) -> str:
    text = (
        f"{evaluator.label}, {evaluator.config.embedding_dim} dimensions, whole clips, {protocol.repeats} repeats; "
        f"MultiModality over {protocol.multimodality_pairs} pairs of {protocol.multimodality_generations} motions of "
        f"{protocol.multimodality_texts} descriptions"
    )
    return f"{text}; attributes by plain measurements of one motion for each test clip" if attributes else text


def _drawing(study: GeneratorStudy) -> str:
    """The usual sampling of each kind of generator, but for the guidance, which the rows name."""
    kinds = {run.kind: GENERATORS[run.kind].generator.usual_sampling for run in study.runs}
    said = []
    for kind, usual in kinds.items():
        limits = [f"{name} {value:g}" for name, value in (("top-k", usual.top_k), ("top-p", usual.top_p)) if value]
        said.append(", ".join([f"{kind}: temperature {usual.temperature:g}", *limits]))
    return "; ".join(said)


def _quick(command: Reproduce) -> list[str]:
    """What is to be said of toy sizes."""
    return ["--quick only shows that everything runs: the verdicts mean nothing."] if command.quick else []


def _notes(study: GeneratorStudy) -> list[str]:
    return [
        "published numbers are those of the official evaluator on HumanML3D, whose embeddings ours does not have: "
        "only the order of the runs says anything beside them.",
        *dict.fromkeys(f"{claim.why}." for claim in study.claims if claim.why),
    ]


def _show(study: GeneratorStudy, rows: Rows, console: Console) -> None:
    table = Table(title=study.title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("claim")
    table.add_column("measured", no_wrap=True, justify="right")
    table.add_column("", no_wrap=True, style="bold")
    for claim in study.claims:
        verdict = judge(claim, rows)
        figures = " → ".join(f"{figure:.3g}" for figure in verdict.measured)
        table.add_row(claim.sentence, figures, verdict.outcome)
    console.print(table, soft_wrap=False)
