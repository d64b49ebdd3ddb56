"""The torch.library boundary: schemas, fakes, and the one place that picks an implementation.

Every op takes canonical shapes (see ``kernels/reference.py``) and the name of an implementation:

* ``"auto"``: Triton for CUDA tensors; C++ for CPU tensors once a compiler is found; tiled torch otherwise.
* ``"triton"``, ``"cpu"``, ``"tiled"``, ``"reference"``: that one, or an error that says why it cannot run.

An implementation that lacks an op counts as one that cannot run it. Gradients are in ``gradients``.
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

from . import gradients

IMPLEMENTATIONS = ("auto", "triton", "cpu", "tiled", "reference")
OPS = (
    *("nearest", "nearest_topk", "residual_nearest"),
    *("segment_sum", "residual_segment_sum", "ema_update_", "lookup"),
)

torch.library.define(
    "fastvq::nearest",
    "(Tensor x, Tensor codebook, Tensor? mask, str metric, str precision, str impl) -> (Tensor, Tensor)",
)
torch.library.define(
    "fastvq::nearest_topk",
    "(Tensor x, Tensor codebook, Tensor? mask, int topk, str metric, str precision, str impl) -> (Tensor, Tensor)",
)
torch.library.define(
    "fastvq::residual_nearest",
    "(Tensor x, Tensor codebooks, int[]? sizes, Tensor? stages, Tensor? mask, str precision, str impl) "
    "-> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "fastvq::residual_beam",
    "(Tensor x, Tensor codebooks, int[]? sizes, Tensor? stages, Tensor? mask, int beam, str precision, str impl) "
    "-> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "fastvq::segment_sum", "(Tensor x, Tensor indices, SymInt num_codes, str impl) -> (Tensor, Tensor)"
)
torch.library.define(
    "fastvq::residual_segment_sum",
    "(Tensor x, Tensor indices, Tensor codebooks, str impl) -> (Tensor, Tensor)",
)
torch.library.define(
    "fastvq::ema_update_",
    "(Tensor(a!) codebook, Tensor(b!) embed_sum, Tensor(c!) cluster_size, Tensor sums, Tensor counts, float decay, "
    "float eps, str smoothing, bool normalize, float dead_below, bool relative, str impl) -> Tensor",
)
torch.library.define("fastvq::lookup", "(Tensor indices, Tensor codebooks, str impl) -> Tensor")


@functools.lru_cache(maxsize=256)
def implementation(impl: str, device_type: str, op: str) -> ModuleType:
    """The module of kernels that ``impl`` means for an op on tensors of a device type ("cpu", "cuda", ...).

    Raises:
        ValueError: no such implementation.
        RuntimeError: an explicitly named implementation that cannot run here; the message says why.
    """
    name, reason = choose(impl, device_type, op)
    if name is None:
        raise RuntimeError(f"impl={impl!r} cannot run on {device_type} tensors here: {reason}; impl='auto' can")
    return importlib.import_module(f"fastvq.kernels.{name}")


def choose(impl: str, device_type: str, op: str) -> tuple[str | None, str]:
    """The implementation that ``impl`` means for an op on a device type, and why; None where it cannot run."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl in ("tiled", "reference"):
        return impl, "asked for"
    name = impl if impl != "auto" else "triton" if device_type == "cuda" else "cpu"
    reason = _triton_obstacle(device_type) if name == "triton" else _cpu_obstacle(device_type)
    kernels = "Triton kernels" if name == "triton" else "C++ kernels"
    if reason is None and not hasattr(importlib.import_module(f"fastvq.kernels.{name}"), op):
        reason = f"the {kernels} have no {op}"
    if impl != "auto":
        return (None, reason) if reason else (impl, "asked for")
    if reason is None:
        return name, f"{kernels} for {'CUDA' if name == 'triton' else 'CPU'} tensors"
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
    choices = {op: choose("auto", torch.device(device).type, op) for op in OPS}
    return {op: (str(name), reason) for op, (name, reason) in choices.items()}


def full_precision(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off around an implementation: it would run the matrix products of ``tiled`` in 16 bits."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def call(op: Any, *arguments: Any) -> Any:
    """``op(*arguments)``, past the Python function that torch keeps before every op that has gradients where none is
    asked for: it would take longer than a small search."""
    if (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or (torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments))
    ):
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def _run(op: str, impl: str, device_type: str, *arguments: Any) -> Any:
    with full_precision(device_type):
        return getattr(implementation(impl, device_type, op), op)(*arguments)


