"""Gradients of the ops. An index is piecewise constant, so only distances, errors, sums and codes carry any.

Everything that many rows add to one code goes through ``fastvq::segment_sum``, so that gradients are as deterministic
as it is. Holes (index -1) get and give nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def nearest_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, codebook, _, metric, _, impl = inputs
    indices, distances = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(x, codebook, indices, distances)
    ctx.metric, ctx.impl = metric, impl


def nearest_backward(ctx: Any, _: Tensor | None, grad: Tensor) -> tuple[Tensor | None, ...]:
    """See :func:`distance_gradients`."""
    x, codebook, indices, distances = ctx.saved_tensors
    grad_x, to_code = distance_gradients(x, codebook, indices, distances, grad, ctx.metric, ctx.impl)
    grad_codebook = None
    if ctx.needs_input_grad[1]:
        grad_codebook = torch.ops.fastvq.segment_sum(to_code, indices, codebook.shape[1], ctx.impl)[0]
    return grad_x.to(x.dtype) if ctx.needs_input_grad[0] else None, grad_codebook, None, None, None, None


def nearest_topk_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, codebook, _, _, metric, _, impl = inputs
    indices, distances = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(x, codebook, indices, distances)
    ctx.metric, ctx.impl = metric, impl


def nearest_topk_backward(ctx: Any, _: Tensor | None, grad: Tensor) -> tuple[Tensor | None, ...]:
    """See :func:`distance_gradients`; a row gets the sum over its codes."""
    x, codebook, indices, distances = ctx.saved_tensors
    groups, rows1, rows2, topk = indices.shape
    # Every code of a row is a row of its own here: (G, R1 * R2, topk).
    shape = (groups, rows1 * rows2, topk)
    each = x.reshape(groups, rows1 * rows2, 1, x.shape[-1]).expand(-1, -1, topk, -1)
    indices = indices.reshape(shape)
    distances, grad = distances.reshape(shape).to(codebook.dtype), grad.reshape(shape).to(codebook.dtype)
    to_x, to_code = distance_gradients(each, codebook, indices, distances, grad, ctx.metric, ctx.impl)
    grad_codebook = None
    if ctx.needs_input_grad[1]:
        grad_codebook = torch.ops.fastvq.segment_sum(to_code, indices, codebook.shape[1], ctx.impl)[0]
    grad_x = to_x.sum(2).view(x.shape).to(x.dtype) if ctx.needs_input_grad[0] else None
    return grad_x, grad_codebook, None, None, None, None, None


def distance_gradients(
    x: Tensor, codebook: Tensor, indices: Tensor, distances: Tensor, grad: Tensor, metric: str, impl: str
) -> tuple[Tensor, Tensor]:
    """What each row (G, R1, R2, D) gets for itself, and what it gives to its code.

    l2: d/dx = 2 (x - c), d/dc = the negative; dot: c and x; cosine, with unit vectors x^ and c^ and s = x^.c^:
    d(1 - s)/dx = -(c^ - s x^) / |x|, and alike for c.
    """
    valid = (indices >= 0).unsqueeze(-1)
    g = torch.where(valid, grad.unsqueeze(-1), 0)
    rows = torch.where(valid, x.to(codebook.dtype), 0)
    codes = torch.ops.fastvq.lookup(indices.unsqueeze(-1), codebook.detach().unsqueeze(1), impl)
    if metric == "l2":
        to_x = 2 * g * (rows - codes)
        return to_x, -to_x
    if metric == "dot":
        return g * codes, g * rows
    tiny = torch.finfo(codebook.dtype).tiny
    row_norm = rows.norm(dim=-1, keepdim=True).clamp_min(tiny)
    code_norm = codes.norm(dim=-1, keepdim=True).clamp_min(tiny)
    row, code, cosine = rows / row_norm, codes / code_norm, 1 - torch.where(valid, distances.unsqueeze(-1), 1)
    return -g * (code - cosine * row) / row_norm, -g * (row - cosine * code) / code_norm


def segment_sum_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, indices, _, impl = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(indices)
    ctx.impl, ctx.dtype = impl, x.dtype


def segment_sum_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """Each row gets the gradient of its code's sum."""
    (indices,) = ctx.saved_tensors
    grad_x = torch.ops.fastvq.lookup(indices.unsqueeze(-1), grad.unsqueeze(1), ctx.impl)
    return grad_x.to(ctx.dtype), None, None, None


