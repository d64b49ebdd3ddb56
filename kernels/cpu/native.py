"""The C++ kernels as Python functions, with the signatures of ``fastvq.kernels.reference``.

Nothing is compiled on import: the first question whether the kernels are there answers it, once per process.
``FASTVQ_NATIVE=0`` switches them off; ``FASTVQ_CPU_ISA`` (avx512bf16, avx512vnni, avx512, avx2, portable or all)
compiles them for another instruction set than the widest that the processor has. All give the same codes; avx512
instead of avx512bf16 leaves out the searches in bytes and in bfloat16, avx512vnni the latter.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastvq.kernels.cpu import build

logger = logging.getLogger("fastvq")
_lock = threading.Lock()
_tried = False
_reason: str | None = None


def available() -> bool:
    """Whether the C++ kernels can run here; the first call may compile them."""
    return unavailable_reason() is None


def unavailable_reason() -> str | None:
    """Why the C++ kernels cannot run here, in one line; None where they can. The first call may compile them."""
    global _tried, _reason
    if not _tried:
        with _lock:
            if not _tried:
                _reason = _load()
                _tried = True
    return _reason


def isa() -> str:
    """The instruction set in use: "avx512bf16", "avx512vnni", "avx512", "avx2" or "portable"."""
    _require()
    name: str = torch.ops.fastvq_cpu.isa()
    return name


def select_isa(name: str) -> None:
    """Changes the instruction set for the whole process; "" takes the widest.

    Raises:
        ValueError: the processor does not have it, or the kernels were not compiled for it.
    """
    _require()
    if not torch.ops.fastvq_cpu.select_isa(name):
        raise ValueError(f"no kernels for {name!r} here; set FASTVQ_CPU_ISA=all to compile all the processor runs")


def nearest(
    x: Tensor, codebook: Tensor, mask: Tensor | None, metric: str = "l2", precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """The nearest code of every row: indices as :func:`fastvq.kernels.reference.nearest`, bit for bit.

    ``precision="fast"`` leaves out the re-scoring of close calls: codes whose costs differ by less than float32
    rounding may then be confused. Distances are within float32 rounding of the reference's.
    """
    _require()
    indices, distances = torch.ops.fastvq_cpu.nearest.default(x, codebook, mask, metric, precision)
    return indices, distances


def nearest_topk(
    x: Tensor, codebook: Tensor, mask: Tensor | None, topk: int, metric: str = "l2", precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """The ``topk`` nearest codes of every row, as :func:`fastvq.kernels.reference.nearest_topk`, bit for bit.

    ``precision="fast"`` takes the codes of a float32 search without allowing for its rounding, and orders these.
    """
    _require()
    indices, distances = torch.ops.fastvq_cpu.nearest_topk.default(x, codebook, mask, topk, metric, precision)
    return indices, distances


def segment_sum(x: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Sums the rows of each code, in float64 in row order, whatever the number of threads.

    Raises:
        IndexError: an index outside [-1, num_codes).
    """
    _require()
    sums, counts = torch.ops.fastvq_cpu.segment_sum.default(x, indices, num_codes)
    return sums, counts


def ema_update_(
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
) -> Tensor:
    """One exponential-moving-average step, as :func:`fastvq.kernels.reference.ema_update_`."""
    _require()
    dead: Tensor = torch.ops.fastvq_cpu.ema_update_.default(
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


def lookup(indices: Tensor, codebooks: Tensor) -> Tensor:
    """Sums the chosen codes over the stages, as :func:`fastvq.kernels.reference.lookup`, bit for bit.

    Raises:
        IndexError: an index outside [-1, K).
    """
    _require()
    out: Tensor = torch.ops.fastvq_cpu.lookup.default(indices, codebooks)
    return out


def residual_nearest(
    x: Tensor,
    codebooks: Tensor,
    sizes: Sequence[int] | None,
    stages: Tensor | None,
    mask: Tensor | None,
    precision: str = "exact",
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes every row in stages: indices and quantized as :func:`fastvq.kernels.reference.residual_nearest`, bit
    for bit, and errors within float32 rounding; ``precision`` as in :func:`nearest`.
    """
    _require()
    indices, quantized, errors = torch.ops.fastvq_cpu.residual_nearest.default(
        x, codebooks, sizes, stages, mask, precision
    )
    return indices, quantized, errors


def commitment_grad(
    x: Tensor, indices: Tensor, codebook: Tensor, valid: Tensor | None, grad: Tensor, scale: Tensor
) -> Tensor | None:
    """``grad + scale * (lookup(indices) - x)``, and ``grad`` where a row is not valid, in one pass.

    Args:
        x, grad: (G, R1, R2, D) of one dtype, float32 or float64, contiguous in D.
        indices: (G, R1, R2), -1 for zeros. codebook: (G, K, D) of that dtype, contiguous in D.
        valid: (G, R1, R2), bool. scale: (), of that dtype.

    Returns:
        As x; None for tensors of another kind, which are no faster this way.

    Raises:
        IndexError: an index outside [-1, K).
    """
    rows = x, codebook, grad
    alike = all(tensor.dtype == x.dtype for tensor in (*rows, scale)) and x.dtype in (torch.float32, torch.float64)
    if not alike or any(tensor.stride(-1) != 1 for tensor in rows):
        return None
    _require()
    out: Tensor = torch.ops.fastvq_cpu.commitment_grad.default(x, indices, codebook, valid, grad, scale)
    return out


class Kept:
    """Codebooks that stay prepared: searches of them, or of their first stages, skip preparing what never changes.

    As long as this object lives, :func:`residual_nearest` (and the public op) recognises the codebooks by where they
    lie in memory. They must not be written to until then; what is kept would not follow.

    Args:
        codebooks: (G, Q, K, D) float32 or float64, contiguous.

    Attributes:
        codebooks: the same tensor.

    Raises:
        ValueError: codebooks that are not contiguous.
    """

    def __init__(self, codebooks: Tensor) -> None:
        _require()
        self.codebooks = codebooks
        number = torch.ops.fastvq_cpu.keep.default(codebooks)
        # Not at exit: threads may still be searching then, and the memory goes with the process.
        weakref.finalize(self, torch.ops.fastvq_cpu.forget.default, number).atexit = False


def residual_segment_sum(x: Tensor, indices: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Sums what each code of each stage stood for, in float64 in row order, whatever the number of threads.

    Raises:
        IndexError: an index outside [-1, K).
    """
    _require()
    sums, counts = torch.ops.fastvq_cpu.residual_segment_sum.default(x, indices, codebooks)
    return sums, counts


def _load() -> str | None:
    if os.environ.get("FASTVQ_NATIVE") == "0":
        return "FASTVQ_NATIVE=0 switches the C++ kernels off"
    try:
        build.load(_open)
        if not torch.ops.fastvq_cpu.select_isa(""):
            raise build.BuildError("this processor lacks the instructions the kernels were compiled for")
    except build.BuildError as error:
        logger.warning("the C++ kernels are not used: %s", error)
        return str(error)
    return None


def _open(library: Path) -> None:
    torch.ops.load_library(str(library))


def _require() -> None:
    reason = unavailable_reason()
    if reason is not None:
        raise RuntimeError(f"the C++ kernels cannot run: {reason}")
