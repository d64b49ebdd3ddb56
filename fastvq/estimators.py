"""How gradients pass a quantizer: from the quantized rows to the rows before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


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
