"""One page of benchmarks: tables and figures from rows, in a file that opens without a network.

Run ``python -m benchmarks.report CSV... --out page.html``. Ratios are formed within one run; of several runs that
measured the same thing the newest is shown. A file ``NAME.json`` beside ``NAME.csv`` may tell more of its runs: their
command, and losses over training steps.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvq.benchmarks import plots
from fastvq.benchmarks.measured import SCALING, Comparison, Measured, newest, parse
from fastvq.benchmarks.rows import read_rows
from fastvq.models.rendering import page as pages
from fastvq.models.rendering.axes import number_text
from fastvq.models.rendering.bars import TIMES
from fastvq.models.rendering.page import escape

RUNS_SCHEMA = "fastvq-bench-runs/1"
_HERE = Path(__file__).resolve().parent
_READING = {
    "Time": "Median over turns of each turn's fastest call; beside it the 20th and 80th percentile. Peers "
    "that write large matrices swing with the system's page faults, and their range shows it.",
    "Ratio": "A row's median over the median of fastvq's exact search in the same run, at the same shape and dtype. "
    "Above 1, fastvq is faster. The thin line in the charts spans p20 over p80 to p80 over p20 of the two.",
    "Share of the floor": "The least time that the named limit of this machine allows, over the time taken. The "
    "limit is measured in the same run. Above 100 % a contender found a way around that limit, as our search does "
    "when it goes through bytes or bfloat16 and a float32 multiply-add is the limit named.",
    "Peak memory": "The most memory a call took beyond what was there before it.",
    "Wrong codes": "Rows whose code is farther away, in float64, than the nearest one. Ours must have none: no time "
    "of ours is taken before that holds, and a row that failed its gate gives no ratio.",
}


def write_page(
    rows: Sequence[Mapping[str, str]],
    path: Path,
    runs: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes the page of some benchmark rows.

    Args:
        rows: rows as :func:`~fastvq.benchmarks.rows.read_rows` gives them, of one run or several.
        path: the HTML file; replaced whole or left as it was.
        runs: run_id -> what its rows do not tell, both optional: ``command`` (text) and ``losses``
            (title -> label -> {"steps": [...], "loss": [...]}).

    Raises:
        ValueError: no rows, columns that are not there, another schema, values that are no numbers, or losses of
            another form.
        UserError: the file cannot be written.
    """
    every = parse({tuple(row.items()): row for row in rows}.values())  # a file given twice counts once
    if not every:
        raise ValueError("rows: expected at least one, got none: run a benchmark first")
    runs = runs or {}
    shown, comparison = newest(every), Comparison(every)
    palette = plots.colours(shown)
    usual = [row for row in shown if not row.pass_.startswith(SCALING)]
    ratios = plots.ratio_cards(shown, comparison)
    parts = [
        '<main class="report">',
        _header(shown),
        _tiles(usual, comparison),
        _peers(usual, comparison),
        _section(
            "training",
            "A whole training step",
            "Same weights, same batches; the parts of the step where they were timed.",
            plots.step_cards(shown) + plots.loss_cards(runs),
        ),
        _section("ratios", "Time against fastvq", "By shape, each peer beside the others.", ratios),
        _section(
            "memory",
            "Memory",
            "Without a matrix of all scores, memory grows with rows and codes, and not with their product.",
            plots.memory_cards(shown, comparison, palette),
        ),
        _section(
            "roofline",
            "Roofline",
            "How far a search is from what the machine can do, at the work it does for each byte. Our search runs "
            "its first pass in bytes or in bfloat16, and can so pass the line of float32 multiply-adds.",
            plots.roofline_cards(usual, palette),
        ),
        _section(
            "scaling",
            "Scaling",
            "One size grows by factors of two, all others stay. A level line costs the same for every row.",
            plots.scaling_cards(shown, palette),
        ),
        _table(shown, comparison),
        _sources(every, shown, runs),
        _reading(),
        "</main>",
    ]
    body = "\n".join(part for part in parts if part)
    text = pages.page(
        "fastvq benchmarks", body, styles=("report.css", _HERE / "report.css"), scripts=(_HERE / "report.js",)
    )
    pages.write_page(path, text)


