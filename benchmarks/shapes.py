"""The searches that are measured: sizes from the reference models, audio codecs and plain vector search."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """N rows against G codebooks of K codes of dimension D, in Q residual stages, which may share their codes."""

    name: str
    G: int
    N: int
    K: int
    D: int
    Q: int = 1
    shared: bool = False

    @property
    def codebooks(self) -> int:
        """Codebooks that differ."""
        return self.G * (1 if self.shared else self.Q)

    @property
    def operations(self) -> int:
        """Multiply-adds of the scores, counted as two operations each."""
        return 2 * self.G * self.Q * self.N * self.K * self.D

    @property
    def io_bytes(self) -> int:
        """float32 rows in, codes in, and an int64 index out for each row and stage."""
        return 4 * self.G * self.N * self.D + 4 * self.codebooks * self.K * self.D + 8 * self.G * self.Q * self.N

    def small(self) -> Shape:
        """The same kind of search at a size that takes a moment: for tests of the benchmarks themselves."""
        least = {"G": 4, "N": 128, "K": 64, "D": 32, "Q": 4}
        sizes: dict[str, Any] = {axis: min(getattr(self, axis), most) for axis, most in least.items()}
        return self._replace(name=f"{self.name} (toy)", **sizes)


CPU = (
    Shape("a", 1, 8192, 512, 512),
    Shape("b", 1, 65536, 1024, 64),
    Shape("c", 64, 2048, 512, 8),
    Shape("d", 1, 2048, 512, 512, 6),
    Shape("e", 1, 8192, 8192, 32),
)
# What the reference models quantize: pairs of codes that residual stages share, pictures of joints as heat maps, and
# poses, each the sum of 70 of 392 codes.
SEEDS = (
    Shape("s0", 1, 2048, 64, 512, 2, shared=True),
    Shape("s2-128", 1, 4096, 128, 256),
    Shape("s2-1024", 1, 4096, 1024, 256),
    Shape("pose", 1, 2048, 392, 512, 70, shared=True),
)
# Twenty seconds of sound: EnCodec at 6 kbit/s, DAC, Mimi.
CODECS = (
    Shape("encodec", 1, 1500, 1024, 128, 8),
    Shape("dac", 1, 1722, 1024, 8, 9),
    Shape("mimi", 1, 250, 2048, 256, 32),
)
SEARCH = (Shape("long", 1, 2048, 65536, 8),)  # 8192 x 32 is e
SCALAR = (Shape("fsq", 1, 65536, 1000, 4), Shape("lfq", 1, 8192, 1024, 10))
CUDA = (
    Shape("1M x 8192 x 64", 1, 1_048_576, 8192, 64),
    Shape("131k x 1024 x 512", 1, 131_072, 1024, 512),
    Shape("64 groups x 512 x 8", 64, 262_144, 512, 8),
    Shape("6 stages x 512 x 512", 1, 131_072, 512, 512, 6),
    Shape("8 stages x 1024 x 128", 1, 131_072, 1024, 128, 8),
)


def make_data(shape: Shape, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal rows and codes; the codes of a later stage shrink with the residuals that they meet.

    Codes that stages share are half as long, and stand in memory once.

    Returns:
        x (G, N, D), a view of an (N, G, D) activation; codebooks (G, Q, K, D).
    """
    random = torch.Generator(device).manual_seed(seed)
    codebooks = torch.randn(shape.G, shape.Q, shape.K, shape.D, generator=random, device=device)
    if shape.shared:
        codebooks = (0.5 * codebooks[:, :1]).expand(-1, shape.Q, -1, -1)
    else:
        codebooks *= 0.8 ** torch.arange(shape.Q, device=device)[:, None, None]
    x = torch.randn(shape.N, shape.G, shape.D, generator=random, device=device)
    return x.transpose(0, 1), codebooks
