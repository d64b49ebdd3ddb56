"""Residual stages one after the other, for options under which one search does not find all codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import layout
from .implicit import MLP, implicit_transform
from .layout import Layout
from .residual_stack import StackOptions
from .vector_quantize import VectorQuantize


@dataclass(frozen=True)
class Stages:
    """The stages of a residual stack.

    Args:
        layers: all of them. mlps: for each the network that makes its codes, or None.
        options: how the call goes. temperature: of drawn codes, None for the layers' own.
    """

    layers: Sequence[VectorQuantize]
    mlps: Sequence[MLP | None]
    options: StackOptions
    temperature: float | None


def quantize_stepwise(
    stages: Stages, x: Tensor, mask: Tensor | None, taken: int, chosen: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, N, D), mask (B, N) or None -> quantized (B, N, D), indices (B, N, Q) and losses (Q,).

    Args:
        taken: how many stages. chosen: (B, N, taken), the codes to take instead of the nearest.
    """
    residual = x if x.dtype == torch.float64 else x.float()
    total = torch.zeros_like(residual)
    where = Layout(x.shape[:2], False)
    seen, codes, losses = [], [], []
    for stage, layer in enumerate(stages.layers[:taken]):
        seen.append(residual.detach())
        given = None if chosen is None else chosen[..., stage]
        quantized, index, loss, _ = layer.quantize(
            residual,
            where,
            mask,
            chosen=given,
            temperature=stages.temperature,
            freeze=stages.options.freeze,
            transform=_transform(stages, stage, total),
        )
        if given is not None and not layer.training:
            rows = layer._rows(residual)
            loss = layer._distance(rows, quantized.unsqueeze(0), index.unsqueeze(0))
            loss = loss * (layer.commitment_weight if layer.has_commitment_loss else 1.0)
        residual = residual - fraction(quantized, stages.options.through)
        total = total + quantized
        codes.append(index)
        losses.append(loss)
    finish(stages, seen, mask)
    missing = len(stages.layers) - taken
    indices = nn.functional.pad(torch.stack(codes, -1), (0, missing), value=-1)
    return total.to(x.dtype), indices, nn.functional.pad(torch.stack(losses), (0, missing))


def cross_entropies(stages: Stages, x: Tensor, mask: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, N, D) and targets (B, N, Q) -> quantized (B, N, D), and the sum of the stages' cross-entropies."""
    residual = x if x.dtype == torch.float64 else x.float()
    total, entropy = torch.zeros_like(residual), residual.new_zeros(())
    where = Layout(x.shape[:2], False)
    seen = []
    for stage, layer in enumerate(stages.layers):
        seen.append(residual.detach())
        quantized, part = layer.quantize(
            residual,
            where,
            mask,
            indices=targets[..., stage],
            temperature=stages.temperature,
            freeze=stages.options.freeze,
            transform=_transform(stages, stage, total),
        )
        residual = residual - fraction(quantized, stages.options.through)
        total, entropy = total + quantized, entropy + part
    finish(stages, seen, mask)
    return total.to(x.dtype), entropy


def _transform(stages: Stages, stage: int, total: Tensor) -> Callable[[Tensor], Any] | None:
    mlp = stages.mlps[stage]
    return None if mlp is None else implicit_transform(mlp, total, stages.layers[stage].use_cosine_sim)


@torch.no_grad()
def finish(stages: Stages, seen: list[Tensor], mask: Tensor | None) -> None:
    """A shared codebook moves once, after its averages followed every stage, and loses codes dead by then."""
    first = stages.layers[0]
    freeze = first.freeze_codebook if stages.options.freeze is None else stages.options.freeze
    if not stages.options.shared or not first.training or freeze:
        return
    book = first._codebook
    if first.ema_update:
        book.update_ema()
    first.update_in_place_optimizer()
    if book.has_dead_code_replacement:
        rows = torch.stack(seen, 2).flatten(1, 2).unsqueeze(0)
        several = None if mask is None else layout.head_mask(mask, len(seen), False)
        book.expire_codes_(book.transform_input(book.cast(rows)), several)


def fraction(x: Tensor, share: float) -> Tensor:
    """x, with that share of its gradient."""
    if share <= 0:
        return x.detach()
    return share * x + (1 - share) * x.detach()
