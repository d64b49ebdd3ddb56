"""Rows as a table to read: ours first, each contender's time as a multiple of ours, and what the hardware allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fastvq.benchmarks import peers
from fastvq.benchmarks.rows import MOVED

Text = Mapping[str, str]
# The C library maps blocks above this anew for every call (glibc's largest threshold), and each page of them faults
# in again: such a contender's time depends on the kernel's memory as much as on its arithmetic.
MAPPED_MIB = 32
SPREAD = 1.15  # of the quantiles, above which they are shown
EVEN = 1.1  # a ratio below this is no win
LEGEND = (
    "ms: median of turns, the fastest call of each, with quantiles where memory decides or they spread. x ours: that "
    "over the first line's. floor: share of it that the machine needs at least (float32 multiply-adds or bytes). "
    "MiB: peak memory of a call, results included. wrong: rows that differ from what is right."
)


def grouped(rows: Sequence[Text]) -> dict[tuple[str, str], list[Text]]:
    """Rows by (op, shape), in order, those of the machine left out."""
    found: dict[tuple[str, str], list[Text]] = {}
    for row in rows:
        if row["op"] != "machine":
            found.setdefault((row["op"], row["shape"]), []).append(row)
    return found


def last_cases(rows: Sequence[Text]) -> dict[tuple[str, str], list[Text]]:
    """:func:`grouped` of the last run of each case alone."""
    runs = {(row["op"], row["shape"]): row["run_id"] for row in rows}
    return grouped([row for row in rows if runs[row["op"], row["shape"]] == row["run_id"]])


def contender(row: Text) -> str:
    """Who it is: "fastvq exact", or the peer."""
    return row["peer"] or f"fastvq {row['precision']}".strip()


def ratios(rows: Sequence[Text]) -> dict[str, float]:
    """Contender -> its median over that of ours, the first row."""
    ours = float(rows[0]["median_ms"])
    return {contender(row): float(row["median_ms"]) / ours for row in rows}


def quantiles(row: Text) -> str:
    """The 20 % and 80 % quantiles where memory decides or they spread; else nothing, since the median says enough."""
    low, high = float(row["p20_ms"]), float(row["p80_ms"])
    memory = row["floor_kind"] == MOVED or (row["peak_mib"] and float(row["peak_mib"]) > MAPPED_MIB)
    return f"{_ms(low)} to {_ms(high)}" if memory or high > SPREAD * low else ""


def share_of_floor(row: Text) -> float | None:
    """The floor over the median; above 1 where an exact result took less than float32 arithmetic could."""
    return float(row["floor_ms"]) / float(row["median_ms"]) if row["floor_ms"] else None


def remark(rows: Sequence[Text]) -> str:
    """What must be said of a win that is owed to torch's default float32 product; nothing elsewhere."""
    ratio = ratios(rows)
    default = [ratio[name] for name in peers.DEFAULT_PRODUCT if name in ratio]
    if peers.ONEDNN not in ratio or not default or ratio[peers.ONEDNN] >= min(default):
        return ""
    if min(default) >= EVEN > ratio[peers.ONEDNN]:
        return f"a win over torch's default float32 product only: {ratio[peers.ONEDNN]:.2f}x through oneDNN"
    return f"torch's best goes through oneDNN: {ratio[peers.ONEDNN]:.1f}x, by its default product {min(default):.1f}x"


def machine_line(rows: Sequence[Text]) -> str:
    """The machine's speed, measured in the same run."""
    parts = []
    for row in rows:
        if row["op"] == "machine":
            seconds = float(row["median_ms"]) / 1e3
            if row["pass"] == "copy":
                parts.append(f"copies {int(row['N']) / seconds / 1e9:.0f} GB/s")
            else:
                work = 2 * int(row["N"]) * int(row["K"]) * int(row["D"])
                parts.append(f"{row['pass']} {work / seconds / 1e9:.0f} GFLOP/s")
    first = rows[0]
    return f"{first['device']}, {first['threads']} threads, torch {first['torch']}: {'; '.join(parts)}"


def show(rows: Sequence[Text], console: Console) -> None:
    """Prints the table and what it was measured on."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for heading in ("ms", "x ours", "floor", "MiB", "wrong"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("20 to 80 %", no_wrap=True)
    remarks = []
    for (op, shape), found in grouped(rows).items():
        ratio = ratios(found)
        table.add_row(f"{op} {shape}", style="bold")
        for number, row in enumerate(found):
            share = share_of_floor(row)
            table.add_row(
                "  " + contender(row),
                _ms(float(row["median_ms"])),
                f"{ratio[contender(row)]:.2f}",
                "" if share is None else f"{share:.0%}",
                f"{float(row['peak_mib']):.1f}" if row["peak_mib"] else "",
                row["mismatch_rows"],
                quantiles(row),
                end_section=number == len(found) - 1,
            )
        if said := remark(found):
            remarks.append(f"{op} {shape}: {said}.")
    console.print(table, soft_wrap=False)
    console.print(LEGEND, style="dim")
    for line in (machine_line(rows), *remarks):
        console.print(line)


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
