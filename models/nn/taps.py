"""1-D convolution as one matrix product for each tap of the kernel, with no copy of the input's shifted views.

With time as the slowest axis, the frames that a tap of the kernel sees are one run of rows, so that

    y[i] = b + sum_t W_t x[i + o_t]        (o_t: the tap's offset, frames outside the sequence left out)

is a matrix product a tap, straight from the input and into the output; its gradients are two more. Frames of zero
padding, most of what a wide dilation sees of a short sequence, are not multiplied at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def tap_products(x: Tensor, weight: Tensor, bias: Tensor, offsets: Sequence[int], frames: int, stride: int) -> Tensor:
    """y[i] = bias + sum_t weight[t] x[stride i + offsets[t]].

    Args:
        x: (T, B, in), contiguous.
        weight: (k, out, in); products are formed in the dtype of ``x``, its gradient in its own.
        bias: (out,).
        offsets: k frames, one for each tap.
        frames: T', how many outputs there are.
        stride: input frames for each output.

    Returns:
        (T', B, out), contiguous.
    """
    y: Tensor = _TapProducts.apply(x, weight, bias, tuple(offsets), frames, stride)
    return y


class _TapProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, offsets: tuple[int, ...], frames: int, stride: int
    ) -> Tensor:
        phases = _phases(x, stride)
        matrices = weight if weight.dtype == x.dtype else _cast(weight, x.dtype)
        ctx.save_for_backward(x, weight, matrices)
        ctx.offsets, ctx.stride = offsets, stride
        batch, outputs = x.shape[1], weight.shape[1]
        y = None
        for tap, phase, first, read, count in _runs(offsets, frames, x.shape[0], stride):
            rows = phases[phase][read : read + count].flatten(0, 1)
            if y is None and count == frames:
                y = torch.addmm(bias.to(x.dtype), rows, matrices[tap].t())
                continue
            if y is None:
                y = bias.to(x.dtype).expand(frames * batch, outputs).contiguous()
            y[first * batch : (first + count) * batch].addmm_(rows, matrices[tap].t())
        if y is None:  # no frame at all, or every tap beside the sequence
            y = bias.to(x.dtype).expand(frames * batch, outputs).contiguous()
        return y.view(frames, batch, outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, matrices = ctx.saved_tensors
        upstream = upstream.contiguous()
        frames = upstream.shape[0]
        length = x.shape[0]
        phases = _phases(x, ctx.stride)
        # One tap after another is written where it belongs: in the memory order of the weight.
        d_weight = torch.empty_like(weight)
        d_matrices = d_weight if matrices.dtype == weight.dtype else torch.empty_like(matrices)
        d_phases: list[Tensor | None] = [None] * len(phases)
        seen = set()
        for tap, phase, first, read, count in _runs(ctx.offsets, frames, length, ctx.stride):
            above = upstream[first : first + count].flatten(0, 1)
            torch.mm(above.t(), phases[phase][read : read + count].flatten(0, 1), out=d_matrices[tap])
            seen.add(tap)
            if not ctx.needs_input_grad[0]:
                continue
            found = d_phases[phase]
            if found is None and count == len(phases[phase]):
                d_phases[phase] = torch.mm(above, matrices[tap]).view_as(phases[phase])
                continue
            if found is None:
                d_phases[phase] = found = torch.zeros_like(phases[phase])
            found[read : read + count].flatten(0, 1).addmm_(above, matrices[tap])
        for tap in set(range(len(weight))) - seen:
            d_matrices[tap].zero_()
        if d_matrices is not d_weight:
            d_weight.copy_(d_matrices)
        d_bias = upstream.sum((0, 1), dtype=weight.dtype)
        d_x = _join(d_phases, x) if ctx.needs_input_grad[0] else None
        return d_x, d_weight, d_bias, None, None, None


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The taps' matrices in another dtype, each contiguous, in one pass."""
    return torch.empty(weight.shape, dtype=dtype, device=weight.device).copy_(weight)


def _phases(x: Tensor, stride: int) -> list[Tensor]:
    """The frames 0, s, 2 s, ..., then 1, s + 1, ...: what a tap of a strided convolution reads is a run of one."""
    return [x] if stride == 1 else [x[phase::stride].contiguous() for phase in range(stride)]


def _join(phases: list[Tensor | None], like: Tensor) -> Tensor:
    """The inverse of :func:`_phases`; None for zeros."""
    if len(phases) == 1 and phases[0] is not None:
        return phases[0]
    joined = torch.empty_like(like)
    for number, phase in enumerate(phases):
        if phase is None:
            joined[number :: len(phases)].zero_()
        else:
            joined[number :: len(phases)] = phase
    return joined


def _runs(
    offsets: tuple[int, ...], frames: int, length: int, stride: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """For each tap that meets the sequence: tap, phase, first output, first frame of the phase, and their number.

    Taps that meet all of it come first: what they write needs no zeros beneath it.
    """
    runs = []
    for tap, offset in enumerate(offsets):
        shift, phase = divmod(offset, stride)
        held = len(range(phase, length, stride))
        first, stop = max(0, -shift), min(frames, held - shift)
        if stop > first:
            runs.append((tap, phase, first, first + shift, stop - first))
    yield from sorted(runs, key=lambda run: -run[-1])
