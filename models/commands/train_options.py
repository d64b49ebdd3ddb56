"""The options of ``fastvq train``: all settings of a training, with the defaults of the run that is resumed."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from fastvq.models.commands.options import OptionalNumber, OptionalPath
from fastvq.models.errors import UserError
from fastvq.models.generators.generator import GeneratorConfig
from fastvq.models.generators.kinds import GENERATORS
from fastvq.models.generators.refine_transformer import RefineTransformerConfig
from fastvq.models.kinds import KINDS
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.heatmap_vqgan import HeatmapVQGANConfig
from fastvq.models.tokenizers.saved_config import SavedConfig
from fastvq.models.training.config import RunConfig, TrainConfig
from fastvq.models.training.heatmap_vqgan import HeatmapTrainConfig
from fastvq.models.training.run_folder import RunFolder


class Trained(NamedTuple):
    """What there is to train: the class of its settings, that of its model's, and a few words."""

    training: type[RunConfig]
    model: type[SavedConfig]
    description: str


TRAINED = {
    **{name: Trained(kind.training, kind.tokenizer.config_class, kind.description) for name, kind in KINDS.items()},
    HeatmapVQGANConfig.kind: Trained(
        HeatmapTrainConfig, HeatmapVQGANConfig, "the adversarial VQ-GAN on heatmaps of motions"
    ),
    **{
        name: Trained(kind.training, kind.generator.config_class, kind.description)
        for name, kind in GENERATORS.items()
    },
}


def _kinds() -> str:
    listed = "; ".join(f"{name}, {kind.description}" for name, kind in TRAINED.items())
    return f"The kind of model: {listed}. Settings and their defaults are those of the kind."


@dataclass(frozen=True)
class Train:
    """Train a tokenizer on motions and write a run folder: model, checkpoints, metrics, report.

    Clips of the train split are learnt from, those of the test split measured at the end. Ctrl-C stops after the step
    in hand, with a checkpoint; the same command with --resume goes on from there, to the same weights as an
    uninterrupted run. Several processes share every batch of --batch-size, a GPU each where there are any: torchrun
    --nproc-per-node 2 --no-python fastvq train KIND and the options.

    A motion-vqvae for an hour of two CPU cores: --width 512 --batch-size 32 --steps 6500 --precision bf16 --mirror
    --speeds 0.8 0.9 1 1.1 1.25 --short-clips pad. A heatmap-vqgan for twenty minutes of one: --size 64 --frames 8
    --down-stages 2 --channels 16 32 --norm-groups 8 --latent-channels 32 --code-dim 32 --codes 512 --codebook-update
    ema --lr 2e-3 --steps 1600 --milestones 1300 --stretch 8 16 --no-random-scores --precision bf16 --loss.l2 10
    --loss.foreground 4 --loss.start 1000 --discriminator-width 16 --discriminator-layers 2
    """

    kind: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="KIND", help=_kinds())]
    out: Path
    """The run folder to write."""
    data: OptionalPath = None
    """Motions: a file or folder of BVH, ASF/AMC, joint arrays (.npz, .npy), or features of 272
    columns, HumanML3D's 263 or KIT-ML's 251 (.npy); if absent, they are made up, with captions."""
    clips: int = 2000
    """How many are made up; those of a ninth of all captions are kept for the test."""
    options: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
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


@dataclass(frozen=True)
class TrainGenerator(Train):
    """Train a generator, which writes a tokenizer's codes from a text, and write a run folder, the tokenizer in it.

    Motions need descriptions: HumanML3D and KIT-ML folders with their texts, motions with a .txt of their name beside
    them, or those that are made up without --data. Clips of the train split are learnt from. Ctrl-C stops after the
    step in hand, with a checkpoint; the same command with --resume goes on from there, to the same weights as an
    uninterrupted run.
    """

    tokenizer: OptionalPath = None
    """The tokenizer's run folder; needed unless a run is resumed, which holds its own."""
    skip_report: Annotated[bool, tyro.conf.Suppress] = False
    """Nothing follows the training of a generator: fastvq evaluate measures it."""


