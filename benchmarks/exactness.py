"""Counts rows whose code is not the oracle's, over millions of rows of every kind that the gate knows.

``python -m benchmarks.exactness cpu --rows 10000000`` takes some ten minutes on two cores, nearly all of it in the
float64 oracle. It prints what ``exact`` got wrong in each class of shapes (nothing, if all is well; 1 is returned
otherwise), and how often ``fast`` differs. Sizes change from block to block, so no two blocks hold the same numbers.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import torch

from fastvq.benchmarks.gate import DTYPES, INPUTS, nearest_mismatches, search_input
from fastvq.kernels import reference

# (codes, dim): each stands for a class of shapes, one below, at and above the tiles of some kernel.
CLASSES = (
    *((1, 1), (33, 1), (64, 2), (7, 3), (65, 4), (257, 4), (31, 5), (193, 6), (130, 7), (512, 8), (67, 9)),
    *((32, 15), (64, 16), (129, 17), (64, 31), (97, 32), (33, 33), (128, 64), (31, 65), (64, 100), (17, 127)),
    *((40, 257), (24, 512)),
)
GROUPS = (1, 3)
BLOCK_SCORES = 2**21  # of the oracle, which keeps eight bytes for each


class Tally(NamedTuple):
    """One block: its class, and how many of its rows went wrong."""

    codes: int
    dim: int
    rows: int
    exact: int
    fast: int


def blocks(
    impl: ModuleType,
    device: str,
    rows: int,
    *,
    classes: Sequence[tuple[int, int]] = CLASSES,
    dtypes: Sequence[torch.dtype] = DTYPES,
    fast: bool = True,
) -> Iterator[Tally]:
    """Compares until at least ``rows`` rows have been, and every combination has come up once.

    Args:
        impl: a module such as ``fastvq.kernels.cpu``.
        device: where the tensors live.
        rows: in all.
        classes: (codes, dim).
        dtypes: of the rows.
        fast: count the mismatches of ``precision="fast"`` too.
    """
    combinations = list(itertools.product(classes, INPUTS, reference.METRICS, dtypes))
    share = -(-rows // len(combinations))
    for number, ((codes, dim), kind, metric, dtype) in enumerate(combinations):
        groups = GROUPS[number // len(dtypes) % len(GROUPS)]
        left, turn = share, 0
        while left > 0:
            inner = max(1, min(left // groups, BLOCK_SCORES // (groups * codes)))
            x, codebook, mask = search_input(kind, (groups, 1, inner + turn, codes, dim), dtype, device)
            wrong = int(nearest_mismatches(impl, x, codebook, mask, metric).sum())
            differ = 0
            if fast:
                oracle = reference.nearest(x, codebook, mask, metric)[0]
                differ = int((impl.nearest(x, codebook, mask, metric, "fast")[0] != oracle).sum())
            yield Tally(codes, dim, mask.numel(), wrong, differ)
            left -= mask.numel()
            turn += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a row was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("impl", choices=("cpu", "tiled", "triton"), help="implementation")
    parser.add_argument("--device", default="cpu", help="where the tensors live")
    parser.add_argument("--rows", type=int, default=10_000_000, help="how many rows to compare")
    options = parser.parse_args(arguments)
    impl = importlib.import_module(f"fastvq.kernels.{options.impl}")
    totals: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    for tally in blocks(impl, options.device, options.rows):
        total = totals[tally.codes, tally.dim]
        for place, value in enumerate(tally[2:]):
            total[place] += value
    for (codes, dim), (count, exact, fast) in totals.items():
        print(f"K {codes:4d}  D {dim:4d}  {count:9d} rows  exact: {exact} wrong  fast: {fast / count:.2e} differ")
    count, exact, fast = (sum(total[place] for total in totals.values()) for place in range(3))
    print(f"{count} rows, {exact} wrong in exact mode, {fast} ({fast / count:.2e}) in fast mode")
    return int(exact > 0)


if __name__ == "__main__":
    sys.exit(main())
