"""Residual stacks side by side in one search, one sum of rows and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ... import functional as F
from .affine import AffineCodebook
from .draws import Rows, drawn_rows, known, valid_rows
from .gradients import StackGradients, stack_pass
from .sync import Processes
from .vector_quantize import VectorQuantize

Stacks = Sequence[Sequence[VectorQuantize]]


@dataclass(frozen=True)
class StackOptions:
    """How a call of residual stacks goes.

    Args:
        freeze: leave the codes as they are.
        shared: the stages of a stack are one codebook.
        through: share of the gradient that passes by way of the residual.
    """

    freeze: bool | None = None
    shared: bool = False
    through: float = 0.0


def fits(layers: Sequence[VectorQuantize], *, shared: bool, temperature: float | None) -> bool:
    """Whether a stack's stages depend on one another by their residuals alone, so that one search finds all codes."""
    training = any(layer.training for layer in layers)
    for layer in layers:
        book = layer._codebook
        if layer.use_cosine_sim or book.vq_bridge is not None or isinstance(book, AffineCodebook) or not book.begun():
            return False
        if not training:
            continue
        heat = book.sample_codebook_temp if temperature is None else temperature
        if (
            (layer.stochastic_sample_codes and heat > 0)
            or layer.straight_through
            or layer.directional_reparam
            or layer.sync_update_v > 0
            or layer.in_place_codebook_optimizer is not None
            or layer.commitment_use_cross_entropy_loss
            or layer.has_codebook_diversity_loss
            or layer.has_codebook_orthogonal_loss
            or (shared and book.has_dead_code_replacement)
        ):
            return False
    return True


def packed(stacks: Stacks) -> tuple[Tensor, list[int] | None]:
    """The codes of all stages in one tensor (G, Q, K, D), and their sizes where those differ."""
    sizes = [layer.codebook_size for layer in stacks[0]]
    widest = max(sizes)
    codes = [
        [nn.functional.pad(layer._codebook.embed[0], (0, 0, 0, widest - layer.codebook_size)) for layer in stack]
        for stack in stacks
    ]
    return torch.stack([torch.stack(stack) for stack in codes]), sizes if min(sizes) < widest else None


