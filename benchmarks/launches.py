"""Calls of the Triton kernels, their launches recorded instead of made, to be compiled where there is no card.

The launches are the real ones: the public functions run on small CPU tensors, so that a configuration or an argument
that changes is compiled as it changed. Not for a process that interprets kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

from fastvq.kernels import triton as kernels
from fastvq.kernels.triton import _configs


class Launch(NamedTuple):
    """One kernel launch as the compiler sees it: what of its arguments reaches the compiled code."""

    kernel: Any  # triton.JITFunction
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: Any


@contextlib.contextmanager
def recorded(target: str) -> Iterator[list[Launch]]:
    """Records launches instead of making them, as a device of the target would compile them."""
    launches: list[Launch] = []
    backend = make_backend(gpu(target))

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert not args, f"{kernel.__name__} was launched with positional arguments"
        binder = triton.runtime.jit.create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, rest = binder(**kwargs)
        options, signature, constants, attributes = kernel._pack_args(backend, kwargs, bound, specialization, rest)
        launches.append(Launch(kernel, signature, constants, attributes, options))

    with (
        mock.patch.object(triton.runtime.jit.JITFunction, "run", run),
        mock.patch.object(_configs, "family", return_value=target),
    ):
        yield launches


def gpu(target: str) -> GPUTarget:
    """A target by Triton's description."""
    family = _configs.TARGETS[target]
    return GPUTarget(family.backend, family.arch, family.warp_size)


