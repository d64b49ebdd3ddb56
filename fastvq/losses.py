"""Losses of quantizers. Commitment and codebook loss come from the distances that the search has already found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import functional as F
from . import ops, soft
from . import validation as check


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


class _PassAndCommit(torch.autograd.Function):
    """Codes, gradients straight through, and the commitment loss, in one; see :func:`straight_through_commitment`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        indices: Tensor,
        codebook: Tensor,
        distances: Tensor | None,
        valid: Tensor | None,
        lost: Tensor | None,
        impl: str,
    ) -> tuple[Tensor, Tensor]:
        codes = F.lookup(indices.unsqueeze(-1), codebook.unsqueeze(1), impl=impl)
        if lost is not None:
            codes = torch.where(lost.unsqueeze(-1), float("nan"), codes)
        if distances is None:
            distances = (x.to(codes.dtype) - codes).square().sum(-1)
        ctx.number = max(distances.numel(), 1) if valid is None else valid.sum().clamp_min(1)
        ctx.number = ctx.number * x.shape[-1]
        if ctx.needs_input_grad[0]:
            # The codebook is about to move. It is small beside the rows, and to look codes up again is cheaper than
            # to keep them apart from the result, which a model may write to.
            ctx.save_for_backward(x, indices, codebook.clone(), valid)
        ctx.impl = impl
        distances = distances if valid is None else torch.where(valid, distances, 0)
        # Not a view of what the look-up made: torch lets nobody write to a view that comes out of here.
        return codes.detach().to(x.dtype), distances.sum() / ctx.number

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """g + 2 g_loss (x - q) / number, formed in place."""
        x, indices, codebook, valid = ctx.saved_tensors
        scale = -2 * grads[1] / ctx.number
        fused = _fused_pull(x, indices, codebook, valid, grads[0], scale, ctx.impl)
        if fused is not None:
            return fused, None, None, None, None, None, None
        pull = F.lookup(indices.unsqueeze(-1), codebook.unsqueeze(1), impl=ctx.impl)
        pull.sub_(x).mul_(scale)
        if valid is not None:
            pull = torch.where(valid.unsqueeze(-1), pull, 0)
        return pull.add_(grads[0]).to(x.dtype), None, None, None, None, None, None


def _fused_pull(
    x: Tensor, indices: Tensor, codebook: Tensor, valid: Tensor | None, grad: Tensor, scale: Tensor, impl: str
) -> Tensor | None:
    """The same in one pass where there is a kernel for it, unless gradients of it, or a graph, are wanted."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or type(x) is not Tensor:
        return None
    kernel = getattr(ops.implementation(impl, x.device.type, "lookup"), "commitment_grad", None)
    return None if kernel is None else kernel(x, indices, codebook, valid, grad, scale)


def straight_through_commitment(
    x: Tensor,
    indices: Tensor,
    codebook: Tensor,
    distances: Tensor | None,
    valid: Tensor | None = None,
    lost: Tensor | None = None,
    *,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """:class:`fastvq.StraightThrough` and :func:`commitment_loss` together, with one tensor of x's size in each pass.

    Args:
        x: (G, R1, R2, D), gets the gradients of both results.
        indices: (G, R1, R2). codebook: (G, K, D), gets none.
        distances: (G, R1, R2), squared Euclidean ones where the search gave them.
        valid: (G, R1, R2), bool: rows that count for the loss. lost: (G, R1, R2), bool: rows that become NaN.
        impl: of the look-up.

    Returns:
        The codes in x's shape and dtype, and a scalar, float32 (float64 for float64).
    """
    if not torch.is_grad_enabled():
        x = x.detach()
    result: tuple[Tensor, Tensor] = _PassAndCommit.apply(x, indices, codebook.detach(), distances, valid, lost, impl)
    return result


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

    Args:
        x: (G, R1, R2, D), gets the gradient, see :func:`pull_of_stages`.
        indices: (G, R1, R2, Q). quantized: (G, R1, R2, D). errors: (G, R1, R2, Q). All of the search.
        codebooks: (G, Q, K, D). impl: of the look-up.

    Returns:
        A scalar, float32 (float64 for float64); stages that a row does not take, and rows that are not finite, count
        for nothing.
    """
    valid = taken_stages(indices, errors)
    left = None
    if x.requires_grad and torch.is_grad_enabled():
        left = pull_of_stages(x, indices, quantized, valid, codebooks, impl=impl)
    loss: Tensor = _ResidualCommitment.apply(x, errors, left, valid)
    return loss


class _ResidualPassAndCommit(torch.autograd.Function):
    """Passes gradients straight through and commits, with one tensor of x's size in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, quantized: Tensor, errors: Tensor, left: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.number = max(errors.numel(), 1) if valid is None else valid.sum().clamp_min(1)
        ctx.number = ctx.number * x.shape[-1]
        ctx.save_for_backward(left)
        errors = errors if valid is None else torch.where(valid, errors, 0)
        return quantized.clone(), errors.sum() / ctx.number

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None, None]:
        (left,) = ctx.saved_tensors
        scale = 2 * grads[1] / ctx.number
        if left.dtype == grads[0].dtype:
            return torch.addcmul(grads[0], left, scale), None, None, None, None
        return (grads[0] + left * scale).to(grads[0].dtype), None, None, None, None


def straight_through_residual_commitment(
    x: Tensor, indices: Tensor, quantized: Tensor, errors: Tensor, codebooks: Tensor, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """:class:`fastvq.StraightThrough` and :func:`residual_commitment_loss` together; ``quantized`` is in x's dtype.

    Returns:
        quantized, with gradients straight through to x, and the loss.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return quantized, residual_commitment_loss(x, indices, quantized, errors, codebooks, impl=impl)
    valid = taken_stages(indices, errors)
    left = pull_of_stages(x, indices, quantized, valid, codebooks, impl=impl)
    result: tuple[Tensor, Tensor] = _ResidualPassAndCommit.apply(x, quantized, errors, left, valid)
    return result


