"""What all trainings in a run folder have in common: the loop, its checkpoints, and going on from them to the bit."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from fastvq.models.errors import UserError
from fastvq.models.tokenizers import pretrained
from fastvq.models.training.config import RunConfig
from fastvq.models.training.environment import environment
from fastvq.models.training.reporting import Reporter
from fastvq.models.training.run_folder import RunFolder, SavedModel, load_trainer


class LoopResult(NamedTuple):
    """How a loop ended.

    Attributes:
        row: the last row of ``metrics.jsonl`` that this process wrote; empty if none.
        seconds: of this process's training loop.
        interrupted: stopped by Ctrl-C or a termination signal before ``config.steps``.
    """

    row: dict[str, Any]
    seconds: float
    interrupted: bool


class TrainingLoop(ABC):
    """The state of a run between steps; subclasses bring the model, the optimizers and the step.

    Args:
        config: settings.
        folder: of the run.
        device: where the model is.
        data: by which a resumed run knows its data again.
    """

    model: SavedModel

    def __init__(self, config: RunConfig, folder: RunFolder, device: torch.device, data: str) -> None:
        self.config, self.folder, self.device, self.data = config, folder, device, data
        self.step = 0

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

    def go(self, console: Console, *, resume: bool) -> LoopResult:
        """Runs the steps that remain, in the run folder, which no other process may use meanwhile.

        Args:
            console: shows progress.
            resume: go on from the newest checkpoint; from the start where there is none.

        Raises:
            UserError: the folder holds a run already, settings or data are not those of the run to resume, another
                process is training there, a loss or weights that are not finite, a disk that is full.
        """
        with self.folder.lock():
            checkpoint = newest_checkpoint(self.folder, resume=resume)
            if checkpoint is not None:
                self.load(checkpoint)
                console.print(f"Resuming at step {self.step} from {checkpoint}.", markup=False)
            elif resume:
                console.print(f"{self.folder.path} has no checkpoint to resume: starting at step 0.", markup=False)
            self.folder.start(environment(self.device), self.config)
            self.folder.truncate_metrics(self.step)
            return self._train(console)

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
        torch.set_rng_state(trainer["rng"])
        if self.device.type == "cuda" and "rng_cuda" in trainer:  # absent where the run was started on a CPU
            torch.cuda.set_rng_state(trainer["rng_cuda"], self.device)
        self.step = trainer["step"]

    def save(self) -> Path:
        """Writes a checkpoint of the present step.

        Raises:
            UserError: the weights are not finite, so that nothing could come of it, or the disk is full.
        """
        state = self.model.state_dict().values()
        if not all(bool(tensor.isfinite().all()) for tensor in state if tensor.is_floating_point()):
            raise self._diverged("the weights are not finite")
        trainer: dict[str, Any] = {"data": self.data, "rng": torch.get_rng_state()}
        trainer.update({name: holder.state_dict() for name, holder in self._held().items()})
        if self.device.type == "cuda":
            trainer["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        return self.folder.save_checkpoint(self.step, self.model, self.config, trainer)

    def _held(self) -> dict[str, torch.optim.Optimizer | nn.Module]:
        return {**self.optimizers(), **self.other_modules()}

    def _diverged(self, what: str) -> UserError:
        last = self.folder.last()
        kept = "no checkpoint was written before that" if last is None else f"the checkpoint before that is {last}"
        return UserError(f"{what} at step {self.step}: lower lr, lengthen warmup, or set grad_clip; {kept}")

    def _train(self, console: Console) -> LoopResult:
        """Runs the remaining steps; Ctrl-C ends after the step in hand, with a checkpoint."""
        config, start = self.config, time.perf_counter()
        row: dict[str, Any] = {}
        saved = self.step if self.folder.last() else -1
        with Reporter(self.folder, config.steps, self.step, console) as reporter, stop_signal() as stop:
            while self.step < config.steps and not stop.is_set():
                self.record(self.advance())
                reporter.advance()
                last_step = self.step == config.steps or stop.is_set()
                if self.step % config.log_every == 0 or last_step:
                    row = self.row()
                    if not math.isfinite(row["loss"]):
                        raise self._diverged(f"the loss is {row['loss']}")
                    reporter.log(row)
                if self.step % config.checkpoint_every == 0 or last_step:
                    self.save()
                    saved = self.step
            if saved < self.step:
                self.save()
        seconds = time.perf_counter() - start
        self.folder.save_model(self.model, config)
        interrupted = self.step < config.steps
        if interrupted:
            console.print(
                f"Stopped at step {self.step} of {config.steps}; model and checkpoint are in {self.folder.path}. "
                "Resume to go on.",
                markup=False,
            )
        return LoopResult(row, seconds, interrupted)


def newest_checkpoint(folder: RunFolder, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, if there is one.

    Raises:
        UserError: there is one, and the run is not to be resumed.
    """
    checkpoint = folder.last()
    if checkpoint is not None and not resume:
        raise UserError(f"{folder.path} holds a run already: resume it, or choose another folder")
    return checkpoint


def single_process() -> Accelerator:
    """The accelerator of a training, which casts nothing by itself.

    Raises:
        UserError: there are several processes.
    """
    accelerator = Accelerator(mixed_precision="no")
    if accelerator.num_processes > 1:
        raise UserError(
            f"training runs in one process, got {accelerator.num_processes}: codebooks are not yet kept equal "
            "across processes; launch it without torchrun, or with one process"
        )
    return accelerator


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C or a termination signal sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
