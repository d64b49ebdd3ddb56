"""The options of ``fastvq train``: all settings of a training, with the defaults of the run that is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastvq.models.commands.options import OptionalNumber, OptionalPath
from fastvq.models.errors import UserError
from fastvq.models.tokenizers.config import MotionVQVAEConfig
from fastvq.models.training.config import LossWeights, TrainConfig
from fastvq.models.training.run_folder import RunFolder


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

    A model for an hour of two CPU cores: --width 512 --batch-size 32 --steps 6500 --precision bf16 --mirror
    --speeds 0.8 0.9 1 1.1 1.25 --short-clips pad
    """

    kind: Annotated[tyro.conf.Positional[Literal["motion-vqvae"]], tyro.conf.arg(metavar="motion-vqvae")]
    """The kind of model: the multi-group motion VQ-VAE."""
    data: Path
    """Motions: a file or folder of BVH, ASF/AMC, joint arrays (.npz, .npy), or features of 272
    columns, HumanML3D's 263 or KIT-ML's 251 (.npy)."""
    out: Path
    """The run folder to write."""
    options: Annotated[TrainOptions, tyro.conf.arg(name="")] = field(default_factory=TrainOptions)
    resume: bool = False
    """Go on from the newest checkpoint in --out, with the settings stored there unless others are given."""
    overwrite: bool = False
    """Remove an earlier run in --out first."""
    mapping: OptionalPath = None
    """JSON file of {SMPL joint: joint of your skeleton}, where joint names say too little."""
    scale: OptionalNumber = None
    """Metres per unit of the files, where they do not say it and the size of the body misleads."""
    skip_report: bool = False
    """Do without what follows training: measuring the test split, its tokens, and the report."""


def stored(arguments: Sequence[str]) -> Train | None:
    """With --resume, a command whose defaults are the settings that the run was started with."""
    out = _value(arguments, "--out")
    if "--resume" not in arguments or out is None or not (Path(out) / "last.json").is_file():
        return None
    settings = RunFolder(Path(out)).training_config()
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
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