@dataclass(frozen=True)
class TrainRefine(TrainGenerator):
    """Train PGR2M's Refine Transformer, which adds residual codes to a Base Transformer's pose codes, and write a run
    folder, the Base Transformer and the tokenizer in it.

    Its text encoder, channels and longest motion are those of the Base Transformer; motions are as for pgr2m-base.
    Ctrl-C stops after the step in hand, with a checkpoint; the same command with --resume goes on from there, to the
    same weights as an uninterrupted run.
    """

    base: OptionalPath = None
    """The run folder of the pgr2m-base, which holds its tokenizer too; needed unless a run is resumed, which holds
    its own."""


# Commands of kinds that need more than others.
_COMMANDS: dict[str, type[Train]] = {RefineTransformerConfig.kind: TrainRefine}


def command(arguments: Sequence[str]) -> type[Train]:
    """The command whose settings are those of the kind that the arguments name, of the first kind where they do not.

    Raises:
        UserError: a kind that there is not.
    """
    name = _kind(arguments)
    base = _COMMANDS.get(name, TrainGenerator if name in GENERATORS else Train)
    model = dataclasses.make_dataclass(
        "ModelOptions", _model_fields(TRAINED[name].model), bases=(TRAINED[name].model,), frozen=True
    )
    options = dataclasses.make_dataclass(
        "TrainOptions",
        [("model", Annotated[model, tyro.conf.arg(name="")], field(default_factory=model))],
        bases=(TRAINED[name].training,),
        frozen=True,
    )
    return dataclasses.make_dataclass(
        "Train",
        [("options", Annotated[options, tyro.conf.arg(name="")], field(default_factory=options))],
        bases=(base,),
        frozen=True,
        namespace={"__doc__": base.__doc__},
    )


def _model_fields(kind: Any) -> list[tuple[str, Any, Any]]:
    """Settings of a model whose names on the command line are others, or that have none there."""
    if issubclass(kind, GeneratorConfig):
        hints = typing.get_type_hints(kind)
        return [(name, Annotated[hints[name], tyro.conf.Suppress], getattr(kind, name)) for name in kind.FITTED]
    codes = Annotated[int, tyro.conf.arg(name="codes", help="Codes in each codebook.")]
    return [("codebook_size", codes, kind.codebook_size)]


def settings(options: RunConfig) -> RunConfig:
    """The options of a command as the trainer knows them."""
    kind = TRAINED[options.model.kind]
    model = kind.model(**dataclasses.asdict(options.model))
    values = {entry.name: getattr(options, entry.name) for entry in dataclasses.fields(kind.training)}
    return kind.training(**{**values, "model": model})


def stored(arguments: Sequence[str], kind: type[Train]) -> Train | None:
    """With --resume, a command whose defaults are the settings that the run was started with.

    Raises:
        UserError: the run is of another kind, or its settings are not those of this version.
    """
    out = _value(arguments, "--out")
    if "--resume" not in arguments or out is None or not (Path(out) / "last.json").is_file():
        return None
    started, name = pretrained.read_config(Path(out)).get("kind"), _kind(arguments)
    if started != name:
        raise UserError(f"{out} is a run of the kind {started}, not {name}: resume it with fastvq train {started}")
    settings = RunFolder(Path(out)).training_config()
    values: dict[str, Any] = {
        entry: tuple(value) if isinstance(value, list) else value for entry, value in settings.items()
    }
    blank: Any = kind(kind="", out=Path()).options
    try:
        values["model"] = type(blank.model)(**values["model"])
        if "loss" in values:
            values["loss"] = type(blank.loss)(**values["loss"])
        options: RunConfig = type(blank)(**values)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{out} was started by another version of fastvq ({error}): resume it with that one"
        ) from error
    return kind(kind=tyro.MISSING, out=tyro.MISSING, options=options)


def _kind(arguments: Sequence[str]) -> str:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in TRAINED:
        raise UserError(f"there is no kind of model {arguments[0]!r}: the kinds are {', '.join(TRAINED)}")
    return next((word for word in arguments if word in TRAINED), next(iter(TRAINED)))


def _value(arguments: Sequence[str], name: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None
