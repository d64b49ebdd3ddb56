"""``fastvq demo``: the whole way in a few minutes, from motions to a report."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fastvq.models.commands import common
from fastvq.models.commands.finish import finish_run
from fastvq.models.commands.options import Demo
from fastvq.models.errors import UserError
from fastvq.models.motion.clip import Clip
from fastvq.models.motion.procedural import generate_clips
from fastvq.models.tokenizers.config import MotionVQVAEConfig, check_integer
from fastvq.models.training.config import TrainConfig, fastest_precision
from fastvq.models.training.data import FeatureClip
from fastvq.models.training.trainer import train

PROCEDURAL_CLIPS = 400
# Steps that are timed to learn how many fit into the time given; the first ones warm up and are not counted.
TIMED_STEPS = 12
FEWEST_STEPS = 20
# Seconds, a day.
LONGEST = 86_400


def run(command: Demo) -> int:
    """Runs the demo; returns the exit code."""
    if not 0 < command.seconds <= LONGEST:
        raise UserError(f"--seconds must be above 0 and at most {LONGEST}, got {command.seconds:g}")
    check_integer("--seed", command.seed, 0, 2**63 - 1)
    console = common.make_console()
    out = _free_folder(Path("runs")) if command.out is None else command.out
    common.check_new_folder(out, overwrite=command.overwrite)
    notes: list[str] = []
    clips = _clips(command, console, notes)
    common.make_room_for_run(out, overwrite=command.overwrite)
    held_out = [clip for clip in clips if clip.split == "test"]
    if not held_out:
        raise UserError("none of the held-out clips has 4 frames without a jump: give more motions, or longer ones")
    config = demo_config(command.seed, clips)
    console.print(
        f"{len(clips)} clips, {sum(len(clip.features) for clip in clips) / config.model.fps / 60:.1f} minutes of "
        f"motion; {len(held_out)} of them are held out."
    )
    steps = max(FEWEST_STEPS, int(command.seconds * measure_speed(config, clips)))
    config = replace(
        config, steps=steps, warmup=min(50, steps // 10), milestones=(7 * steps // 10 + 1, 9 * steps // 10 + 2)
    )
    console.print(
        f"Training for {steps:,} steps, about {command.seconds:.0f} s: {config.model.summary}, "
        f"{config.precision}, "
        f"{'1 thread' if torch.get_num_threads() == 1 else f'{torch.get_num_threads()} threads'}."
    )
    result = train(config, clips, out, console=console)
    if result.interrupted:
        return 130
    finish_run(result, held_out, console, notes=notes)
    _next_commands(out, command.data, console)
    return 0


def _clips(command: Demo, console: Console, notes: list[str]) -> list[FeatureClip]:
    if command.data is None:
        made = generate_clips(PROCEDURAL_CLIPS, seed=command.seed)
        notes.append(
            "These motions are made up by a generator, not recorded: much more regular than what people do. "
            "Give the folder of your own to see the tokenizer at work on them."
        )
        return common.prepare(made, console)
    clips, note = hold_out(common.read_clips(command.data, console, fps=30.0))
    if note:
        notes.append(note)
        common.print_notes([note], console)
    return common.prepare(clips, console)


def hold_out(clips: Sequence[Clip]) -> tuple[list[Clip], str]:
    """Makes sure that there are clips to learn from and clips to measure, and says what had to be done for it."""
    splits = [clip.split for clip in clips]
    if "test" in splits and "train" in splits:
        return [clip for clip in clips if clip.split in ("train", "test")], ""
    if len(clips) == 1:
        both = [replace(clips[0], split="train"), replace(clips[0], name=f"{clips[0].name}_again", split="test")]
        return both, "There is only one clip: it is measured on the very motion it was learnt from."
    held = {len(clips) - 1 - index for index in range(0, len(clips), 10)}
    dealt = [replace(clip, split="test" if index in held else "train") for index, clip in enumerate(clips)]
    return dealt, f"The data has no train and test split: {len(held)} of its {len(clips)} clips were held out."


def demo_config(seed: int, clips: Sequence[FeatureClip]) -> TrainConfig:
    model = MotionVQVAEConfig(width=192, output_dim=128, groups=16, codebook_size=128)
    longest = max((len(clip.features) for clip in clips if clip.split == "train"), default=0)
    window = min(64, max(8, longest // model.downsample * model.downsample))
    return TrainConfig(
        model=model,
        window=window,
        batch_size=32,
        lr=1e-3,
        gamma=0.25,
        mirror=True,
        precision=fastest_precision(),
        seed=seed,
        log_every=10,
    )


def measure_speed(config: TrainConfig, clips: Sequence[FeatureClip]) -> float:
    """Steps per second here, and the number of threads that gives them, which is set.

    A small model gains little from many threads, and on a machine with other work to do it loses: each operation
    waits for its last thread. So half as many are tried as long as that is faster.
    """
    threads = torch.get_num_threads()
    best = _timed(config, clips)
    while threads > 1 and not torch.cuda.is_available():
        torch.set_num_threads(threads // 2)
        rate = _timed(config, clips)
        if rate <= best:
            torch.set_num_threads(threads)
            break
        best, threads = rate, threads // 2
    return best


def _timed(config: TrainConfig, clips: Sequence[FeatureClip]) -> float:
    """Steps per second in the second half of a few that are run and thrown away."""
    trial = replace(config, steps=TIMED_STEPS, log_every=TIMED_STEPS // 2, checkpoint_every=TIMED_STEPS)
    with tempfile.TemporaryDirectory(prefix="fastvq-demo-") as folder:
        result = train(trial, clips, Path(folder))
    if result.interrupted:
        raise KeyboardInterrupt
    rate: float = result.metrics["steps_per_second"]
    return rate


def _free_folder(parent: Path) -> Path:
    """The first of demo, demo-2, demo-3, ... that is not taken."""
    number = 1
    while True:
        path = parent / ("demo" if number == 1 else f"demo-{number}")
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return path
        number += 1


def _next_commands(out: Path, data: Path | None, console: Console) -> None:
    run = shlex.quote(str(out))
    decoded = shlex.quote(str(out.with_name(out.name + "-bvh")))
    source = "YOUR_MOTIONS" if data is None else shlex.quote(str(data))
    console.print(
        f"\nReport: {(out / 'report.html').resolve()}\n\nNext:\n"
        f"  fastvq decode --checkpoint {run} --tokens {run}/tokens.safetensors --out {decoded}\n"
        f"  fastvq encode --checkpoint {run} --data {source} --out tokens.safetensors\n"
        f"  fastvq train motion-vqvae --data {source} --out runs/motion-vqvae --width 512 --steps 2000",
        markup=False,
    )
