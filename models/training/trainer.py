"""Trains a motion tokenizer: one loop on Accelerate, checkpoints that resume to the bit."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from fastvq import GroupedVQ, ResidualVQ
from fastvq.models.errors import UserError
from fastvq.models.kinds import KINDS, load_tokenizer
from fastvq.models.nn.conv import fastest_implementation, set_implementation
from fastvq.models.tokenizers import pretrained
from fastvq.models.tokenizers.code_use import code_use, count_codes
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.compilation import obstacle
from fastvq.models.training.config import TrainConfig
from fastvq.models.training.data import FeatureClip, feature_statistics, fingerprint
from fastvq.models.training.environment import environment
from fastvq.models.training.optimizer import DenseAdamW
from fastvq.models.training.reporting import Reporter
from fastvq.models.training.run_folder import RunFolder, load_trainer
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
    same machine with the same number of threads.

    Args:
        config: all settings.
        clips: motions as features; of the other splits nothing is used.
        out: the run folder (see :mod:`fastvq.models.training.run_folder`).
        resume: go on from the newest checkpoint in ``out``; from the start where there is none.
        console: shows progress; None is silent.

    Raises:
        UserError: no clip is long enough, ``out`` holds a run already, settings or data differ from those of the run
            to resume, several processes, another process training in ``out``, a loss or weights that are not finite,
            a disk that is full.
    """
    console = Console(quiet=True) if console is None else console
    accelerator = Accelerator(mixed_precision="no")
    if accelerator.num_processes > 1:
        raise UserError(
            f"training runs in one process, got {accelerator.num_processes}: codebooks are not yet kept equal "
            "across processes; launch it without torchrun, or with one process"
        )
    folder = RunFolder(Path(out))
    _checkpoint(folder, resume)
    clips = [clip for clip in clips if clip.split == "train"]
    sampler = WindowSampler(
        clips,
        window=config.window,
        batch_size=config.batch_size,
        seed=config.seed,
        mirror=config.mirror,
        speeds=config.speeds,
        turn=config.turn,
        pad_to=config.model.downsample if config.short_clips == "pad" else None,
    )
    if sampler.skipped:
        console.print(
            f"{sampler.skipped} of {len(clips)} training clips are shorter than the window of {config.window} "
            f"frames and are skipped; {sampler.used} clips with {sampler.frames} frames remain."
        )
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        run = _Run(config, clips, sampler, folder, accelerator)
        if run.hindrance is not None:
            console.print(f"{run.hindrance}: training goes on without it.", markup=False)
        with folder.lock():
            checkpoint = _checkpoint(folder, resume)
            if checkpoint is not None:
                run.load(checkpoint)
                console.print(f"Resuming at step {run.step} from {checkpoint}.", markup=False)
            elif resume:
                console.print(f"{out} has no checkpoint to resume: starting at step 0.", markup=False)
            folder.start(environment(accelerator.device), config)
            folder.truncate_metrics(run.step)
            return run.train(console)


def _checkpoint(folder: RunFolder, resume: bool) -> Path | None:
    """The checkpoint to go on from, if there is one."""
    checkpoint = folder.last()
    if checkpoint is not None and not resume:
        raise UserError(f"{folder.path} holds a run already: resume it, or choose another folder")
    return checkpoint


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


class _Run:
    """The state of a run between steps."""

    def __init__(
        self,
        config: TrainConfig,
        clips: Sequence[FeatureClip],
        sampler: WindowSampler,
        folder: RunFolder,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.sampler, self.folder, self.accelerator = config, sampler, folder, accelerator
        self.device = accelerator.device
        self.data = fingerprint(clips)
        self.step = 0
        torch.manual_seed(config.seed)
        mean, std = feature_statistics(clips)
        tokenizer = KINDS[config.model.kind].tokenizer
        self.model = tokenizer(config.model, mean=mean, std=std).to(self.device).train()
        if config.start_from is not None and folder.last() is None:
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
        step = TrainingStep(self.model, config.loss, config.precision, self.timer, compile=compiled)
        self.forward, self.prepared = accelerator.prepare(step, self.optimizer)

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
        self.optimizer.load_state_dict(trainer["optimizer"])
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
        trainer = {"data": self.data, "optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            trainer["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        return self.folder.save_checkpoint(self.step, self.model, self.config, trainer)

    def _diverged(self, what: str) -> UserError:
        last = self.folder.last()
        kept = "no checkpoint was written before that" if last is None else f"the checkpoint before that is {last}"
        return UserError(f"{what} at step {self.step}: lower lr, lengthen warmup, or set grad_clip; {kept}")

    def train(self, console: Console) -> RunResult:
        """Runs the remaining steps; Ctrl-C ends after the step in hand, with a checkpoint."""
        config, start = self.config, time.perf_counter()
        window = _Averages(config, self.device)
        row: dict[str, Any] = {}
        saved = self.step if self.folder.last() else -1
        with Reporter(self.folder, config.steps, self.step, console) as reporter, _stop_signal() as stop:
            while self.step < config.steps and not stop.is_set():
                window.add(self.advance())
                reporter.advance()
                last_step = self.step == config.steps or stop.is_set()
                if self.step % config.log_every == 0 or last_step:
                    row = window.row(self.step, config.learning_rate(self.step - 1), self.timer)
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
        return RunResult(
            out=self.folder.path,
            step=self.step,
            interrupted=interrupted,
            seconds=seconds,
            clips_used=self.sampler.used,
            clips_skipped=self.sampler.skipped,
            frames=self.sampler.frames,
            terms=config.loss.names(),
            metrics=row,
            model=self.model.eval(),
        )

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
        losses = self.forward(motion, mask, codes)
        with timer.section("backward"), timer.backward("encoder_backward"):
            self.accelerator.backward(losses.total)
        with timer.section("optimizer"):
            if self.config.grad_clip is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
            self.prepared.step()
            self.prepared.zero_grad()
        self.step += 1
        return losses


class _Averages:
    """Means over the steps since the last row, kept on the device so that no step waits for it."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self._reset()

    def _reset(self) -> None:
        model = self.config.model
        self.sums = torch.zeros(3 + len(self.config.loss.names()), device=self.device)
        learned = model.streams - model.parsed
        self.counts = torch.zeros(learned, model.codebook_size, dtype=torch.int64, device=self.device)
        self.steps = 0
        self.since = time.perf_counter()

    def add(self, losses: StepLosses) -> None:
        """Takes in a step."""
        values: list[Tensor] = [losses.total.detach(), losses.smooth_l1, losses.commitment, *losses.terms]
        self.sums += torch.stack(values)
        self.counts += count_codes(losses.indices, self.config.model)
        self.steps += 1

    def row(self, step: int, lr: float, timer: SectionTimer) -> dict[str, Any]:
        """A row of ``metrics.jsonl``; perplexity and utilisation are those of all codes since the last row, and those
        of every stage are named where there are stages."""
        model = self.config.model
        loss, smooth_l1, commitment, *terms = (self.sums / self.steps).tolist()
        seconds = time.perf_counter() - self.since
        row: dict[str, Any] = {
            "step": step,
            "loss": loss,
            "recon_smooth_l1": smooth_l1,
            **dict(zip(self.config.loss.names(), terms, strict=True)),
            "commitment": commitment,
            **code_use(self.counts, model, each=model.stream == "stage"),
            "lr": lr,
            "steps_per_second": self.steps / seconds,
        }
        if timer.enabled:
            row["sections_ms"] = timer.mean_ms(reset=True)
        self._reset()
        return row


@contextlib.contextmanager
def _stop_signal() -> Iterator[threading.Event]:
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
