"""The recipes of PGR2M's two transformers (2512.22464)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from fastvq.models.generators.base_transformer import BaseTransformer, BaseTransformerConfig
from fastvq.models.generators.generator import MotionGenerator
from fastvq.models.generators.refine_transformer import BASE, RefineTransformer, RefineTransformerConfig
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.generator import GeneratorRunResult, GeneratorTrainConfig, train_generator
from fastvq.models.training.generator_data import CaptionedTokens
from fastvq.models.training.loop import Workplace


@dataclass(frozen=True)
class BaseTrainConfig(GeneratorTrainConfig):
    """A training of a Base Transformer; the defaults are the published ones."""

    model: BaseTransformerConfig = field(default_factory=BaseTransformerConfig)
    batch_size: int = 64
    """Motions per step."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly."""


@dataclass(frozen=True)
class RefineTrainConfig(GeneratorTrainConfig):
    """A training of a Refine Transformer; the defaults are the published ones."""

    model: RefineTransformerConfig = field(default_factory=RefineTransformerConfig)
    steps: int = 150_000
    """Optimizer steps."""
    batch_size: int = 64
    """Motions per step."""
    lr: float = 2e-4
    """Learning rate of AdamW."""
    warmup: int = 5000
    """Steps over which the learning rate rises linearly."""
    milestones: tuple[int, ...] = (45_000,)
    """Steps after which the learning rate is multiplied by gamma."""
    gamma: float = 0.5
    """Factor of the learning rate at each milestone."""


def train_refine(
    config: RefineTrainConfig,
    base: BaseTransformer,
    clips: Sequence[CaptionedTokens],
    tokenizer: MotionTokenizer,
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> GeneratorRunResult:
    """Trains a Refine Transformer on what a Base Transformer was trained on, and writes a run folder, both in it.

    Args:
        config: all settings; the model's are fitted to the Base Transformer here.
        base: whose pose embedding is taken over, and which the trained model asks for pose codes.
        clips, tokenizer, out, resume, console: as for :func:`fastvq.models.training.generator.train_generator`.

    Raises:
        UserError: the Base Transformer drives another tokenizer, or the tokenizer has no residual stages, and what
            :func:`fastvq.models.training.generator.train_generator` raises.
    """
    base.check_tokenizer(tokenizer)
    config.model.check_fits(tokenizer)
    config = dataclasses.replace(config, model=config.model.on(base))

    def begin(model: MotionGenerator, place: Workplace) -> None:
        assert isinstance(model, RefineTransformer)
        model.start_from(base)
        place.keep(base, BASE)

    result = train_generator(
        config,
        RefineTransformer,
        clips,
        tokenizer,
        base.text_encoder,
        out,
        resume=resume,
        console=console,
        begin=begin,
    )
    assert isinstance(result.model, RefineTransformer)
    result.model.use_base(base.to(result.model.codes.device).eval())
    return result
