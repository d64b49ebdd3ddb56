"""Counts rows whose code is not the oracle's, over millions of rows of every kind that the gate knows.

``python -m benchmarks.exactness cpu --rows 10000000`` takes some ten minutes on two cores, nearly all of it in the
float64 oracle. It prints what ``exact`` got wrong in each class of shapes (nothing, if all is well; 1 is returned
otherwise), and how often ``fast`` differs there and on each kind of data. Sizes change from block to block, so no two
blocks hold the same numbers.

Without a card, ``TRITON_INTERPRET=1 python -m benchmarks.exactness triton --rows 100000 --part 5 --keep FILE`` runs
the Triton kernels in Triton's interpreter, in about an hour: every fifth combination of shape, kind, metric and type.
The file gets a line for each block, and the same command goes on from it.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from fastvq.benchmarks.gate import DTYPES, INPUTS, nearest_mismatches, search_input
from fastvq.kernels import reference

# (codes, dim): each stands for a class of shapes, one below, at and above the tiles of some kernel.
CLASSES = (
    *((1, 1), (33, 1), (64, 2), (7, 3), (65, 4), (257, 4), (31, 5), (193, 6), (130, 7), (512, 8), (67, 9)),
    *((32, 15), (64, 16), (129, 17), (64, 31), (97, 32), (33, 33), (128, 64), (31, 65), (64, 100), (17, 127)),
    *((200, 96), (40, 257), (24, 512), (300, 7), (1100, 12)),
)
GROUPS = (1, 3)
BLOCK_SCORES = 2**21  # of the oracle, which keeps eight bytes for each


class Tally(NamedTuple):
    """One block: its combination, class and kind of data, and how many of its rows went wrong."""

    number: int
    codes: int
    dim: int
    kind: str
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
    part: int = 1,
    first: int = 0,
) -> Iterator[Tally]:
    """Compares until at least ``rows`` rows have been, and every combination has come up once.

    Args:
        impl: a module such as ``fastvq.kernels.cpu``.
        device: where the tensors live.
        rows: in all.
        classes: (codes, dim).
        dtypes: of the rows.
        fast: count the mismatches of ``precision="fast"`` too.
        part: take every ``part``-th combination only. With a number that divides none of the factors' counts, all
            values of each factor come up all the same.
        first: the combination to begin with, those before it being done.
    """
    combinations = list(itertools.product(classes, INPUTS, reference.METRICS, dtypes))[::part]
    share = -(-rows // len(combinations))
    for number, ((codes, dim), kind, metric, dtype) in enumerate(combinations):
        if number < first:
            continue
        groups = GROUPS[number * part // len(dtypes) % len(GROUPS)]
        left, turn = share, 0
        while left > 0:
            inner = max(1, min(left // groups, BLOCK_SCORES // (groups * codes)))
            x, codebook, mask = search_input(kind, (groups, 1, inner + turn, codes, dim), dtype, device)
            wrong = int(nearest_mismatches(impl, x, codebook, mask, metric).sum())
            differ = 0
            if fast:
                oracle = reference.nearest(x, codebook, mask, metric)[0]
                differ = int((impl.nearest(x, codebook, mask, metric, "fast")[0] != oracle).sum())
            yield Tally(number, codes, dim, kind, mask.numel(), wrong, differ)
            left -= mask.numel()
            turn += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a row was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("impl", choices=("cpu", "tiled", "triton"), help="implementation")
    parser.add_argument("--device", default="cpu", help="where the tensors live")
    parser.add_argument("--rows", type=int, default=10_000_000, help="how many rows to compare")
    parser.add_argument("--part", type=int, default=1, help="every how many-th combination to take")
    parser.add_argument("--keep", type=Path, help="CSV file of what is done, from which the same command goes on")
    options = parser.parse_args(arguments)
    impl = importlib.import_module(f"fastvq.kernels.{options.impl}")
    done = [] if options.keep is None else _read(options.keep)
    first = done[-1].number + 1 if done else 0
    found = blocks(impl, options.device, options.rows, part=options.part, first=first)
    for _, combination in itertools.groupby(found, lambda tally: tally.number):
        tallies = list(combination)
        done += tallies
        if options.keep is not None:
            with options.keep.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(tallies)
    shapes: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    whole = [0, 0, 0]
    for tally in done:
        for total in (shapes[f"K {tally.codes:4d}  D {tally.dim:4d}"], kinds[f"{tally.kind:<14}"], whole):
            for place, value in enumerate((tally.rows, tally.exact, tally.fast)):
                total[place] += value
    for name, (count, exact, fast) in itertools.chain(shapes.items(), kinds.items()):
        print(f"{name}  {count:9d} rows  exact: {exact} wrong  fast: {fast / count:.2e} differ")
    count, exact, fast = whole
    print(f"{count} rows, {exact} wrong in exact mode, {fast} ({fast / count:.2e}) in fast mode")
    return int(exact > 0)


def _read(file: Path) -> list[Tally]:
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return [Tally(int(row[0]), int(row[1]), int(row[2]), row[3], *map(int, row[4:])) for row in csv.reader(lines)]


if __name__ == "__main__":
    sys.exit(main())
