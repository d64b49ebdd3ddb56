"""Trains and measures the runs of a study of generators; what its folder holds already is not done again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastvq.models.claims.generator_study import METRICS, GeneratorRun, GeneratorStudy, view
from fastvq.models.claims.runner import read_log, read_rows, training_seconds
from fastvq.models.errors import UserError
from fastvq.models.generators.base_transformer import BaseTransformer
from fastvq.models.generators.generator import MotionGenerator
from fastvq.models.generators.kinds import GENERATORS
from fastvq.models.generators.motions import TextToMotion
from fastvq.models.generators.refine_transformer import RefineTransformerConfig
from fastvq.models.generators.sampling import Sampling
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.storage import write_text
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.data import FeatureClip
from fastvq.models.training.generator import GeneratorTrainConfig, train_generator
from fastvq.models.training.generator_data import CaptionedTokens, fingerprint_tokens, tokenise, with_text
from fastvq.models.training.pgr2m_generators import RefineTrainConfig, train_refine
from fastvq.models.training.run_folder import RunFolder
from fastvq.models.training.trainer import train

FORMAT = "fastvq-claims-generator/1"
COLUMNS = (
    *("study", "run", "streams", "guidance", "kind", "seed", "steps", "seconds", "dim", "parameters"),
    *(column for name in METRICS for column in (name, f"{name}_ci95")),
)
Row = dict[str, Any]
# Numbers of a generator with a strength of the text, by metric, with <metric>_ci95 beside those of several repeats.
Measure = Callable[[TextToMotion, float | None], Mapping[str, float]]


def shared_tokenizer(
    study: GeneratorStudy, clips: Sequence[FeatureClip], out: Path, *, steps: int, width: int, console: Console
) -> MotionTokenizer:
    """The study's tokenizer, trained in ``out``/tokenizer with the first seed unless it is there already.

    Raises:
        UserError: A run of other settings or data is there.
        KeyboardInterrupt: Training was stopped; calling this again goes on.
    """
    run = study.tokenizer.runs[0]
    config = study.tokenizer.config(run, seed=study.seeds[0], steps=steps, width=width)
    folder = out / "tokenizer"
    started = RunFolder(folder).last() is not None
    if started:
        try:
            config.check_resumes(RunFolder(folder).training_config())
        except UserError as error:
            raise UserError(f"{error}: choose another --out, or remove {folder}") from error
    console.print(f"{study.name} tokenizer: {config.model.summary}, {steps:,} steps")
    result = train(config, clips, folder, resume=started, console=console)
    if result.interrupted:
        raise KeyboardInterrupt
    return result.model.eval()


def reproduce_generators(
    study: GeneratorStudy,
    clips: Sequence[FeatureClip],
    tokenizer: MotionTokenizer,
    out: Path,
    *,
    seeds: Sequence[int],
    steps: int,
    dim: int,
    measure: Measure,
    measured_by: str,
    console: Console,
) -> Iterator[Row]:
    """Yields a row for each run, seed and strength of the text as soon as the run is measured.

    Args:
        study: What to train and measure.
        clips: As the tokenizer takes them; the split "train" is learnt from.
        tokenizer: Shared by all runs.
        out: A folder; ``<run>_seed<seed>/`` is a run folder, ``<run>_seed<seed>.json`` its rows.
        seeds, steps, dim: Of every run.
        measure: Measures a generator.
        measured_by: Names what ``measure`` depends on besides it, so that rows of another are not taken for these.
        console: Shows progress.

    Raises:
        UserError: Settings that cannot be, a run in ``out`` with other settings or data.
        KeyboardInterrupt: Training was stopped; calling this again goes on.
    """
    tokens = tokenise(tokenizer, with_text(clips))
    for seed in seeds:
        trained: dict[str, MotionGenerator] = {}
        for run in study.runs:
            base = None if run.base is None else trained[run.base]
            config = _config(study, run, tokenizer, base, seed=seed, steps=steps, dim=dim)
            key = _key(config, run, fingerprint_tokens(tokens), measured_by)
            file = out / f"{run.name}_seed{seed}.json"
            rows = read_rows(file, key, FORMAT)
            folder = out / f"{run.name}_seed{seed}"
            # What others build on is loaded, though it was measured before.
            if rows is None or any(run.name == other.base for other in study.runs):
                console.print(f"{study.name} {run.name}, seed {seed}: {steps:,} steps")
                trained[run.name] = _trained(config, run, tokens, tokenizer, folder, base, console)
            if rows is None:
                model = TextToMotion(trained[run.name], tokenizer)
                rows = [_row(study, run, config, model, guidance, folder, measure) for guidance in run.guidance]
                write_text(file, json.dumps({"format": FORMAT, "key": key, "rows": rows}, indent=2) + "\n")
            yield from rows


def _config(
    study: GeneratorStudy,
    run: GeneratorRun,
    tokenizer: MotionTokenizer,
    base: MotionGenerator | None,
    *,
    seed: int,
    steps: int,
    dim: int,
) -> GeneratorTrainConfig:
    model = study.model_config(run, dim)
    if isinstance(model, RefineTransformerConfig):
        assert isinstance(base, BaseTransformer)
        return study.config(run, model.on(base), seed=seed, steps=steps)
    fitted = model.fitted(tokenizer, open_text_encoder(model.text_encoder))
    return study.config(run, fitted, seed=seed, steps=steps)


def _trained(
    config: GeneratorTrainConfig,
    run: GeneratorRun,
    tokens: Sequence[CaptionedTokens],
    tokenizer: MotionTokenizer,
    folder: Path,
    base: MotionGenerator | None,
    console: Console,
) -> MotionGenerator:
    started = RunFolder(folder).last() is not None
    if started:
        try:
            config.check_resumes(RunFolder(folder).training_config())
        except UserError as error:
            raise UserError(f"{error}: choose another --out, or remove {folder}") from error
    if isinstance(config, RefineTrainConfig):
        assert isinstance(base, BaseTransformer)
        result = train_refine(config, base, tokens, tokenizer, folder, resume=started, console=console)
    else:
        result = train_generator(
            config,
            GENERATORS[run.kind].generator,
            tokens,
            tokenizer,
            open_text_encoder(config.model.text_encoder),
            folder,
            resume=started,
            console=console,
        )
    if result.interrupted:
        raise KeyboardInterrupt
    return result.model


def _row(
    study: GeneratorStudy,
    run: GeneratorRun,
    config: GeneratorTrainConfig,
    model: TextToMotion,
    guidance: float | None,
    folder: Path,
    measure: Measure,
) -> Row:
    found = measure(model, guidance)
    return {
        "study": study.name,
        "run": view(run.name, guidance).name,
        "streams": "all",
        "guidance": model.usual_sampling.guidance if guidance is None else guidance,
        "kind": run.kind,
        "seed": config.seed,
        "steps": config.steps,
        "seconds": round(training_seconds(read_log(folder / "metrics.jsonl")), 1),
        "dim": getattr(config.model, "dim", None),
        "parameters": sum(weight.numel() for weight in model.generator.parameters()),
        **{name: value for name, value in found.items() if name in COLUMNS},
    }


def _key(config: GeneratorTrainConfig, run: GeneratorRun, data: str, measured_by: str) -> str:
    """Changes with everything that rows depend on."""
    usual = dataclasses.asdict(GENERATORS[run.kind].generator.usual_sampling)
    parts = [config.to_dict(), config.model.kind, list(run.guidance), usual, data, measured_by, list(COLUMNS)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def guided(model: TextToMotion, guidance: float | None) -> Sampling:
    """The generator's usual way of drawing codes with another strength of the text."""
    usual = model.usual_sampling
    return usual if guidance is None else dataclasses.replace(usual, guidance=guidance)
