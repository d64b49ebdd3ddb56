"""Trains a motion tokenizer, in one process or several; checkpoints resume to the bit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from fastvq import EMA, Codebook, GroupedVQ, Learned, ResidualCodebook, ResidualVQ
from fastvq.models.errors import UserError
from fastvq.models.kinds import KINDS, load_tokenizer
from fastvq.models.nn.conv import fastest_implementation, set_implementation
from fastvq.models.tokenizers.code_use import code_use, count_codes
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.compilation import obstacle
from fastvq.models.training.config import TrainConfig
from fastvq.models.training.data import FeatureClip, feature_statistics, fingerprint
from fastvq.models.training.loop import TrainingLoop, Workplace, workplace
from fastvq.models.training.optimizer import DenseAdamW
from fastvq.models.training.processes import Processes
from fastvq.models.training.sections import SectionTimer
from fastvq.models.training.step import StepLosses, TrainingStep
from fastvq.models.training.windows import WindowSampler


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        out: the run folder.
        step: steps done, those before a resume included.
        interrupted: stopped by Ctrl-C or a termination signal before ``config.steps``.
        seconds: of this process's training loop.
        clips_used, clips_skipped: clips of the train split that are long enough for a window, and that are not.
        frames: frames of the used clips.
        terms: names of the terms of the loss, as the rows have them.
        metrics: the last row of ``metrics.jsonl`` that this process wrote; empty if none.
        model: the trained model, in evaluation mode.
    """

    out: Path
    step: int
    interrupted: bool
    seconds: float
    clips_used: int
    clips_skipped: int
    frames: int
    terms: tuple[str, ...]
    metrics: dict[str, Any] = field(repr=False)
    model: MotionTokenizer = field(repr=False)


def train(
    config: TrainConfig,
    clips: Sequence[FeatureClip],
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Trains on the clips whose split is "train" and writes a run folder.

    A run that was stopped or killed and is resumed ends with the weights, bit for bit, of one that was not, on the
    same machine with the same number of threads and processes.

    Several processes that ``torchrun`` started share every batch: all call this with the same arguments, and each
    returns the same model. They see the batches of one process, and end with its weights but for rounding, apart from
    what is drawn at random in a step, which each draws for itself: rows that replace dead codes, dropout. Two terms
    are means over a process's own part: PGR2M's entropy of the use of codes, and, with padded clips, differences from
    frame to frame, where parts weigh by their frames.

    Args:
        config: all settings.
        clips: motions as features; of the other splits nothing is used.
        out: the run folder (see :mod:`fastvq.models.training.run_folder`).
        resume: go on from the newest checkpoint in ``out``; from the start where there is none.
        console: shows progress; None is silent.

    Raises:
        UserError: no clip is long enough, ``out`` holds a run already, settings or data differ from those of the run
            to resume, a batch that the processes cannot share evenly, another training in ``out``, a loss or weights
            that are not finite, a disk that is full, a process that has ended.
    """
    clips = [clip for clip in clips if clip.split == "train"]
    with workplace(out, resume=resume, console=console) as place:
        sampler = WindowSampler(
            clips,
            window=config.window,
            batch_size=config.batch_size,
            seed=config.seed,
            mirror=config.mirror,
            speeds=config.speeds,
            turn=config.turn,
            pad_to=config.model.downsample if config.short_clips == "pad" else None,
            part=place.processes.part(config.batch_size),
        )
        if sampler.skipped:
            place.console.print(
                f"{sampler.skipped} of {len(clips)} training clips are shorter than the window of {config.window} "
                f"frames and are skipped; {sampler.used} clips with {sampler.frames} frames remain."
            )
        run = _Run(config, clips, sampler, place)
        if run.hindrance is not None:
            place.console.print(f"{run.hindrance}: training goes on without it.", markup=False)
        ended = run.go(resume=resume)
    return RunResult(
        out=run.folder.path,
        step=run.step,
        interrupted=ended.interrupted,
        seconds=ended.seconds,
        clips_used=sampler.used,
        clips_skipped=sampler.skipped,
        frames=sampler.frames,
        terms=config.loss.names(),
        metrics=ended.row,
        model=run.model.eval(),
    )


def start_from(model: MotionTokenizer, folder: str) -> None:
    """Gives a model the weights, codebooks and feature statistics of a saved one.

    Raises:
        UserError: there is none, or it has other sizes.
    """
    other = load_tokenizer(folder).state_dict()
    state = model.state_dict()
    unlike = [
        name
        for name in {**state, **other}
        if name not in state or name not in other or state[name].shape != other[name].shape
    ]
    if unlike:
        raise UserError(f"cannot start from {folder}: its model has other sizes, first in {unlike[0]}")
    model.load_state_dict(other)


def set_decay(model: nn.Module, decay: float) -> None:
    """Sets the decay of the moving averages of a model's codebooks: of the codes, or of how much each is used."""
    for books in model.modules():
        if isinstance(books, (Codebook, ResidualCodebook)) and isinstance(books.rules.update, (EMA, Learned)):
            books.rules = replace(books.rules, update=replace(books.rules.update, decay=decay))


class _Run(TrainingLoop):
    """The state of a run between steps."""

    config: TrainConfig
    model: MotionTokenizer

    def __init__(
        self,
        config: TrainConfig,
        clips: Sequence[FeatureClip],
        sampler: WindowSampler,
        place: Workplace,
    ) -> None:
        super().__init__(config, place, fingerprint(clips))
        self.sampler = sampler
        torch.manual_seed(config.seed)
        mean, std = feature_statistics(clips)
        tokenizer = KINDS[config.model.kind].tokenizer
        self.model = tokenizer(config.model, mean=mean, std=std).to(self.device).train()
        if config.start_from is not None and not place.resumed:
            start_from(self.model, config.start_from)
        # Spelt out, since the weights then lie as the convolutions read them.
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        conv = fastest_implementation(self.device, dtype) if config.conv == "auto" else config.conv
        set_implementation(self.model, conv)
        self.timer = SectionTimer(config.profile_sections, self.device)
        if isinstance(self.model.quantizer, (GroupedVQ, ResidualVQ)):
            self.timer.wrap_method(self.model.quantizer.codebooks, "update_", "codebook_update")
        self.optimizer = DenseAdamW(
            self.model.parameters(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda", "mps", "xpu"),
        )
        self.hindrance = obstacle(self.device) if config.compile else None
        compiled = config.compile and self.hindrance is None
        self.forward = TrainingStep(self.model, config.loss, config.precision, self.timer, compile=compiled)
        self.averages = _Averages(config, self.processes)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer}

    def record(self, losses: StepLosses) -> None:
        """Takes a step into the next row."""
        self.averages.add(losses, self.share)

    def row(self) -> dict[str, Any]:
        """Means over the steps since the last row."""
        return self.averages.row(self.step, self.config.learning_rate(self.step - 1), self.timer)

    def advance(self) -> StepLosses:
        """One optimizer step."""
        timer = self.timer
        with timer.section("data"):
            motion, mask = self.sampler.batch(self.step)
            codes = self.model.read_codes(motion)
            motion = motion.to(self.device, non_blocking=True)
            mask, codes = (None if x is None else x.to(self.device, non_blocking=True) for x in (mask, codes))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.step)
        if self.config.decay_warmup:
            set_decay(self.model, self.config.codebook_decay(self.step, self.config.model.decay))
        losses = self.forward(motion, mask, codes)
        with timer.section("backward"), timer.backward("encoder_backward"):
            losses.total.backward()
        with timer.section("averaging") if self.processes.count > 1 else contextlib.nullcontext():
            self.average(self.model.parameters(), 1.0 if mask is None else mask.sum())
        with timer.section("optimizer"):
            if self.config.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.step += 1
        return losses


