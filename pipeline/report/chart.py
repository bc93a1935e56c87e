"""Charts as SVG that stretches to its place. The labels of the axes are HTML beside it, so that they stay
readable on a phone. Drawings hold numbers, CSS classes and escaped tooltips, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from markupsafe import Markup, escape

from pipeline.text import human_bytes

WIDTH, HEIGHT = 1000, 100
_GAP = 0.3  # share of a bar's column that stays empty
_WIDEST = 60
_STEPS = (1, 2, 2.5, 5, 10)
_MOST_TICKS = 4


class Bar(NamedTuple):
    """One column: bytes, a CSS class made of letters, and the tooltip (plain text, may be empty)."""

    size: int
    state: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawing whose upper edge is the first of `ticks` and whose lower edge is the last one, 0 bytes."""

    drawing: Markup
    ticks: tuple[str, ...]


def bars(columns: Sequence[Bar]) -> Chart:
    """One bar for each of `columns`, from left to right, in columns of the same width."""
    place = WIDTH / max(len(columns), 1)
    wide = min(place * (1 - _GAP), _WIDEST)
    ticks = _ticks(max((bar.size for bar in columns), default=0))
    drawn = []
    for number, bar in enumerate(columns):
        height = max(1.0, HEIGHT * bar.size / ticks[0])
        left = (number + 0.5) * place - wide / 2
        state = f" {bar.state}" if bar.state.isalpha() and bar.state != "published" else ""
        drawn.append(
            f'<path class="bar{state}" d="M{left:.0f} {HEIGHT}v-{height:.0f}h{wide:.0f}V{HEIGHT}z">'
            + (f"<title>{escape(bar.title)}</title></path>" if bar.title else "</path>")
        )
    return _chart("".join(drawn), ticks)


def steps(points: Sequence[tuple[datetime, int]]) -> Chart:
    """A filled staircase of totals (bytes) over time; `points` sorted by time, at least one."""
    first, last = points[0][0].timestamp(), points[-1][0].timestamp()
    ticks = _ticks(max(total for _, total in points))
    path = [f"M0 {HEIGHT}"]
    for moment, total in points:
        across = WIDTH * (moment.timestamp() - first) / (last - first) if last > first else 0.0
        up = HEIGHT - HEIGHT * total / ticks[0]
        path.append(f"H{across:.0f}V{up:.1f}")
    line = "".join(path) + f"H{WIDTH}"
    return _chart(
        f'<path class="area" d="{line}V{HEIGHT}z"/><path class="line" d="{line}"/>',
        ticks,
    )


def _ticks(highest: int) -> list[float]:
    """Round amounts at equal distances from above `highest` down to 0."""
    step = 1.0
    while True:
        for factor in _STEPS:
            count = -(-highest // (step * factor))
            if count < _MOST_TICKS:
                distance = step * factor
                return [number * distance for number in range(max(int(count), 1), -1, -1)]
        step *= 10


def _chart(inside: str, ticks: Sequence[float]) -> Chart:
    grid = "".join(f"M0 {HEIGHT * (1 - tick / ticks[0]):.1f}h{WIDTH}" for tick in ticks)
    drawing = Markup(  # noqa: S704 - made of numbers, of our own classes and of escaped titles
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="grid" d="{grid}"/>{inside}</svg>'
    )
    return Chart(drawing=drawing, ticks=tuple(map(_label, ticks)))


def _label(tick: float) -> str:
    return human_bytes(round(tick)).replace(".0 ", " ") if tick else "0"
