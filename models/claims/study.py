"""What ``fastvq reproduce`` trains and decides, as data: the runs of a system, and the claims that they test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastvq.models.claims.motion_trials import MotionTrials
from fastvq.models.claims.trials import Trials

# Of a row, before what an evaluation gives.
COLUMNS = (
    *("study", "run", "streams", "kind", "seed", "steps", "seconds", "width", "parameters", "downsample"),
    *("codes_per_second", "train_perplexity"),
)


@dataclass(frozen=True)
class Run:
    """A tokenizer to train.

    Attributes:
        name: of its folder and its rows; letters, digits and underscores.
        kind: of the tokenizer, as ``fastvq train`` knows it.
        model: its settings where they are not the kind's defaults and not the study's.
        training: those of its training; under ``loss`` the weights that differ, as a dict.
        streams: what is measured of it: None is the whole model, a number only the first so many tokens of a latent,
            the others left out (residual stages; pose codes without the residual).
        seeds: with how many of the study's seeds, the first ones, it is trained; all if None.
    """

    name: str
    kind: str
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    streams: tuple[int | None, ...] = (None,)
    seeds: int | None = None


@dataclass(frozen=True)
class View:
    """A run as measured with its first tokens only, or with all (None)."""

    run: str
    streams: int | None = None

    @property
    def name(self) -> str:
        """As tables have it."""
        return self.run if self.streams is None else f"{self.run}, first {self.streams}"


@dataclass(frozen=True)
class Claim:
    """A sentence that measurements can contradict.

    Attributes:
        sentence: what is claimed, in our words.
        source: where; "ours" for a check that the paper does not make.
        order: the views from the one that should be worst to the one that should be best.
        metric: a column of the measurements; smaller is better unless ``larger``.
        larger: larger is better.
        published: the paper's figures in that order; empty where none is at hand.
        published_as: what they are figures of.
        why: what, beyond data and training time, lets the size of the effect differ.
    """

    sentence: str
    source: str
    order: tuple[View, ...]
    metric: str
    larger: bool = False
    published: tuple[float, ...] = ()
    published_as: str = ""
    why: str = ""


@dataclass(frozen=True)
class Study:
    """A system's runs and claims; a module of this folder that is named in ``studies.NAMES`` calls its own ``STUDY``.

    Attributes:
        name: of the system, "s3".
        title: of the table.
        runs, claims: see there.
        equal: what is the same in the runs that are compared.
        steps, width: of every run unless the command says otherwise; for about 90 seconds on one thread.
        seeds: of every run.
        model, training: settings of every run.
        metrics: further numbers of an evaluation that claims need, beside those of the trials: the key that the
            evaluation gives them -> a heading with the unit.
        trials: how its runs are made.
    """

    name: str
    title: str
    runs: tuple[Run, ...]
    claims: tuple[Claim, ...]
    equal: str
    steps: int = 600
    width: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    trials: Trials = field(default_factory=MotionTrials)

    def __post_init__(self) -> None:
        measured = {(run.name, streams) for run in self.runs for streams in run.streams}
        for claim in self.claims:
            lacking = [view.name for view in claim.order if (view.run, view.streams) not in measured]
            if lacking or len(claim.order) < 2:
                raise ValueError(f"the claim {claim.sentence!r} compares what is not measured: {', '.join(lacking)}")
            if claim.published and len(claim.published) != len(claim.order):
                raise ValueError(f"the claim {claim.sentence!r} needs one published figure for each view, or none")
        if len({run.name for run in self.runs}) != len(self.runs):
            raise ValueError("two runs of a study must not share a name")

    def config(self, run: Run, *, seed: int, steps: int, width: int) -> Any:
        """The settings of a run: the short recipe of its kind, then what the study sets, then what the run sets.

        Raises:
            UserError: settings that no run can have.
        """
        return self.trials.config(self, run, seed=seed, steps=steps, width=width)

    def columns(self) -> tuple[str, ...]:
        """Of the table of rows."""
        return (*COLUMNS, *self.trials.metrics, *self.trials.originals.values(), *self.metrics)
