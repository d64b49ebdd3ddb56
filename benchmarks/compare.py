"""What moved between two runs: ratios and shares of the floor, never times, which a slower machine would move."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from fastvq.benchmarks import table

# Compute-bound rows agree within this from run to run.
STEADY = 0.15
# Ours is slower where most of what it is measured against says so by more than this share.
SLOWER = 0.30

Text = Mapping[str, str]


class Move(NamedTuple):
    """One ratio in two runs: a contender's time over ours, or, of ours, the floor over its time."""

    op: str
    shape: str
    against: str
    before: float
    after: float
    steady: bool

    @property
    def change(self) -> float:
        """After over before: below 1, ours has become slower beside it."""
        return self.after / self.before


def anchors(rows: Sequence[Text]) -> dict[tuple[str, str, str], tuple[float, bool]]:
    """(op, shape, against) -> the ratio, and whether both its times are bound by computing, of each case's last run.

    A time is not where it is shown with its quantiles (:func:`fastvq.benchmarks.table.quantiles`).
    """
    found: dict[tuple[str, str, str], tuple[float, bool]] = {}
    for (op, shape), case in table.last_cases(rows).items():
        ours = case[0]
        still = not table.quantiles(ours)
        share = table.share_of_floor(ours)
        if share is not None:
            found[op, shape, "floor"] = (share, still)
        for row in case[1:]:
            ratio = table.ratios(case)[table.contender(row)]
            found[op, shape, table.contender(row)] = (ratio, still and not table.quantiles(row))
    return found


def moves(before: Sequence[Text], after: Sequence[Text]) -> list[Move]:
    """Every ratio that both runs have."""
    old, new = anchors(before), anchors(after)
    return [Move(*key, old[key][0], new[key][0], old[key][1] and new[key][1]) for key in old if key in new]


def slower(found: Sequence[Move]) -> list[tuple[str, str, float]]:
    """Cases (op, shape, change) in which ours has become slower: by the median of what it is measured against.

    The fast mode of ours moves with the exact one, and is no measure of it.
    """
    cases: dict[tuple[str, str], list[float]] = {}
    for move in found:
        if not move.against.startswith("fastvq"):
            cases.setdefault((move.op, move.shape), []).append(move.change)
    changes = {case: statistics.median(values) for case, values in cases.items()}
    return [(*case, change) for case, change in changes.items() if change < 1 - SLOWER]


def show(before: Sequence[Text], after: Sequence[Text], console: Console) -> int:
    """Prints what moved by more than :data:`STEADY`.

    Returns:
        1 where ours has become slower, on the same kind of machine; 0 elsewhere.

    Raises:
        ValueError: the two have no case in common.
    """
    found = moves(before, after)
    if not found:
        raise ValueError("the two files have no op, shape and contender in common: compare runs of the same cases")
    moved = [move for move in found if abs(move.change - 1) > STEADY]
    listing = Table(
        pad_edge=False, title="What moved: others' times over ours, the floor over ours", title_justify="left"
    )
    for heading in ("op and shape", "against", "before", "after", "change", ""):
        listing.add_column(heading, no_wrap=True, justify="right" if heading in ("before", "after") else "left")
    for move in moved:
        numbers = f"{move.before:.2f}", f"{move.after:.2f}", f"{move.change - 1:+.0%}"
        listing.add_row(f"{move.op} {move.shape}", move.against, *numbers, "" if move.steady else "swings")
    if moved:
        console.print(listing, soft_wrap=False)
    steady = [move for move in found if move.steady]
    agree = sum(abs(move.change - 1) <= STEADY for move in steady)
    console.print(f"{len(found)} ratios; of {len(steady)} that computing bounds {agree} agree within {STEADY:.0%}.")
    if before[-1]["device"] != after[-1]["device"]:
        console.print(f"Other machines: {before[-1]['device']}, {after[-1]['device']}. Nothing is judged.")
        return 0
    late = slower(found)
    for op, shape, change in late:
        console.print(
            f"SLOWER: {op} {shape} has {change:.0%} of the speed it had beside the others.", style="bold red"
        )
    return int(bool(late))
