"""The figures of a benchmark page, from rows: ratios, memory, roofline, scaling, the parts of a training step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fastvq.benchmarks.measured import (
    COPY,
    MACHINE,
    SCALING,
    SEARCHES,
    SECTION,
    WHOLE_MODELS,
    Comparison,
    Measured,
    unit_cost,
)
from fastvq.benchmarks.rows import MOVED
from fastvq.benchmarks.shapes import Shape
from fastvq.models.rendering.bars import TIMES, Factor, factor_chart, stack_chart
from fastvq.models.rendering.charts import Series, line_chart
from fastvq.models.rendering.page import escape

Key = TypeVar("Key")
HEADING = 52  # characters that fit above a group of bars on a phone
ALONE = 3  # shapes from which on an op has a card of its own; the others of its pass share one
REST = "everything else"
# Section of a training step -> number of its colour, in the order in which a step runs.
SECTIONS = {
    "data": 1,
    "encoder": 2,
    "quantizer": 0,
    "decoder": 4,
    "losses": 7,
    "backward": 3,
    "optimizer": 5,
    "codebook update": 6,
    "discriminator": 6,  # of models that have no codebook update
}
UNITS = {"N": "row", "K": "row and code", "D": "row and dimension", "Q": "row and stage", "G": "row and group"}


def grouped(rows: Iterable[Measured], key: Callable[[Measured], Key]) -> dict[Key, list[Measured]]:
    """Rows by a key, in the order in which they came."""
    groups: dict[Key, list[Measured]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def sizes(shape: Shape) -> str:
    """The numbers of a shape: those that are 1 go without saying."""
    parts = [f"{name} {value:,}" for name, value in (("G", shape.G), ("Q", shape.Q)) if value != 1]
    return ", ".join([f"N {shape.N:,}", f"K {shape.K:,}", f"D {shape.D:,}", *parts])


def card(title: str, note: str, chart: str) -> str:
    """A chart under its heading; plain texts, escaped here."""
    return f'<div class="card"><h3>{escape(title)}</h3><p>{escape(note)}</p>{chart}</div>'


def colours(rows: Sequence[Measured]) -> dict[str, int]:
    """A colour for each contender, the same in all charts of ops: ours first, then those with the most rows."""
    count = Counter(row.contender for row in rows if row.op not in (MACHINE, *WHOLE_MODELS))
    own = {row.contender: not row.peer for row in rows}
    return {name: place for place, name in enumerate(sorted(count, key=lambda name: (not own[name], -count[name])))}


def ratio_cards(rows: Sequence[Measured], comparison: Comparison) -> list[str]:
    """Time against ours by shape, a card for each pass."""
    timed = [row for row in rows if row.is_time]
    return _factor_cards(timed, comparison.ratio, "times as long as fastvq", "Right of 1, fastvq is faster.")


def memory_cards(rows: Sequence[Measured], comparison: Comparison, palette: Mapping[str, int]) -> list[str]:
    """Peak memory: over N where one size grows alone, and against ours by shape."""

    def ratio(row: Measured) -> tuple[float, float, float] | None:
        mine = comparison.ours(row)
        if mine is None or mine is row or not mine.peak_mib or not row.peak_mib:
            return None
        share = row.peak_mib / mine.peak_mib
        return share, share, share

    held = [row for row in rows if row.peak_mib is not None]
    lines = grouped(
        [row for row in held if row.op not in WHOLE_MODELS],
        lambda row: (row.op, row.pass_, row.shape._replace(name="", N=0), row.run),
    )
    cards = []
    for (op, pass_, shape, _), line in lines.items():
        if len({row.shape.N for row in line}) < 2:
            continue
        note = sizes(shape).split(", ", 1)[1] + ": most memory that the call took beyond what was there before it."
        chart = _lines(
            line, palette, lambda row: float(row.shape.N), lambda row: row.peak_mib or 0.0, "N, rows", "MiB"
        )
        cards.append(card(f"{op}, {pass_.removeprefix(SCALING)}", note, chart))
    return cards + _factor_cards(held, ratio, "times the memory of fastvq", "Peak memory against ours.")


def roofline_cards(rows: Sequence[Measured], palette: Mapping[str, int]) -> list[str]:
    """Achieved rate of searches over operations a byte, a card for each run that tells what its machine can do."""
    cards = []
    searches = [row for row in rows if row.op in SEARCHES]
    for run, mine in grouped(searches, lambda row: row.run).items():
        arithmetic, traffic = roofs([row for row in rows if row.run == run])
        every = {intensity(row) for row in mine}
        if not arithmetic or len(every) < 2:
            continue
        low, high = min(every), max(every)
        series = []
        if traffic:
            corner = max(arithmetic.values()) / traffic
            low = min(low, corner / 2)
            label = f"copy, {traffic / 1e9:,.0f} GB/s"
            series.append(Series(label, [low, corner], [low * traffic / 1e9, corner * traffic / 1e9], limit=True))
        for name, rate in arithmetic.items():
            ends = [min(rate / traffic if traffic else low, high), high]
            series.append(Series(f"{name}, {rate / 1e9:,.0f} GFLOP/s", ends, [rate / 1e9] * 2, limit=True))
        for contender, points in grouped(mine, lambda row: row.contender).items():
            points = sorted(points, key=intensity)
            rates = [row.shape.operations / row.median_ms / 1e6 for row in points]
            x = [intensity(row) for row in points]
            series.append(Series(contender, x, rates, colour=palette[contender], joined=False, marks=True))
        chart = line_chart(
            series, x_label="operations per byte of rows, codes and indices", y_label="GFLOP/s", log=True, log_x=True
        )
        note = "Dashed: what this machine did in the same run." + (
            "" if traffic else " The run measured no copy, so only the arithmetic is drawn."
        )
        cards.append(card(f"Run {run}, {mine[0].environment['device']}", note, chart))
    return cards


def intensity(row: Measured) -> float:
    """Operations a byte of a search."""
    return row.shape.operations / row.shape.io_bytes


def roofs(rows: Sequence[Measured]) -> tuple[dict[str, float], float]:
    """What a run's machine can do: operations a second by name, and bytes a second of a copy, 0 if unknown.

    Its own rows of the op "machine" tell; without them the floors of searches do.
    """
    machine = [row for row in rows if row.op == MACHINE and row.median_ms]
    if machine:
        rates = {row.pass_: 1e3 * row.shape.operations / row.median_ms for row in machine if row.pass_ != COPY}
        return rates, max((1e3 * row.shape.N / row.median_ms for row in machine if row.pass_ == COPY), default=0.0)
    floors = [(row, row.floor_ms) for row in rows if row.op in SEARCHES and row.floor_ms]
    rates, traffic = {}, 0.0
    for row, floor in floors:
        if row.floor_kind == MOVED:
            traffic = max(traffic, 1e3 * row.shape.io_bytes / floor)
        else:
            rates[row.floor_kind] = max(rates.get(row.floor_kind, 0.0), 1e3 * row.shape.operations / floor)
    return rates, traffic


def scaling_cards(rows: Sequence[Measured], palette: Mapping[str, int]) -> list[str]:
    """Time a row over each size that grew, one card a pass."""
    cards = []
    swept = [row for row in rows if row.pass_.startswith(SCALING)]
    for (op, pass_), line in grouped(swept, lambda row: (row.op, row.pass_)).items():
        axis = pass_.removeprefix(SCALING)[:1]
        if axis not in UNITS:
            continue
        fixed = [part for part in sizes(line[0].shape).split(", ") if not part.startswith(axis)]

        def cost(row: Measured, axis: str = axis) -> float:
            return unit_cost(row.p20_ms, axis, row.shape)

        def size(row: Measured, axis: str = axis) -> float:
            return float(getattr(row.shape, axis))

        chart = _lines(line, palette, size, cost, axis, f"ns per {UNITS[axis]}")
        cards.append(
            card(
                f"{op}, {pass_.removeprefix(SCALING)} grows",
                f"{', '.join(fixed)}. 20th percentile; a level line is linear.",
                chart,
            )
        )
    return cards


def step_cards(rows: Sequence[Measured]) -> list[str]:
    """Stacked parts of a training step, a card for each run and size, ours against the faster peer."""
    cards = []
    steps = [row for row in rows if row.op in WHOLE_MODELS]
    for (_, shape), mine in grouped(steps, lambda row: (row.run, row.shape)).items():
        several = len({row.dtype for row in mine}) > 1
        whole_steps = {(row.contender, row.dtype): row for row in mine if row.pass_ == "train-step"}
        rivals = [row for row in whole_steps.values() if row.peer and not row.is_floor]
        stacks, notes = {}, {}
        for (contender, dtype), parts in grouped(mine, lambda row: (row.contender, row.dtype)).items():
            found = {row.pass_.removeprefix(SECTION): row.median_ms for row in parts if row.pass_.startswith(SECTION)}
            found = found or {row.pass_: row.median_ms for row in parts if row.pass_ == "quantizer"}
            whole = whole_steps.get((contender, dtype))
            if whole is not None:
                rest = whole.median_ms - sum(found.values())
                found = {**found, REST: rest} if rest > 0 else found
            if not found:
                continue
            name = f"{contender}, {dtype}" if several else contender
            stacks[name] = found
            rival = min(
                [row.median_ms for row in rivals if row.dtype == dtype] or [row.median_ms for row in rivals],
                default=None,
            )
            if whole and rival and not whole.peer:
                notes[name] = f"{rival / whole.median_ms:.2f}{TIMES} as fast"
        if stacks:
            against = " As fast: against the fastest peer's step, of the same dtype if there is one." if notes else ""
            note = f"{sizes(shape)}. Medians of the parts; {REST} is what they leave of the median step.{against}"
            chart = stack_chart(stacks, x_label="ms a step", colours=SECTIONS, notes=notes)
            cards.append(card(shape.name, note, chart))
    return cards


def loss_cards(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Loss over steps, where a run kept it: ``losses`` maps a title on label -> {"steps": [...], "loss": [...]}.

    Raises:
        ValueError: losses of another form.
    """
    cards = []
    for run, facts in runs.items():
        for title, curves in (facts.get("losses") or {}).items():
            try:
                series = [
                    Series(label, list(map(float, curve["steps"])), list(map(float, curve["loss"])))
                    for label, curve in curves.items()
                ]
            except (AttributeError, KeyError, TypeError) as error:
                raise ValueError(
                    f'losses of run {run}, {title}: expected label -> {{"steps": [...], "loss": [...]}} of numbers'
                ) from error
            if any(len(line.x) != len(line.y) for line in series):
                raise ValueError(f"losses of run {run}, {title}: expected as many losses as steps in each line")
            note = f"Run {run}. Lines that lie on each other learn alike."
            cards.append(card(title, note, line_chart(series, x_label="training step", y_label="loss", log=True)))
    return cards


