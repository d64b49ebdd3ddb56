"""The gate: an implementation against the oracle, on random and on adversarial inputs. No timing counts without it.

``python -m benchmarks.gate triton cuda`` runs it from the command line; tests and benchmarks call :func:`gate`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvq.kernels import reference

# (groups, outer rows, inner rows, codes, dim): one row, primes, one past a tile, grouped, longer than a piece.
SIZES = (
    (1, 1, 1, 1, 1),
    (3, 2, 67, 129, 5),
    (16, 1, 200, 512, 8),
    (1, 3, 331, 257, 17),
    (1, 1, 2048, 1024, 64),
    (2, 5, 129, 65, 100),
    (1, 1, 513, 300, 512),
)
QUICK_SIZES = ((1, 1, 1, 1, 1), (3, 2, 7, 33, 5), (2, 3, 31, 67, 17), (1, 5, 13, 17, 130))
INPUTS = (
    *("normal", "offset", "trained", "halfway", "neighbours", "equal", "twice", "integers", "outlier"),
    *("scales", "tiny", "huge", "not finite"),
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEPTH = 3  # stages of the residual stacks
OPERATIONS = (
    *("nearest", "nearest_topk", "residual_nearest"),
    *("segment_sum", "residual_segment_sum", "ema_update_", "lookup"),
)


class Stack(NamedTuple):
    """What a residual search is given: x (G, R1, R2, D), codebooks (G, Q, K, D), and what limits the search."""

    x: Tensor
    codebooks: Tensor
    sizes: list[int] | None = None
    stages: Tensor | None = None
    mask: Tensor | None = None


class Check(NamedTuple):
    """One comparison: rows that differ from the oracle (codes that do not match, or a result out of tolerance)."""

    name: str
    rows: int
    mismatches: int


def search_input(kind: str, size: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """x (G, R1, R2, D), a codebook (G, K, D) and a mask for one kind of data, the same on every device.

    trained: codes are means of rows; halfway: rows midway between two codes; neighbours: codes one rounding step
    apart; twice: every code stands twice; outlier: one code a million times longer; scales: rows and codes from
    2^-40 to 2^40.
    """
    groups, outer, inner, num_codes, dim = size
    random = torch.Generator().manual_seed(len(kind) + sum(size))
    x = torch.randn(groups, outer, inner, dim, generator=random)
    codes = torch.randn(groups, num_codes, dim, generator=random)
    if kind == "offset":
        x, codes = x + 30, codes + 30
    elif kind == "trained":
        rows = x.reshape(groups, -1, dim)
        codes = torch.stack([rows[:, place::num_codes].mean(1) for place in range(num_codes)], 1).nan_to_num()
    elif kind == "halfway":
        rows = torch.arange(outer * inner)
        pair = codes[:, rows % num_codes] + codes[:, (rows * 7 + 1) % num_codes]
        x = (pair / 2).reshape(x.shape)
    elif kind == "neighbours":
        codes = codes[:, :1].expand_as(codes) * (1 + torch.arange(num_codes)[:, None] * 2.0**-23)
    elif kind == "equal":
        codes = codes[:, :1].expand_as(codes)
    elif kind == "twice":
        codes = torch.cat([codes[:, : (num_codes + 1) // 2]] * 2, 1)[:, :num_codes]
    elif kind == "integers":
        x, codes = x.round(), codes.round()
    elif kind == "outlier":
        codes[:, -1] *= 1e6
    elif kind == "scales":
        x = x * torch.exp2(torch.linspace(-40, 40, outer * inner)).reshape(1, outer, inner, 1)
        codes = codes * torch.exp2(torch.linspace(-40, 40, num_codes)[:, None])
    elif kind == "tiny":
        x, codes = x * 1e-30, codes * 1e-30
    elif kind == "huge":
        x, codes = x * 1e30, codes * 1e30
    elif kind == "not finite":
        x[..., :1, 0], x[0, -1, -1:, -1] = float("nan"), float("inf")
        codes[:, num_codes // 2, 0], codes[:, -1, -1] = float("inf"), float("-inf")
    mask = torch.rand(groups, outer, inner, generator=random) > 0.1
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return x.to(dtype).to(device), codes.to(wide).to(device), mask.to(device)


def stack_input(kind: str, size: tuple[int, ...], dtype: torch.dtype, device: str) -> Stack:
    """A residual stack of one kind of data: each stage has the codes in another order and half as long.

    Stages have K, about K / 2 and K - 1 codes, and rows take none, some or all of them.
    """
    x, codes, mask = search_input(kind, size, dtype, device)
    num_codes = codes.shape[1]
    codebooks = torch.stack([codes.roll(stage, 1) * 0.5**stage for stage in range(DEPTH)], 1)
    sizes = [num_codes, (num_codes + 1) // 2, max(1, num_codes - 1)]
    random = torch.Generator().manual_seed(sum(size))
    stages = torch.randint(-1, DEPTH + 4, x.shape[1:3], generator=random).to(device)
    return Stack(x, codebooks, sizes, stages, mask)


def nearest_mismatches(impl: ModuleType, x: Tensor, codes: Tensor, mask: Tensor | None, metric: str) -> Tensor:
    """True for rows whose code is not the oracle's, or whose distance is out of tolerance.

    The tolerance is (D + 2) units of rounding of the distance; for dot and cosine, where terms cancel, of the sum
    of their magnitudes.
    """
    expected, oracle = reference.nearest(x, codes, mask, metric)
    indices, distances = impl.nearest(x, codes, mask, metric)
    unit = rounding(x)
    magnitude = oracle.double().abs()
    if metric == "cosine":
        magnitude = magnitude + 1
    elif metric == "dot":
        chosen = torch.gather(
            codes.double(), 1, expected.clamp_min(0).flatten(1)[..., None].expand(-1, -1, x.shape[-1])
        )
        magnitude = (x.double() * chosen.reshape(x.shape)).abs().sum(-1)
    return (indices != expected) | differ(distances, oracle, unit * magnitude)


def rounding(x: Tensor) -> float:
    """D + 2 units of rounding of a distance to the rows x."""
    return float(x.shape[-1] + 2) * (2.0**-53 if x.dtype == torch.float64 else 2.0**-24)


def differ(values: Tensor, expected: Tensor, allowed: Tensor | float) -> Tensor:
    """True where two values are neither equal, nor both NaN, nor within what is allowed."""
    same = (values == expected) | (values.isnan() & expected.isnan())
    return ~(same | ((values.double() - expected.double()).abs() <= allowed))


def topk_mismatches(
    impl: ModuleType, x: Tensor, codes: Tensor, mask: Tensor | None, topk: int, metric: str
) -> Tensor:
    """True for rows whose codes or their order are not the oracle's, or a distance is: both are float64 sums."""
    expected, oracle = reference.nearest_topk(x, codes, mask, topk, metric)
    indices, distances = impl.nearest_topk(x, codes, mask, topk, metric)
    return ((indices != expected) | differ(distances, oracle, 0.0)).any(-1)


