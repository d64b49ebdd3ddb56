"""``fastvq generate``: motions that do what texts say."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from fastvq.models.commands import common
from fastvq.models.commands.options import Evaluate, Generate
from fastvq.models.errors import UserError
from fastvq.models.evaluation.attributes import NAMES, asked, read_attributes
from fastvq.models.evaluation.body_signals import SHORTEST
from fastvq.models.files import replacing
from fastvq.models.generators.motions import GeneratedMotion, TextToMotion
from fastvq.models.generators.sampling import Sampling
from fastvq.models.generators.text import open_text_encoder
from fastvq.models.motion.bvh import write_bvh
from fastvq.models.motion.pose_codes import NUM_CATEGORIES, PoseCodes, PoseParser
from fastvq.models.motion.pose_codes.categories import STARTS
from fastvq.models.rendering.gif import write_gif
from fastvq.models.rendering.player import write_player
from fastvq.models.rendering.scene import CodeTrack, Scene, Track
from fastvq.models.tokenizers.config import check_integer
from fastvq.models.tokenizers.token_file import write_tokens

# Files that hold all motions, and files that hold one.
TOGETHER, APART = (".html", ".htm", ".safetensors"), (".bvh", ".gif", ".npy")


def run(command: Generate) -> int:
    """Generates; returns the exit code."""
    for text in command.text:
        if not text.strip():
            raise UserError('--text is empty: say what the motion shall show, such as "a person walks forward"')
    check_integer("--count", command.count, 1)
    check_integer("--seed", command.seed, 0, 2**63 - 1)
    if not 16 <= command.size <= 4096:
        raise UserError(f"--size must be from 16 to 4096 pixels, got {command.size}")
    texts = [text for text in command.text for _ in range(command.count)]
    paths = _paths(command.out, len(texts), overwrite=command.overwrite)
    console = common.make_console()
    model = TextToMotion.open(command.checkpoint, command.tokenizer, device=common.choose_device(command.device))
    if command.text_encoder is not None:
        model.generator.use_text_encoder(open_text_encoder(command.text_encoder))
    if command.base_only and not model.refines:
        raise UserError("--base-only needs a generator of pose codes and residual codes, and this one has no base")
    start = time.perf_counter()
    motions = model.generate(
        texts,
        seconds=command.seconds,
        sampling=sampling_of(command, model),
        seed=command.seed,
        with_base=command.base_only or command.out.suffix.lower() in TOGETHER,
    )
    seconds = time.perf_counter() - start
    if command.base_only:
        motions = [_base(motion, model) for motion in motions]
    _write(paths, motions, model, command)
    _tell(motions, model, seconds, console)
    shown = str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
    size = common.size_text(sum(path.stat().st_size for path in paths))
    console.print(f"{len(motions)} {'motion' if len(motions) == 1 else 'motions'} -> {shown} ({size})", markup=False)
    return 0


def _paths(out: Path, count: int, *, overwrite: bool) -> list[Path]:
    """The files to write.

    Raises:
        UserError: One cannot be written, or would replace another.
    """
    common.check_new_file(out, overwrite=True, endings=(*APART, *TOGETHER))
    paths = [out]
    if count > 1 and out.suffix.lower() in APART:
        paths = [out.with_name(f"{out.stem}_{number}{out.suffix}") for number in range(1, count + 1)]
    for path in paths:
        common.check_new_file(path, overwrite=overwrite)
    # Known before the generator has worked, not after.
    parent = next(place for place in (out.absolute().parent, *out.absolute().parents) if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{out} cannot be written: {parent} is no folder that you may write to; choose another place")
    return paths


def sampling_of(command: Generate | Evaluate, model: TextToMotion) -> Sampling:
    """The generator's usual way of drawing codes, with what was asked otherwise."""
    given = {name: getattr(command, name) for name in ("guidance", "temperature", "top_k", "top_p")}
    return dataclasses.replace(
        model.usual_sampling, **{name: value for name, value in given.items() if value is not None}
    )


def _base(motion: GeneratedMotion, model: TextToMotion) -> GeneratedMotion:
    tokens = model.base_tokens(motion.tokens)
    (features,) = model.decode([tokens])
    joints = model.tokenizer.config.features.to_smpl(features)
    return GeneratedMotion(motion.text, tokens, features, joints)


def _write(paths: Sequence[Path], motions: Sequence[GeneratedMotion], model: TextToMotion, command: Generate) -> None:
    ending = paths[0].suffix.lower()
    if ending in (".html", ".htm"):
        scenes = [scene(motion, model, number) for number, motion in enumerate(motions)]
        write_player(paths[0], scenes, title="Generated motions")
        return
    if ending == ".safetensors":
        rows = [
            (f"generated_{number}", len(motion.features), motion.tokens)
            for number, motion in enumerate(motions, start=1)
        ]
        write_tokens(paths[0], model.tokenizer, rows)
        return
    for number, (path, motion) in enumerate(zip(paths, motions, strict=True)):
        if ending == ".gif":
            write_gif(path, scene(motion, model, number), size=command.size, title=motion.text)
        elif ending == ".bvh":
            joints, rotations = model.tokenizer.config.features.posed(motion.features, rigid=False)
            write_bvh(path, joints, model.fps, rotations=rotations)
        else:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, motion.joints)


def scene(motion: GeneratedMotion, model: TextToMotion, number: int) -> Scene:
    """What the player shows of a motion: its text, its pose codes, and the base beside the refined motion."""
    tracks = [Track("", motion.joints)]
    if motion.base is not None:
        tracks = [Track("Base", motion.base), Track("Refined", motion.joints)]
    config = model.tokenizer.config
    if config.parsed == NUM_CATEGORIES:
        codes = PoseCodes(motion.tokens[:NUM_CATEGORIES].t().numpy() + STARTS)
        source = "written by the generator"
    else:
        codes, source = PoseParser().parse(motion.joints)[:: config.downsample], "read off the motion"
    return Scene(
        name=f"{number + 1}. {motion.text}",
        fps=model.fps,
        tracks=tracks,
        note=" · ".join([f"{len(motion.joints) / model.fps:.1f} s", *_judged(motion, model.fps)]),
        codes=CodeTrack(codes, config.downsample, source),
    )


def _judged(motion: GeneratedMotion, fps: float) -> list[str]:
    """Whether the motion does what was asked; nothing where that cannot be read, of texts of other words and of
    motions too short."""
    wanted = asked(motion.text)
    if wanted is None or len(motion.joints) < SHORTEST:
        return []
    shown = read_attributes(motion.joints, fps, wanted.action)
    said = []
    for name in NAMES:
        want, have = getattr(wanted, name), getattr(shown, name)
        if want is not None:
            said.append(f"{name} {want} ✓" if want == have else f"{name} {want} ✗ ({have or 'none'})")
    return said


def _tell(motions: Sequence[GeneratedMotion], model: TextToMotion, seconds: float, console: Console) -> None:
    for number, motion in enumerate(motions, start=1):
        facts = ", ".join([f"{len(motion.joints) / model.fps:.1f} s", *_judged(motion, model.fps)])
        console.print(f"{number}. {motion.text} ({facts})", markup=False)
    frames = sum(len(motion.joints) for motion in motions)
    rate = frames / seconds
    console.print(
        f"{frames:,} frames in {seconds:.1f} s: {rate:,.0f} frames a second, {rate / model.fps:.1f} times as fast as "
        "they are played",
        markup=False,
    )