def quantize_stacks(
    stacks: Stacks,
    x: Tensor,
    mask: Tensor | None,
    options: StackOptions,
    *,
    depth: int | Tensor | None = None,
    chosen: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes rows by G stacks of Q stages, and in training mode updates them.

    Args:
        stacks: G lists of Q quantizers, alike but for their codes.
        x: (G, B, N, D). mask: (B, N) bool or None.
        depth: how many stages are taken, an int or () int64; None for all.
        chosen: (G, B, N, Q), the codes to take instead of the nearest.

    Returns:
        quantized (G, B, N, D), with gradients by the options; indices (G, B, N, Q), -1 for stages not taken; losses
        (G, Q).
    """
    stages = len(stacks[0])
    taken = depth if isinstance(depth, int) else stages
    stacks = [stack[:taken] for stack in stacks]
    first, training = stacks[0][0], stacks[0][0].training
    dtype, x = x.dtype, first._codebook.cast(x)
    codebooks, sizes = packed(stacks)
    frozen = codebooks.detach()
    if chosen is None:
        limit = None if not isinstance(depth, Tensor) else depth.expand(x.shape[1:3])
        indices, quantized, errors = F.residual_nearest(x.detach(), frozen, sizes=sizes, stages=limit, mask=mask)
    else:
        indices = chosen[..., :taken]
        quantized, errors = _retraced(x.detach(), indices, frozen)

    freeze = first.freeze_codebook if options.freeze is None else options.freeze
    how = StackGradients(
        rotate=bool(first.rotation_trick),
        through=options.through,
        to_rows=1.0,
        to_codes=float(first.learnable_codebook and not freeze),
    )
    weight = first.commitment_weight if first.has_commitment_loss else float(not training)
    to_rows = training and x.requires_grad and first.route_gradients_to_input
    if training and (to_rows or weight > 0):
        source = codebooks if how.to_codes else frozen
        passed, means = stack_pass(x, source, indices, quantized, errors, how)
    else:
        passed, means = quantized, _means(errors, indices, x.shape[-1])
    # In eval mode only beams have losses.
    losses = weight * means if training or chosen is not None else torch.zeros_like(means)
    if not to_rows and codebooks.requires_grad and torch.is_grad_enabled():
        passed = (F.lookup(indices, codebooks) + torch.where(quantized.isnan(), quantized, 0)).to(x.dtype)
    if training and not freeze:
        _update(stacks, x.detach(), indices, frozen, options.shared, depth if isinstance(depth, Tensor) else None)
    missing = stages - taken
    if missing:
        indices = nn.functional.pad(indices, (0, missing), value=-1)
        losses = nn.functional.pad(losses, (0, missing))
    return passed.to(dtype), indices, losses


def _means(errors: Tensor, indices: Tensor, dim: int) -> Tensor:
    """The mean squared error of each stage, (G, Q)."""
    valid = (indices >= 0) & ~errors.isnan()
    return torch.where(valid, errors, 0).sum((1, 2)) / (valid.sum((1, 2)).clamp_min(1) * dim)


def _retraced(x: Tensor, indices: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """What given codes quantize to, (G, B, N, D), and the squared distance that each stage leaves, (G, B, N, Q)."""
    residual, errors = x.to(codebooks.dtype), []
    for stage in range(codebooks.shape[1]):
        residual = residual - F.lookup(indices[..., stage : stage + 1], codebooks[:, stage : stage + 1])
        errors.append(torch.where(indices[..., stage] >= 0, residual.square().sum(-1), 0))
    return F.lookup(indices, codebooks).to(x.dtype), torch.stack(errors, -1)


@torch.no_grad()
def _update(
    stacks: Stacks, x: Tensor, indices: Tensor, codebooks: Tensor, shared: bool, depth: Tensor | None
) -> None:
    """One step of every codebook; of a shared one, of its averages for each stage and of its codes at the end."""
    wanted = [layer.ema_update or layer._codebook.has_dead_code_replacement for stack in stacks for layer in stack]
    if not any(wanted):
        return
    first = stacks[0][0]._codebook
    processes = Processes(first.use_ddp)
    sums, counts = processes.total(*F.residual_segment_sum(x, indices, codebooks))
    together = first.has_dead_code_replacement and (processes.many or not known(indices))
    books, rows, dead = [], [], []
    for group, stack in enumerate(stacks):
        for stage, layer in enumerate(stack):
            size = layer.codebook_size
            books.append(layer._codebook)
            rows.append(_rows_of_stage(x, indices, codebooks, group, stage))
            dead.append(
                layer._codebook.absorb_(
                    sums[group : group + 1, stage, :size],
                    counts[group : group + 1, stage, :size],
                    None if together else rows[-1],
                    active=None if depth is None else stage < depth,
                )
            )
        if shared and stack[0].ema_update:
            stack[0]._codebook.update_ema()
    if together:
        # One draw, and over several processes one gather, for all stages of all groups.
        several = Rows(rows[0].number, valid_rows(indices[..., 0]), lambda head, where: rows[head].at(0, where))
        drawn, usable = drawn_rows(several, len(books), codebooks.shape[2], codebooks, processes)
        for head, (book, gone) in enumerate(zip(books, dead, strict=True)):
            if gone is not None:
                size = book.codebook_size
                book.put_(gone, drawn[head : head + 1, :size], usable[head : head + 1, :size])


def _rows_of_stage(x: Tensor, indices: Tensor, codebooks: Tensor, group: int, stage: int) -> Rows:
    """The residuals that a stage of a group saw, formed where they are drawn."""
    inner = x.shape[2]

    def at(head: int, positions: Tensor) -> Tensor:
        outer, column = positions // inner, positions % inner
        rows, chosen = x[group, outer, column].to(codebooks.dtype), indices[group, outer, column]
        for before in range(stage):
            code = codebooks[group, before, chosen[:, before].clamp_min(0)]
            rows = torch.where(chosen[:, before : before + 1] >= 0, rows - code, rows)
        return rows

    return Rows(x.shape[1] * inner, valid_rows(indices[group : group + 1, ..., stage]), at)
