"""Codes that a network makes from a codebook and what earlier stages gave: QINCo (Huijben et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .candidates import BLOCK


class MLP(nn.Module):
    """A residual network on codes beside what is quantized so far (Huijben et al. 2024, section 3).

    Args:
        dim: D. dim_hidden: of the blocks, by default D. depth: blocks. l2norm_output: codes of unit length.
    """

    def __init__(self, dim: int, dim_hidden: int | None = None, depth: int = 4, l2norm_output: bool = False) -> None:
        super().__init__()
        hidden = dim if dim_hidden is None else dim_hidden
        self.proj_in = nn.Linear(2 * dim, dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim)) for _ in range(depth)
        )
        self.l2norm_output = l2norm_output

    def of_rows(self, codes: Tensor, condition: Tensor) -> Tensor:
        """codes and condition (..., D), broadcast to one another -> codes (..., D)."""
        condition, codes = torch.broadcast_tensors(condition.to(codes.dtype), codes)
        x = self.proj_in(torch.cat((condition, codes), -1))
        for layer in self.layers:
            x = layer(x) + x
        return nn.functional.normalize(x, dim=-1) if self.l2norm_output else x

    def forward(self, codes: Tensor, *, condition: Tensor) -> Tensor:
        """codes ([H,] K, D), condition (B, *R, D) -> the codes of every row, ([H,] B, N, K, D)."""
        condition = condition.flatten(1, -2) if condition.dim() > 2 else condition.unsqueeze(1)
        return self.of_rows(codes[..., None, None, :, :], condition.unsqueeze(-2))


class ImplicitCodes:
    """The codes of an :class:`MLP`, made for a block of rows to search, and again for each row's own code.

    Args:
        mlp: the network. codes: (1, K, D). condition: (B, N, D), what is quantized so far. cosine: unit codes.
    """

    def __init__(self, mlp: MLP, codes: Tensor, condition: Tensor, cosine: bool) -> None:
        self.mlp, self.codes, self.condition, self.cosine = mlp, codes, condition, cosine

    @property
    def rows_per_block(self) -> int:
        return max(BLOCK // (self.codes.shape[1] * self.codes.shape[2] * 2), 1)

    def of(self, head: int, positions: Tensor) -> Tensor:
        condition = self.condition.flatten(0, 1)[positions].unsqueeze(1)
        return self._unit(self.mlp.of_rows(self.codes[head], condition))

    def pick(self, indices: Tensor) -> Tensor:
        chosen = self._unit(self.mlp.of_rows(self.codes[0][indices[0].clamp_min(0)], self.condition)).unsqueeze(0)
        return torch.where((indices >= 0).unsqueeze(-1), chosen, 0)

    def _unit(self, codes: Tensor) -> Tensor:
        return nn.functional.normalize(codes, dim=-1, eps=1e-6) if self.cosine else codes


def implicit_transform(mlp: MLP, condition: Tensor, cosine: bool) -> Callable[[Tensor], ImplicitCodes]:
    """What :meth:`Codebook.candidates` takes. condition: (B, N, D)."""

    def transform(codes: Tensor) -> ImplicitCodes:
        return ImplicitCodes(mlp, codes, condition, cosine)

    return transform