def residual_mismatches(impl: ModuleType, stack: Stack) -> Tensor:
    """True for rows with a code that is not the oracle's, an error out of the tolerance of distances, or a quantized
    entry that is not the oracle's bit for bit."""
    expected, sum_of_codes, oracle = reference.residual_nearest(*stack)
    indices, quantized, errors = impl.residual_nearest(*stack)
    wrong = (indices != expected) | differ(errors, oracle, rounding(stack.x) * oracle.double().abs())
    return wrong.any(-1) | differ(quantized, sum_of_codes, 0.0).any(-1)


def segment_mismatches(impl: ModuleType, x: Tensor, indices: Tensor, num_codes: int) -> Tensor:
    """True for codes whose sum or count is off by more than a float32 sum of their rows in any order may be."""
    sums, counts = impl.segment_sum(x, indices, num_codes)
    expected, rows = reference.segment_sum(x, indices, num_codes)
    magnitudes, _ = reference.segment_sum(x.double().abs(), indices, num_codes)
    unit = 2.0**-53 if x.dtype == torch.float64 else 2.0**-24
    allowed = unit * (rows[..., None].double() + 2) * magnitudes
    return ((sums.double() - expected.double()).abs() > allowed).any(-1) | (counts != rows)


def residual_segment_mismatches(impl: ModuleType, x: Tensor, indices: Tensor, codebooks: Tensor) -> Tensor:
    """True for codes whose count is wrong, or whose sum is off by more than a float64 sum, rounded once, may be."""
    sums, counts = impl.residual_segment_sum(x, indices, codebooks)
    expected, rows = reference.residual_segment_sum(x, indices, codebooks)
    # |x| + |c_1| + |c_2| + ... bounds every residual: rows without signs, less codes that are all negative.
    magnitudes, _ = reference.residual_segment_sum(x.double().abs(), indices, -codebooks.double().abs())
    unit = 2.0**-53 if x.dtype == torch.float64 else 2.0**-24
    allowed = unit * expected.double().abs() + 2.0**-52 * (rows[..., None].double() + 2) * magnitudes
    return differ(sums, expected, allowed).any(-1) | (counts != rows)


