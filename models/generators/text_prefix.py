"""What PGR2M's transformers know of a text: a vector of the sentence, and eleven of keywords."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastvq.models.errors import UserError
from fastvq.models.generators.text import TextFeatures
from fastvq.models.generators.transformer import INIT_STD, init_weights

Keywords = Literal["none", "words"]
SLOTS = 11


def check_keywords(value: object) -> None:
    """Raises a UserError unless ``value`` names a source of keywords."""
    if value not in get_args(Keywords):
        raise UserError(f"keywords must be one of {', '.join(get_args(Keywords))}, got {value!r}")


class TextPrefix(nn.Module):
    """Twelve vectors in front of a motion: that of the whole text, then one for each keyword slot.

    The paper's keywords, written by GPT-4 for eleven parts of the body, cannot be had. With ``keywords="words"`` the
    slots get the first eleven tokens of the text; a slot without a keyword has a learned vector of its own.

    Args:
        text_dim: length of the encoder's vectors.
        dim: of the transformer.
        keywords: what the slots get.

    Parameters:
        project: from the encoder's vectors, which have unit length, scaled to that of CLIP's own.
        absent: (12, dim), for a sentence that is left out, and for each slot.
    """

    def __init__(self, text_dim: int, dim: int, keywords: Keywords = "none") -> None:
        super().__init__()
        self.keywords = keywords
        self.scale = math.sqrt(text_dim)
        self.project = nn.Linear(text_dim, dim)
        self.project.apply(init_weights)
        self.absent = nn.Parameter(INIT_STD * torch.randn(1 + SLOTS, dim))

    def forward(self, text: TextFeatures, dropped: Tensor | None = None) -> Tensor:
        """The vectors of B texts.

        Args:
            text: of B texts.
            dropped: (B,), True where the text is left out; None where none is.

        Returns:
            (B, 12, dim).
        """
        present = torch.zeros(len(text.pooled), 1 + SLOTS, dtype=torch.bool, device=text.pooled.device)
        vectors = text.pooled.new_zeros(*present.shape, text.pooled.shape[1])
        present[:, 0], vectors[:, 0] = True, text.pooled
        if self.keywords == "words":
            count = min(text.tokens.shape[1], SLOTS)
            present[:, 1 : 1 + count], vectors[:, 1 : 1 + count] = text.mask[:, :count], text.tokens[:, :count]
        if dropped is not None:
            present &= ~dropped[:, None]
        projected = self.project(vectors * self.scale)
        return torch.where(present.unsqueeze(-1), projected, self.absent.to(projected))
