"""1-D convolution as one matrix product for each tap of the kernel, with no copy of the input's shifted views.

With time as the slowest axis, the frames that a tap of the kernel sees are one run of rows, so that

    y[i] = b + sum_t W_t x[i + o_t]        (o_t: the tap's offset, frames outside the sequence left out)

is a matrix product a tap, straight from the input and into the output; its gradients are two more. Frames of zero
padding, most of what a wide dilation sees of a short sequence, are not multiplied at all.

In bfloat16 the backward pass needs the rounded weight, too. Where a parameter has no gradient yet, it waits in memory
that the gradient takes over, of twice its size: kept by itself, it would leave holes between gradients, half the size
of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Tap, phase, first output, first frame of the phase, and their number.
_Run = tuple[int, int, int, int, int]


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
        matrices = weight if weight.dtype == x.dtype else _rounded(weight, x.dtype, ctx.needs_input_grad[1])
        ctx.save_for_backward(x, weight, matrices)
        ctx.offsets, ctx.stride = offsets, stride
        # Where it lies; hooks may bring a copy instead, in memory of theirs.
        ctx.address = 0 if torch.compiler.is_compiling() else matrices.data_ptr()
        batch, outputs = x.shape[1], weight.shape[1]
        columns, base = matrices.transpose(1, 2).unbind(), bias.to(x.dtype)
        y = None
        for tap, phase, first, read, count in _runs(offsets, frames, x.shape[0], stride):
            rows = _part(phases[phase], read, count, batch)
            if y is None and count == frames:
                y = torch.addmm(base, rows, columns[tap])
                continue
            if y is None:
                y = base.expand(frames * batch, outputs).contiguous()
            _part(y, first, count, batch).addmm_(rows, columns[tap])
        if y is None:  # no frame at all, or every tap beside the sequence
            y = base.expand(frames * batch, outputs).contiguous()
        return y.view(frames, batch, outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, matrices = ctx.saved_tensors
        frames, batch, _ = upstream.shape
        length = x.shape[0]
        phases = _phases(x, ctx.stride)
        above = upstream.contiguous().flatten(0, 1)
        d_weight = _memory_around(matrices, weight)
        if d_weight is not None and matrices.data_ptr() == ctx.address:
            ctx.address = 0
        else:
            if d_weight is not None:  # perhaps a gradient's since an earlier pass through a graph that is kept
                matrices = weight.to(x.dtype)
            d_weight = torch.empty_like(weight)
        taps = matrices.unbind()
        # One tap after another is written where it belongs: in the memory order of the weight.
        d_matrices = d_weight if matrices.dtype == weight.dtype else torch.empty_like(matrices)
        d_taps = d_matrices.unbind()
        d_phases: list[Tensor | None] = [None] * len(phases)
        seen = set()
        for tap, phase, first, read, count in _runs(ctx.offsets, frames, length, ctx.stride):
            part = _part(above, first, count, batch)
            torch.mm(part.t(), _part(phases[phase], read, count, batch), out=d_taps[tap])
            seen.add(tap)
            if not ctx.needs_input_grad[0]:
                continue
            found = d_phases[phase]
            if found is None and count * batch == len(phases[phase]):
                d_phases[phase] = torch.mm(part, taps[tap])
                continue
            if found is None:
                d_phases[phase] = found = torch.zeros_like(phases[phase])
            _part(found, read, count, batch).addmm_(part, taps[tap])
        for tap in set(range(len(taps))) - seen:
            d_taps[tap].zero_()
        if d_matrices is not d_weight:
            d_weight.copy_(d_matrices)
        d_bias = above.sum(0, dtype=weight.dtype)
        d_x = _join(d_phases, x) if ctx.needs_input_grad[0] else None
        return d_x, d_weight, d_bias, None, None, None


def _part(rows: Tensor, first: int, count: int, batch: int) -> Tensor:
    """The rows of ``count`` frames from ``first`` on; every view costs microseconds, so all rows are themselves."""
    return rows if count * batch == len(rows) else rows[first * batch : (first + count) * batch]


def _rounded(weight: Tensor, dtype: torch.dtype, differentiable: bool) -> Tensor:
    """The taps' matrices in another dtype, each contiguous; in memory for the gradient where that will take it."""
    numbers = weight.numel()
    if differentiable and not torch.compiler.is_compiling() and _takes_gradient_as_it_is(weight):
        numbers *= max(1, weight.dtype.itemsize // dtype.itemsize)
    memory = torch.empty(numbers, dtype=dtype, device=weight.device)
    return memory[: weight.numel()].view(weight.shape).copy_(weight)


def _takes_gradient_as_it_is(weight: Tensor) -> bool:
    """Whether it is a parameter without a gradient, as it lies in memory."""
    parameter = weight._base if weight._is_view() else weight
    return weight.is_contiguous() and parameter is not None and parameter.is_leaf and parameter.grad is None


def _memory_around(matrices: Tensor, weight: Tensor) -> Tensor | None:
    """The memory that rounded matrices lie in, as a tensor like the weight; None where it is theirs alone."""
    if matrices.dtype == weight.dtype or torch.compiler.is_compiling() or not weight.is_contiguous():
        return None
    storage = matrices.untyped_storage()
    if matrices.storage_offset() or storage.nbytes() != weight.nbytes or not weight.nbytes:
        return None
    return torch.empty(0, dtype=weight.dtype, device=weight.device).set_(storage, 0, weight.shape, weight.stride())


def _phases(x: Tensor, stride: int) -> list[Tensor]:
    """Rows of the frames 0, s, 2 s, ..., then of 1, s + 1, ...: what a tap reads is a run of one of them."""
    if stride == 1:
        return [x.flatten(0, 1)]
    return [x[phase::stride].flatten(0, 1) for phase in range(stride)]


def _join(phases: list[Tensor | None], like: Tensor) -> Tensor:
    """The inverse of :func:`_phases`; None for zeros."""
    if len(phases) == 1 and phases[0] is not None:
        return phases[0].view_as(like)
    joined = torch.empty_like(like)
    for number, phase in enumerate(phases):
        part = joined[number :: len(phases)]
        if phase is None:
            part.zero_()
        else:
            part.copy_(phase.view_as(part))
    return joined


def _runs(offsets: tuple[int, ...], frames: int, length: int, stride: int) -> tuple[_Run, ...]:
    """A run for each tap that meets the sequence.

    Taps that meet all of it come first: what they write needs no zeros beneath it.
    """
    whole: list[_Run] = []
    partial: list[_Run] = []
    for tap, offset in enumerate(offsets):
        shift, phase = divmod(offset, stride)
        held = (length - phase + stride - 1) // stride  # not of a range, whose length a compiled graph would fix
        first, stop = max(0, -shift), min(frames, held - shift)
        if stop > first:
            runs = whole if stop - first == frames else partial
            runs.append((tap, phase, first, first + shift, stop - first))
    return (*whole, *partial)
