"""How gradients pass, beyond :mod:`fastvq.estimators`: through a residual stack, and along a noised direction."""

from __future__ import annotations

from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import functional as F


def directional(x: Tensor, quantized: Tensor, variance: float = 5e-3) -> Tensor:
    """x plus the distance to its code, in a noised direction of the code; DiVeQ (Vali et al. 2025, figure 1).

    x + |q - x| sg((q - x + e) / |q - x + e|), e normal of that variance; the distance carries gradients to both.
    """
    error = quantized - x
    noised = error.detach() + sqrt(variance) * torch.randn_like(error)
    return x + torch.nn.functional.normalize(noised, dim=-1, eps=1e-6) * error.norm(dim=-1, keepdim=True)


class StackGradients(NamedTuple):
    """What passes back through a residual stack.

    Args:
        rotate: by the rotation trick at every stage; else straight through.
        through: share of a stage's output's gradient that reaches the stages before by way of the residual.
        to_rows, to_codes: weights of the loss's gradient to rows and to codes.
    """

    rotate: bool
    through: float
    to_rows: float
    to_codes: float


def stack_pass(
    x: Tensor,
    codebooks: Tensor,
    indices: Tensor,
    quantized: Tensor,
    errors: Tensor,
    gradients: StackGradients,
) -> tuple[Tensor, Tensor]:
    """Gives a residual stack's output its gradients, and makes each stage's loss, with no residual kept for it.

    Stage q quantizes r_q to c_q, and r_{q+1} = r_q - c_q. With T_q the rotation and scaling of r_q to c_q (or the
    identity) and f = ``through``, the gradient of r_q is that of r_{q+1}, plus T_q^T (g - f * that of r_{q+1}), plus
    that of the stage's loss, which is 2 r_{q+1} over the number of entries; the gradient of x is that of r_1. A code
    gets the negative sum of its rows' 2 r_{q+1}.

    Args:
        x: (G, R1, R2, D). codebooks: (G, Q, K, D). indices: (G, R1, R2, Q). quantized: (G, R1, R2, D), their sum.
        errors: (G, R1, R2, Q), squared, NaN where a row is not finite.

    Returns:
        quantized with gradients to x, and mean squared errors (G, Q) with gradients to x and codebooks.
    """
    valid = (indices >= 0) & ~errors.isnan()
    result: tuple[Tensor, Tensor] = _StackPass.apply(x, codebooks, indices, quantized, errors, valid, gradients)
    return result


class _StackPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        codebooks: Tensor,
        indices: Tensor,
        quantized: Tensor,
        errors: Tensor,
        valid: Tensor,
        gradients: StackGradients,
    ) -> tuple[Tensor, Tensor]:
        number = valid.sum((1, 2)).clamp_min(1) * x.shape[-1]
        ctx.save_for_backward(x, codebooks, indices, number)
        ctx.gradients = gradients
        return quantized.clone(), torch.where(valid, errors, 0).sum((1, 2)) / number

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, codebooks, indices, number = ctx.saved_tensors
        how: StackGradients = ctx.gradients
        given = grads[0].to(codebooks.dtype)
        slopes = 2 * grads[1] / number  # (G, Q)
        left = x.to(codebooks.dtype) - F.lookup(indices, codebooks)
        alive = left.isfinite().all(-1, keepdim=True)
        left = torch.where(alive, left, 0)
        carried = torch.zeros_like(left)
        to_codes = torch.zeros_like(codebooks) if ctx.needs_input_grad[1] and how.to_codes else None
        for stage in reversed(range(codebooks.shape[1])):
            index = indices[..., stage : stage + 1]
            code = F.lookup(index, codebooks[:, stage : stage + 1])
            taken = index >= 0
            row = left + code
            coming = given if how.through == 0 else given - how.through * carried
            coming = rotated_back(coming, row, code) if how.rotate else coming
            slope = torch.where(taken, left, 0) * slopes[:, stage, None, None, None]
            carried = carried + torch.where(taken, coming, 0) + how.to_rows * slope
            if to_codes is not None:
                pulled = F.segment_sum(slope, index.squeeze(-1), codebooks.shape[2]).sums
                to_codes[:, stage] = -how.to_codes * pulled
            left = row
        grad_x = carried.to(x.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, to_codes, None, None, None, None, None


def rotated_back(grad: Tensor, x: Tensor, code: Tensor) -> Tensor:
    """R^T g |c| / |x| for the rotation R that takes x / |x| to c / |c| (Fifty et al. 2024, section 4.2).

    Rows of length 0, or opposite to their code, pass straight.
    """
    tiny = torch.finfo(x.dtype).tiny
    x_norm, code_norm = x.norm(dim=-1, keepdim=True), code.norm(dim=-1, keepdim=True)
    unit, target = x / x_norm.clamp_min(tiny), code / code_norm.clamp_min(tiny)
    middle = unit + target
    square = middle.square().sum(-1, keepdim=True)
    along = 2 * (middle * grad).sum(-1, keepdim=True) / square.clamp_min(tiny)
    turned = grad - along * middle + 2 * (target * grad).sum(-1, keepdim=True) * unit
    turned = turned * (code_norm / x_norm.clamp_min(tiny))
    defined = (x_norm > 0) & (code_norm > 0) & (square > torch.finfo(x.dtype).eps ** 2)
    return torch.where(defined, turned, grad)