def lookup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, codebooks, impl = inputs
    ctx.save_for_backward(indices)
    ctx.impl, ctx.shape = impl, codebooks.shape


def lookup_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Each code of each stage gets the sum of the gradients of the rows that chose it."""
    (indices,) = ctx.saved_tensors
    _, depth, num_codes, _ = ctx.shape
    sums = [torch.ops.fastvq.segment_sum(grad, indices[..., q], num_codes, ctx.impl)[0] for q in range(depth)]
    return None, torch.stack(sums, dim=1), None


def residual_nearest_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """For ``residual_nearest`` and ``residual_beam``: both begin with x and codebooks and end with impl."""
    x, codebooks, *_, impl = inputs
    indices, _, errors = output
    ctx.mark_non_differentiable(indices)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, codebooks, indices, errors)
    ctx.impl, ctx.others = impl, (None,) * (len(inputs) - 2)


def residual_nearest_backward(
    ctx: Any, _: Tensor | None, grad_quantized: Tensor | None, grad_errors: Tensor | None
) -> tuple[Tensor | None, ...]:
    """With quantized = sum_q c_q and errors_q = |x - sum_{j<=q} c_j|^2 = |r_{q+1}|^2, and their gradients g and e:

    x gets sum_q 2 e_q r_{q+1}, and nothing through quantized; the code of stage j gets, from each row that chose it,
    g - sum_{q>=j} 2 e_q r_{q+1}. A row that was lost on its way (error NaN) gets and gives nothing.
    """
    x, codebooks, indices, errors = ctx.saved_tensors
    indices = torch.where(errors.isnan().any(-1, keepdim=True), -1, indices)
    depth, num_codes = codebooks.shape[1:3]
    frozen = codebooks.detach()
    slopes: list[Tensor] = []  # 2 e_q r_{q+1}
    if grad_errors is not None:
        residual = x.to(codebooks.dtype)
        for q in range(depth):
            index = indices[..., q : q + 1]
            residual = residual - torch.ops.fastvq.lookup(index, frozen[:, q : q + 1], ctx.impl)
            slopes.append(torch.where(index >= 0, 2 * grad_errors[..., q : q + 1] * residual, 0))
    grad_x = sum(slopes[1:], slopes[0]).to(x.dtype) if slopes and ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1] or (grad_quantized is None and grad_errors is None):
        return grad_x, None, *ctx.others
    given = torch.zeros_like(x, dtype=codebooks.dtype) if grad_quantized is None else grad_quantized
    given = given.to(codebooks.dtype)
    sums = []
    for q in reversed(range(depth)):
        if slopes:
            given = given - slopes[q]
        sums.append(torch.ops.fastvq.segment_sum(given, indices[..., q], num_codes, ctx.impl)[0])
    return grad_x, torch.stack(sums[::-1], dim=1), *ctx.others


def residual_segment_sum_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, indices, codebooks, impl = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(indices)
    ctx.impl, ctx.dtype, ctx.shape = impl, x.dtype, codebooks.shape


def residual_segment_sum_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """A sum of stage q adds r_q = x - sum_{j<q} c_j of its rows: x gets the gradients of all its codes' sums, and the
    code of stage j, from each row that chose it, the negative of those of the stages after j."""
    (indices,) = ctx.saved_tensors
    _, depth, num_codes, _ = ctx.shape
    later, sums = None, []
    for q in reversed(range(depth)):
        index = indices[..., q]
        here = torch.ops.fastvq.lookup(index.unsqueeze(-1), grad[:, q : q + 1], ctx.impl)
        behind = torch.zeros_like(here) if later is None else later
        if ctx.needs_input_grad[2]:
            sums.append(torch.ops.fastvq.segment_sum(-behind, index, num_codes, ctx.impl)[0])
        later = behind + here
    assert later is not None
    return later.to(ctx.dtype), None, torch.stack(sums[::-1], dim=1) if sums else None, None