class _Averages:
    """Means over the steps since the last row, kept on the device so that no step waits for it."""

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        self.config, self.processes, self.device = config, processes, processes.device
        self._reset()

    def _reset(self) -> None:
        model = self.config.model
        self.sums = torch.zeros(3 + len(self.config.loss.names()), device=self.device)
        learned = model.streams - model.parsed
        self.counts = torch.zeros(learned, model.codebook_size, dtype=torch.int64, device=self.device)
        self.steps = 0
        self.since = time.perf_counter()

    def add(self, losses: StepLosses, share: Tensor | float) -> None:
        """Takes in a step, of which this process's part has a share in the means."""
        values: list[Tensor] = [losses.total.detach(), losses.smooth_l1, losses.commitment, *losses.terms]
        self.sums += share * torch.stack(values)
        self.counts += count_codes(losses.indices, self.config.model)
        self.steps += 1

    def row(self, step: int, lr: float, timer: SectionTimer) -> dict[str, Any]:
        """A row of ``metrics.jsonl``; perplexity and utilisation are those of all codes since the last row, and those
        of every stage are named where there are stages."""
        model = self.config.model
        loss, smooth_l1, commitment, *terms = (self.processes.sum_(self.sums) / self.steps).tolist()
        seconds = time.perf_counter() - self.since
        row: dict[str, Any] = {
            "step": step,
            "loss": loss,
            "recon_smooth_l1": smooth_l1,
            **dict(zip(self.config.loss.names(), terms, strict=True)),
            "commitment": commitment,
            **code_use(self.processes.sum_(self.counts), model, each=model.stream == "stage"),
            "lr": lr,
            "steps_per_second": self.steps / seconds,
        }
        if timer.enabled:
            row["sections_ms"] = timer.mean_ms(reset=True)
        self._reset()
        return row
