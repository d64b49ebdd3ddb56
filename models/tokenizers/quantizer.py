"""The part of a quantizer that the tokenizers rely on."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fastvq import Quantized


class Quantizer(Protocol):
    """What a tokenizer asks of its quantizer; ``fastvq.GroupedVQ`` and ``fastvq.ResidualVQ`` are such."""

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """(B, T', D) latents and mask (B, T') -> quantized, (B, T', streams) indices and loss."""

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The same -> indices."""

    def decode(self, indices: Tensor) -> Tensor:
        """(B, T', streams) -> (B, T', D); -1 adds nothing."""
