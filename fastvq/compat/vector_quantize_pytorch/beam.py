"""Beam search over residual stages of any kind of codebook."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .candidates import find
from .implicit import MLP, implicit_transform
from .vector_quantize import VectorQuantize


@torch.no_grad()
def beam_search(
    layers: Sequence[VectorQuantize],
    mlps: Sequence[MLP | None],
    x: Tensor,
    mask: Tensor | None,
    beam: int,
    weights: Tensor,
) -> Tensor:
    """The codes whose errors, weighted and summed over stages, are least among ``beam`` choices kept at each stage.

    Args:
        layers: the stages taken. mlps: for each of them the network that makes its codes, or None.
        x: (B, N, D). mask: (B, N) bool or None.
        weights: (Q,), of each stage's mean squared error.

    Returns:
        (B, N, Q), -1 where masked or not finite.
    """
    batch, number, dim = x.shape
    residual = x.unsqueeze(2)
    total = torch.zeros_like(residual)
    score = torch.zeros(batch, number, 1, dtype=layers[0]._codebook.embed.dtype, device=x.device)
    chosen = torch.empty(batch, number, 1, 0, dtype=torch.int64, device=x.device)
    for stage, (layer, mlp) in enumerate(zip(layers, mlps, strict=True)):
        book, kept = layer._codebook, residual.shape[2]
        rows = residual.flatten(1, 2)
        row_mask = None if mask is None else mask.unsqueeze(-1).expand(batch, number, kept).flatten(1)
        transform = None if mlp is None else implicit_transform(mlp, total.flatten(1, 2), layer.use_cosine_sim)
        topk = min(beam, layer.codebook_size)
        unit = book.transform_input(book.cast(rows)).unsqueeze(0)
        found = find(book.candidates(transform), unit, row_mask, topk=topk)
        weight = layer.commitment_weight if layer.has_commitment_loss else 1.0
        error = found.distances.view(batch, number, kept, topk) / dim * (weight * weights[stage])
        score = (score.unsqueeze(-1) + error.to(score.dtype)).flatten(2)
        best = 1 if stage + 1 == len(layers) else min(beam, score.shape[-1])
        score, which = score.topk(best, dim=-1, largest=False)
        parent = (which // topk).unsqueeze(-1)
        index = found.indices.view(batch, number, kept * topk).gather(2, which)
        code = found.codes.view(batch, number, kept * topk, dim).to(x.dtype)
        code = code.gather(2, which.unsqueeze(-1).expand(-1, -1, -1, dim))
        residual = residual.gather(2, parent.expand_as(code)) - code
        total = total.gather(2, parent.expand_as(code)) + code
        chosen = torch.cat((chosen.gather(2, parent.expand(-1, -1, -1, stage)), index.unsqueeze(-1)), -1)
    return chosen[:, :, 0]
