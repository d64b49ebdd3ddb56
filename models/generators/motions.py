"""From texts to motions: a generator writes tokens, its tokenizer turns them into bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from fastvq.models.errors import UserError
from fastvq.models.generators.generator import GenerationPrecision, MotionGenerator
from fastvq.models.generators.kinds import load_with_tokenizer
from fastvq.models.generators.sampling import Sampling
from fastvq.models.tokenizers.config import check_number
from fastvq.models.tokenizers.tokenizer import MotionTokenizer


@dataclass(frozen=True, eq=False)
class GeneratedMotion:
    """What a generator made of a text.

    Attributes:
        text: That was asked for.
        tokens: (S, T') int64; -1 where the generator wrote none.
        features: (T, C) float32 of the tokenizer, not normalised.
        joints: (T, 22, 3) float32 metres, Y up.
        base: (T, 22, 3) the same of the pose codes alone, where the generator refines a motion by residual codes.
    """

    text: str
    tokens: Tensor
    features: np.ndarray
    joints: np.ndarray
    base: np.ndarray | None = None


class TextToMotion:
    """A generator with the tokenizer whose codes it writes.

    Args:
        generator: Writes tokens.
        tokenizer: Decodes them.

    Raises:
        UserError: The generator was trained on another tokenizer.
    """

    def __init__(self, generator: MotionGenerator, tokenizer: MotionTokenizer) -> None:
        generator.check_tokenizer(tokenizer)
        self.generator, self.tokenizer = generator.eval(), tokenizer.eval()

    @classmethod
    def open(
        cls, folder: str | Path, tokenizer: str | Path | None = None, *, device: torch.device | None = None
    ) -> Self:
        """A trained one.

        Args:
            folder: A generator's run folder, a checkpoint in one, or a folder of ``save_pretrained``.
            tokenizer: Its tokenizer's folder; the one in the run folder if absent.
            device: Where to compute; the CPU if absent.

        Raises:
            UserError: As ``fastvq.models.generators.kinds.load_with_tokenizer``.
        """
        generator, model = load_with_tokenizer(folder, tokenizer)
        return cls(generator.to(device), model.to(device))

    @property
    def fps(self) -> float:
        """Frames a second of the motions."""
        return self.generator.config.fps

    @property
    def usual_sampling(self) -> Sampling:
        """How codes are drawn unless something else is asked."""
        return self.generator.usual_sampling

    @property
    def refines(self) -> bool:
        """Whether motions have pose codes, which show a motion by themselves, and residual codes."""
        config = self.tokenizer.config
        return 0 < config.parsed < config.streams

    def tokens_of(self, seconds: float) -> int:
        """How many tokens in time a motion of that duration has.

        Raises:
            UserError: No time, or more than the generator can write.
        """
        check_number("seconds", seconds, 0, above=True)
        config = self.generator.config
        count = max(1, round(seconds * config.fps / config.downsample))
        if count > config.longest:
            longest = config.longest * config.downsample / config.fps
            raise UserError(
                f"this generator writes motions of {longest:g} s at most, and {seconds:g} s were asked for: ask for "
                "a shorter one"
            )
        return count

    def generate(
        self,
        texts: Sequence[str],
        *,
        seconds: float | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        first_place: int = 0,
        batch_size: int = 32,
        precision: GenerationPrecision = "exact",
        with_base: bool = False,
    ) -> list[GeneratedMotion]:
        """A motion for each text.

        Args:
            texts: What the motions shall show.
            seconds: Of every motion; None lets the generator end them.
            sampling: How codes are drawn; the generator's usual way if absent.
            seed, first_place, batch_size, precision: As for :meth:`MotionGenerator.generate`.
            with_base: Also what the pose codes show alone, where the generator refines.

        Raises:
            UserError: A text that is empty or too long, or a duration that the generator cannot write.
        """
        lengths = None if seconds is None else [self.tokens_of(seconds)] * len(texts)
        tokens = self.generator.generate(
            texts,
            lengths=lengths,
            sampling=sampling,
            seed=seed,
            first_place=first_place,
            batch_size=batch_size,
            precision=precision,
        )
        tokens = [one.cpu() for one in tokens]
        # Several motions at once come back with other roundings than each by itself.
        at_once = 1 if precision == "exact" else batch_size
        features = self.decode(tokens, batch_size=at_once)
        form = self.tokenizer.config.features
        bases: list[np.ndarray | None] = [None] * len(texts)
        if with_base and self.refines and bool((tokens[0][self.tokenizer.config.parsed :] >= 0).any()):
            base_tokens = [self.base_tokens(one) for one in tokens]
            bases = [form.to_smpl(rows) for rows in self.decode(base_tokens, batch_size=at_once)]
        return [
            GeneratedMotion(text, codes, rows, form.to_smpl(rows), base)
            for text, codes, rows, base in zip(texts, tokens, features, bases, strict=True)
        ]

    def base_tokens(self, tokens: Tensor) -> Tensor:
        """(S, T') tokens without their residual codes."""
        base = tokens.clone()
        base[self.tokenizer.config.parsed :] = -1
        return base

    def decode(self, tokens: Sequence[Tensor], *, batch_size: int = 16) -> list[np.ndarray]:
        """(S, T_i') tokens -> (T_i, C) float32 features, not normalised."""
        longest = max(one.shape[1] for one in tokens)
        batch = torch.stack([F.pad(one, (0, longest - one.shape[1]), value=-1) for one in tokens], dim=1)
        return [motion.float().cpu().numpy() for motion in self.tokenizer.decode_batch(batch, batch_size=batch_size)]
