"""What all trainings in a run folder have in common: the loop, its checkpoints, and going on from them to the bit."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from fastvq.models.errors import UserError
from fastvq.models.tokenizers import pretrained
from fastvq.models.training.config import RunConfig
from fastvq.models.training.environment import environment
from fastvq.models.training.heap import kept_heap
from fastvq.models.training.processes import Processes, join
from fastvq.models.training.reporting import Reporter
from fastvq.models.training.run_folder import RunFolder, SavedModel, load_trainer


class LoopResult(NamedTuple):
    """How a loop ended.

    Attributes:
        row: the last row of ``metrics.jsonl`` since the start or resume; empty if none.
        seconds: of this process's training loop.
        interrupted: stopped by Ctrl-C or a termination signal before ``config.steps``.
    """

    row: dict[str, Any]
    seconds: float
    interrupted: bool


class Workplace(NamedTuple):
    """Where a training takes place, as :func:`workplace` gives it.

    Attributes:
        processes: that do it together.
        folder: of the run.
        console: shows progress; silent on all processes but the first.
        resumed: whether there is a checkpoint to go on from.
    """

    processes: Processes
    folder: RunFolder
    console: Console
    resumed: bool

    def keep(self, model: SavedModel, name: str) -> None:
        """Saves another model that the trained one needs in a folder of the run folder.

        A run that is not to be resumed with these settings keeps what it has; one that ended before its first
        checkpoint begins again, maybe with another model.
        """
        held = self.folder.path / name

        def save() -> None:
            if not self.resumed or not (held / pretrained.CONFIG).is_file():
                model.save_pretrained(held)

        self.processes.on_main(save)


@contextlib.contextmanager
def workplace(out: Path, *, resume: bool, console: Console | None) -> Iterator[Workplace]:
    """What every training begins with, and an end for all processes together.

    Args:
        out: the run folder.
        resume: go on from its newest checkpoint; from the start where there is none.
        console: shows progress; None is silent.

    Raises:
        UserError: the folder holds a run already, and it is not to be resumed.
    """
    processes = join()
    if console is None or not processes.main:
        console = Console(quiet=True)
    with processes.together(), kept_heap() if processes.device.type == "cpu" else contextlib.nullcontext():
        folder = RunFolder(Path(out))
        resumed = processes.tell(processes.on_main(lambda: newest_checkpoint(folder, resume=resume)) is not None)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
            yield Workplace(processes, folder, console, resumed)


class TrainingLoop(ABC):
    """The state of a run between steps; subclasses bring the model, the optimizers and the step.

    Each process makes the same model from the same seed, and takes its part of every batch; random numbers that are
    drawn in a step are its own.

    Args:
        config: settings.
        place: where it takes place.
        data: by which a resumed run knows its data again.
    """

    model: SavedModel

    def __init__(self, config: RunConfig, place: Workplace, data: str) -> None:
        self.config, self.data = config, data
        self.processes, self.folder, self.console, _ = place
        self.device = self.processes.device
        self.step = 0
        self.share: Tensor | float = 1.0  # of this process in the mean losses of the last step
        self._stop, self._stopping = threading.Event(), False

    @abstractmethod
    def advance(self) -> Any:
        """One step, which it counts; what it gives back, :meth:`record` gets."""

    @abstractmethod
    def record(self, losses: Any) -> None:
        """Takes a step into the next row."""

    @abstractmethod
    def row(self) -> dict[str, Any]:
        """What ``metrics.jsonl`` gets of the steps since the last row: step, loss, steps_per_second, and more."""

    @abstractmethod
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By the names that checkpoints have for them; one is "optimizer"."""

    def other_modules(self) -> Mapping[str, nn.Module]:
        """What is trained beside the model and stays in the checkpoints, by name."""
        return {}

    def average(self, parameters: Iterable[nn.Parameter], number: Tensor | float = 1.0) -> None:
        """Makes gradients those of all processes' mean loss, and agrees with them on whether to stop.

        Args:
            parameters: with the gradients of this process's loss.
            number: of what that loss is the mean.
        """
        self.share, self._stopping = self.processes.average_(parameters, number=number, stop=self._stop.is_set())

    def go(self, *, resume: bool) -> LoopResult:
        """Runs the steps that remain, in the run folder, which no other training may use meanwhile.

        Args:
            resume: go on from the newest checkpoint; from the start where there is none.

        Raises:
            UserError: the folder holds a run already, settings or data are not those of the run to resume, another
                process is training there, a loss or weights that are not finite, a disk that is full, processes with
                different data, or one that has ended.
        """
        processes = self.processes
        if len(set(processes.gather(self.data))) > 1:
            raise UserError("the processes of a training need the same clips, and theirs differ: give all the same")
        with contextlib.ExitStack() as held:

            def begin() -> Path | None:
                held.enter_context(self.folder.lock())
                return newest_checkpoint(self.folder, resume=resume)

            checkpoint = processes.tell(processes.on_main(begin))
            processes.seed(self.config.seed, 0)
            if checkpoint is not None:
                self.load(checkpoint)
                self.console.print(f"Resuming at step {self.step} from {checkpoint}.", markup=False)
            elif resume:
                self.console.print(
                    f"{self.folder.path} has no checkpoint to resume: starting at step 0.", markup=False
                )
            processes.align_((cast(nn.Module, self.model), *self.other_modules().values()))
            processes.on_main(self._start)
            return self._train(saved=-1 if checkpoint is None else self.step)

    def _start(self) -> None:
        self.folder.start(environment(self.device, self.processes.count), self.config)
        self.folder.truncate_metrics(self.step)

    def load(self, checkpoint: Path) -> None:
        """Takes up where a checkpoint left off."""
        self.config.check_resumes(self.folder.training_config())
        trainer = load_trainer(checkpoint)
        if trainer["data"] != self.data:
            raise UserError(
                f"cannot resume {self.folder.path} with other training clips: give the data that it was started with"
            )
        if trainer["step"] > self.config.steps:
            raise UserError(
                f"{self.folder.path} is at step {trainer['step']} already: steps must be at least that, "
                f"got {self.config.steps}"
            )
        state, source = pretrained.read_weights(checkpoint)
        self.model.load_weights(state, source)
        for name, holder in self._held().items():
            holder.load_state_dict(trainer[name])
        self.step = trainer["step"]
        before = self.processes.restore_random_states(trainer, seed=self.config.seed, step=self.step)
        if before != self.processes.count:
            self.console.print(
                f"Trained by {before} {'process' if before == 1 else 'processes'} so far, and now by "
                f"{self.processes.count}: the batches stay the same, the weights will not be the same to the bit.",
                markup=False,
            )

    def save(self) -> None:
        """Writes a checkpoint of the present step.

        Raises:
            UserError: the weights are not finite, so that nothing could come of it, or the disk is full.
        """
        state = self.model.state_dict().values()
        if not all(bool(tensor.isfinite().all()) for tensor in state if tensor.is_floating_point()):
            raise self._diverged("the weights are not finite")
        trainer: dict[str, Any] = {"data": self.data, **self.processes.random_states()}
        trainer.update({name: holder.state_dict() for name, holder in self._held().items()})
        self.processes.on_main(self.folder.save_checkpoint, self.step, self.model, self.config, trainer)

    def _held(self) -> dict[str, torch.optim.Optimizer | nn.Module]:
        return {**self.optimizers(), **self.other_modules()}

    def _diverged(self, what: str) -> UserError:
        last = self.folder.last()
        kept = "no checkpoint was written before that" if last is None else f"the checkpoint before that is {last}"
        return UserError(f"{what} at step {self.step}: lower lr, lengthen warmup, or set grad_clip; {kept}")

    def _train(self, saved: int) -> LoopResult:
        """Runs the remaining steps; Ctrl-C ends after the step in hand, with a checkpoint.

        Args:
            saved: the newest checkpoint's step; -1 where there is none.
        """
        config, processes, start = self.config, self.processes, time.perf_counter()
        row: dict[str, Any] = {}
        with contextlib.ExitStack() as shown, stop_signal(repeated=processes.count > 1) as self._stop:
            reporter = Reporter(self.folder, config.steps, self.step, self.console)
            processes.on_main(shown.enter_context, reporter)
            while self.step < config.steps and not self._stops():
                self.record(self.advance())
                reporter.advance()
                last_step = self.step == config.steps or self._stops()
                if self.step % config.log_every == 0 or last_step:
                    row = self.row()
                    if not math.isfinite(row["loss"]):
                        raise self._diverged(f"the loss is {row['loss']}")
                    processes.on_main(reporter.log, row)
                if self.step % config.checkpoint_every == 0 or last_step:
                    self.save()
                    saved = self.step
            if saved < self.step:
                self.save()
        seconds = time.perf_counter() - start
        processes.on_main(self.folder.save_model, self.model, config)
        interrupted = self.step < config.steps
        if interrupted:
            self.console.print(
                f"Stopped at step {self.step} of {config.steps}; model and checkpoint are in {self.folder.path}. "
                "Resume to go on.",
                markup=False,
            )
        return LoopResult(row, seconds, interrupted)

    def _stops(self) -> bool:
        """Whether this step was the last, which several processes know of each other since they averaged."""
        return self._stop.is_set() if self.processes.count == 1 else self._stopping


def newest_checkpoint(folder: RunFolder, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, if there is one.

    Raises:
        UserError: there is one, and the run is not to be resumed.
    """
    checkpoint = folder.last()
    if checkpoint is not None and not resume:
        raise UserError(f"{folder.path} holds a run already: resume it, or choose another folder")
    return checkpoint


@contextlib.contextmanager
def stop_signal(*, repeated: bool = False) -> Iterator[threading.Event]:
    """An event that Ctrl-C or a termination signal sets; a second Ctrl-C interrupts at once.

    Args:
        repeated: a second one does nothing, since a launcher passes on what the terminal has sent already.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT and not repeated:
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
