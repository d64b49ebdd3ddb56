"""What generators learn from: motions as tokens, made once with a tokenizer, with the texts that describe them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from fastvq.models.errors import UserError
from fastvq.models.generators.generator import TokenBatch
from fastvq.models.generators.text import TextEncoder, TextFeatures
from fastvq.models.generators.text.encoder import OneText, stack
from fastvq.models.motion.humanml3d_folder import read_folder
from fastvq.models.motion.humanml3d_texts import Caption
from fastvq.models.tokenizers.checks import MIN_FRAMES
from fastvq.models.tokenizers.tokenizer import MotionTokenizer
from fastvq.models.training.data import FeatureClip

BATCH = 16  # clips through the tokenizer at once


@dataclass(frozen=True)
class CaptionedMotion:
    """A motion with all that was said of it.

    Attributes:
        name: unique in its data set.
        features: (T, C) float32, the tokenizer's, not normalised.
        texts: descriptions of all of it; none where nobody said anything.
        split: "train" or "test".
    """

    name: str
    features: np.ndarray
    texts: tuple[str, ...]
    split: str = "train"


@dataclass(frozen=True)
class CaptionedTokens:
    """A motion as tokens (S, T') int64 on the CPU, with its texts and its split."""

    name: str
    tokens: Tensor
    texts: tuple[str, ...]
    split: str = "train"


def with_text(clips: Sequence[FeatureClip]) -> list[CaptionedMotion]:
    """Clips of one description each, or of none."""
    return [CaptionedMotion(clip.name, clip.features, texts_of(clip.text), clip.split) for clip in clips]


def texts_of(*texts: str) -> tuple[str, ...]:
    """What is left of descriptions without blanks around them and without those that are empty or come again."""
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def read_captioned_folder(folder: Path, *, scale: float | None = None) -> tuple[list[CaptionedMotion], list[str]]:
    """The motions of a HumanML3D or KIT-ML folder with all their texts, and notes on what was skipped or assumed.

    What a line describes only a part of is a motion of its own, ``name_START_STOP`` in frames.

    Args:
        folder: with ``new_joint_vecs`` or ``new_joints``, and ``texts``.
        scale: metres per unit of the files; told from the leg when None.

    Raises:
        UserError: as :func:`fastvq.models.motion.humanml3d_folder.read_folder`.
    """
    read = read_folder(folder, scale=scale, on_error="skip")
    motions: list[CaptionedMotion] = []
    for clip in read.clips:
        parts: dict[tuple[int, int], list[Caption]] = {(0, len(clip.features)): []}
        for caption in clip.captions:
            span = caption.frames(read.layout.fps, len(clip.features))
            parts.setdefault((span.start, span.stop), []).append(caption)
        for (start, stop), captions in parts.items():
            if stop - start >= MIN_FRAMES and captions:
                whole = stop - start == len(clip.features)
                name = clip.name if whole else f"{clip.name}_{start}_{stop}"
                texts = texts_of(*(caption.text for caption in captions))
                motions.append(CaptionedMotion(name, clip.features[start:stop], texts, clip.split or "train"))
    return motions, read.notes


def tokenise(
    tokenizer: MotionTokenizer,
    motions: Sequence[CaptionedMotion],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[CaptionedTokens]:
    """Motions as a tokenizer's tokens; those without a text are left out.

    Raises:
        UserError: none has a text, or a motion that the tokenizer refuses.
    """
    told = [motion for motion in motions if motion.texts]
    if not told:
        raise UserError(f"a generator learns from texts, and none of the {len(motions)} motions has one: give others")
    downsample = tokenizer.config.downsample
    found: list[CaptionedTokens] = []
    for start in range(0, len(told), BATCH):
        part = told[start : start + BATCH]
        tokens = tokenizer.encode_batch([torch.from_numpy(motion.features) for motion in part]).cpu()
        for row, motion in enumerate(part):
            length = -(-len(motion.features) // downsample)
            own = tokens[:, row, :length].contiguous()
            found.append(CaptionedTokens(motion.name, own, motion.texts, motion.split))
        if progress is not None:
            progress(len(found), len(told))
    return found


def fingerprint_tokens(clips: Sequence[CaptionedTokens]) -> str:
    """A SHA-256 over names, splits, texts and tokens, by which a resumed run knows its data again."""
    digest = hashlib.sha256()
    for clip in clips:
        texts = "\0".join(clip.texts)
        digest.update(f"{clip.name}\0{clip.split}\0{texts}\0{tuple(clip.tokens.shape)}\0".encode())
        digest.update(clip.tokens.numpy().tobytes())
    return digest.hexdigest()


class TextTable:
    """The vectors of all texts of a data set, computed once and kept in memory.

    Args:
        encoder: of the texts.
        texts: all that will be asked for.
        tokens: keep the vectors of tokens; without, texts have none.
        console: shows progress; None is silent.

    Attributes:
        refused: texts that the encoder does not take, and why.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        texts: Sequence[str],
        *,
        tokens: bool,
        console: Console | None = None,
    ) -> None:
        self._held: dict[str, OneText] = {}
        self.refused: dict[str, str] = {}
        console = Console(quiet=True) if console is None else console
        unique = list(dict.fromkeys(texts))
        for text in track(unique, "texts", console=console, transient=True, disable=not console.is_terminal):
            try:
                one = encoder.encode_one(text)
            except UserError as error:
                self.refused[text] = str(error)
                continue
            self._held[text] = one if tokens else OneText(one.tokens[:0].clone(), one.pooled)

    def __contains__(self, text: str) -> bool:
        return text in self._held

    def __getitem__(self, texts: Sequence[str]) -> TextFeatures:
        return stack([self._held[text] for text in texts])


class TokenSampler:
    """Batches of motions with a text each; which ones depends on the seed and the step alone.

    Args:
        clips: of the train split, with texts; of those that ``table`` has.
        table: vectors of their texts.
        batch_size: motions in a batch.
        longest: tokens in time of a motion; a longer one is cut somewhere, and does not end there.
        seed: of the draw.
        drop_token: probability with which a motion loses its first or its last token, as in T2M-GPT.
        part: which motions of a batch are wanted.

    Raises:
        UserError: there is no clip.
    """

    def __init__(
        self,
        clips: Sequence[CaptionedTokens],
        table: TextTable,
        *,
        batch_size: int,
        longest: int,
        seed: int,
        drop_token: float = 0.0,
        part: slice = slice(None),
    ) -> None:
        known = [replace(clip, texts=tuple(text for text in clip.texts if text in table)) for clip in clips]
        self.clips, self.table = [clip for clip in known if clip.texts], table
        if not self.clips:
            why = f" ({next(iter(table.refused.values()))})" if table.refused else ""
            raise UserError(f"training needs motions with texts in the train split, and there are none{why}")
        self.batch_size, self.longest, self.seed, self.drop_token = batch_size, longest, seed, drop_token
        self.part = part

    def batch(self, step: int) -> TokenBatch:
        """The batch of a step."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        texts, rows, ends = [], [], []
        chosen = draw.integers(len(self.clips), size=self.batch_size)
        numbers = draw.random((self.batch_size, 4))
        for index, (text, place, dropped, side) in zip(chosen[self.part], numbers[self.part], strict=True):
            clip = self.clips[int(index)]
            texts.append(clip.texts[int(text * len(clip.texts))])
            tokens = clip.tokens
            if dropped < self.drop_token and tokens.shape[1] > 1:
                tokens = tokens[:, 1:] if side < 0.5 else tokens[:, :-1]
            start = int(place * (tokens.shape[1] - self.longest + 1)) if tokens.shape[1] > self.longest else 0
            rows.append(tokens[:, start : start + self.longest].t())
            ends.append(start + self.longest >= tokens.shape[1])
        lengths = torch.tensor([len(row) for row in rows])
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        return TokenBatch(padded, lengths, torch.tensor(ends), self.table[texts])
