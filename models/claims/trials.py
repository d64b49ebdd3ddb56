"""What runs of a study are: how they are configured, trained, measured and described, for each kind of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rich.console import Console
from torch import nn

if TYPE_CHECKING:
    from fastvq.models.claims.study import Run, Study


class Ended(NamedTuple):
    """How a training ended: its model, in evaluation mode, and whether it was stopped before its last step."""

    model: nn.Module
    interrupted: bool


class Trials(Protocol):
    """How the runs of a study are made; what ``clips`` and models are is each kind's own.

    Attributes:
        metrics: what is taken from an evaluation into the tables, in their order -> a heading with the unit; a metric
            that was not measured is left empty.
        originals: metrics of the motions themselves, beside which that of what became of them stands: the metric ->
            the key that an evaluation gives the original's.
        measured: sentences on how the metrics were measured.
    """

    metrics: Mapping[str, str]
    originals: Mapping[str, str]
    measured: str

    def config(self, study: Study, run: Run, *, seed: int, steps: int, width: int) -> Any:
        """The settings of a run: the short recipe, then what the study sets, then what the run sets.

        Raises:
            UserError: settings that no run can have.
        """

    def fingerprint(self, clips: Sequence[Any]) -> str:
        """By which rows know the data that they are of."""

    def train(self, config: Any, clips: Sequence[Any], folder: Path, *, resume: bool, console: Console) -> Ended:
        """Trains on the clips whose split is "train"."""

    def measure(self, config: Any, model: Any, clips: Sequence[Any], streams: int | None) -> Mapping[str, Any]:
        """An evaluation with the first streams, all if None."""

    def sizes(self, config: Any, streams: int | None) -> dict[str, Any]:
        """width, downsample and codes_per_second of a run."""

    def fps(self, config: Any) -> float:
        """Frames a second of the clips."""

    def seconds(self, config: Any, clip: Any) -> float:
        """How long a clip is."""

    def recipe(self, config: Any) -> str:
        """The training in words: steps, batches, rate."""

    def notes(self, config: Any, minutes: float) -> list[str]:
        """Sentences on why sizes differ from the paper's, for all claims; trained on so many minutes."""
