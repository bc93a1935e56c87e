"""Charts as SVG: bars for a comparison, small line charts for growth.

Each stands on a panel of its own, light or dark as the reader's system is, so that it reads on any page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_STYLE = (
    "svg{--panel:#fbfcfb;--ink:#24302c;--soft:#5c6a65;--line:#d9dfdc;--ours:#0b7a69;--ours2:#3aa892;"
    "--peer:#9aa5a0}"
    "@media (prefers-color-scheme:dark){svg{--panel:#151a19;--ink:#e4ebe8;--soft:#a3b0ab;--line:#35403c;"
    "--ours:#3fc4aa;--ours2:#1f8f7b;--peer:#6d7974}}"
    "text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:var(--ink)}"
    ".t{font-weight:600;font-size:15px}.s{fill:var(--soft);font-size:12px}.p{fill:var(--panel)}"
    ".ours{fill:var(--ours)}.peer{fill:var(--peer)}"
    ".floor{fill:var(--panel);stroke:var(--peer);stroke-width:1.5;stroke-dasharray:4 3}"
    ".w{stroke:var(--ink);stroke-width:1.5}"
    ".g{stroke:var(--line)}.l{fill:none;stroke-width:2.5}.l0{stroke:var(--ours)}.l1{stroke:var(--ours2);"
    "stroke-dasharray:6 4}.l2{stroke:var(--peer)}"
    ".d0{fill:var(--ours)}.d1{fill:var(--ours2)}.d2{fill:var(--peer)}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A name, its median with least and most, and whether it is ours, or a floor."""

    name: str
    value: float
    least: float
    most: float
    ours: bool
    floor: bool = False


def bars(title: str, subtitle: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars, seconds; the thin line is the spread, and a floor is hollow."""
    longest = max((row.most for row in rows), default=1) or 1
    names, width = 252, 760
    scale = (width - names - 78) / longest
    parts = []
    for number, row in enumerate(rows):
        top, end = 70 + 30 * number, names + row.value * scale
        kind = "ours" if row.ours else "floor" if row.floor else "peer"
        low, high = names + row.least * scale, names + row.most * scale
        parts.append(
            f'<text x="{names - 10}" y="{top + 15}" text-anchor="end">{escape(row.name)}</text>'
            f'<rect class="{kind}" x="{names}" y="{top}" width="{max(1, end - names):.1f}" height="20"/>'
            f'<line class="w" x1="{low:.1f}" x2="{high:.1f}" y1="{top + 10}" y2="{top + 10}"/>'
            f'<text x="{max(end, high) + 8:.1f}" y="{top + 15}">{seconds(row.value)}</text>'
        )
    return _svg(width, 84 + 30 * len(rows), title, subtitle, "".join(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One small chart: what changes, its values in order, and the seconds of each line at each value."""

    label: str
    values: Sequence[float]
    lines: Mapping[str, Sequence[float]]


def panels(title: str, subtitle: str, charts: Sequence[Panel]) -> str:
    """Two charts in a row, all with the same lines; the horizontal axis has one step a value."""
    wide, high, left, top = 360, 226, 40, 92
    names = list(charts[0].lines) if charts else []
    legend, place = "", left
    for kind, name in enumerate(names):
        legend += f'<line class="l l{kind}" x1="{place}" x2="{place + 26}" y1="66" y2="66"/>'
        legend += f'<text class="s" x="{place + 32}" y="70">{escape(name)}</text>'
        place += 62 + 7 * len(name)  # about the width of a letter of this size
    drawn = [_panel(chart, 12 + n % 2 * wide, top + n // 2 * high) for n, chart in enumerate(charts)]
    rows = (len(charts) + 1) // 2
    return _svg(760, top + rows * high, title, subtitle, legend + "".join(drawn))


def _panel(chart: Panel, left: int, top: int) -> str:
    wide, high = 300, 140
    most = max((max(values) for values in chart.lines.values()), default=1) or 1
    step = wide / max(1, len(chart.values) - 1)
    x0, y0 = left + 46, top + 30
    parts = [f'<text x="{x0}" y="{top + 14}">{escape(chart.label)}</text>']
    for share in (0, 0.5, 1):
        y = y0 + high * (1 - share)
        parts.append(f'<line class="g" x1="{x0}" x2="{x0 + wide}" y1="{y:.0f}" y2="{y:.0f}"/>')
        parts.append(
            f'<text class="s" x="{x0 - 6}" y="{y + 4:.0f}" text-anchor="end">{seconds(most * share)}</text>'
        )
    for number, value in enumerate(chart.values):
        anchor = "start" if number == 0 else "end" if number == len(chart.values) - 1 else "middle"
        place = f'x="{x0 + number * step:.0f}" y="{y0 + high + 18}" text-anchor="{anchor}"'
        parts.append(f'<text class="s" {place}>{value:,}</text>')
    for kind, values in enumerate(chart.lines.values()):
        points = [(x0 + n * step, y0 + high * (1 - value / most)) for n, value in enumerate(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="l l{kind}" points="{path}"/>')
        parts += [f'<circle class="d{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points]
    return "".join(parts)


def seconds(value: float) -> str:
    """As people read it."""
    if value == 0:
        return "0"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def _svg(width: int, height: int, title: str, subtitle: str, inside: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(subtitle)}</desc><style>{_STYLE}</style>"
        f'<rect class="p" width="{width}" height="{height}" rx="8"/>'
        f'<text class="t" x="16" y="26">{escape(title)}</text>'
        f'<text class="s" x="16" y="46">{escape(subtitle)}</text>{inside}</svg>\n'
    )
