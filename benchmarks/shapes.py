"""The searches that are measured: sizes from the reference models, audio codecs and plain vector search."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """N rows against G codebooks of K codes of dimension D, in Q residual stages."""

    name: str
    G: int
    N: int
    K: int
    D: int
    Q: int = 1

    @property
    def operations(self) -> int:
        """Multiply-adds of the scores, counted as two operations each."""
        return 2 * self.G * self.Q * self.N * self.K * self.D

    @property
    def io_bytes(self) -> int:
        """float32 rows in, codes in, and an int64 index out for each row and stage."""
        return self.G * (4 * self.N * self.D + 4 * self.Q * self.K * self.D + 8 * self.Q * self.N)


CPU = (
    Shape("a", 1, 8192, 512, 512),
    Shape("b", 1, 65536, 1024, 64),
    Shape("c", 64, 2048, 512, 8),
    Shape("d", 1, 2048, 512, 512, 6),
    Shape("e", 1, 8192, 8192, 32),
)
CUDA = (
    Shape("1M x 8192 x 64", 1, 1_048_576, 8192, 64),
    Shape("131k x 1024 x 512", 1, 131_072, 1024, 512),
    Shape("64 groups x 512 x 8", 64, 262_144, 512, 8),
    Shape("6 stages x 512 x 512", 1, 131_072, 512, 512, 6),
    Shape("8 stages x 1024 x 128", 1, 131_072, 1024, 128, 8),
)


def make_data(shape: Shape, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal rows and codes; the codes of a later stage shrink with the residuals that they meet.

    Returns:
        x (G, N, D), a view of an (N, G, D) activation; codebooks (G, Q, K, D).
    """
    random = torch.Generator(device).manual_seed(seed)
    codebooks = torch.randn(shape.G, shape.Q, shape.K, shape.D, generator=random, device=device)
    codebooks *= 0.8 ** torch.arange(shape.Q, device=device)[:, None, None]
    x = torch.randn(shape.N, shape.G, shape.D, generator=random, device=device)
    return x.transpose(0, 1), codebooks