def _lines(
    rows: Sequence[Measured],
    palette: Mapping[str, int],
    x: Callable[[Measured], float],
    y: Callable[[Measured], float],
    x_label: str,
    y_label: str,
) -> str:
    series = []
    for contender, line in grouped(rows, lambda row: row.contender).items():
        line = sorted(line, key=x)
        ys = [y(row) for row in line]
        series.append(Series(contender, [x(row) for row in line], ys, colour=palette[contender], marks=True))
    return line_chart(series, x_label=x_label, y_label=y_label, log=True, log_x=True)


def _factor_cards(
    rows: Sequence[Measured],
    ratio: Callable[[Measured], tuple[float, float, float] | None],
    x_label: str,
    note: str,
) -> list[str]:
    shown = [row for row in rows if not row.is_floor and not row.is_part and ratio(row) is not None]
    cards = []
    shapes = {op: len({row.shape for row in mine}) for op, mine in grouped(shown, lambda row: row.op).items()}

    def own_card(row: Measured) -> bool:
        return row.op in WHOLE_MODELS or shapes[row.op] >= ALONE

    for (pass_, _), mine in grouped(shown, lambda row: (row.pass_, row.op if own_card(row) else "")).items():
        several = len({row.op for row in mine}) > 1
        groups: dict[str, list[Factor]] = {}
        for row in mine:
            value, low, high = ratio(row) or (1.0, 1.0, 1.0)
            name = f"{row.op} {row.shape.name}" if several else row.shape.name
            dtype = f", {row.dtype}" if len({other.dtype for other in mine}) > 1 else ""
            full = f"{name}: {sizes(row.shape)}{dtype}"
            heading = full if len(full) <= HEADING else name + dtype
            groups.setdefault(heading, []).append(Factor(row.contender, value, low, high, own=not row.peer))
        title = pass_ if several else f"{mine[0].op}, {pass_}"
        cards.append(card(title, note, factor_chart(groups, x_label=x_label)))
    return cards
