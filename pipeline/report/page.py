"""One self-contained HTML page: it loads no script, font or picture and needs no server."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline import __version__
from pipeline import text as plain
from pipeline.report import chart, text
from pipeline.report.compare import scan_text
from pipeline.report.gather import Report, ReportedImage, ReportedRelease
from pipeline.store.record import mapping

LIMIT = 1_900_000
"""Bytes of a page. Details are left out for the oldest releases when it would become longer."""
_SHOWN_BARS, _LABELLED_BARS = 48, 10
_STATES = ("yanked", "hidden", "pruned", "damaged")

Key = tuple[str, str]
"""Kind and name of a part that can be left out: ("inside", anchor), ("chart", image), ("history", image)."""


def page(report: Report) -> str:
    """The page as text. What comes from a record is escaped, and nothing in it can run or be loaded.

    The policy in its head (https://www.w3.org/TR/CSP3/) allows the one style and the one script by their
    hashes.
    """
    environment = _environment()
    parts: Any = environment.get_template("parts.html.j2").module
    blocks = {("inside", one.anchor): parts.brief(one) for image in report.images for one in image.releases}
    for image in report.images:
        blocks["chart", image.name] = blocks["history", image.name] = Markup("")
    template, values = environment.get_template("report.html.j2"), _values(report)
    room = LIMIT - _bytes(template.render(blocks=blocks, detailed=0, **values))
    detailed = 0
    for key, block in _blocks(report, parts):
        room -= _bytes(block) - _bytes(blocks[key])
        if room < 0:
            break
        blocks[key] = block
        detailed += key[0] == "inside"
    return template.render(blocks=blocks, detailed=detailed, **values)


def _blocks(report: Report, parts: Any) -> Iterator[tuple[Key, Markup]]:
    """The parts that can be left out, the most important first: what people start, then what is newest."""
    releases = [one for image in report.images for one in image.releases]
    first = {id(image.newest) for image in report.images} | {id(one) for one in releases if one.line.channels}
    releases.sort(key=lambda one: (id(one) in first, one.created), reverse=True)
    for one in releases:
        if id(one) in first:
            yield ("inside", one.anchor), parts.inside(one)
    for image in _newest_first(report.images):
        yield ("chart", image.name), _sizes(image, parts)
        yield ("history", image.name), parts.history(image)
    for one in releases:
        if id(one) not in first:
            yield ("inside", one.anchor), parts.inside(one)


def _sizes(image: ReportedImage, parts: Any) -> Markup:
    shown = image.releases[:_SHOWN_BARS][::-1]
    if not shown:
        return Markup("")
    labelled = len(shown) <= _LABELLED_BARS
    columns = [
        chart.Bar(size, state, "" if labelled else f"{version}, {plain.human_bytes(size)}")
        for _, version, _, state, _, size, *_ in (one.line for one in shown)
    ]
    present = {one.line.state for one in shown}
    drawn = chart.bars(columns)
    found: Markup = parts.sizes(shown, labelled, drawn, [state for state in _STATES if state in present])
    return found


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=lambda value: plain.escaped(value) if type(value) is str else value,  # Markup is ours
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        shown=plain.shown,
        size=plain.human_bytes,
        when=text.when,
        iso=_iso,
        day=lambda moment: text.when(moment)[:10],
        mapping=mapping,
        scan=scan_text,
        expiry=lambda seconds: text.when(datetime.fromtimestamp(seconds, timezone.utc)),
        path=_path,
        clock=text.clock,
        newest_first=_newest_first,
    )
    return environment


def _values(report: Report) -> dict[str, Any]:
    style, script = _part("report.css"), _part("report.js")
    releases = [one for image in report.images for one in image.releases]
    found = Counter(one.line.state for one in releases)
    found.update(one.unscanned for one in releases if one.unscanned)
    return {
        "report": report,
        "in_use": sum(one.in_use > 0 for one in releases),
        "releases": len(releases) + sum(image.older for image in report.images),
        "states": dict(found.most_common()),
        "channels": sorted({channel for image in report.images for channel in image.channels}),
        "steps": lambda report: chart.steps([*report.growth, (_thirds(report)[2], report.bytes_on_disk)]),
        "thirds": _thirds,
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "style": Markup(style),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own file
        "program": __version__,
    }


def _newest_first(images: Iterable[ReportedImage]) -> list[ReportedImage]:
    """Images by the time of their newest release; those of which none resolves come last."""
    unknown = datetime.fromtimestamp(0, timezone.utc)

    def key(image: ReportedImage) -> datetime:
        newest: ReportedRelease | None = image.newest
        return newest.created if newest else unknown

    return sorted(images, key=key, reverse=True)


def _thirds(report: Report) -> tuple[datetime, datetime, datetime]:
    """The times at the left end, the middle and the right end of the chart of growth."""
    first, last = report.growth[0][0], max(report.made, report.growth[-1][0])
    return first, first + (last - first) / 2, last


def _iso(moment: datetime) -> str:
    return f"{moment.astimezone(timezone.utc):%Y-%m-%dT%H:%MZ}"


def _path(path: Path) -> Markup:
    """A path that may be broken after its slashes."""
    return Markup("/<wbr>").join(plain.shown(path).split("/"))


def _bytes(content: str) -> int:
    return len(content.encode(errors="replace"))


def _part(name: str) -> str:
    return resources.files("pipeline.report").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
