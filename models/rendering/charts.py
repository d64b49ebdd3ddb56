"""Lines as inline SVG, coloured by the page's own variables so that they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastvq.models.rendering.axes import (
    COLOURS,
    Frame,
    draw_axes,
    draw_chart,
    draw_legend,
    log_ticks,
    nice_ticks,
    number_text,
)
from fastvq.models.rendering.page import escape

_POINTS = 240
_MARK = 3.6  # half the width of a mark


@dataclass(frozen=True)
class Series:
    """One line: ``y`` over ``x``, both of the same length; values that are not finite leave a gap.

    Attributes:
        label: Name in the legend.
        x: Ascending values.
        y: As many values.
        colour: 0 for the first colour, and so on; by place among the series if absent. From 8 on colours come
            again, with another mark and a dashed line.
        joined: Draw the line.
        marks: Draw every point, with its values on hover.
        limit: A bound that others are seen against: dashed, in the ink of the axes.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None = None
    joined: bool = True
    marks: bool = False
    limit: bool = False


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, log: bool = False, log_x: bool = False
) -> str:
    """Lines or points over common axes.

    Args:
        series: Lines without marks are thinned to 240 points by averaging neighbours.
        x_label: Name and unit of the horizontal axis.
        y_label: Name and unit of the vertical axis.
        log: Logarithmic vertical axis; values of 0 and below leave a gap.
        log_x: Logarithmic horizontal axis; all x must be above 0.

    Returns:
        A ``<div>`` with a legend (from two series on) and the SVG, or a sentence where there is nothing to draw.
    """
    lines = [(entry, *_shown(entry, log=log)) for entry in series]
    values = np.concatenate([y for _, _, y in lines]) if lines else np.zeros(0)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return '<p class="empty">Nothing was recorded.</p>'
    left, right = min(x.min() for _, x, _ in lines), max(x.max() for _, x, _ in lines)
    x_ticks = log_ticks(left, right) if log_x else nice_ticks(left, right, 5)
    low, high = float(finite.min()), float(finite.max())
    y_ticks = log_ticks(low, high) if log else nice_ticks(min(low, 0.0), high, 5)
    # Marks at the very edge would be cut.
    room = (right / left) ** 0.04 if log_x and any(entry.marks for entry in series) else 1.0
    frame = Frame(
        (left / room, right * room) if log_x else (left, right),
        (min(low, y_ticks[0]), max(high, y_ticks[-1])),
        log=log,
        log_x=log_x,
    )
    parts, keys, kinds = [draw_axes(frame, x_ticks, y_ticks, x_label, y_label)], [], []
    for place, (entry, x, y) in reversed(list(enumerate(lines))):  # the first lies on top
        number = place if entry.colour is None else entry.colour
        colour = f"var(--series-{number % COLOURS + 1})"
        if entry.limit:
            parts.append(f'<path class="limit" d="{_path(frame, x, y)}"/>')
            keys.append(("var(--muted)", entry.label))
            kinds.append("dashed")
            continue
        keys.append((colour, entry.label))
        kinds.append("diamond" if entry.marks and number >= COLOURS else "")
        if entry.joined:
            dashes = ' stroke-dasharray="6 3"' if number >= COLOURS else ""
            parts.append(
                f'<path class="line" style="stroke:{colour}"{dashes} d="{_path(frame, x, y)}">'
                f"<title>{escape(entry.label)}</title></path>"
            )
        if entry.marks:
            parts += [
                f'<path class="mark" style="fill:{colour}" d="{_mark(frame.x(at), frame.y(value), number)}">'
                f"<title>{escape(entry.label)}: {number_text(at)}, {number_text(value)}</title></path>"
                for at, value in zip(x, y, strict=True)
                if math.isfinite(value)
            ]
    return draw_chart(parts, y_label, draw_legend(keys[::-1], kinds=kinds[::-1]))


def _shown(series: Series, *, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """At most 240 points: means over equal runs, so that a noisy curve shows its course."""
    x, y = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    if len(x) > _POINTS and not series.marks:
        runs = np.array_split(np.arange(len(x)), _POINTS)
        x, y = np.array([x[run].mean() for run in runs]), np.array([y[run].mean() for run in runs])
    y = np.where(np.isfinite(y) & ((y > 0) | (not log)), y, np.nan)
    return x, y


def _path(frame: Frame, x: np.ndarray, y: np.ndarray) -> str:
    parts, drawing = [], False
    for at, value in zip(x, y, strict=True):
        if not math.isfinite(value):
            drawing = False
            continue
        parts.append(f"{'L' if drawing else 'M'}{frame.x(at):.1f} {frame.y(value):.1f}")
        drawing = True
    return "".join(parts)


def _mark(x: float, y: float, number: int) -> str:
    """A disc, or a diamond once all colours are taken."""
    if number < COLOURS:
        return f"M{x - _MARK:.1f} {y:.1f}a{_MARK} {_MARK} 0 1 0 {2 * _MARK} 0a{_MARK} {_MARK} 0 1 0 {-2 * _MARK} 0z"
    half = _MARK * 1.25
    return f"M{x:.1f} {y - half:.1f}l{half} {half} {-half} {half} {-half} {-half}z"
