"""One HTML page that needs nothing but itself: no server, no script from elsewhere, no font, no picture."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from pipeline import __version__
from pipeline import text as words
from pipeline.report import chart, text
from pipeline.report.compare import scan_words
from pipeline.report.gather import Report, ReportedRelease
from pipeline.store.record import mapping

_SHOWN_BARS = 48


def page(report: Report) -> str:
    """The page as text. What comes from a record is escaped, and nothing in it can run or be loaded.

    The policy in its head (https://www.w3.org/TR/CSP3/) allows the one style and the one script by their
    hashes.
    """
    style, script = _part("report.css"), _part("report.js")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=lambda value: (
            words.escaped(value) if type(value) is str else value
        ),  # not Markup, which is ours
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        shown=words.shown,
        size=words.human_bytes,
        when=text.when,
        short=words.short,
        mapping=mapping,
        scan=scan_words,
        expiry=_expiry,
        path=_path,
        clock=text.clock,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        in_use=sum(one.in_use > 0 for image in report.images for one in image.releases),
        versions=sum(len(image.releases) for image in report.images),
        troubles=[
            one
            for image in report.images
            for one in image.releases
            if one.line.state in ("damaged", "yanked")
        ],
        charted=lambda image: image.releases[:_SHOWN_BARS],
        bars=_bars,
        steps=chart.steps,
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; "
        "form-action 'none'",
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        program=__version__,
    )


def _expiry(seconds: float) -> str:
    return text.when(datetime.fromtimestamp(seconds, timezone.utc))


def _path(path: Path) -> Markup:
    """A path that may be broken after its slashes."""
    return Markup("/<wbr>").join(words.shown(path).split("/"))


def _bars(newest_first: Sequence[ReportedRelease]) -> Markup:
    oldest_first = newest_first[::-1]
    return chart.bars([one.line.size for one in oldest_first], [one.line.state for one in oldest_first])


def _part(name: str) -> str:
    return resources.files("pipeline.report").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
