"""Measures launch configurations of the search on the device at hand; see ``fastvq.tuning``.

Candidates differ in tile sizes, warps and pipeline stages. Each must return the codes of the configuration that is in
use, bit for bit, before its time counts; one that the compiler or the device refuses is passed over.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastvq.kernels.triton import _configs, _tuned
from fastvq.kernels.triton.nearest import nearest

Measure = Callable[[Callable[[], object]], float]

ROWS, CODES, WARPS, STAGES = (64, 128), (64, 128, 256), (4, 8), (2, 3, 4)


class Case(NamedTuple):
    """A class of shapes, by the key of its configuration, and the search that stands for it."""

    key: str
    groups: int
    rows: int
    codes: int
    dim: int
    strided: bool = False


CASES = (
    Case("search narrow 8", 16, 65536, 512, 8),
    Case("search narrow 16", 4, 65536, 1024, 16),
    Case("search short 32", 1, 262_144, 4096, 32),
    Case("search short 64", 1, 262_144, 4096, 64),
    Case("search long", 1, 65536, 1024, 512),
    Case("search scattered", 1, 65536, 1024, 64, strided=True),
)


class Result(NamedTuple):
    """What was found for one case: the time in use before, the best, and its fields."""

    case: Case
    before_ms: float
    best_ms: float
    fields: dict[str, int]
    tried: int
    refused: int


def data(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """x (G, 1, N, D) and codes (G, K, D) of a case."""
    random = torch.Generator(device).manual_seed(0)
    if case.strided:
        x = torch.randn(case.dim, case.rows, generator=random, device=device).t()[None, None]
    else:
        x = torch.randn(case.rows, case.groups, case.dim, generator=random, device=device).transpose(0, 1)[:, None]
    return x, torch.randn(case.groups, case.codes, case.dim, generator=random, device=device)


def candidates() -> Iterator[dict[str, int]]:
    """Fields to try; the depth stays, since the class of shapes is named by it."""
    for rows, codes, warps, stages in itertools.product(ROWS, CODES, WARPS, STAGES):
        yield {"rows": rows, "codes": codes, "num_warps": warps, "stages": stages}


def tune(
    device: torch.device, measure: Measure, *, cases: tuple[Case, ...] = CASES, budget: int | None = None
) -> Iterator[Result]:
    """Measures the cases one after another and writes what is faster than the configuration in use.

    Args:
        device: where.
        measure: milliseconds of a call, by the device's clock.
        cases: what to measure.
        budget: at most this many candidates a case; None for all.
    """
    for case in cases:
        x, codes = data(case, device)
        expected = nearest(x, codes, None)[0]
        before = min(measure(lambda: nearest(x, codes, None)) for _ in range(5))  # noqa: B023
        best, fields, tried, refused = before, {}, 0, 0
        for candidate in itertools.islice(candidates(), budget):
            tried += 1
            with _configs.overridden(case.key, candidate):
                try:
                    found = nearest(x, codes, None)[0]
                except Exception:  # compilers and drivers refuse in many ways; the next candidate may do
                    refused += 1
                    continue
                if not torch.equal(found, expected):
                    raise RuntimeError(
                        f"{case.key} with {candidate} returned other codes: this is a defect, report it"
                    )
                taken = min(measure(lambda: nearest(x, codes, None)) for _ in range(5))  # noqa: B023
            if taken < best:
                best, fields = taken, candidate
        if fields:
            _tuned.write(device, {case.key: fields})
        yield Result(case, before, best, fields, tried, refused)
