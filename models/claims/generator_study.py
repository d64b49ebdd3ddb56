"""What ``fastvq reproduce`` trains and decides of text-to-motion generators, as data.

The tokenizer is trained once and shared by all runs, so that they differ in nothing but what claims are about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastvq.models.claims.study import Claim, Study, View
from fastvq.models.evaluation.generation import Protocol
from fastvq.models.generators.generator import GeneratorConfig
from fastvq.models.generators.kinds import GENERATORS
from fastvq.models.training.generator import GeneratorTrainConfig

# As tables have them, with what is better; an attribute is there on procedural captions only.
METRICS: Mapping[str, str] = {
    "fid": "FID",
    "top1": "R-precision, top 1",
    "top2": "top 2",
    "top3": "top 3",
    "mm_dist": "MM-Dist",
    "diversity": "Diversity",
    "multimodality": "MultiModality",
    "action": "right action",
    "direction": "right direction",
    "side": "right side",
    "speed": "right speed",
    "all": "all that was asked",
}


@dataclass(frozen=True)
class GeneratorRun:
    """A generator to train.

    Attributes:
        name: Of its folder and its rows; letters, digits and underscores.
        kind: Of the generator, as ``fastvq train`` knows it.
        model: Its settings where they are not the kind's defaults and not the study's.
        training: Those of its training.
        guidance: Strengths of the text with which it is measured; None is the generator's usual one.
        base: Name of the run, earlier in the study, whose generator this one builds on.
    """

    name: str
    kind: str
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    guidance: Sequence[float | None] = (None,)
    base: str | None = None


def view(run: str, guidance: float | None = None) -> View:
    """A run as measured with a strength of the text; None is the generator's usual one."""
    return View(run if guidance is None else f"{run}, guidance {guidance:g}")


@dataclass(frozen=True)
class GeneratorStudy:
    """A system's generators and the claims about them; a module that ``studies.NAMES`` names calls its own ``STUDY``.

    Attributes:
        name: Of the system, "s3-gen".
        title: Of the table.
        tokenizer: A study of one run, which is trained for all generators.
        runs, claims: See there; claims compare ``view``s.
        equal: What is the same in the runs that are compared.
        steps, dim: Of every run unless the command says otherwise.
        seeds: Of every run; the tokenizer has the first.
        model, training: Settings of every run.
        protocol: How motions are measured; fewer repeats than the published ones, for time.
    """

    name: str
    title: str
    tokenizer: Study
    runs: tuple[GeneratorRun, ...]
    claims: tuple[Claim, ...]
    equal: str
    steps: int = 1200
    dim: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    protocol: Protocol = field(
        default_factory=lambda: Protocol(repeats=3, multimodality_texts=6, multimodality_generations=8)
    )

    def __post_init__(self) -> None:
        names = [run.name for run in self.runs]
        if len(set(names)) != len(names):
            raise ValueError("two runs of a study must not share a name")
        for index, run in enumerate(self.runs):
            if run.base is not None and run.base not in names[:index]:
                raise ValueError(f"the run {run.name} builds on {run.base}, which is not trained before it")
        measured = {view(run.name, guidance) for run in self.runs for guidance in run.guidance}
        for claim in self.claims:
            lacking = [one.name for one in claim.order if one not in measured]
            if lacking or len(claim.order) < 2:
                raise ValueError(f"the claim {claim.sentence!r} compares what is not measured: {', '.join(lacking)}")

    def model_config(self, run: GeneratorRun, dim: int) -> GeneratorConfig:
        """The sizes of a run's generator, not yet fitted to a tokenizer.

        Raises:
            UserError: Settings that no generator can have.
        """
        config: GeneratorConfig = GENERATORS[run.kind].generator.config_class(
            **{"dim": dim, **self.model, **run.model}
        )
        return config

    def config(self, run: GeneratorRun, fitted: GeneratorConfig, *, seed: int, steps: int) -> GeneratorTrainConfig:
        """The settings of a run's training: a short recipe, then what the study sets, then what the run sets.

        The short recipe warms up over a twentieth of the steps and lowers the rate fourfold after 70 % and 90 %.

        Raises:
            UserError: Settings that no run can have.
        """
        values: dict[str, Any] = {
            "batch_size": 64,
            "lr": 5e-4,
            "gamma": 0.25,
            "warmup": steps // 20,
            "milestones": (7 * steps // 10 + 1, 9 * steps // 10 + 1),
            "checkpoint_every": steps,
            "keep_checkpoints": 1,
            **self.training,
            **run.training,
        }
        return GENERATORS[run.kind].training(**{**values, "model": fitted, "steps": steps, "seed": seed})
