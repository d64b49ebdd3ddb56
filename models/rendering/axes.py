"""What charts are drawn on: axes with round ticks, linear or logarithmic, and the SVG around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastvq.models.rendering.page import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 68, 12, 14, 42
COLOURS = 8


@dataclass(frozen=True)
class Frame:
    """Maps values onto the drawing area, whose corners a chart may move."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool = False
    log_x: bool = False
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM

    def x(self, value: float) -> float:
        """Units from the left edge of the chart."""
        return self.left + _share(value, self.x_range, self.log_x) * (WIDTH - self.left - self.right)

    def y(self, value: float) -> float:
        """Units from the top edge of the chart."""
        return (
            self.height - self.bottom - _share(value, self.y_range, self.log) * (self.height - self.top - self.bottom)
        )


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


def tick_text(value: float) -> str:
    """A round number beside an axis: 0.05, 2,000, 5M."""
    if 1e6 <= abs(value) < 1e12:
        return f"{value / 1e6:,.0f}M" if abs(value) < 1e9 else f"{value / 1e9:,.0f}G"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:g}"


def draw_axes(frame: Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> str:
    """Grid, ticks and names of both axes; without ``y_ticks`` the vertical one is left to the chart."""
    bottom, right = frame.height - frame.bottom, WIDTH - frame.right
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<path class="grid" d="M{frame.left} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_text(tick)}</text>')
    for tick in x_ticks:
        x = frame.x(tick)
        if frame.left - 1 <= x <= right + 1:
            parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick_text(tick)}</text>')
    parts.append(f'<path class="axis" d="M{frame.left} {bottom}H{right}"/>')
    middle_x, middle_y = (frame.left + right) / 2, (frame.top + bottom) / 2
    parts.append(f'<text x="{middle_x}" y="{frame.height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    if y_label:
        parts.append(
            f'<text transform="translate(13 {middle_y}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        )
    return "".join(parts)


def draw_legend(keys: Sequence[tuple[str, str]], *, kinds: Sequence[str] = ()) -> str:
    """(colour, label) pairs as a line of keys below a chart; a single one needs no key.

    Args:
        keys: CSS colours and plain texts.
        kinds: Further classes of each key: "diamond", "dashed" or nothing.
    """
    if len(keys) < 2:
        return ""
    entries = "".join(
        f'<span><span class="key {kind}" style="color:{colour}"></span>{escape(label)}</span>'
        for kind, (colour, label) in zip(kinds or [""] * len(keys), keys, strict=True)
    )
    return f'<p class="chart-legend">{entries}</p>'


def draw_chart(parts: Sequence[str], name: str, legend: str = "", *, height: int = HEIGHT) -> str:
    """The ``<div>`` of a chart: its SVG, named for those who cannot see it, and the legend."""
    return (
        f'<div class="chart"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">'
        f"{''.join(parts)}</svg>{legend}</div>"
    )


def _share(value: float, ends: tuple[float, float], log: bool) -> float:
    low, high = ends
    if log:
        low, high, value = math.log10(low), math.log10(high), math.log10(value)
    return (value - low) / ((high - low) or 1.0)
