"""What this machine can do at most: fused multiply-adds and memory traffic, measured in the run that quotes them."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

# Twenty-four independent accumulators hide the latency of two multiply-add units of 4 cycles with room to spare.
_SOURCE = r"""
#include <stdint.h>
typedef float vec __attribute__((vector_size(WIDTH * 4)));
float run(int64_t rounds) {
    vec a[24], x, y;
    for (int j = 0; j < WIDTH; j++) { x[j] = 1.0f + j * 1e-7f; y[j] = 1e-9f * (j + 1); }
    for (int i = 0; i < 24; i++) a[i] = x * (float)(i + 1);
    for (int64_t r = 0; r < rounds; r++) {
        #pragma GCC unroll 24
        for (int i = 0; i < 24; i++) a[i] = a[i] * x + y;
    }
    float s = 0;
    for (int i = 0; i < 24; i++) for (int j = 0; j < WIDTH; j++) s += a[i][j];
    return s;
}
"""


@functools.lru_cache(maxsize=1)
def _multiply_adds() -> tuple[Callable[[int], float], int] | None:
    """The loop, compiled for this machine, and the width of its vectors; None without a compiler."""
    width = {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability().split(" ")[0], 4)
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "fma.c", Path(folder) / "fma.so"
        source.write_text(_SOURCE)
        command = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-ffp-contract=fast", f"-DWIDTH={width}"]
        try:
            subprocess.run(
                [*command, "-shared", "-fPIC", str(source), "-o", str(library)], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        run = ctypes.CDLL(str(library)).run
        run.argtypes, run.restype = [ctypes.c_int64], ctypes.c_float
        return run, width


_seen = {"fma": 0.0}  # the best rate so far


def fma_rate(turns: int = 0) -> float | None:
    """float32 operations per second of all of torch's threads together (a multiply-add is two); None if unmeasured.

    The best that any call has seen: a machine that others share is slow for seconds on end, and a floor that was
    measured in such a time would be none. Without a compiler there is no figure and rows carry no floor.

    Args:
        turns: how often to measure now, 30 to 70 ms each; 0: seven times if that was never done, else not at all.
    """
    loop = _multiply_adds()
    if loop is None:
        return None
    run, width = loop
    rounds, threads = 500_000, torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(turns or (0 if _seen["fma"] else 7)):
            start = time.perf_counter()
            list(pool.map(run, [rounds] * threads))
            rate = 2 * 24 * width * rounds * threads / (time.perf_counter() - start)
            _seen["fma"] = max(_seen["fma"], rate)
    return _seen["fma"]


LARGEST_COPY = 512 * 2**20


def copy_rate(size: int = LARGEST_COPY) -> float:
    """Bytes per second of a copy, read plus written together ``size`` bytes, at most 512 MiB: small ones stay in the
    caches. Sizes are rounded down to a power of two."""
    return _copy_rate(1 << max(16, min(size, LARGEST_COPY).bit_length() - 1))


@functools.lru_cache(maxsize=32)
def _copy_rate(size: int) -> float:
    source = torch.ones(size // 8)
    target = torch.empty_like(source)
    turns = max(1, 2**24 // size)
    best = 0.0
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(turns):
            target.copy_(source)
        best = max(best, turns * 8 * source.numel() / (time.perf_counter() - start))
    return best


PRODUCT = 2048  # rows, columns and inner dimension of the products that are measured


@functools.lru_cache(maxsize=1)
def product_rates() -> dict[str, float]:
    """float32 operations per second of a large matrix product, as torch runs it by default and through oneDNN."""
    a, b = torch.randn(2, PRODUCT, PRODUCT)
    calls: dict[str, Callable[[], object]] = {"torch's default": lambda: a @ b.T}
    if torch.backends.mkldnn.is_available():
        calls["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    rates = {}
    for name, call in calls.items():
        times = []
        for _ in range(8):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        rates[name] = 2 * PRODUCT**3 / min(times[1:])
    return rates


@functools.lru_cache(maxsize=2)
def cuda_product_rate(device: str = "cuda") -> float:
    """float16 operations per second of a large matrix product on random values, accumulated in float32."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.float16) for _ in range(2))
    return 2 * 8192**3 / _cuda_seconds(lambda: a @ b)


@functools.lru_cache(maxsize=2)
def cuda_copy_rate(device: str = "cuda") -> float:
    """Bytes per second of a large copy on the device, read plus written."""
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    return 8 * source.numel() / _cuda_seconds(lambda: target.copy_(source))


def _cuda_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return float(min(times[2:]))
