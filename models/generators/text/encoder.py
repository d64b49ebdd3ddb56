"""What all text encoders share: a text in, vectors of unit length out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvq.models.errors import UserError

SHOWN = 60  # characters of a text that a message repeats


class TextFeatures(NamedTuple):
    """Texts as vectors of unit length.

    Attributes:
        tokens: (B, L, d) float32, one vector a token of the encoder; zeros where a text has ended.
        mask: (B, L), True where a token is real.
        pooled: (B, d) float32, one vector a text.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class OneText(NamedTuple):
    """One text as vectors: tokens (L, d) and pooled (d), float32."""

    tokens: Tensor
    pooled: Tensor


class TextEncoder(ABC):
    """Turns texts into vectors.

    Attributes:
        dim: length of the vectors.
        identity: names the encoder and its weights; vectors of equal identity and text are equal.
    """

    dim: int
    identity: str

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Texts as vectors; a text has the same ones whatever it is encoded with, since each goes by itself.

        Args:
            texts: at least one.

        Raises:
            UserError: no texts, one that is empty, or one that is longer than the encoder takes.
        """
        check_texts(texts)
        found = {text: self.encode_one(text) for text in dict.fromkeys(texts)}
        return stack([found[text] for text in texts])

    @abstractmethod
    def encode_one(self, text: str) -> OneText:
        """One text that :func:`check_texts` accepts, as vectors of unit length on the CPU.

        Raises:
            UserError: it is longer than the encoder takes.
        """


def stack(found: Sequence[OneText]) -> TextFeatures:
    """Single texts as a batch, zeros where one has ended."""
    tokens = nn.utils.rnn.pad_sequence([one.tokens for one in found], batch_first=True)
    lengths = torch.tensor([len(one.tokens) for one in found])
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    return TextFeatures(tokens, mask, torch.stack([one.pooled for one in found]))


def check_texts(texts: Sequence[str]) -> None:
    """Raises a UserError unless there are texts, and none is empty."""
    if isinstance(texts, str) or not len(texts):
        raise UserError(f"texts must be a list of at least one text, got {texts!r:.{SHOWN}}")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"texts[{index}] must say what to do, got {text!r:.{SHOWN}}: write a sentence")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"texts[{index}] holds bytes that are no text, {ascii(text)[:SHOWN]}: write it in UTF-8")


def check_length(text: str, length: int, longest: int, what: str) -> None:
    """Raises a UserError if a text is longer than an encoder takes."""
    if length > longest:
        raise UserError(
            f"the text {text[:SHOWN]!r}... has {length} {what}, and this encoder takes {longest}: shorten it"
        )


def unit(tokens: Tensor, pooled: Tensor) -> OneText:
    """Vectors (L, d) and (d) of any length as those of unit length, float32 on the CPU."""
    return OneText(
        F.normalize(tokens.detach().float().cpu(), dim=-1), F.normalize(pooled.detach().float().cpu(), dim=-1)
    )


def files_sha256(files: Sequence[Path]) -> str:
    """A SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def weights_folder(path: Path, kind: str, needed: str = "config.json") -> Path:
    """A folder of weights that exists.

    Raises:
        UserError: there is none, or it lacks the file ``needed``.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}: give a folder that holds {kind}; nothing is downloaded")
    if not (path / needed).is_file():
        raise UserError(f"{path} has no {needed}: give a folder that holds {kind}")
    return path


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
