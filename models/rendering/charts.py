"""Charts as inline SVG, coloured by the page's own variables so that they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastvq.models.rendering.page import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 42
_COLOURS = 6
_POINTS = 240


@dataclass(frozen=True)
class Series:
    """One line: ``y`` over ``x``, both of the same length; values that are not finite leave a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, log: bool = False) -> str:
    """Lines over a common axis.

    Args:
        series: At most six; longer ones are thinned to 240 points by averaging neighbours.
        x_label: Name and unit of the horizontal axis.
        y_label: Name and unit of the vertical axis.
        log: Logarithmic vertical axis; values of 0 and below leave a gap.

    Returns:
        A ``<div>`` with a legend (from two series on) and the SVG, or a sentence where there is nothing to draw.
    """
    lines = [(entry.label, *_thin(entry, log=log)) for entry in series[:_COLOURS]]
    values = np.concatenate([y for _, _, y in lines]) if lines else np.zeros(0)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return '<p class="empty">Nothing was recorded.</p>'
    x_ticks = nice_ticks(min(x.min() for _, x, _ in lines), max(x.max() for _, x, _ in lines), 5)
    low, high = float(finite.min()), float(finite.max())
    y_ticks = log_ticks(low, high) if log else nice_ticks(min(low, 0.0), high, 5)
    frame = _Frame(
        (min(x.min() for _, x, _ in lines), max(x.max() for _, x, _ in lines)),
        (min(low, y_ticks[0]), max(high, y_ticks[-1])),
        log=log,
    )
    parts = [_axes(frame, x_ticks, y_ticks, x_label, y_label)]
    for number, (label, x, y) in enumerate(lines, start=1):
        parts.append(
            f'<path class="line" style="stroke:var(--series-{number})" d="{_path(frame, x, y)}">'
            f"<title>{escape(label)}</title></path>"
        )
    legend = "".join(
        f'<span><span class="key" style="background:var(--series-{number})"></span>{escape(label)}</span>'
        for number, (label, _, _) in enumerate(lines, start=1)
    )
    return _chart(parts, y_label, f'<p class="chart-legend">{legend}</p>' if len(lines) > 1 else "")


def bar_chart(values: Sequence[float], *, x_label: str, y_label: str, limit: float, limit_label: str) -> str:
    """One bar per item, numbered from 0, against a value that none can exceed.

    Args:
        values: Finite, between 0 and ``limit``.
        x_label: What an item is.
        y_label: Name and unit of the height.
        limit: Top of the scale, > 0, drawn as a dashed line.
        limit_label: Text beside that line.
    """
    count = len(values)
    frame = _Frame((-0.5, count - 0.5), (0.0, limit * 1.12), log=False)
    step = max(1, math.ceil(count / 8))
    x_ticks = [float(index) for index in range(0, count, step)]
    y_ticks = [tick for tick in nice_ticks(0.0, limit, 5) if tick <= limit]
    parts = [_axes(frame, x_ticks, y_ticks, x_label, y_label)]
    slot = (WIDTH - LEFT - RIGHT) / max(count, 1)
    width = min(slot * 0.78, 40)
    for index, value in enumerate(values):
        x, y = frame.x(index) - width / 2, frame.y(value)
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{frame.y(0) - y:.1f}">'
            f"<title>{escape(x_label)} {index}: {number_text(value)}</title></rect>"
        )
    top = frame.y(limit)
    parts.append(f'<path class="limit" d="M{LEFT} {top:.1f}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{top - 4:.1f}" text-anchor="end">{escape(limit_label)}</text>')
    return _chart(parts, y_label, "")


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round values (1, 2 or 5 times a power of ten) that span from low to high."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with their double and quintuple where the values span less than two decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    every = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max([index for index, tick in enumerate(every) if tick <= low * 1.001], default=0)
    stop = min([index for index, tick in enumerate(every) if tick >= high * 0.999], default=len(every) - 1)
    return every[start : max(stop, start + 1) + 1]


def number_text(value: float) -> str:
    """A number as a person writes it: 1,234 or 0.0123, never 1e+03 below a million."""
    if not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:,.{digits}f}"


def _tick_text(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:g}"


@dataclass(frozen=True)
class _Frame:
    """Maps values onto the drawing area."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / ((high - low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high, at = *self.y_range, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return HEIGHT - BOTTOM - (at - low) / ((high - low) or 1.0) * (HEIGHT - TOP - BOTTOM)


def _thin(series: Series, *, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """At most 240 points: means over equal runs, so that a noisy curve shows its course."""
    x, y = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    if len(x) > _POINTS:
        runs = np.array_split(np.arange(len(x)), _POINTS)
        x, y = np.array([x[run].mean() for run in runs]), np.array([y[run].mean() for run in runs])
    y = np.where(np.isfinite(y) & ((y > 0) | (not log)), y, np.nan)
    return x, y


def _path(frame: _Frame, x: np.ndarray, y: np.ndarray) -> str:
    parts, drawing = [], False
    for at, value in zip(x, y, strict=True):
        if not math.isfinite(value):
            drawing = False
            continue
        parts.append(f"{'L' if drawing else 'M'}{frame.x(at):.1f} {frame.y(value):.1f}")
        drawing = True
    return "".join(parts)


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick_text(tick)}</text>')
    for tick in x_ticks:
        x = frame.x(tick)
        if LEFT - 1 <= x <= right + 1:
            parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_tick_text(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(f'<text x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(13 {middle_y}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _chart(parts: Sequence[str], name: str, legend: str) -> str:
    return (
        f'<div class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
        f"{''.join(parts)}</svg>{legend}</div>"
    )
