"""The torch.library boundary: schemas, fakes, autograd, and the one place that picks an implementation.

Every op takes canonical shapes (see ``kernels/reference.py``) and the name of an implementation:

* ``"auto"``: Triton for CUDA tensors; C++ for CPU tensors once a compiler is found; tiled torch otherwise.
* ``"triton"``, ``"cpu"``, ``"tiled"``, ``"reference"``: that one, or an error that says why it cannot run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "triton", "cpu", "tiled", "reference")
OPS = ("nearest", "segment_sum", "ema_update_", "lookup")

torch.library.define(
    "fastvq::nearest",
    "(Tensor x, Tensor codebook, Tensor? mask, str metric, str precision, str impl) -> (Tensor, Tensor)",
)
torch.library.define(
    "fastvq::segment_sum", "(Tensor x, Tensor indices, SymInt num_codes, str impl) -> (Tensor, Tensor)"
)
torch.library.define(
    "fastvq::ema_update_",
    "(Tensor(a!) codebook, Tensor(b!) embed_sum, Tensor(c!) cluster_size, Tensor sums, Tensor counts, float decay, "
    "float eps, str smoothing, bool normalize, float dead_below, bool relative, str impl) -> Tensor",
)
torch.library.define("fastvq::lookup", "(Tensor indices, Tensor codebooks, str impl) -> Tensor")


@functools.lru_cache(maxsize=256)
def implementation(impl: str, device_type: str) -> ModuleType:
    """The module of kernels that ``impl`` means for tensors of a device type ("cpu", "cuda", ...).

    Raises:
        ValueError: no such implementation.
        RuntimeError: an explicitly named implementation that cannot run here; the message says why.
    """
    name, reason = choose(impl, device_type)
    if name is None:
        raise RuntimeError(f"impl={impl!r} cannot run on {device_type} tensors here: {reason}; impl='auto' can")
    return importlib.import_module(f"fastvq.kernels.{name}")


def choose(impl: str, device_type: str) -> tuple[str | None, str]:
    """The implementation that ``impl`` means on a device type, and why; None where it cannot run."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl in ("tiled", "reference"):
        return impl, "asked for"
    obstacle = {"triton": _triton_obstacle, "cpu": _cpu_obstacle}
    if impl != "auto":
        reason = obstacle[impl](device_type)
        return (None, reason) if reason else (impl, "asked for")
    preferred = "triton" if device_type == "cuda" else "cpu"
    reason = obstacle[preferred](device_type)
    if reason is None:
        return (
            preferred,
            "Triton kernels for CUDA tensors" if preferred == "triton" else "C++ kernels for CPU tensors",
        )
    return "tiled", f"plain torch, because {reason}"