def ema_mismatches(impl: ModuleType, groups: int, num_codes: int, dim: int, device: str, paper: bool) -> Tensor:
    """True for codes whose state after one update is further from the oracle's than a few roundings."""
    random = torch.Generator().manual_seed(groups + num_codes + dim)
    state = [torch.randn(groups, num_codes, dim, generator=random) for _ in range(3)]
    sizes, counts = (torch.rand(groups, num_codes, generator=random) * 10 for _ in range(2))
    sizes[:, 0], counts[:, 0] = 0, 0
    codebook, embed_sum, sums, sizes, counts = (tensor.to(device) for tensor in (*state, sizes, counts))
    arguments: tuple[Any, ...] = (sums, counts, 0.99, 1e-5, "laplace" if paper else "none", not paper, 0.1, paper)
    ours, theirs = ([tensor.clone() for tensor in (codebook, embed_sum, sizes)] for _ in range(2))
    dead = impl.ema_update_(*ours, *arguments)
    expected = reference.ema_update_(theirs[0], theirs[1], theirs[2], *arguments)
    # embed_sum cancels, so its error is one of its terms'; the code divides it by a size that is off by K roundings.
    terms = embed_sum.abs() + sums.abs()
    unit = 2.0**-22
    wrong = (ours[1] - theirs[1]).abs() > unit * terms
    growth = theirs[0].abs() + terms / theirs[2].clamp_min(1e-6)[..., None]
    wrong |= (ours[0] - theirs[0]).abs() > unit * (num_codes + 4) * growth
    return wrong.any(-1) | ((ours[2] - theirs[2]).abs() > unit * theirs[2]) | (dead != expected)


def lookup_mismatches(impl: ModuleType, indices: Tensor, codebooks: Tensor) -> Tensor:
    """True for rows whose sum of codes is not the oracle's, bit for bit."""
    return (impl.lookup(indices, codebooks) != reference.lookup(indices, codebooks)).any(-1)


def gate(impl: ModuleType, device: str, sizes: tuple[tuple[int, ...], ...] = SIZES) -> Iterator[Check]:
    """Compares an implementation's operations with the reference, but for those that it lacks (:func:`missing`).

    Args:
        impl: a module such as ``fastvq.kernels.triton``.
        device: where the tensors live, for example "cuda".
        sizes: (G, R1, R2, K, D) of the searches; the oracle takes 8 bytes per row and code.
    """
    absent = missing(impl)
    for size in sizes:
        for dtype in DTYPES:
            for compare in (searches, sums, stacks):
                for operation, kind, wrong in compare(impl, device, size, dtype, absent):
                    yield Check(f"{operation} {kind} {dtype} {size}", wrong.numel(), int(wrong.sum()))
        for operation, kind, wrong in states(impl, device, size):
            yield Check(f"{operation} {kind} {size}", wrong.numel(), int(wrong.sum()))


def missing(impl: ModuleType) -> list[str]:
    """The operations that an implementation does not have."""
    return [name for name in OPERATIONS if not hasattr(impl, name)]


# What the gate compares: the operation, the data, and True where a result is wrong.
Comparisons = Iterator[tuple[str, str, Tensor]]