@torch.library.impl("fastvq::nearest", "default")
def _nearest(
    x: Tensor, codebook: Tensor, mask: Tensor | None, metric: str, precision: str, impl: str
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _run("nearest", impl, x.device.type, x, codebook, mask, metric, precision)
    return result


@torch.library.impl("fastvq::nearest_topk", "default")
def _nearest_topk(
    x: Tensor, codebook: Tensor, mask: Tensor | None, topk: int, metric: str, precision: str, impl: str
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _run(
        "nearest_topk", impl, x.device.type, x, codebook, mask, topk, metric, precision
    )
    return result


@torch.library.impl("fastvq::residual_nearest", "default")
def _residual_nearest(
    x: Tensor,
    codebooks: Tensor,
    sizes: list[int] | None,
    stages: Tensor | None,
    mask: Tensor | None,
    precision: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = _run(
        "residual_nearest", impl, x.device.type, x, codebooks, sizes, stages, mask, precision
    )
    return result


@torch.library.impl("fastvq::residual_beam", "default")
def _residual_beam(
    x: Tensor,
    codebooks: Tensor,
    sizes: list[int] | None,
    stages: Tensor | None,
    mask: Tensor | None,
    beam: int,
    precision: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = implementation(impl, x.device.type, "nearest_topk")
    search = importlib.import_module("fastvq.kernels.beam").residual_beam
    with full_precision(x.device.type):
        result: tuple[Tensor, Tensor, Tensor] = search(kernels, x, codebooks, sizes, stages, mask, beam, precision)
    return result


@torch.library.impl("fastvq::segment_sum", "default")
def _segment_sum(x: Tensor, indices: Tensor, num_codes: int, impl: str) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _run("segment_sum", impl, x.device.type, x, indices, num_codes)
    return result


@torch.library.impl("fastvq::residual_segment_sum", "default")
def _residual_segment_sum(x: Tensor, indices: Tensor, codebooks: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _run("residual_segment_sum", impl, x.device.type, x, indices, codebooks)
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
    state = (codebook, embed_sum, cluster_size, sums, counts)
    rule = (decay, eps, smoothing, normalize, dead_below, relative)
    dead: Tensor = _run("ema_update_", impl, codebook.device.type, *state, *rule)
    return dead


@torch.library.impl("fastvq::lookup", "default")
def _lookup(indices: Tensor, codebooks: Tensor, impl: str) -> Tensor:
    result: Tensor = _run("lookup", impl, codebooks.device.type, indices, codebooks)
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


@torch.library.register_fake("fastvq::nearest_topk")
def _nearest_topk_fake(
    x: Tensor, codebook: Tensor, mask: Tensor | None, topk: int, metric: str, precision: str, impl: str
) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:-1], topk)
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    return _rows_outermost(x, *shape, dtype=torch.int64), _rows_outermost(x, *shape, dtype=wide)


@torch.library.register_fake("fastvq::residual_beam")
@torch.library.register_fake("fastvq::residual_nearest")
def _residual_nearest_fake(x: Tensor, codebooks: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*x.shape[:-1], codebooks.shape[1])
    return (
        _rows_outermost(x, *shape, dtype=torch.int64),
        _rows_outermost(x, *x.shape, dtype=x.dtype),
        _rows_outermost(x, *shape, dtype=codebooks.dtype),
    )


@torch.library.register_fake("fastvq::segment_sum")
def _segment_sum_fake(x: Tensor, indices: Tensor, num_codes: int, impl: str) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = x.new_empty((x.shape[0], num_codes, x.shape[-1]), dtype=dtype)
    return sums, x.new_empty((x.shape[0], num_codes), dtype=dtype)


@torch.library.register_fake("fastvq::residual_segment_sum")
def _residual_segment_sum_fake(x: Tensor, indices: Tensor, codebooks: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    sums = torch.empty(codebooks.shape, dtype=codebooks.dtype, device=codebooks.device)
    return sums, sums.new_empty(codebooks.shape[:-1])


@torch.library.register_fake("fastvq::ema_update_")
def _ema_update_fake(codebook: Tensor, embed_sum: Tensor, cluster_size: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(cluster_size, dtype=torch.bool)


@torch.library.register_fake("fastvq::lookup")
def _lookup_fake(indices: Tensor, codebooks: Tensor, impl: str) -> Tensor:
    return _rows_outermost(codebooks, *indices.shape[:-1], codebooks.shape[-1], dtype=codebooks.dtype)


for _op, _context, _backward in (
    ("nearest", gradients.nearest_context, gradients.nearest_backward),
    ("nearest_topk", gradients.nearest_topk_context, gradients.nearest_topk_backward),
    ("residual_nearest", gradients.residual_nearest_context, gradients.residual_nearest_backward),
    ("residual_beam", gradients.residual_nearest_context, gradients.residual_nearest_backward),
    ("segment_sum", gradients.segment_sum_context, gradients.segment_sum_backward),
    ("residual_segment_sum", gradients.residual_segment_sum_context, gradients.residual_segment_sum_backward),
    ("lookup", gradients.lookup_context, gradients.lookup_backward),
):
    torch.library.register_autograd(f"fastvq::{_op}", _backward, setup_context=_context)


# Once the C++ kernels are loaded they answer for CPU tensors (kernels/cpu/ops.cpp). Where ``impl`` names another
# implementation, they come back to these. Exceptions do not pass C++, so they come back as bytes of text.


def _define_python(op: str) -> None:
    schema = getattr(torch.ops.fastvq, op).default._schema
    arguments, results = str(schema).partition("(")[2].rpartition(" -> ")[0], len(schema.returns)
    name = f"fastvq::{op}_python"
    torch.library.define(name, f"({arguments} -> ({', '.join(['Tensor'] * (results + 1))})")

    @torch.library.impl(name, "CPU")
    def run(*arguments: Any) -> tuple[Tensor, ...]:
        try:
            result = _run(op, arguments[-1], "cpu", *arguments[:-1])
        except Exception as error:
            text = f"{type(error).__name__}: {error}".encode()
            return (*(torch.empty(0) for _ in range(results)), torch.frombuffer(bytearray(text), dtype=torch.uint8))
        return (*(result if isinstance(result, tuple) else (result,)), torch.empty(0, dtype=torch.uint8))


for _op in OPS:
    _define_python(_op)