def _triton_obstacle(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    reason: str | None = importlib.import_module("fastvq.kernels.triton").unavailable_reason(device_type)
    return reason


def _cpu_obstacle(device_type: str) -> str | None:
    if device_type != "cpu":
        return f"the C++ kernels take CPU tensors, not {device_type} ones"
    reason: str | None = importlib.import_module("fastvq.kernels.cpu").unavailable_reason()
    return reason


def explain(device: torch.device | str = "cpu") -> dict[str, tuple[str, str]]:
    """For every op, the implementation that ``impl="auto"`` takes on a device, and why.

    Args:
        device: a device or its name.

    Returns:
        {op: (implementation, reason)}.
    """
    name, reason = choose("auto", torch.device(device).type)
    return {op: (str(name), reason) for op in OPS}


def full_precision(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off around an implementation: it would run the matrix products of ``tiled`` in 16 bits."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


@torch.library.impl("fastvq::nearest", "default")
def _nearest(
    x: Tensor, codebook: Tensor, mask: Tensor | None, metric: str, precision: str, impl: str
) -> tuple[Tensor, Tensor]:
    with full_precision(x.device.type):
        result: tuple[Tensor, Tensor] = implementation(impl, x.device.type).nearest(
            x, codebook, mask, metric, precision
        )
    return result


@torch.library.impl("fastvq::segment_sum", "default")
def _segment_sum(x: Tensor, indices: Tensor, num_codes: int, impl: str) -> tuple[Tensor, Tensor]:
    with full_precision(x.device.type):
        result: tuple[Tensor, Tensor] = implementation(impl, x.device.type).segment_sum(x, indices, num_codes)
    return result


@torch.library.impl("fastvq::ema_update_", "default")
def _ema_update_(
    codebook: Tensor,
    embed_sum: Tensor,
    cluster_size: Tensor,
    sums: Tensor,
    counts: Tensor,
    decay: float,
    eps: float,
    smoothing: str,
    normalize: bool,
    dead_below: float,
    relative: bool,
    impl: str,
) -> Tensor:
    with full_precision(codebook.device.type):
        dead: Tensor = implementation(impl, codebook.device.type).ema_update_(
            codebook,
            embed_sum,
            cluster_size,
            sums,
            counts,
            decay,
            eps,
            smoothing,
            normalize,
            dead_below,
            relative,
        )
    return dead


@torch.library.impl("fastvq::lookup", "default")
def _lookup(indices: Tensor, codebooks: Tensor, impl: str) -> Tensor:
    with full_precision(codebooks.device.type):
        result: Tensor = implementation(impl, codebooks.device.type).lookup(indices, codebooks)
    return result


def _rows_outermost(like: Tensor, groups: int, rows1: int, rows2: int, *rest: int, dtype: torch.dtype) -> Tensor:
    empty = like.new_empty((rows1, rows2, groups, *rest), dtype=dtype)
    return empty.permute(2, 0, 1, *range(3, empty.dim()))


@torch.library.register_fake("fastvq::nearest")
def _nearest_fake(
    x: Tensor, codebook: Tensor, mask: Tensor | None, metric: str, precision: str, impl: str
) -> tuple[Tensor, Tensor]:
    shape = x.shape[:-1]
    return _rows_outermost(x, *shape, dtype=torch.int64), _rows_outermost(x, *shape, dtype=codebook.dtype)


@torch.library.register_fake("fastvq::segment_sum")
def _segment_sum_fake(x: Tensor, indices: Tensor, num_codes: int, impl: str) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = x.new_empty((x.shape[0], num_codes, x.shape[-1]), dtype=dtype)
    return sums, x.new_empty((x.shape[0], num_codes), dtype=dtype)


@torch.library.register_fake("fastvq::ema_update_")
def _ema_update_fake(codebook: Tensor, embed_sum: Tensor, cluster_size: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(cluster_size, dtype=torch.bool)


@torch.library.register_fake("fastvq::lookup")
def _lookup_fake(indices: Tensor, codebooks: Tensor, impl: str) -> Tensor:
    return _rows_outermost(codebooks, *indices.shape[:-1], codebooks.shape[-1], dtype=codebooks.dtype)


# Gradients. An index is piecewise constant, so only distances, sums and looked-up codes carry any.


def _nearest_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, codebook, _, metric, _, impl = inputs
    indices, distances = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(x, codebook, indices, distances)
    ctx.metric, ctx.impl = metric, impl


def _nearest_backward(ctx: Any, _: Tensor | None, grad: Tensor) -> tuple[Tensor | None, ...]:
    """l2: d/dx = 2 (x - c), d/dc = the negative, summed over the rows of c; dot: c and x.

    cosine, with unit vectors x^ and c^ and s = x^.c^: d(1 - s)/dx = -(c^ - s x^) / |x|, and alike for c.
    Holes (index -1) get and give nothing.
    """
    x, codebook, indices, distances = ctx.saved_tensors
    valid = (indices >= 0).unsqueeze(-1)
    g = torch.where(valid, grad.unsqueeze(-1), 0)
    rows = torch.where(valid, x.to(codebook.dtype), 0)
    codes = torch.ops.fastvq.lookup(indices.unsqueeze(-1), codebook.detach().unsqueeze(1), ctx.impl)
    if ctx.metric == "l2":
        to_x = 2 * g * (rows - codes)
        to_code = -to_x
    elif ctx.metric == "dot":
        to_x, to_code = g * codes, g * rows
    else:
        tiny = torch.finfo(codebook.dtype).tiny
        row_norm = rows.norm(dim=-1, keepdim=True).clamp_min(tiny)
        code_norm = codes.norm(dim=-1, keepdim=True).clamp_min(tiny)
        row, code, cosine = rows / row_norm, codes / code_norm, 1 - torch.where(valid, distances.unsqueeze(-1), 1)
        to_x = -g * (code - cosine * row) / row_norm
        to_code = -g * (row - cosine * code) / code_norm
    grad_x = to_x.to(x.dtype) if ctx.needs_input_grad[0] else None
    grad_codebook = None
    if ctx.needs_input_grad[1]:
        grad_codebook = torch.ops.fastvq.segment_sum(to_code, indices, codebook.shape[1], ctx.impl)[0]
    return grad_x, grad_codebook, None, None, None, None


def _segment_sum_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, indices, _, impl = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(indices)
    ctx.impl, ctx.dtype = impl, x.dtype


def _segment_sum_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """Each row gets the gradient of its code's sum."""
    (indices,) = ctx.saved_tensors
    grad_x = torch.ops.fastvq.lookup(indices.unsqueeze(-1), grad.unsqueeze(1), ctx.impl)
    return grad_x.to(ctx.dtype), None, None, None


def _lookup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, codebooks, impl = inputs
    ctx.save_for_backward(indices)
    ctx.impl, ctx.shape = impl, codebooks.shape


def _lookup_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Each code of each stage gets the sum of the gradients of the rows that chose it."""
    (indices,) = ctx.saved_tensors
    _, stages, num_codes, _ = ctx.shape
    sums = [
        torch.ops.fastvq.segment_sum(grad, indices[..., stage], num_codes, ctx.impl)[0] for stage in range(stages)
    ]
    return None, torch.stack(sums, dim=1), None


torch.library.register_autograd("fastvq::nearest", _nearest_backward, setup_context=_nearest_context)
torch.library.register_autograd("fastvq::segment_sum", _segment_sum_backward, setup_context=_segment_sum_context)
torch.library.register_autograd("fastvq::lookup", _lookup_backward, setup_context=_lookup_context)
