"""Bars as inline SVG: one an item, factors either side of one, and stacks of parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fastvq.models.rendering.axes import (
    COLOURS,
    LEFT,
    RIGHT,
    WIDTH,
    Frame,
    draw_axes,
    draw_chart,
    draw_legend,
    log_ticks,
    nice_ticks,
    number_text,
)
from fastvq.models.rendering.page import escape

TIMES = "\N{MULTIPLICATION SIGN}"
_NAME = 31  # characters of a name at the left of a lying bar; what is longer is cut, and whole on hover
_LETTER = 7.4  # units of room for each
_FOOT = 40  # ticks and name of the axis below lying bars
_SLOT = 20  # a lying bar with the space around it


@dataclass(frozen=True)
class Factor:
    """A bar from 1 to ``value``, with its range; all above 0. One of our ``own`` is grey, be it long or short."""

    label: str
    value: float
    low: float
    high: float
    own: bool = False


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
    frame = Frame((-0.5, count - 0.5), (0.0, limit * 1.12))
    step = max(1, math.ceil(count / 8))
    x_ticks = [float(index) for index in range(0, count, step)]
    y_ticks = [tick for tick in nice_ticks(0.0, limit, 5) if tick <= limit]
    parts = [draw_axes(frame, x_ticks, y_ticks, x_label, y_label)]
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
    return draw_chart(parts, y_label)


def factor_chart(groups: Mapping[str, Sequence[Factor]], *, x_label: str) -> str:
    """Lying bars on a logarithmic axis, to the right of 1 in one colour and to its left in another.

    Args:
        groups: Heading -> bars.
        x_label: Name of the factor.
    """
    factors = [factor for group in groups.values() for factor in group]
    if not factors:
        return '<p class="empty">Nothing was recorded.</p>'
    low = min(1.0, *(factor.low for factor in factors))
    high = max(1.0, *(factor.high for factor in factors))
    room = max((high / low) ** 0.03, 1.02)
    height = _SLOT * (len(factors) + len(groups)) + _FOOT + 6
    left = round(24 + _LETTER * min(_NAME, max(len(factor.label) for factor in factors)))
    frame = Frame((low / room, high * room), (0, 1), log_x=True, height=height, left=left, right=52, top=6)
    ticks = log_ticks(low, high) if high / low > 3 else nice_ticks(low, high, 4)
    parts, y = [draw_axes(frame, [tick for tick in ticks if tick > 0], (), x_label, "")], 6.0
    for heading, group in groups.items():
        parts.append(f'<text class="heading" x="4" y="{y + 14:.1f}">{escape(heading)}</text>')
        y += _SLOT
        parts.append(f'<path class="limit" d="M{frame.x(1):.1f} {y:.1f}v{_SLOT * len(group)}"/>')
        for factor in group:
            parts.append(_factor(frame, factor, y))
            y += _SLOT
    return draw_chart(parts, x_label, height=height)


def stack_chart(
    stacks: Mapping[str, Mapping[str, float]],
    *,
    x_label: str,
    colours: Mapping[str, int],
    notes: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Lying bars made of parts, one a stack, on one scale from 0, with their totals at the end.

    Args:
        stacks: Name of the bar -> name of the part -> length, at least 0.
        x_label: Name and unit of a length.
        colours: Part -> number of its colour; a part that is not there is grey. Parts are drawn in this order.
        notes: Name of the bar -> words behind it.
    """
    totals = {name: sum(parts.values()) for name, parts in stacks.items()}
    top = max(totals.values(), default=0.0)
    if top <= 0:
        return '<p class="empty">Nothing was recorded.</p>'
    slot = 2 * _SLOT + 4
    height = slot * len(stacks) + _FOOT + 6
    ticks = nice_ticks(0.0, top, 5)
    frame = Frame((0.0, max(top, ticks[-2])), (0, 1), height=height, left=8, right=58, top=6)
    drawn, keys = [draw_axes(frame, [tick for tick in ticks if tick <= top], (), x_label, "")], {}
    order = [*colours, *sorted({part for parts in stacks.values() for part in parts} - set(colours))]
    for place, (name, parts) in enumerate(stacks.items()):
        at, y = 0.0, 6.0 + slot * place
        note = f'<tspan class="note-behind" dx="8">{escape(notes[name])}</tspan>' if name in notes else ""
        drawn.append(f'<text class="heading" x="8" y="{y + 13:.1f}">{escape(name)}{note}</text>')
        for part in order:
            if part not in parts:
                continue
            keys[part] = colour = (
                f"var(--series-{colours[part] % COLOURS + 1})" if part in colours else "var(--ghost)"
            )
            x, width = frame.x(at), frame.x(at + parts[part]) - frame.x(at)
            text = number_text(float(f"{parts[part]:.3g}"))
            drawn.append(
                f'<rect class="part" style="fill:{colour}" x="{x:.1f}" y="{y + 18:.1f}" '
                f'width="{width:.1f}" height="20">'
                f"<title>{escape(name)}, {escape(part)}: {number_text(parts[part])}</title></rect>"
            )
            if width > 9 * len(text) + 4:
                drawn.append(
                    f'<text class="inside" x="{x + width / 2:.1f}" y="{y + 32.5:.1f}" '
                    f'text-anchor="middle">{text}</text>'
                )
            at += parts[part]
        total = number_text(float(f"{totals[name]:.3g}"))
        drawn.append(f'<text class="value" x="{frame.x(at) + 5:.1f}" y="{y + 32.5:.1f}">{total}</text>')
    return draw_chart(drawn, x_label, draw_legend([(colour, part) for part, colour in keys.items()]), height=height)


def _factor(frame: Frame, factor: Factor, y: float) -> str:
    one, end = frame.x(1), frame.x(factor.value)
    kind = "bar own" if factor.own else "bar" if factor.value >= 1 else "bar worse"
    middle = y + _SLOT / 2
    low, high = frame.x(factor.low), frame.x(factor.high)
    digits = 0 if factor.value >= 9.95 else 1 if factor.value >= 1.995 else 2
    text = f"{factor.value:.{digits}f}{TIMES}"
    label = factor.label if len(factor.label) <= _NAME else f"{factor.label[: _NAME - 3]}..."
    return (
        f'<text x="{frame.left - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        f'<rect class="{kind}" x="{min(one, end):.1f}" y="{y + 4:.1f}" width="{abs(end - one):.1f}" height="12">'
        f"<title>{escape(factor.label)}: {number_text(factor.value)}, "
        f"from {number_text(factor.low)} to {number_text(factor.high)}</title></rect>"
        f'<path class="range" d="M{low:.1f} {middle:.1f}H{high:.1f}"/>'
        f'<text class="value" x="{max(one, end, high) + 5:.1f}" y="{middle + 4:.1f}">{text}</text>'
    )