def nearest_case(
    groups: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    metric: str = "l2",
    layout: str = "rows",
    masked: bool = True,
) -> Callable[[], object]:
    """A search of 64 rows, in (rows, groups * dim) storage or as a feature map (batch, groups * dim, length)."""

    def call() -> object:
        if layout == "rows":
            x = torch.zeros(1, 64, groups, dim, dtype=dtype).permute(2, 0, 1, 3)
        else:
            x = torch.zeros(2, groups, dim, 32, dtype=dtype).permute(1, 0, 3, 2)
        codebook = torch.zeros(groups, 512, dim, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        mask = torch.ones(1, 1, 1, dtype=torch.bool).expand(x.shape[:-1]) if masked else None
        return kernels.nearest(x, codebook, mask, metric)

    return call


def topk_case(
    groups: int,
    dim: int,
    topk: int,
    *,
    dtype: torch.dtype = torch.float32,
    metric: str = "l2",
    layout: str = "rows",
    masked: bool = True,
) -> Callable[[], object]:
    """A search of 64 rows for several codes, as :func:`nearest_case` has them."""
    if layout == "rows":
        x = torch.zeros(1, 64, groups, dim, dtype=dtype).permute(2, 0, 1, 3)
    else:
        x = torch.zeros(2, groups, dim, 32, dtype=dtype).permute(1, 0, 3, 2)
    codebook = torch.zeros(groups, 512, dim, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    mask = torch.ones(x.shape[:-1], dtype=torch.bool) if masked else None
    return lambda: kernels.nearest_topk(x, codebook, mask, topk, metric)


def segment_case(groups: int, dim: int, *, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """Segment sums of 64 rows."""
    x = torch.zeros(1, 64, groups, dim, dtype=dtype).permute(2, 0, 1, 3)
    return lambda: kernels.segment_sum(x, torch.zeros(x.shape[:-1], dtype=torch.int64), 4)


def residual_case(
    groups: int, dim: int, *, dtype: torch.dtype = torch.float32, limited: bool = False
) -> Callable[[], object]:
    """A residual stack of 64 rows and 6 stages; with sizes, stages and a mask, or without any limit."""
    x = torch.zeros(1, 64, groups, dim, dtype=dtype).permute(2, 0, 1, 3)
    codebooks = torch.zeros(groups, 6, 512, dim)
    sizes = [512] * 6 if limited else None
    stages = torch.zeros(1, 64, dtype=torch.int64) if limited else None
    mask = torch.ones(x.shape[:-1], dtype=torch.bool) if limited else None
    return lambda: kernels.residual_nearest(x, codebooks, sizes, stages, mask)


def residual_segment_case(groups: int, dim: int, *, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """Sums of 64 rows at each of 6 stages."""
    x = torch.zeros(1, 64, groups, dim, dtype=dtype).permute(2, 0, 1, 3)
    indices = torch.zeros(groups, 1, 64, 6, dtype=torch.int64)
    return lambda: kernels.residual_segment_sum(x, indices, torch.zeros(groups, 6, 4, dim))


def ema_case(
    num_codes: int, dim: int, *, dtype: torch.dtype = torch.float32, like_paper: bool = True
) -> Callable[[], object]:
    """A codebook update; with Laplace smoothing and a relative threshold, or normalised without either."""
    codes, sizes = torch.ones(1, num_codes, dim, dtype=dtype), torch.ones(1, num_codes, dtype=dtype)
    smoothing = "laplace" if like_paper else "none"
    return lambda: kernels.ema_update_(
        codes, codes, sizes, codes, sizes, 0.99, 1e-5, smoothing, not like_paper, 0.1, like_paper
    )


def lookup_case(groups: int, stages: int, dim: int, *, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """A look-up of 64 rows."""
    indices = torch.zeros(1, 64, groups, stages, dtype=torch.int64).permute(2, 0, 1, 3)
    return lambda: kernels.lookup(indices, torch.zeros(groups, stages, 4, dim, dtype=dtype))


HALF, BRAIN, DOUBLE = torch.float16, torch.bfloat16, torch.float64
# Every configuration of the table, every kind of row and every type come up; "map" is a feature map. K-means launches
# the search and the segment sums, a float64 stack the scan of "fp64" and the look-up.
CASES: dict[str, Callable[[], object]] = {
    "nearest 64 x 8": nearest_case(64, 8),
    "nearest 64 x 8 bf16": nearest_case(64, 8, dtype=BRAIN),
    "nearest 64 x 8 cosine fp16": nearest_case(64, 8, metric="cosine", dtype=HALF),
    "nearest 8 map bf16": nearest_case(4, 8, layout="map", dtype=BRAIN),
    "nearest 16": nearest_case(1, 16),
    "nearest 13 map": nearest_case(1, 13, layout="map"),
    "nearest 3 dot": nearest_case(1, 3, metric="dot"),
    "nearest 32": nearest_case(1, 32),
    "nearest 32 bf16": nearest_case(1, 32, dtype=BRAIN),
    "nearest 64": nearest_case(1, 64),
    "nearest 64 unmasked": nearest_case(1, 64, masked=False),
    "nearest 64 bf16": nearest_case(1, 64, dtype=BRAIN),
    "nearest 64 dot": nearest_case(1, 64, metric="dot"),
    "nearest 64 cosine fp16": nearest_case(1, 64, metric="cosine", dtype=HALF),
    "nearest 24 map": nearest_case(1, 24, layout="map"),
    "nearest 64 map": nearest_case(1, 64, layout="map"),
    "nearest 96": nearest_case(1, 96),
    "nearest 101": nearest_case(1, 101),
    "nearest 101 dot bf16": nearest_case(1, 101, metric="dot", dtype=BRAIN),
    "nearest 512": nearest_case(1, 512),
    "nearest 512 bf16": nearest_case(1, 512, dtype=BRAIN),
    "nearest 512 dot": nearest_case(1, 512, metric="dot"),
    "nearest 512 cosine fp16": nearest_case(1, 512, metric="cosine", dtype=HALF),
    "nearest 512 map": nearest_case(1, 512, layout="map"),
    "nearest 512 map fp16": nearest_case(1, 512, layout="map", dtype=HALF),
    "nearest 512 fp64": nearest_case(1, 512, dtype=DOUBLE),
    "nearest 64 dot fp64": nearest_case(1, 64, metric="dot", dtype=DOUBLE),
    "nearest 64 cosine fp64": nearest_case(1, 64, metric="cosine", dtype=DOUBLE),
    "topk 64 of 8": topk_case(1, 64, 8),
    "topk 64 x 8 of 4": topk_case(64, 8, 4, masked=False),
    "topk 512 bf16 of 32": topk_case(1, 512, 32, dtype=BRAIN),
    "topk 101 dot of 16": topk_case(1, 101, 16, metric="dot"),
    "topk 64 map cosine fp16 of 3": topk_case(1, 64, 3, metric="cosine", layout="map", dtype=HALF),
    "topk 64 fp64 of 8": topk_case(1, 64, 8, dtype=DOUBLE),
    "residual 64": residual_case(1, 64),
    "residual 64 x 8": residual_case(64, 8),
    "residual 32 bf16": residual_case(1, 32, dtype=BRAIN, limited=True),
    "residual 128": residual_case(1, 128),
    "residual 100 bf16": residual_case(1, 100, dtype=BRAIN, limited=True),
    "residual 512": residual_case(1, 512),
    "residual 517 fp16": residual_case(1, 517, dtype=HALF, limited=True),
    "segment 64 x 8": segment_case(64, 8),
    "segment 512 bf16": segment_case(1, 512, dtype=BRAIN),
    "segment 32 fp16": segment_case(1, 32, dtype=HALF),
    "segment 100 fp64": segment_case(1, 100, dtype=DOUBLE),
    "segment 6 stages 512": residual_segment_case(1, 512),
    "segment 6 stages 100": residual_segment_case(4, 100, dtype=BRAIN),
    "ema 8 x 8": ema_case(8, 8),
    "ema 1024 x 64": ema_case(1024, 64),
    "ema 8 x 100 normalised": ema_case(8, 100, like_paper=False),
    "ema 8 x 64 fp64": ema_case(8, 64, dtype=DOUBLE),
    "ema 1024 x 64 fp64": ema_case(1024, 64, dtype=DOUBLE),
    "lookup 64 x 8": lookup_case(64, 1, 8),
    "lookup 6 stages 512": lookup_case(1, 6, 512),
    "lookup 100 fp64": lookup_case(1, 1, 100, dtype=DOUBLE),
}
# What continuous integration compiles besides the first launch of every kernel, for its instructions are counted.
COUNTED = ("nearest 64 x 8", "nearest 16", "nearest 32", "nearest 64", "nearest 64 map", "nearest 512", "residual 64")


def launches_of(target: str, everything: bool = True) -> list[tuple[str, Launch]]:
    """The launches of all cases for a target's family, each kind once, under the first case that makes it.

    Without ``everything`` the first of each kernel, and on sm_90 the searches of ``COUNTED``.
    """
    found: dict[str, tuple[str, Launch]] = {}
    for case, call in CASES.items():
        with recorded(target) as launches:
            call()
        for launch in launches:
            found.setdefault(repr((launch.kernel.__name__, *launch[1:])), (case, launch))
    if everything:
        return list(found.values())
    chosen: dict[tuple[str, str], tuple[str, Launch]] = {}
    for case, launch in found.values():
        name = launch.kernel.__name__
        counted = target == "sm_90" and case in COUNTED and searches(name)
        chosen.setdefault((name, case if counted else ""), (case, launch))
    return list(chosen.values())


def searches(kernel: str) -> bool:
    """Whether a kernel, by its name, scores rows against codes on matrix units."""
    return kernel.startswith(("nearest", "residual", "topk_search"))
