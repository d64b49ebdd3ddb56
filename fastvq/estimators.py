"""How gradients pass a quantizer: from the quantized rows to the rows before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from . import functional as F


class Estimator(Protocol):
    """Gives ``quantized`` a gradient to ``x``."""

    def __call__(self, x: Tensor, quantized: Tensor) -> Tensor:
        """x and quantized (..., D) -> a tensor that equals quantized and carries gradients to x."""
        ...


@dataclass(frozen=True)
class StraightThrough:
    """The gradient passes unchanged (Bengio et al. 2013)."""

    def __call__(self, x: Tensor, quantized: Tensor) -> Tensor:
        # Not x + (q - x): that rounds, and the decoder would not see the code itself.
        result: Tensor = _Pass.apply(x, quantized.detach())
        return result


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


@dataclass(frozen=True)
class RotationTrick:
    """The gradient passes through the rotation and scaling that takes x to its code (Fifty et al. 2024, section 4).

    With e = x / |x|, q^ = q / |q| and r = (e + q^) / |e + q^|, the rotation is R = I - 2 r r^T + 2 q^ e^T; the output
    is |q| / |x| R x with R and the scale held constant. Rows of length 0, or opposite to their code, pass straight.
    """

    def __call__(self, x: Tensor, quantized: Tensor) -> Tensor:
        result: Tensor = _Rotate.apply(x, quantized.detach())
        return result


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        ctx.save_for_backward(x, quantized)
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        """R^T g = g - 2 r (r.g) + 2 e (q^.g), times |q| / |x|."""
        x, quantized = ctx.saved_tensors
        grad = grads[0]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        g, v, q = grad.to(wide), x.to(wide), quantized.to(wide)
        tiny = torch.finfo(wide).tiny
        x_norm, q_norm = v.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
        e, code = v / x_norm.clamp_min(tiny), q / q_norm.clamp_min(tiny)
        total = e + code
        length = total.norm(dim=-1, keepdim=True)
        r = total / length.clamp_min(tiny)
        turned = g - 2 * r * (r * g).sum(-1, keepdim=True) + 2 * e * (code * g).sum(-1, keepdim=True)
        turned = turned * (q_norm / x_norm.clamp_min(tiny))
        defined = (x_norm > 0) & (q_norm > 0) & (length > torch.finfo(wide).eps)
        return torch.where(defined, turned, g).to(grad.dtype), None


class _Commitment(torch.autograd.Function):
    """The mean of squared distances that the search has already found; see :func:`commitment_loss`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, distances: Tensor, valid: Tensor | None) -> Tensor:
        ctx.number = max(distances.numel(), 1) if valid is None else valid.sum()
        if valid is not None:
            distances = torch.where(valid, distances, 0)
            ctx.number = ctx.number.clamp_min(1)
        ctx.number = ctx.number * x.shape[-1]
        ctx.save_for_backward(x, quantized, valid)
        return distances.sum() / ctx.number

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        x, quantized, valid = ctx.saved_tensors
        difference = (x - quantized).mul_(2 * grads[0] / ctx.number)
        if valid is not None:
            difference = torch.where(valid.unsqueeze(-1), difference, 0)
        return difference.to(x.dtype), None, None, None


def commitment_loss(x: Tensor, quantized: Tensor, distances: Tensor, valid: Tensor | None = None) -> Tensor:
    """mean((x - sg(q))^2) over valid rows, from the distances of the search, so that no difference is formed twice.

    Args:
        x: (..., D), gets the gradient. quantized: (..., D), gets none.
        distances: (...), squared Euclidean distances of x and quantized.
        valid: (...), bool; other rows count for nothing. None where all count.

    Returns:
        A scalar, float32 (float64 for float64).
    """
    loss: Tensor = _Commitment.apply(x, quantized, distances, valid)
    return loss


class _ResidualCommitment(torch.autograd.Function):
    """The mean of the errors that the search has already found; see :func:`residual_commitment_loss`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, errors: Tensor, left: Tensor | None, valid: Tensor | None) -> Tensor:
        ctx.number = max(errors.numel(), 1) if valid is None else valid.sum().clamp_min(1)
        if valid is not None:
            errors = torch.where(valid, errors, 0)
        ctx.number = ctx.number * x.shape[-1]
        ctx.dtype = x.dtype
        ctx.save_for_backward(left)
        return errors.sum() / ctx.number

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (left,) = ctx.saved_tensors
        return (left * (2 * grads[0] / ctx.number)).to(ctx.dtype), None, None, None


def residual_commitment_loss(
    x: Tensor, indices: Tensor, quantized: Tensor, errors: Tensor, codebooks: Tensor, *, impl: str = "auto"
) -> Tensor:
    """mean over stages of mean((r_q - sg(c_q))^2), r_q = x - sg(c_1 + ... + c_{q-1}), from the errors of the search.

    The gradient of x is 2 sum_q r_{q+1} over the number of entries. Of a row that takes s stages, and with C the sum
    of its codes, sum_q r_{q+1} = s x - sum_j (s - j + 1) c_j = s x - sum_j (Q - j + 1) c_j + (Q - s) C, which is one
    look-up in codebooks scaled by Q - j + 1: no residual is formed again.

    Args:
        x: (G, R1, R2, D), gets the gradient.
        indices: (G, R1, R2, Q). quantized: (G, R1, R2, D). errors: (G, R1, R2, Q). All of the search.
        codebooks: (G, Q, K, D). impl: of the look-up.

    Returns:
        A scalar, float32 (float64 for float64); stages that a row does not take, and rows that are not finite, count
        for nothing.
    """
    stages = indices.shape[-1]
    known = indices.device.type == "cpu" and not torch.compiler.is_compiling()
    valid = None
    if not known or bool((indices < 0).any()):
        valid = (indices >= 0) & ~errors.isnan().any(-1, keepdim=True)
    left = None
    if x.requires_grad and torch.is_grad_enabled():
        with torch.no_grad():
            weights = torch.arange(stages, 0, -1, device=x.device, dtype=codebooks.dtype)
            heavy = F.lookup(indices, codebooks * weights[:, None, None], impl=impl)
            wide = x.to(codebooks.dtype)
            if valid is None:
                left = wide * stages - heavy
            else:
                taken = valid.sum(-1, keepdim=True)
                left = wide * taken - heavy + (stages - taken) * quantized.to(codebooks.dtype)
                left = torch.where(taken > 0, left, 0)
    loss: Tensor = _ResidualCommitment.apply(x, errors, left, valid)
    return loss
