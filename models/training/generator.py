"""Trains generators of all kinds: text in, a tokenizer's codes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fastvq.models.generators.double_tier_gpt import DoubleTierGPTConfig
from fastvq.models.generators.generator import GeneratorConfig, GeneratorLosses, MotionGenerator
from fastvq.models.generators.text import TextEncoder
from fastvq.models.tokenizers.config import check_number
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.config import Precision, ScheduledConfig
from fastvq.models.training.generator_data import CaptionedTokens, TextTable, TokenSampler, fingerprint_tokens
from fastvq.models.training.loop import TrainingLoop, Workplace, workplace

TOKENIZER = "tokenizer"  # the folder in a run folder that holds the tokenizer


@dataclass(frozen=True)
class GeneratorTrainConfig(ScheduledConfig):
    """A run of :func:`train_generator`; the defaults are those of T2M-HiFiGPT, where it leaves them open T2M-GPT's.

    Raises:
        UserError: a value that no run can have, naming it.
    """

    model: GeneratorConfig = field(default_factory=DoubleTierGPTConfig)
    batch_size: int = 128
    """Motions per step."""
    lr: float = 1e-4
    """Learning rate of AdamW."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Moments of AdamW."""
    precision: Precision = "fp32"
    """bf16 runs the model under autocast; weights and losses stay float32."""
    weight_decay: float = 1e-6
    """Weight decay of AdamW."""
    milestones: tuple[int, ...] = (150_000,)
    """Steps after which the learning rate is multiplied by gamma."""
    drop_token: float = 1 / 3
    """Probability with which a motion is shown without its first or its last token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("drop_token", self.drop_token, 0, 1)


@dataclass(frozen=True)
class GeneratorRunResult:
    """What a run came to.

    Attributes:
        out: the run folder.
        step: steps done, those before a resume included.
        interrupted: stopped by Ctrl-C or a termination signal before ``config.steps``.
        seconds: of this process's training loop.
        clips: motions that were learnt from.
        texts: different texts of them.
        metrics: the last row of ``metrics.jsonl`` that this process wrote; empty if none.
        model: the trained generator, in evaluation mode.
    """

    out: Path
    step: int
    interrupted: bool
    seconds: float
    clips: int
    texts: int
    metrics: dict[str, Any] = field(repr=False)
    model: MotionGenerator = field(repr=False)


def train_generator(
    config: GeneratorTrainConfig,
    generator: type[MotionGenerator],
    clips: Sequence[CaptionedTokens],
    tokenizer: MotionTokenizer,
    encoder: TextEncoder,
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    begin: Callable[[MotionGenerator, Workplace], None] | None = None,
) -> GeneratorRunResult:
    """Trains on the clips whose split is "train" and writes a run folder, the tokenizer in it.

    A run that was stopped and is resumed ends with the weights, bit for bit, of one that was not. Several processes
    share every batch as :func:`fastvq.models.training.trainer.train` tells; corruptions and dropout are their own.

    Args:
        config: all settings, the model's fitted to the tokenizer and the encoder (:meth:`GeneratorConfig.fitted`).
        generator: what to train.
        clips: motions in the tokenizer's tokens, with texts.
        tokenizer: what made the tokens.
        encoder: of the texts.
        out: the run folder.
        resume: go on from the newest checkpoint in ``out``; from the start where there is none.
        console: shows progress; None is silent.
        begin: what becomes of the model before its first step.

    Raises:
        UserError: no clip with a text that the encoder takes, and what
            :meth:`fastvq.models.training.loop.TrainingLoop.go` raises.
    """
    known = [clip for clip in clips if clip.split == "train"]
    texts = {text for clip in known for text in clip.texts}
    with workplace(out, resume=resume, console=console) as place:
        run = _GeneratorRun(config, generator, known, encoder, place)
        refused = run.sampler.table.refused
        if refused:
            place.console.print(f"{len(refused)} of {len(texts)} texts are left out: {next(iter(refused.values()))}")
        run.model.check_tokenizer(tokenizer)
        if begin is not None:
            begin(run.model, place)
        place.keep(tokenizer, TOKENIZER)
        ended = run.go(resume=resume)
    return GeneratorRunResult(
        out=run.folder.path,
        step=run.step,
        interrupted=ended.interrupted,
        seconds=ended.seconds,
        clips=len(known),
        texts=len(texts),
        metrics=ended.row,
        model=run.model.eval(),
    )


class _GeneratorRun(TrainingLoop):
    """The state of a run between steps."""

    config: GeneratorTrainConfig
    model: MotionGenerator

    def __init__(
        self,
        config: GeneratorTrainConfig,
        generator: type[MotionGenerator],
        clips: Sequence[CaptionedTokens],
        encoder: TextEncoder,
        place: Workplace,
    ) -> None:
        super().__init__(config, place, fingerprint_tokens(clips))
        texts = [text for clip in clips for text in clip.texts]
        self.sampler = TokenSampler(
            clips,
            TextTable(encoder, texts, tokens=config.model.reads_tokens, console=place.console),
            batch_size=config.batch_size,
            longest=config.model.longest,
            seed=config.seed,
            drop_token=config.drop_token,
            part=self.processes.part(config.batch_size),
        )
        torch.manual_seed(config.seed)
        self.model = generator(config.model).to(self.device).train()
        self.model.use_text_encoder(encoder)
        self.optimizer = torch.optim.AdamW(
            (parameter for parameter in self.model.parameters() if parameter.requires_grad),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda", "mps", "xpu"),
        )
        self._reset()

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer}

    def advance(self) -> GeneratorLosses:
        """One optimizer step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.step)
        batch = self.sampler.batch(self.step).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses = self.model.losses(batch)
        losses.total.backward()
        self.average(self.model.parameters(), losses.number)
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return GeneratorLosses(losses.total.detach(), losses.terms)

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.since, self.steps = time.perf_counter(), 0

    def record(self, losses: GeneratorLosses) -> None:
        """Takes a step into the next row."""
        for name, each in {"loss": losses.total, **losses.terms}.items():
            value = self.share * each
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def row(self) -> dict[str, Any]:
        """Means over the steps since the last row."""
        row = {
            "step": self.step,
            **{name: (self.processes.sum_(value) / self.steps).tolist() for name, value in self.sums.items()},
            "lr": self.config.learning_rate(self.step - 1),
            "steps_per_second": self.steps / (time.perf_counter() - self.since),
        }
        self._reset()
        return row