def taken_stages(indices: Tensor, errors: Tensor) -> Tensor | None:
    """Which stages count for a loss, (G, R1, R2, Q) bool; None for all, where asking costs no sync."""
    known = indices.device.type == "cpu" and not torch.compiler.is_compiling()
    if known and not bool((indices < 0).any()):
        return None
    return (indices >= 0) & ~errors.isnan().any(-1, keepdim=True)


@torch.no_grad()
def pull_of_stages(
    x: Tensor, indices: Tensor, quantized: Tensor, valid: Tensor | None, codebooks: Tensor, *, impl: str = "auto"
) -> Tensor:
    """sum_q r_{q+1}, half of the gradient of x of :func:`residual_commitment_loss` times the number of entries.

    Of a row that takes s stages, and with C the sum of its codes, sum_q r_{q+1} = s x - sum_j (s - j + 1) c_j
    = s x - sum_j (Q - j + 1) c_j + (Q - s) C, which is one look-up in codebooks scaled by Q - j + 1: no residual is
    formed again.
    """
    stages = indices.shape[-1]
    weights = torch.arange(stages, 0, -1, device=x.device, dtype=codebooks.dtype)
    left = F.lookup(indices, codebooks * weights[:, None, None], impl=impl).neg_()
    if valid is None:
        return left.add_(x, alpha=stages)
    taken = valid.sum(-1, keepdim=True)
    left = left + taken * x.to(codebooks.dtype) + (stages - taken) * quantized.to(codebooks.dtype)
    return torch.where(taken > 0, left, 0)


class _CodebookLoss(torch.autograd.Function):
    """The mean of the errors that the search has already found; see :func:`codebook_loss`."""

    @staticmethod
    def forward(
        ctx: Any, codebooks: Tensor, x: Tensor, indices: Tensor, errors: Tensor, valid: Tensor | None, impl: str
    ) -> Tensor:
        number: Tensor | int = max(errors.numel(), 1) if valid is None else valid.sum().clamp_min(1)
        if valid is not None:
            errors = torch.where(valid, errors, 0)
        number = number * x.shape[-1]
        if ctx.needs_input_grad[0]:
            # Here and not in the backward pass, before which dead codes may be replaced in place.
            sums, counts = F.residual_segment_sum(x, indices, codebooks, impl=impl)
            ctx.save_for_backward((counts.unsqueeze(-1) * codebooks - sums) * 2 / number)
        return errors.sum() / number

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (pull,) = ctx.saved_tensors
        return grads[0] * pull, None, None, None, None, None


def codebook_loss(
    codebooks: Tensor,
    x: Tensor,
    indices: Tensor,
    errors: Tensor,
    valid: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """mean((sg(r_q) - c_q)^2) over valid rows and stages: the loss that pulls learned codes to their rows.

    The gradient of a code with n rows is 2 (n c - sum of its rows) over the number of entries; the sums come from
    :func:`fastvq.functional.residual_segment_sum`, so that it is deterministic.

    Args:
        codebooks: (G, Q, K, D), gets the gradient.
        x: (G, R1, R2, D), gets none. indices, errors: (G, R1, R2, Q). All of the search.
        valid: (G, R1, R2, Q), bool; None where all count.
        impl: of the sums.

    Returns:
        A scalar, float32 (float64 for float64).
    """
    if not torch.is_grad_enabled():
        codebooks = codebooks.detach()
    loss: Tensor = _CodebookLoss.apply(codebooks, x.detach(), indices, errors, valid, impl)
    return loss


class Regulariser(Protocol):
    """A loss on how codes lie or are used, weighted."""

    def __call__(self, x: Tensor, codebook: Tensor, metric: str, valid: Tensor | None) -> Tensor:
        """Rows (G, R1, R2, D), codes (G, K, D), valid (G, R1, R2) or None -> a scalar."""
        ...


@dataclass(frozen=True)
class Orthogonality:
    """Keeps the directions of codes apart: the mean over pairs of codes of (c_i . c_j - [i = j])^2, c on the sphere.

    (Shin et al. 2021, equation 2, without the constant.) It moves codes only where :class:`fastvq.Learned` lets them.

    Args:
        weight: of the loss.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check.not_negative("weight", self.weight)

    def __call__(self, x: Tensor, codebook: Tensor, metric: str, valid: Tensor | None) -> Tensor:
        codes = nn.functional.normalize(codebook, dim=-1)
        num_codes = codes.shape[-2]
        # |C C^T|^2 = |C^T C|^2, and the smaller of the two is formed; the diagonal of ones is K in the first.
        gram = codes.mT @ codes if codes.shape[-1] < num_codes else codes @ codes.mT
        return self.weight * ((gram.square().sum((-1, -2)) - num_codes) / num_codes**2).mean()


@dataclass(frozen=True)
class Diversity:
    """Rewards using all codes: minus the entropy of the mean over rows of softmax(score / temperature).

    The score is minus the squared distance ("l2"), the cosine or the dot product. Rows are taken in chunks that the
    backward pass computes again, so that no N x K matrix is kept.

    Args:
        weight: of the loss.
        temperature: of the soft assignment.
    """

    weight: float = 1.0
    temperature: float = 0.01

    def __post_init__(self) -> None:
        check.not_negative("weight", self.weight)
        check.above_zero("temperature", self.temperature)

    def __call__(self, x: Tensor, codebook: Tensor, metric: str, valid: Tensor | None) -> Tensor:
        share = soft.mean_assignment(x, codebook, metric, self.temperature, valid)
        return -self.weight * soft.entropy(share).mean()
