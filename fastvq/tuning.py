"""Measuring launch configurations on a device, on request only: nothing is ever tuned at a user's first step."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import ops


def tune(
    device: torch.device | str = "cuda",
    *,
    measure: Callable[[Callable[[], object]], float] | None = None,
    **options: Any,
) -> Iterator[Any]:
    """Measures the Triton search's configurations for every class of shapes and keeps what is faster than the table.

    The results lie in ``FASTVQ_CACHE_DIR``, one file a device and Triton version, and are used from then on.

    Args:
        device: a CUDA or ROCm device.
        measure: milliseconds of a call; the device's own clock if None.

    Yields:
        One result a class of shapes, as it is found: ``case``, ``before_ms``, ``best_ms``, ``fields``, ``tried`` and
        ``refused``.

    Raises:
        RuntimeError: the device has no Triton kernels, and why.
    """
    device = torch.device(device)
    name, reason = ops.choose("triton", device.type, "nearest")
    if name is None:
        raise RuntimeError(f"there is nothing to tune on {device}: {reason}")
    kernels = importlib.import_module("fastvq.kernels.triton.tuning")
    yield from kernels.tune(device, measure or _events, **options)


def _events(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
