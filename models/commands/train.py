"""``fastvq train``: a run folder from a folder of motions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastvq.models.commands import common
from fastvq.models.commands.finish import finish_run
from fastvq.models.errors import UserError
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.training.config import LossWeights, TrainConfig
from fastvq.models.training.run_folder import RunFolder
from fastvq.models.training.trainer import train


@dataclass(frozen=True)
class ModelOptions(MotionVQVAEConfig):
    """Sizes of the model; the defaults are the published one's, 73 M parameters."""

    codebook_size: Annotated[int, tyro.conf.arg(name="codes")] = 512
    """Codes in each group's codebook."""


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    """Settings of the training; the defaults are the published recipe."""

    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)

    def config(self) -> TrainConfig:
        """The same as the trainer knows it."""
        values = {name: getattr(self, name) for name in TrainConfig.__dataclass_fields__}
        return TrainConfig(**{**values, "model": MotionVQVAEConfig(**asdict(self.model))})


@dataclass(frozen=True)
class Train:
    """Train a tokenizer on a folder of motions and write a run folder: model, checkpoints, metrics, report.

    Clips of the train split are learnt from, those of the test split measured at the end. Ctrl-C stops after the step
    in hand, with a checkpoint; the same command with --resume goes on from there, to the same weights as an
    uninterrupted run.

    A model that trains on a CPU in an hour or two: --width 512 --steps 2000 --precision bf16
    """

    kind: Annotated[tyro.conf.Positional[Literal["motion-vqvae"]], tyro.conf.arg(metavar="motion-vqvae")]
    """The kind of model: the multi-group motion VQ-VAE."""
    data: Path
    """Motions: a file or folder of BVH, ASF/AMC, joint arrays (.npz, .npy) or 272-dimensional features (.npy)."""
    out: Path
    """The run folder to write."""
    options: Annotated[TrainOptions, tyro.conf.arg(name="")] = field(default_factory=TrainOptions)
    resume: bool = False
    """Go on from the newest checkpoint in --out, with the settings stored there unless others are given."""
    overwrite: bool = False
    """Remove an earlier run in --out first."""
    mapping: common.OptionalPath = None
    """JSON file of {SMPL joint: joint of your skeleton}, where joint names say too little."""
    skip_report: bool = False
    """Do without what follows training: measuring the test split, its tokens, and the report."""


def main(arguments: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    command = common.parse(Train, "train", arguments, default=_stored(arguments))
    config = command.options.config()
    console = common.make_console()
    if command.resume and command.overwrite:
        raise UserError("--resume keeps what --overwrite removes: give one of them")
    if not command.resume:
        common.check_new_folder(command.out, overwrite=command.overwrite)
    clips = common.prepare(
        common.read_clips(command.data, console, fps=config.model.fps, mapping=command.mapping),
        console,
        fps=config.model.fps,
    )
    held_out = [clip for clip in clips if clip.split == "test"]
    console.print(f"{len(clips)} clips: {sum(clip.split == 'train' for clip in clips)} train, {len(held_out)} test")
    if not command.resume:
        common.make_room_for_run(command.out, overwrite=command.overwrite)
    result = train(config, clips, command.out, resume=command.resume, console=console)
    folder = shlex.quote(str(command.out))
    if result.interrupted:
        data = shlex.quote(str(command.data))
        console.print(f"Go on with: fastvq train motion-vqvae --data {data} --out {folder} --resume")
        return 130
    if held_out and not command.skip_report:
        finish_run(result, held_out, console)
        console.print(f"Report: {(command.out / 'report.html').resolve()}", markup=False)
    elif not command.skip_report:
        console.print("There is no test clip, so nothing was measured and no report was written.")
    console.print(f"Model:  {command.out}", markup=False)
    return 0


def _stored(arguments: Sequence[str]) -> Train | None:
    """With --resume, a command whose defaults are the settings that the run was started with."""
    out = _value(arguments, "--out")
    if "--resume" not in arguments or out is None or not (Path(out) / "last.json").is_file():
        return None
    stored = RunFolder(Path(out)).training_config()
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    try:
        values["model"] = ModelOptions(**values["model"])
        values["loss"] = LossWeights(**values["loss"])
        options = TrainOptions(**values)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{out} was started by another version of fastvq ({error}): resume it with that one"
        ) from error
    return Train(kind=tyro.MISSING, data=tyro.MISSING, out=tyro.MISSING, options=options)


def _value(arguments: Sequence[str], name: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None
