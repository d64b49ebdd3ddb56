"""An encoder without weights: hashed n-grams of words and letters, added up.

Every n-gram is its own fixed random direction, so that texts are as near to each other as they share n-grams. It
knows no synonyms, but in texts of a small vocabulary, such as made-up captions, every word can be told from it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastvq.models.errors import UserError
from fastvq.models.generators.text.encoder import SHOWN, OneText, TextEncoder, check_length, unit

LETTERS = 3  # of the n-grams within words
LETTER_WEIGHT = 0.25
LONGEST = 77  # words; CLIP takes as many tokens


class HashNgramEncoder(TextEncoder):
    """Words, pairs of words and threes of letters as random signs; a text is the sum of its words and pairs.

    A token is a word with its letters and the pair that it ends, so that "left" in "turns left" differs from others.

    Args:
        dim: length of the vectors, a multiple of 8.
        seed: of the directions.

    Raises:
        UserError: another ``dim``.
    """

    def __init__(self, dim: int = 512, seed: int = 0) -> None:
        if dim < 8 or dim % 8:
            raise UserError(f"dim must be a multiple of 8, got {dim}")
        self.dim, self.seed = dim, seed
        self.identity = f"hash/1 dim={dim} seed={seed}"

    def encode_one(self, text: str) -> OneText:
        """See the base class; a word is a run of letters and digits, whatever its case.

        Raises:
            UserError: no words, or more than 77.
        """
        words = re.findall(r"[^\W_]+", text.lower())
        if not words:
            raise UserError(f"the text {text[:SHOWN]!r} has no words: write a sentence")
        check_length(text, len(words), LONGEST, "words")
        singles = [self._word(word) for word in words]
        pairs = [self._direction("pair", *pair) for pair in zip(["", *words], words, strict=False)]
        tokens = torch.stack([word + pair for word, pair in zip(singles, pairs, strict=True)])
        return unit(tokens, tokens.sum(dim=0))

    def _word(self, word: str) -> Tensor:
        marked = f"<{word}>"
        parts = [marked[start : start + LETTERS] for start in range(len(marked) - LETTERS + 1)]
        return self._direction("word", word) + LETTER_WEIGHT * self._sum(parts)

    def _sum(self, parts: Sequence[str]) -> Tensor:
        return torch.stack([self._direction("letters", part) for part in parts]).sum(dim=0) / math.sqrt(len(parts))

    def _direction(self, *key: str) -> Tensor:
        """(dim) random signs, which hash functions promise to give on every machine."""
        name = "\0".join((str(self.seed), *key)).encode()
        bits = np.unpackbits(np.frombuffer(hashlib.shake_256(name).digest(self.dim // 8), dtype=np.uint8))
        return torch.from_numpy(bits.astype(np.float32)) * 2 - 1
