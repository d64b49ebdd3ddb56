"""How gradients pass a quantizer: from the quantized rows to the rows before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import validation as check


class Estimator(Protocol):
    """Gives ``quantized`` a gradient to ``x``."""

    def __call__(self, x: Tensor, quantized: Tensor) -> Tensor:
        """x and quantized (..., D) -> a tensor that stands for quantized and carries gradients to x.

        ``quantized`` carries gradients to the codes where they are learned; most estimators pass none on.
        """
        ...


def is_random(estimator: Estimator) -> bool:
    """Whether an estimator is for training only, since its output is not the code itself but drawn around it."""
    return getattr(estimator, "random", False)


def check_estimator(estimator: Estimator | None) -> Estimator:
    """The estimator, :class:`StraightThrough` for None; raises TypeError for what is none."""
    if estimator is None:
        return StraightThrough()
    if isinstance(estimator, type) or not callable(estimator):
        given = estimator.__name__ if isinstance(estimator, type) else repr(estimator)
        raise TypeError(f"estimator must be an estimator such as RotationTrick(), got {given}")
    return estimator


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


@dataclass(frozen=True)
class DiVeQ:
    """Gradients to rows and codes through the length of the error (Vali et al. 2025, arXiv 2509.26469).

    In training the output is x + |q - x| sg(u), u the unit vector of q - x plus normal noise: as far from x as the
    code is, nearly in its direction. It needs no other loss; use it with ``Learned(weight=0)`` and a dead-code rule.

    Args:
        variance: of the noise on each coordinate.
    """

    variance: float = 5e-3
    random = True

    def __post_init__(self) -> None:
        check.not_negative("variance", self.variance)

    def __call__(self, x: Tensor, quantized: Tensor) -> Tensor:
        error = quantized - x
        tiny = torch.finfo(error.dtype).tiny
        # Not error.norm(): its gradient at 0 is not defined.
        length = error.square().sum(-1, keepdim=True).clamp_min(tiny).sqrt()
        noisy = error.detach() + self.variance**0.5 * torch.randn_like(error)
        return x + nn.functional.normalize(noisy, dim=-1) * length


@dataclass(frozen=True)
class GumbelSoftmax:
    """Codes are drawn at random in training, and gradients pass through the relaxed draw (Jang et al. 2017).

    A code is drawn with probability softmax(score / temperature), the score being minus the squared distance, the
    cosine or the dot product; the gradient is that of the softmax's mean code. Outside training the nearest code is
    taken.

    Args:
        temperature: of the softmax.
    """

    temperature: float = 1.0
    random = True

    def __post_init__(self) -> None:
        check.above_zero("temperature", self.temperature)

    def __call__(self, x: Tensor, quantized: Tensor) -> Tensor:
        """x is the relaxed draw here."""
        return StraightThrough()(x, quantized)
