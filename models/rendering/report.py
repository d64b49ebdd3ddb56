"""The page that ends a training run: what the tokenizer achieves, how it moves, and how it got there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastvq.models.rendering.bars import bar_chart
from fastvq.models.rendering.charts import Series, line_chart
from fastvq.models.rendering.page import escape, page, write_page
from fastvq.models.rendering.player import LEGEND, PLAYER_SCRIPTS, PLAYER_STYLES, player_figure
from fastvq.models.rendering.scene import Scene


@dataclass(frozen=True)
class Metric:
    """A row of the headline table.

    Attributes:
        label: Name of the quantity.
        value: The number with its unit, as text.
        meaning: One plain sentence for readers who have never met it.
        headline: Shown as a large number above the table as well.
    """

    label: str
    value: str
    meaning: str
    headline: bool = False


@dataclass(frozen=True)
class Curves:
    """One chart of values over training steps.

    Attributes:
        title: Heading.
        y_label: Name and unit of the vertical axis.
        series: Lines, at most six.
        log: Logarithmic vertical axis.
        note: A sentence below the heading; may be empty.
    """

    title: str
    y_label: str
    series: Sequence[Series]
    log: bool = True
    note: str = ""


@dataclass(frozen=True)
class Usage:
    """How often each code was used.

    Attributes:
        counts: (G, K) integers >= 0.
        source: Which clips were counted, for example "the held-out clips".
        stream: What G counts, "group" or "stage".
        pooled: Whether all use the same codes.
    """

    counts: np.ndarray
    source: str
    stream: str = "group"
    pooled: bool = False


@dataclass(frozen=True)
class Report:
    """Everything that ``report.html`` shows; plain text throughout, escaped when it is written."""

    title: str
    summary: str
    metrics: Sequence[Metric]
    scenes: Sequence[Scene]
    curves: Sequence[Curves]
    usage: Usage | None
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str
    notes: Sequence[str] = field(default_factory=tuple)
    scenes_note: str = ""


def write_report(path: Path, report: Report) -> None:
    """Writes the report as one HTML file that opens without a network.

    Raises:
        ValueError: a scene with joints that are not finite.
        UserError: the file cannot be written.
    """
    body = "\n".join(
        part
        for part in (
            '<main class="report">',
            f"<header><h1>{escape(report.title)}</h1><p>{escape(report.summary)}</p></header>",
            _results(report.metrics),
            "".join(f'<p class="note">{escape(note)}</p>' for note in report.notes),
            _motions(report.scenes, report.scenes_note),
            _training(report.curves),
            _usage(report.usage) if report.usage is not None else "",
            _table_section("configuration", "Configuration", report.config),
            _table_section("environment", "Environment", report.environment),
            '<section id="command"><h2>Command</h2><p>This run was made by</p>'
            f"<pre>{escape(report.command)}</pre></section>",
            "</main>",
        )
        if part
    )
    styles = (*PLAYER_STYLES, "report.css")
    write_page(path, page(report.title, body, styles=styles, scripts=PLAYER_SCRIPTS))


def group_perplexity(counts: np.ndarray) -> np.ndarray:
    """(G) exp of the entropy of each group's code frequencies; 0 for a group that was never used.

    Args:
        counts: (G, K) integers >= 0.
    """
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(total, 1)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
    return np.where(total[:, 0] > 0, np.exp(entropy), 0.0)


def _results(metrics: Sequence[Metric]) -> str:
    tiles = "".join(
        f'<div class="tile"><span class="tile-value">{escape(metric.value)}</span>'
        f'<span class="tile-label">{escape(metric.label)}</span></div>'
        for metric in metrics
        if metric.headline
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(metric.label)}</th><td class="number">{escape(metric.value)}</td>'
        f"<td>{escape(metric.meaning)}</td></tr>"
        for metric in metrics
    )
    return (
        f'<section id="results"><h2>Results</h2><div class="tiles">{tiles}</div>'
        '<table class="metrics"><thead><tr><th scope="col">Measure</th><th scope="col" class="number">Value</th>'
        f'<th scope="col">What it says</th></tr></thead><tbody>{rows}</tbody></table></section>'
    )


def _motions(scenes: Sequence[Scene], note: str) -> str:
    if scenes:
        cards = "".join(player_figure([scene], f"scene-{index}") for index, scene in enumerate(scenes))
        content = f'{LEGEND}<div class="players">{cards}</div>'
    else:
        content = '<p class="empty">There was no clip to show.</p>'
    return (
        '<section id="motions"><h2>Original and reconstruction</h2>'
        "<p>Each motion beside what comes back from its tokens. The error is the mean distance between the two, "
        f"over all joints and frames, with both pelvises at the same place. {escape(note)}</p>{content}</section>"
    )


def _training(curves: Sequence[Curves]) -> str:
    cards = "".join(
        f'<div class="card"><h3>{escape(chart.title)}</h3>'
        + (f"<p>{escape(chart.note)}</p>" if chart.note else "")
        + line_chart(chart.series, x_label="training step", y_label=chart.y_label, log=chart.log)
        + "</div>"
        for chart in curves
    )
    content = f'<div class="charts">{cards}</div>' if cards else '<p class="empty">Nothing was recorded.</p>'
    return f'<section id="training"><h2>Training</h2>{content}</section>'


def _usage(usage: Usage) -> str:
    counts = np.asarray(usage.counts)
    groups, codes = counts.shape
    tokens = int(counts.sum(axis=1).max(initial=0))
    perplexity, used = group_perplexity(counts), (counts > 0).sum(axis=1)
    reachable = min(codes, max(tokens, 1))
    ceiling = f"{codes} codes" if reachable == codes else f"{reachable} reachable with {tokens:,} tokens"
    rows = "".join(
        f'<tr><th scope="row">{group}</th><td class="number">{perplexity[group]:.1f}</td>'
        f'<td class="number">{used[group]}</td><td class="number">{used[group] / codes:.1%}</td></tr>'
        for group in range(groups)
    )
    stream = usage.stream
    whose = f"All {groups} {stream}s share" if usage.pooled else f"Each of the {groups} {stream}s has its own"
    text = (
        f"{whose} {codes} codes. Counted over {usage.source}: {tokens:,} tokens in "
        f"each {stream}. Perplexity is the number of equally frequent codes that would carry as much information; "
        f"a {stream} far below the others wastes its tokens."
    )
    return (
        f'<section id="usage"><h2>Code usage per {stream}</h2><p>{escape(text)}</p><div class="charts">'
        '<div class="card"><h3>Perplexity</h3>'
        + bar_chart(perplexity.tolist(), x_label=stream, y_label="perplexity", limit=reachable, limit_label=ceiling)
        + '</div><div class="card"><h3>Codes in use</h3>'
        + bar_chart(used.tolist(), x_label=stream, y_label="codes used", limit=reachable, limit_label=ceiling)
        + "</div></div><details><summary>The numbers</summary>"
        f'<div class="scroll"><table class="numbers"><thead><tr><th scope="col">{stream.capitalize()}</th>'
        '<th scope="col" class="number">Perplexity</th><th scope="col" class="number">Codes used</th>'
        f'<th scope="col" class="number">Share</th></tr></thead><tbody>{rows}</tbody></table>'
        "</div></details></section>"
    )


def _table_section(name: str, title: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(_value_text(value))}</td></tr>'
        for key, value in flatten(values).items()
    )
    return f'<section id="{name}"><h2>{title}</h2><table class="settings"><tbody>{rows}</tbody></table></section>'


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level, ``model.width`` and the like."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value_text(item) for item in value) if value else "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)
