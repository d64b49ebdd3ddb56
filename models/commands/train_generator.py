"""``fastvq train`` of generators: motions become tokens once, then a model learns to write them from texts."""

from __future__ import annotations

import dataclasses
import shlex
from functools import partial
from pathlib import Path

from rich.console import Console

from fastvq.models.commands import common
from fastvq.models.commands.train_options import Train, TrainGenerator, TrainRefine
from fastvq.models.errors import UserError
from fastvq.models.generators.base_transformer import BaseTransformer
from fastvq.models.generators.kinds import GENERATORS, TOKENIZER, load_with_tokenizer
from fastvq.models.generators.refine_transformer import BASE
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.generators.text.open import absolute
from fastvq.models.motion.humanml3d_folder import JOINTS, TEXTS, VECTORS
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.generator import GeneratorRunResult, GeneratorTrainConfig, train_generator
from fastvq.models.training.generator_data import (
    CaptionedMotion,
    CaptionedTokens,
    read_captioned_folder,
    tokenise,
    with_text,
)
from fastvq.models.training.pgr2m_generators import RefineTrainConfig, train_refine
from fastvq.models.training.processes import Processes


def train(command: Train, config: GeneratorTrainConfig, console: Console, processes: Processes) -> int:
    """Trains; returns the exit code."""
    assert isinstance(command, TrainGenerator)
    kind = config.model.kind
    if isinstance(config, RefineTrainConfig):
        result = _refine(command, config, console, processes)
    else:
        tokenizer = common.load_model(str(_tokenizer_folder(command)))
        name = absolute(config.model.text_encoder)
        encoder = open_text_encoder(name)
        model = dataclasses.replace(config.model, text_encoder=name).fitted(tokenizer, encoder)
        config = dataclasses.replace(config, model=model)
        tokens = _prepared(command, config, tokenizer, console, processes)
        generator = GENERATORS[kind].generator
        result = train_generator(
            config, generator, tokens, tokenizer, encoder, command.out, resume=command.resume, console=console
        )
    processes.leave()
    folder = shlex.quote(str(command.out))
    if result.interrupted:
        console.print(f"Go on with: fastvq train {kind}{common.data_option(command)} --out {folder} --resume")
        return 130
    console.print(f"Model:  {command.out}", markup=False)
    return 0


def _refine(
    command: TrainGenerator, config: RefineTrainConfig, console: Console, processes: Processes
) -> GeneratorRunResult:
    """Trains on what a Base Transformer was trained on."""
    assert isinstance(command, TrainRefine)
    base, tokenizer = load_with_tokenizer(*_base_folders(command))
    if not isinstance(base, BaseTransformer):
        raise UserError(f"--base must be the run folder of a pgr2m-base, got that of a {base.config.kind}")
    config.model.check_fits(tokenizer)
    tokens = _prepared(command, config, tokenizer, console, processes)
    return train_refine(config, base, tokens, tokenizer, command.out, resume=command.resume, console=console)


def _base_folders(command: TrainRefine) -> tuple[Path, Path | None]:
    """Where the Base Transformer is, and the tokenizer unless that holds it.

    Raises:
        UserError: nobody said so.
    """
    if command.base is not None:
        return command.base, command.tokenizer
    held = command.out / BASE
    if command.resume and held.is_dir():
        return held, command.tokenizer or command.out / TOKENIZER
    raise UserError("a pgr2m-refine completes what a pgr2m-base writes: give that one's run folder, --base RUN")


def _prepared(
    command: TrainGenerator,
    config: GeneratorTrainConfig,
    tokenizer: MotionTokenizer,
    console: Console,
    processes: Processes,
) -> list[CaptionedTokens]:
    """What there is to learn from as tokens, and room for the run."""
    tokens = _tokens(tokenizer, _motions(command, config, tokenizer, console), console)
    if not command.resume:
        processes.on_main(partial(common.make_room_for_run, command.out, overwrite=command.overwrite))
    return tokens


def _tokenizer_folder(command: TrainGenerator) -> Path:
    """Where the tokenizer is.

    Raises:
        UserError: nobody said so.
    """
    if command.tokenizer is not None:
        return command.tokenizer
    held = command.out / TOKENIZER
    if command.resume and held.is_dir():
        return held
    raise UserError("a generator writes a tokenizer's codes: give its run folder, --tokenizer RUN")


def _motions(
    command: TrainGenerator, config: GeneratorTrainConfig, tokenizer: MotionTokenizer, console: Console
) -> list[CaptionedMotion]:
    """What there is to learn from, as the tokenizer takes it, with all texts where a folder holds several."""
    data = command.data
    if data is not None and (data / TEXTS).is_dir() and any((data / name).is_dir() for name in (VECTORS, JOINTS)):
        motions, notes = read_captioned_folder(data, scale=command.scale)
        if motions and motions[0].features.shape[1] == tokenizer.config.input_dim:
            common.print_notes(notes, console)
            return motions
    return with_text(common.training_features(command, console, tokenizer.config, seed=config.seed))


def _tokens(tokenizer: MotionTokenizer, motions: list[CaptionedMotion], console: Console) -> list[CaptionedTokens]:
    with common.progress_bar(console, "encoding") as bar:
        task = bar.add_task("encoding", total=len(motions), name="")
        tokens = tokenise(
            tokenizer, motions, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if len(tokens) < len(motions):
        console.print(f"{len(motions) - len(tokens)} of {len(motions)} motions have no text and are left out.")
    known = [clip for clip in tokens if clip.split == "train"]
    texts = {text for clip in known for text in clip.texts}
    count = sum(clip.tokens.shape[1] for clip in known)
    console.print(
        f"{len(known)} motions to learn from, with {len(texts)} texts and {count:,} times {tokenizer.config.streams} "
        f"tokens; {len(tokens) - len(known)} held out"
    )
    return tokens