def read_runs(path: Path) -> dict[str, dict[str, Any]]:
    """What the JSON file beside a CSV tells of its runs; nothing where there is none.

    Raises:
        ValueError: a file that is no JSON, or of another schema.
    """
    beside = path.with_suffix(".json")
    if not beside.exists():
        return {}
    try:
        held = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{beside.name} is no JSON ({error}): write it again or take it away") from error
    schema = held.get("schema") if isinstance(held, dict) else None
    if schema != RUNS_SCHEMA:
        raise ValueError(f"{beside.name} holds schema {schema!r}, this version reads {RUNS_SCHEMA!r}")
    return {str(run): dict(facts) for run, facts in held.get("runs", {}).items()}


def _header(rows: Sequence[Measured]) -> str:
    devices = dict.fromkeys(row.environment["device"] for row in rows)
    newest_run = max(rows, key=lambda row: row.environment["utc"]).environment
    text = f"{', '.join(devices)}; torch {newest_run['torch']}; {newest_run['utc'][:10]}."
    return f"<header><h1>fastvq benchmarks</h1><p>{escape(text)}</p></header>"


def _tiles(rows: Sequence[Measured], comparison: Comparison) -> str:
    compared = comparison.with_peers(rows)
    slower = sum(ratio < 1 for _, ratio in compared)
    failed = sum(not row.peer and row.gate != "pass" for row in rows)
    exact = [row for row in rows if not row.peer and row.precision == "exact" and row.wrong is not None]
    tiles = {
        "timings": f"{sum(row.is_time for row in rows):,}",
        "comparisons with peers": f"{len(compared):,}",
        "of them where fastvq is slower": f"{slower:,}",
        "rows of ours that failed their gate": f"{failed:,}",
        "wrong codes in exact searches": f"{sum(row.wrong or 0 for row in exact):,}" if exact else "not counted",
    }
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><span class="tile-value">{escape(value)}</span>'
            f'<span class="tile-label">{escape(label)}</span></div>'
            for label, value in tiles.items()
        )
        + "</div>"
    )


