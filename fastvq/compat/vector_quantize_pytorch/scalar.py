"""What the quantizers without a learned codebook share here: layouts, projections, precision, dropout of stages."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .sync import running

SEEDS = 10_000  # what vector-quantize-pytorch draws the seed of a dropout from


def to_rows(x: Tensor, dim: int, first: bool) -> tuple[Tensor, torch.Size]:
    """x as (B, N, dim), from channels first or last, and the shape of its row axes.

    Raises:
        ValueError: other channels than ``dim``.
    """
    axis = 1 if first else -1
    if x.dim() < 2 or x.shape[axis] != dim:
        raise ValueError(f"x must have {dim} channels on axis {axis}, got shape {tuple(x.shape)}")
    x = x.movedim(axis, -1)
    shape = x.shape[:-1]
    return x.reshape(shape[0], math.prod(shape[1:]), dim), shape


def from_rows(rows: Tensor, shape: torch.Size, first: bool) -> Tensor:
    """(B, N, C) -> the layout that :func:`to_rows` was given."""
    rows = rows.reshape(*shape, rows.shape[-1])
    return rows.movedim(-1, 1) if first else rows


def projected(layer: nn.Module, x: Tensor) -> Tensor:
    """x through a linear layer in the layer's own dtype, so that codes of float32 pass a bfloat16 module."""
    weight = getattr(layer, "weight", None)
    out: Tensor = layer(x if weight is None else x.to(weight.dtype))
    return out


def kept_axis(keep: bool | None, num_codebooks: int) -> bool:
    """Whether indices have an axis of codebooks; ValueError where several would have to share one."""
    if num_codebooks > 1 and keep is False:
        raise ValueError(f"keep_num_codebooks_dim must not be False with num_codebooks={num_codebooks}; leave it out")
    return num_codebooks > 1 if keep is None else keep


def projections(dim: int, inner: int, needed: bool, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    """Linear layers there and back, or identities."""
    if not needed:
        return nn.Identity(), nn.Identity()
    return nn.Linear(dim, inner, bias=bias), nn.Linear(inner, dim, bias=bias)


def full_precision(x: Tensor, forced: bool) -> AbstractContextManager[object]:
    """Autocast switched off on x's device where the quantization is to be in full precision."""
    return torch.autocast(x.device.type, enabled=False) if forced else nullcontext()


def plain_layers(owner: str, given: Mapping[str, object], kept: Mapping[str, object]) -> None:
    """Raises where a keyword for the stages' layers would have no effect, or would break the stack.

    Args:
        owner: whose constructor. given: the keywords. kept: those that only pass with the value given here.
    """
    for name, value in kept.items():
        if name in given and given[name] != value and given[name] is not None:
            raise ValueError(
                f"{owner} cannot take {name}={given[name]!r}, since its stages have one codebook each, no projection "
                f"and channels last; leave {name} out and use {owner}'s own arguments, or the class of a single stage"
            )


class StageDropout(nn.Module):
    """Which is the last stage that a training step keeps, drawn on the device.

    The draw for a seed is ``random.Random(seed).randrange(cutoff, Q)``, rounded up to a multiple, as
    vector-quantize-pytorch makes it on the host; here all its 10,000 seeds are worked out beforehand, so that a step
    neither waits for the device nor breaks a graph, and the same seed keeps the same stages.

    Args:
        num_quantizers: Q. cutoff: the first stage that may be the last. multiple_of: stages are kept in so many.

    Buffers:
        last (10000,): int64, not saved.
    """

    last: Tensor

    def __init__(self, num_quantizers: int, cutoff: int, multiple_of: int) -> None:
        super().__init__()
        if not 0 <= cutoff < num_quantizers:
            raise ValueError(
                f"quantize_dropout_cutoff_index must lie in [0, {num_quantizers}), the stages, got {cutoff}"
            )
        if multiple_of < 1:
            raise ValueError(f"quantize_dropout_multiple_of must be at least 1, got {multiple_of}")
        self.settings = (cutoff, num_quantizers, multiple_of)
        self.register_buffer("last", torch.tensor(_all_last(*self.settings)), persistent=False)

    def forward(self, seed: int | Tensor | None) -> Tensor:
        """The last stage kept, a tensor (); for a seed that is None, a drawn one that all processes share."""
        if isinstance(seed, int):
            if not 0 <= seed < SEEDS:
                return torch.full((), _last(seed, *self.settings), device=self.last.device)
            return self.last[seed]
        seed = shared_seed(self.last.device) if seed is None else seed
        # Not self.last[seed]: that reads the seed on the host.
        return self.last.index_select(0, seed.reshape(1)).squeeze(0)


def shared_seed(device: torch.device) -> Tensor:
    """A random seed () on the device, the same in every process, without waiting for it."""
    seed = torch.randint(0, SEEDS, (), device=device)
    if running():
        dist.all_reduce(seed)
        seed = seed % SEEDS
    return seed


def _last(seed: int, cutoff: int, stages: int, multiple: int) -> int:
    drawn = random.Random(seed).randrange(cutoff, stages)
    return math.ceil((drawn + 1) / multiple) * multiple - 1


@lru_cache
def _all_last(cutoff: int, stages: int, multiple: int) -> list[int]:
    return [_last(seed, cutoff, stages, multiple) for seed in range(SEEDS)]


def stage_indices(indices: Tensor, stages: int, may_lack: bool) -> Tensor:
    """indices (..., Q) or, where stages may have been dropped, fewer -> (..., Q), -1 for those that lack.

    Raises:
        ValueError: another number of stages.
    """
    given = indices.shape[-1]
    if given == stages:
        return indices
    if given > stages:
        raise ValueError(
            f"indices must have the {stages} stages last, got shape {tuple(indices.shape)}; "
            "of channels first, move them with .movedim(1, -1)"
        )
    if not may_lack:
        raise ValueError(
            f"indices must have all {stages} stages last, got shape {tuple(indices.shape)}; "
            "fewer are understood by a module made with quantize_dropout=True"
        )
    return nn.functional.pad(indices, (0, stages - given), value=-1)


def sum_of(codes: Tensor) -> Tensor:
    """(Q, ...) -> (...), left to right as the forward pass adds, so that both give the same bits."""
    total = torch.zeros_like(codes[0])
    for code in codes:
        total = total + code
    return total
