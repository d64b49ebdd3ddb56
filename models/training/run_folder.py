"""The folder that a training run writes, and that resuming, evaluating and encoding read.

::

    config.json  model.safetensors  mean.npy  std.npy     the model, as ``from_pretrained`` reads it
    checkpoints/step_%08d/                                the same at a step, and trainer.pt
    last.json                                             which checkpoint is the newest
    metrics.jsonl                                         a row for every few steps
    environment.json                                      versions, device, commit, command
    tensorboard/                                          the metrics, for TensorBoard
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvq.models import storage
from fastvq.models.errors import UserError
from fastvq.models.files import check_readable, parse_json
from fastvq.models.tokenizers import pretrained
from fastvq.models.training.config import RunConfig

LAST_FORMAT = "fastvq-last/1"
TRAINER_FORMAT = "fastvq-trainer/1"
TRAINER = "trainer.pt"


class SavedModel(Protocol):
    """What a run folder and a training loop ask of a model."""

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors by name."""

    def load_weights(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Takes tensors by name."""

    def save_pretrained(self, save_directory: Path, *, extra_config: Mapping[str, Any] | None = None) -> Any:
        """Writes the model."""


class RunFolder:
    """Paths and files of a run.

    Args:
        path: the folder; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give a folder for the run")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder, which is made if need be, against other processes; the system lets go of it when this
        one ends, however it does. Does nothing where there are no such locks.

        Raises:
            UserError: another process holds it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}): choose another place or make room"
            ) from error
        try:
            import fcntl
        except ImportError:
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # of a file system that has no locks
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise UserError(
                        f"another process is training in {self.path}: wait for its end, or choose another folder"
                    ) from error
            yield
        finally:
            os.close(handle)

    def last(self) -> Path | None:
        """The newest checkpoint's folder, or None where there is none.

        Raises:
            UserError: ``last.json`` is damaged, of another format, or names a checkpoint that is gone.
        """
        path = self.path / "last.json"
        if not path.is_file():
            return None
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
            written_as, checkpoint = values["format"], self.path / values["checkpoint"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): write the newest checkpoint's name into it") from error
        if written_as != LAST_FORMAT:
            raise UserError(f"{path} has the format {written_as!r}, and this version of fastvq reads {LAST_FORMAT!r}")
        if not (checkpoint / TRAINER).is_file():
            raise UserError(f"{path} names {checkpoint}, which holds no {TRAINER}: start a new run")
        return checkpoint

    def training_config(self) -> dict[str, Any]:
        """The settings that the run was started with.

        Raises:
            UserError: ``config.json`` is missing, damaged, or holds none.
        """
        values = pretrained.read_config(self.path).get("training")
        if not isinstance(values, dict):
            raise UserError(f"{self.path / pretrained.CONFIG} holds no training settings: start a new run")
        return values

    def start(self, environment: dict[str, Any], config: RunConfig) -> None:
        """Writes what is known before the first step, and clears away what a killed process left behind."""
        storage.write_text(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")
        settings = {**config.model.to_dict(), "training": config.to_dict()}
        storage.write_text(self.path / pretrained.CONFIG, json.dumps(settings, indent=2) + "\n")
        self.checkpoints.mkdir(exist_ok=True)
        storage.remove_partial(self.checkpoints)
        self._remove_old(config.keep_checkpoints)
        storage.remove_partial(self.path)

    def save_model(self, model: SavedModel, config: RunConfig) -> None:
        """Writes the model itself, beside the settings of its training."""
        model.save_pretrained(self.path, extra_config={"training": config.to_dict()})

    def save_checkpoint(self, step: int, model: SavedModel, config: RunConfig, trainer: dict[str, Any]) -> Path:
        """Writes a checkpoint, names it in ``last.json``, then removes old ones.

        Args:
            step: number of steps done.
            model, config: the model and the settings.
            trainer: what else is needed to go on: tensors, numbers and strings, in dicts and lists.

        Returns:
            Its folder.

        Raises:
            UserError: the disk is full or the like; the earlier checkpoints are still there.
        """
        folder = self.checkpoints / f"step_{step:08d}"
        with storage.replacing_folder(folder) as partial:
            model.save_pretrained(partial, extra_config={"training": config.to_dict()})
            torch.save({"format": TRAINER_FORMAT, "step": step, **trainer}, partial / TRAINER)
        last = {"format": LAST_FORMAT, "step": step, "checkpoint": f"checkpoints/{folder.name}"}
        storage.write_text(self.path / "last.json", json.dumps(last) + "\n")
        self._remove_old(config.keep_checkpoints)
        return folder

    def _remove_old(self, keep: int) -> None:
        last = self.last()
        for old in sorted(self.checkpoints.glob("step_*"))[:-keep]:
            if old != last:
                shutil.rmtree(old, ignore_errors=True)

    def truncate_metrics(self, step: int) -> None:
        """Drops the rows after a step, which a resumed run will write again, and a last row cut short."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row_step = parse_json(line)["step"]
            except (ValueError, KeyError, TypeError):
                break
            if row_step <= step:
                kept.append(line + "\n")
        storage.write_text(self.metrics, "".join(kept))


def load_trainer(checkpoint: Path) -> dict[str, Any]:
    """The contents of a checkpoint's ``trainer.pt``.

    Raises:
        UserError: it is damaged or of another format.
    """
    path = checkpoint / TRAINER
    check_readable(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        written_as = values["format"]
        if written_as == TRAINER_FORMAT and not {"step", "data", "optimizer", "rng"} <= set(values):
            raise ValueError("entries are missing")
    except Exception as error:  # damage makes the unpickler raise nearly anything
        raise UserError(f"{path} is damaged: put the name of an earlier checkpoint into last.json") from error
    if written_as != TRAINER_FORMAT:
        raise UserError(f"{path} has the format {written_as!r}, and this version of fastvq reads {TRAINER_FORMAT!r}")
    return values
