"""Shows and records how a run goes: a progress bar, ``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from fastvq.models.errors import UserError
from fastvq.models.training.run_folder import RunFolder


class RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """The rate over the last steps, once there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f} steps/s")


class Reporter:
    """Writes rows where they belong; a context manager around the training loop.

    Args:
        folder: the run folder.
        steps: how many there are.
        done: how many were done before.
        console: for the progress bar; where it is no terminal, a line for each row instead.
    """

    def __init__(self, folder: RunFolder, steps: int, done: int, console: Console) -> None:
        self.folder, self.steps, self.done, self.console = folder, steps, done, console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=done, shown="")
        self._file: TextIO | None = None
        self._board: SummaryWriter | None = None

    def __enter__(self) -> Reporter:
        self._hook, threading.excepthook = threading.excepthook, self._thread_failed
        try:
            self._file = open(self.folder.metrics, "a", encoding="utf-8")
            self._board = SummaryWriter(str(self.folder.tensorboard), purge_step=self.done + 1)
        except OSError as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise self._refused(error) from error
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        try:
            if self._file is not None:
                self._file.close()
            if self._board is not None:
                self._board.close()
        except OSError as refusal:
            if error is None:
                raise self._refused(refusal) from refusal
        finally:
            threading.excepthook = self._hook

    def advance(self) -> None:
        """One step is done."""
        self._bar.advance(self._task)

    def log(self, row: dict[str, Any]) -> None:
        """Records a row of ``metrics.jsonl``.

        Raises:
            UserError: the disk is full or the like.
        """
        assert self._file is not None
        assert self._board is not None
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, row["step"])
        except OSError as error:
            raise self._refused(error) from error
        shown = f"loss {row['loss']:.4f}"
        if "perplexity" in row:
            shown += f"  perplexity {row['perplexity']:.0f}"
        self._bar.update(self._task, shown=shown)
        if not self.console.is_terminal:
            rate, left = row["steps_per_second"], self.steps - row["step"]
            self.console.print(
                f"step {row['step']}/{self.steps}  {shown}  {rate:.2f} steps/s  {left / rate:.0f} s left"
            )

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """What the file system refuses to TensorBoard's thread is raised in the main one, and not printed besides."""
        if not isinstance(failure.exc_value, OSError):
            self._hook(failure)

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"{self.folder.path}: cannot be written ({error.strerror or error}): choose another place or make room"
        )
