"""Charts as SVG that stretches to its place; the words stand beside it in HTML, so that they stay readable
on a phone. Only numbers come in here: no text of a record is ever part of a drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from markupsafe import Markup

WIDTH, HEIGHT = 640, 120
_GAP = 0.28  # share of a bar's place that stays empty
_WIDEST = 40
_HEADROOM = 8


def bars(sizes: Sequence[int], states: Sequence[str]) -> Markup:
    """One bar a version, oldest first; `states` are CSS classes made of letters."""
    place = WIDTH / max(len(sizes), 1)
    wide = min(place * (1 - _GAP), _WIDEST)
    highest = max([*sizes, 1])
    drawn = []
    for number, (size, state) in enumerate(zip(sizes, states, strict=True)):
        height = max(2.0, (HEIGHT - _HEADROOM) * size / highest)
        left = number * place if place < _WIDEST else number * (WIDTH - wide) / max(len(sizes) - 1, 1)
        drawn.append(
            f'<rect class="bar {_word(state)}" x="{left:.1f}" y="{HEIGHT - height:.1f}" '
            f'width="{wide:.1f}" height="{height:.1f}" rx="2"/>'
        )
    return _svg("".join(drawn))


def steps(points: Sequence[tuple[datetime, int]]) -> Markup:
    """A filled staircase of totals over time; `points` sorted by time, at least one."""
    first, last = points[0][0].timestamp(), points[-1][0].timestamp()
    span, highest = max(last - first, 1.0), max(total for _, total in points) or 1
    path, previous = [f"M0 {HEIGHT}"], float(HEIGHT)
    for moment, total in points:
        across = WIDTH * (moment.timestamp() - first) / span if last > first else 0.0
        up = HEIGHT - (HEIGHT - _HEADROOM) * total / highest
        path.append(f"L{across:.1f} {previous:.1f}L{across:.1f} {up:.1f}")
        previous = up
    line = " ".join(path) + f" L{WIDTH} {previous:.1f}"
    return _svg(f'<path class="area" d="{line} L{WIDTH} {HEIGHT} Z"/><path class="line" d="{line}"/>')


def _svg(inside: str) -> Markup:
    return Markup(  # noqa: S704 - made of numbers and words of ours
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{inside}</svg>'
    )


def _word(state: str) -> str:
    return state if state.isalpha() else ""