def searches(
    impl: ModuleType, device: str, size: tuple[int, ...], dtype: torch.dtype, absent: list[str]
) -> Comparisons:
    """The nearest code and the three nearest ones, on every kind of data."""
    for place, kind in enumerate(INPUTS):
        x, codes, mask = search_input(kind, size, dtype, device)
        for metric in reference.METRICS:
            yield "nearest", f"{metric} {kind}", nearest_mismatches(impl, x, codes, mask, metric)
        if "nearest_topk" not in absent:
            metric, topk = reference.METRICS[place % 3], min(3, codes.shape[1])
            yield "nearest_topk", f"{metric} {kind}", topk_mismatches(impl, x, codes, mask, topk, metric)
    x, codes, _ = search_input("normal", size, dtype, device)
    yield "nearest", "map", nearest_mismatches(impl, feature_map(x), codes.mT.contiguous().mT, None, "l2")


def sums(impl: ModuleType, device: str, size: tuple[int, ...], dtype: torch.dtype, absent: list[str]) -> Comparisons:
    """Rows by code, with many rows for every code and with most rows for one."""
    groups, outer, inner, num_codes, _ = size
    x, _, _ = search_input("normal", size, dtype, device)
    spread = torch.arange(outer * inner, device=device).reshape(outer, inner).expand(groups, -1, -1)
    for kind, indices in (("even", spread % (num_codes + 1) - 1), ("skewed", (spread % 17 == 0).long() - 1)):
        wrong = segment_mismatches(impl, x, -indices - 1 if num_codes == 1 else indices, num_codes)
        yield "segment_sum", kind, wrong


def stacks(
    impl: ModuleType, device: str, size: tuple[int, ...], dtype: torch.dtype, absent: list[str]
) -> Comparisons:
    """Residual stacks on every kind of data: the search, and the sums by the oracle's codes."""
    plain = stack_input("normal", size, dtype, device)
    plain = Stack(feature_map(plain.x), plain.codebooks.mT.contiguous().mT)
    for kind in (*INPUTS, "map"):
        stack = plain if kind == "map" else stack_input(kind, size, dtype, device)
        if "residual_nearest" not in absent:
            yield "residual_nearest", kind, residual_mismatches(impl, stack)
        if "residual_segment_sum" not in absent:
            indices, _, _ = reference.residual_nearest(*stack)
            wrong = residual_segment_mismatches(impl, stack.x, indices, stack.codebooks)
            yield "residual_segment_sum", kind, wrong


def feature_map(x: Tensor) -> Tensor:
    """The same rows with D apart in memory, as (B, C, T) activations have it."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def states(impl: ModuleType, device: str, size: tuple[int, ...]) -> Comparisons:
    """Codebook updates and looked-up codes."""
    groups, outer, inner, num_codes, dim = size
    for paper in (True, False):
        wrong = ema_mismatches(impl, groups, num_codes, dim, device, paper)
        yield "ema_update_", "laplace" if paper else "normalised", wrong
    random = torch.Generator().manual_seed(sum(size))
    codebooks = torch.randn(groups, DEPTH, num_codes, dim, generator=random).to(device)
    indices = torch.randint(-1, num_codes, (groups, outer, inner, DEPTH), generator=random).to(device)
    yield "lookup", "stack", lookup_mismatches(impl, indices, codebooks)


def main(arguments: list[str]) -> int:
    """``IMPLEMENTATION [DEVICE]``: prints the checks that fail and a summary; 1 where one failed.

    The reference is slow on a CPU, so small sizes serve there.
    """
    impl, device = importlib.import_module(f"fastvq.kernels.{arguments[0]}"), (arguments[1:] or ["cuda"])[0]
    checks = list(gate(impl, device, QUICK_SIZES if device == "cpu" else SIZES))
    failed = [check for check in checks if check.mismatches]
    for check in failed:
        print(f"{check.name}: {check.mismatches} of {check.rows}")
    for name in missing(impl):
        print(f"{name}: not there, so not compared")
    print(f"{len(checks) - len(failed)} of {len(checks)} checks passed, {sum(check.rows for check in checks)} rows")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