def _peers(rows: Sequence[Measured], comparison: Comparison) -> str:
    compared = comparison.with_peers(rows)
    if not compared:
        return ""
    by_peer: dict[str, list[tuple[Measured, float]]] = {}
    for row, ratio in compared:
        by_peer.setdefault(f"{row.peer} {row.version}".strip(), []).append((row, ratio))
    lines = []
    for name, mine in by_peer.items():
        values = [ratio for _, ratio in mine]
        slower = [f"{row.op} {row.pass_} {row.shape.name}" for row, ratio in mine if ratio < 1]
        numbers = "".join(
            f'<td class="number">{_ratio_text(value)}</td>'
            for value in (min(values), statistics.median(values), max(values))
        )
        lines.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="number">{len(mine)}</td>{numbers}'
            f"<td>{_places(slower)}</td></tr>"
        )
    heads = ("Comparisons", "Least", "Median", "Greatest")
    return (
        '<section id="peers"><h2>Each peer</h2><p>Its time over ours, in every comparison of this page.</p>'
        '<div class="across"><table class="numbers"><thead><tr><th scope="col">Peer</th>'
        + "".join(f'<th scope="col" class="number">{head}</th>' for head in heads)
        + '<th scope="col">Faster than fastvq at</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _places(names: Sequence[str]) -> str:
    text = escape("; ".join(names) or "nowhere")
    if len(names) < 4:
        return text
    return f'<details class="places"><summary>{len(names)} of them</summary>{text}</details>'


def _section(name: str, title: str, text: str, cards: Sequence[str]) -> str:
    if not cards:
        return ""
    return (
        f'<section id="{name}"><h2>{escape(title)}</h2><p>{escape(text)}</p>'
        f'<div class="charts">{"".join(cards)}</div></section>'
    )


def _table(rows: Sequence[Measured], comparison: Comparison) -> str:
    numeric = ("Median ms", "p20 to p80 ms", "Ratio", "Of floor", "Peak MiB", "Wrong")
    heads = ("Op", "Shape", "Dtype", "Contender", *numeric, "Run")
    kinds = {name: ' class="number"' if name in numeric else "" for name in heads}
    head = "".join(f'<th scope="col"{kinds[name]}><button type="button">{name}</button></th>' for name in heads)
    lines = []
    for row in rows:
        ratio = comparison.ratio(row)
        share = row.floor_ms / row.median_ms if row.floor_ms and row.median_ms else None
        texts = (f"{row.op}, {row.pass_}", f"{row.shape.name}: {plots.sizes(row.shape)}", row.dtype)
        mine = comparison.ours(row) is row
        kind = "own" if mine else "failed" if row.gate != "pass" else ""
        title = f"{row.reps} repetitions; {row.version}; gate: {row.gate}"
        cells = [f"<td>{escape(text)}</td>" for text in texts]
        cells += [
            f'<td title="{escape(title)}">{escape(row.contender)}</td>',
            _cell(row.median_ms, number_text(row.median_ms)),
            _cell(row.p80_ms - row.p20_ms, f"{number_text(row.p20_ms)} to {number_text(row.p80_ms)}"),
            _cell(1.0, "1") if mine else _cell(ratio and ratio[0], _ratio_text(ratio[0]) if ratio else ""),
            _cell(share, f"{share:.{0 if share > 0.1 else 1}%}" if share else "", row.floor_kind),
            _cell(row.peak_mib, "" if row.peak_mib is None else number_text(row.peak_mib)),
            _cell(row.wrong, "" if row.wrong is None else f"{row.wrong:,}"),
            f"<td>{escape(row.run)}</td>",
        ]
        lines.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    return (
        '<section id="rows"><h2>All rows</h2><p>Bold: what ratios are formed against. Press a head to sort.</p>'
        '<label class="filter">Show only rows with these words'
        '<input type="search" data-filters="all-rows" placeholder="nearest faiss"></label>'
        f'<div class="scroll wide"><table class="compact sortable" id="all-rows"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _cell(value: float | None, text: str, title: str = "") -> str:
    held = "" if value is None else f"{value:.9g}"
    return (
        f'<td class="number" data-value="{held}"' + (f' title="{escape(title)}"' if title else "") + f">{text}</td>"
    )


def _ratio_text(value: float) -> str:
    return f"{value:.1f}{TIMES}" if value >= 9.95 else f"{value:.2f}{TIMES}"


def _sources(every: Sequence[Measured], shown: Sequence[Measured], runs: Mapping[str, Mapping[str, Any]]) -> str:
    names = ("device", "threads", "cpu_flags", "driver", "torch", "triton", "python", "commit", "utc")
    heads = ("Run", "Rows", "Device", "Threads", "CPU flags", "CUDA", "torch", "Triton", "Python", "Commit", "UTC")
    lines, commands = [], []
    for run, mine in plots.grouped(shown, lambda row: row.run).items():
        about = dict(mine[0].environment)
        if about["dirty"] == "true":
            about["commit"] += " and changes"
        cells = "".join(f"<td>{escape(about[name])}</td>" for name in names)
        lines.append(f'<tr><th scope="row">{escape(run)}</th><td class="number">{len(mine)}</td>{cells}</tr>')
        command = str(runs.get(run, {}).get("command") or "fastvq bench")
        commands.append(f"# run {run}\ngit checkout {about['commit'].split(' ')[0]}\n{command}")
    older = len(every) - len(shown)
    note = f" {older:,} older rows of the same files, measured again since, are not shown." if older else ""
    return (
        '<section id="sources"><h2>Where the numbers come from</h2>'
        f"<p>Every row names its run, and ratios never cross runs.{note}</p>"
        '<div class="across"><table class="compact"><thead><tr>'
        + "".join(f'<th scope="col">{head}</th>' for head in heads)
        + f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        "<h3>To measure again</h3><p>On a machine with nothing else to do:</p>"
        f"<pre>{escape(chr(10).join(commands))}</pre></section>"
    )


def _reading() -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _READING.items())
    return f'<section id="reading"><h2>How to read it</h2><dl class="reading">{items}</dl></section>'


def _command(stem: str) -> str:
    """What writes a file of this name: the benchmark called like it, or all of them."""
    known = stem.isidentifier() and stem != "registry" and importlib.util.find_spec(f"fastvq.benchmarks.{stem}")
    return f"python -m benchmarks.{stem}" if known else "fastvq bench"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where the page was written, 2 where the input is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, nargs="+", help="files of rows")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.html"), help="the page")
    options = parser.parse_args(arguments)
    rows: list[dict[str, str]] = []
    runs: dict[str, dict[str, Any]] = {}
    try:
        for path in options.csv:
            read = read_rows(path)
            command = _command(path.stem)
            facts = read_runs(path)
            for run in dict.fromkeys(row.get("run_id", "") for row in read):
                runs[run] = {"command": command, **facts.get(run, {})}
            rows += read
        write_page(rows, options.out, runs)
    except (OSError, ValueError, csv.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(rows):,} rows of {len(runs):,} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
