"""Small plots of figures over time as inline SVG: no script, no network, no colour needed.

Series are told apart by dash and marker, and each is named at its last point. A plot has a title and
a description that screen readers tell; the page puts the figures beside it as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from typing import Final

LEFT, RIGHT, TOP, BOTTOM = 46, 12, 8, 20
DASHES: Final = ("", "6 3", "2 2", "8 3 2 3")
STEPS: Final = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        points: (when, value, lower, upper); lower and upper None where there is no interval, value None leaves a gap.
        dash: of `DASHES`.
        marker: circle, square, cross, or none.
        step: whether a value holds until the next one.
    """

    name: str
    points: Sequence[tuple[datetime, float | None, float | None, float | None]]
    dash: int = 0
    marker: str = "circle"
    step: bool = False


def line(values: Mapping[datetime, float | None]) -> list[tuple[datetime, float | None, float | None, float | None]]:
    """Return points without intervals."""
    return [(when, value, None, None) for when, value in sorted(values.items())]


def svg(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    size: tuple[int, int] = (720, 200),
    unit: str = "",
    marks: Mapping[datetime, str] | None = None,
    described: str = "",
) -> str:
    """Return a plot as an SVG element; the same figures give the same text.

    Args:
        name: unique on the page, names the title for screen readers.
        marks: moments to point out with a vertical line and a letter or a word.
        described: what the plot shows, in a sentence.
    """
    width, height = size
    points = [point for one in series for point in one.points]
    numbers = [number for _, *values in points for number in _finite(*values) if number is not None]
    moments = [when for when, *_ in points] + list(marks or {})
    if not numbers or not moments:
        return f'<p class="empty">{escape(title)}: nothing was measured yet</p>'
    low, high, ticks = _axis(min(0.0, *numbers), max(numbers))
    first, last = min(moments), max(moments)
    span = max((last - first) / timedelta(seconds=1), 1.0)

    def x(when: datetime) -> float:
        share = (when - first) / timedelta(seconds=1) / span if last > first else 0.5
        return LEFT + share * (width - LEFT - RIGHT)

    def y(value: float) -> float:
        return height - BOTTOM - (value - low) / (high - low) * (height - TOP - BOTTOM)

    parts = [
        f'<svg role="img" aria-labelledby="{name}-t {name}-d" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(described or title)}</desc>',
    ]
    for tick in ticks:
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick:g}{escape(unit)}</text>')
    for when, anchor in ((first, "start"), (last, "end")) if last > first else ((first, "middle"),):
        parts.append(f'<text x="{x(when):.1f}" y="{height - 5}" text-anchor="{anchor}">{when:%Y-%m-%d}</text>')
    for when, word in sorted((marks or {}).items()):
        parts.append(f'<line x1="{x(when):.1f}" x2="{x(when):.1f}" y1="{TOP}" y2="{height - BOTTOM}" class="mark"/>')
        parts.append(f'<text x="{x(when) + 2:.1f}" y="{TOP + 8}">{escape(word)}</text>')
    for one in series:
        parts += _drawn(one, x, y)
    return "".join([*parts, "</svg>"])


def _finite(*values: float | None) -> tuple[float | None, ...]:
    return tuple(value if value is not None and math.isfinite(value) else None for value in values)


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return the ends of the axis and round ticks within them."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / 3
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in STEPS if factor * scale >= rough * 0.999)
    bottom, top = math.floor(low / step), math.ceil(high / step * 0.999)
    return bottom * step, max(top, bottom + 1) * step, [round(at * step, 12) for at in range(bottom, max(top, bottom + 1) + 1)]


def _drawn(one: Series, x: Callable[[datetime], float], y: Callable[[float], float]) -> list[str]:
    parts: list[str] = []
    path: list[str] = []
    before: float | None = None
    for when, raw, raw_low, raw_high in sorted(one.points, key=lambda point: point[0]):
        value, low, high = _finite(raw, raw_low, raw_high)
        if value is None:
            before = None
            continue
        at, up = x(when), y(value)
        if before is None:
            path.append(f"M{at:.1f} {up:.1f}")
        else:
            path.append((f"L{at:.1f} {y(before):.1f}" if one.step else "") + f"L{at:.1f} {up:.1f}")
        before = value
        if low is not None and high is not None:
            parts.append(
                f'<path d="M{at:.1f} {y(low):.1f}V{y(high):.1f}M{at - 2:.1f} {y(low):.1f}h4M{at - 2:.1f} {y(high):.1f}h4" class="bar"/>'
            )
        parts.append(_marker(one.marker, at, up))
    if not path:
        return []
    dash = f' stroke-dasharray="{DASHES[one.dash]}"' if DASHES[one.dash] else ""
    return [f'<path d="{"".join(path)}" class="line"{dash}/>', *parts]


def _marker(kind: str, x: float, y: float) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>'
    if kind == "square":
        return f'<rect x="{x - 2:.1f}" y="{y - 2:.1f}" width="4" height="4" class="open"/>'
    if kind == "cross":
        return f'<path d="M{x - 2.5:.1f} {y - 2.5:.1f}l5 5m0 -5l-5 5" class="bar"/>'
    return ""
