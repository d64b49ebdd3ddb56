"""Benchmark rows as numbers, and what may be compared with what: only rows of one run, at one shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastvq.benchmarks.rows import COLUMNS, ENVIRONMENT, SCHEMA
from fastvq.benchmarks.shapes import Shape

WHOLE_MODELS = ("motion-vqvae", "heatmap-vqgan")
SEARCHES = ("nearest", "residual_nearest")
MACHINE = "machine"  # the op of rows that tell what the machine can do: operations, or a copy's bytes as N
COPY = "copy"  # its pass
SCALING = "scale:"  # passes of benchmarks.scaling
SECTION = "train-step:"  # passes that are parts of a training step
MEMORY = "-memory"  # passes of which only the memory counts
FALLBACKS = ("tiled", "reference")
FLOORS = ("no quantizer",)  # what others are held against rather than a peer


@dataclass(frozen=True)
class Measured:
    """One row of a benchmark; the columns of :class:`~fastvq.benchmarks.rows.Row`, and its run."""

    op: str
    pass_: str
    shape: Shape
    dtype: str
    impl: str
    precision: str
    peer: str
    version: str
    reps: int
    median_ms: float
    p20_ms: float
    p80_ms: float
    floor_ms: float | None
    floor_kind: str
    peak_mib: float | None
    wrong: int | None
    gate: str
    environment: Mapping[str, str]

    @property
    def contender(self) -> str:
        """Who was timed; what else was set stands behind a comma of ``impl``."""
        impl, comma, lever = self.impl.partition(",")
        return self.peer or " ".join(part for part in ("fastvq", impl, self.precision) if part) + comma + lever

    @property
    def run(self) -> str:
        """The run that the row belongs to."""
        return self.environment["run_id"]

    @property
    def is_floor(self) -> bool:
        """Whether this row is itself what the others are held against."""
        return self.peer in FLOORS

    @property
    def is_part(self) -> bool:
        """Whether this row is one of several that say how a cost is made up or grows."""
        return ":" in self.pass_

    @property
    def is_time(self) -> bool:
        """Whether the time is what was measured, of a whole."""
        return not self.is_part and not self.pass_.endswith(MEMORY) and self.op != MACHINE

    @property
    def place(self) -> tuple[str, str, str, Shape]:
        """Rows of one place did the same work in the same run."""
        return self.run, self.op, self.pass_, self.shape


def parse(rows: Iterable[Mapping[str, str]]) -> list[Measured]:
    """Rows as numbers.

    Raises:
        ValueError: columns that are not there, another schema, or a value that is no number.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        missing = [name for name in COLUMNS if row.get(name) is None]
        if missing:
            raise ValueError(
                f"row {number} lacks {', '.join(missing)}: give rows with all columns of schema {SCHEMA}, as "
                "benchmarks.rows writes them"
            )
        if row["schema"] != SCHEMA:
            raise ValueError(f"row {number} holds schema {row['schema']!r}, this version reads {SCHEMA!r}")
        sizes = {name: int(_number(row, name, number, positive=True)) for name in "GNKDQ"}
        found.append(
            Measured(
                op=row["op"],
                pass_=row["pass"],
                shape=Shape(row["shape"], sizes["G"], sizes["N"], sizes["K"], sizes["D"], sizes["Q"]),
                dtype=row["dtype"],
                impl=row["impl"],
                precision=row["precision"],
                peer=row["peer"],
                version=row["peer_version"],
                reps=int(_number(row, "reps", number)),
                median_ms=_number(row, "median_ms", number, positive=True),
                p20_ms=_number(row, "p20_ms", number, positive=True),
                p80_ms=_number(row, "p80_ms", number, positive=True),
                floor_ms=_number(row, "floor_ms", number, positive=True) if row["floor_ms"] else None,
                floor_kind=row["floor_kind"],
                peak_mib=_number(row, "peak_mib", number) if row["peak_mib"] else None,
                wrong=int(_number(row, "mismatch_rows", number)) if row["mismatch_rows"] else None,
                gate=row["gate"],
                environment={name: row[name] for name in ENVIRONMENT},
            )
        )
    return found


def newest(rows: Sequence[Measured]) -> list[Measured]:
    """The rows of the newest run of their op, pass, shape and dtype; a scaling axis and a model's step stay whole."""

    def key(row: Measured) -> tuple[object, ...]:
        if row.pass_.startswith(SCALING):
            return row.op, row.pass_
        if row.op in WHOLE_MODELS:  # parts belong to their whole
            return row.op, row.shape
        return row.op, row.pass_, row.shape, row.dtype

    latest: dict[tuple[object, ...], tuple[str, str]] = {}
    for row in rows:
        latest[key(row)] = max(latest.get(key(row), ("", "")), (row.environment["utc"], row.run))
    return [row for row in rows if latest[key(row)][1] == row.run]


class Comparison:
    """Ratios of rows against ours of the same run, op, pass and shape.

    Ours is the exact search by the fastest implementation that the run names, of the row's dtype if it was timed;
    where its gate failed there is no ratio.
    """

    def __init__(self, rows: Sequence[Measured]) -> None:
        self._ours: dict[tuple[str, str, str, Shape], list[Measured]] = {}
        for row in rows:
            if row.op != MACHINE and not row.peer and row.impl not in FALLBACKS and row.precision in ("", "exact"):
                self._ours.setdefault(row.place, []).append(row)

    def ours(self, row: Measured) -> Measured | None:
        """The row that another is compared with."""
        candidates = self._ours.get(row.place, [])
        return next((mine for mine in candidates if mine.dtype == row.dtype), candidates[0] if candidates else None)

    def ratio(self, row: Measured) -> tuple[float, float, float] | None:
        """How many times as long as ours the row takes: medians, and the range that p20 and p80 of both allow."""
        mine = self.ours(row)
        if mine is None or mine is row or mine.gate != "pass":
            return None
        return row.median_ms / mine.median_ms, row.p20_ms / mine.p80_ms, row.p80_ms / mine.p20_ms

    def with_peers(self, rows: Iterable[Measured]) -> list[tuple[Measured, float]]:
        """The rows of peers whose time has a ratio, and that ratio."""
        found = [(row, self.ratio(row)) for row in rows if row.peer and row.is_time and not row.is_floor]
        return [(row, ratio[0]) for row, ratio in found if ratio is not None]


def unit_cost(milliseconds: float, letter: str, shape: Shape) -> float:
    """ns a row, for each unit of the size that grows where that is another: flat where the cost is linear."""
    return 1e6 * milliseconds / shape.N / (1 if letter == "N" else getattr(shape, letter))


def _number(row: Mapping[str, str], name: str, number: int, *, positive: bool = False) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        expected = "above 0" if positive else "of at least 0"
        raise ValueError(f"row {number} has {name} = {row[name]!r}, expected a number {expected}")
    return value
