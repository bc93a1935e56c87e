"""Releases as people read them: tables that fit their terminal, and all that is known of one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.report.text import cells, clock, folded, padded
from pipeline.store.record import DATA, mapping, rows
from pipeline.text import human_bytes, short, shown

if TYPE_CHECKING:
    from pipeline.store.record import Release
    from pipeline.store.state import VersionState
    from pipeline.store.store import ReleaseRow

_HEADING = ("RELEASE", "PLATFORM", "SIZE", "CREATED", "SHA256", "CHANNELS", "STATE")
_LABEL = 12
_WHOLE = 4096  # a path has to be copied as it is


def listed(lines: Sequence[ReleaseRow]) -> list[str]:
    """One line for each release under a heading; all columns when stdout is not a terminal.

    On a terminal that is too narrow the digest goes first, then the platform if it is always the same, and
    then each release takes two lines.
    """
    table = [_HEADING, *(_row(line) for line in lines)]
    width = _terminal()
    dropped = ["SHA256", *(["PLATFORM"] if len({line.platform for line in lines}) == 1 else [])]
    while width and dropped and _width(table) > width:
        column = table[0].index(dropped.pop(0))
        table = [row[:column] + row[column + 1 :] for row in table]
    if width and _width(table) > width:
        return [text for row in table[1:] for text in (row[0], *_filled(row[1:], width))]
    return _aligned(table)


def past(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """One line for each event, the oldest first."""
    table = [("WHEN", "WHAT", "VERSION", "CHANNEL", "BY", "REASON")]
    for row in rows:
        when = clock(row["at"])
        rest = (row[key] or "-" for key in ("what", "version", "channel", "by"))
        table.append(tuple(shown(cell) for cell in (when, *rest, row["reason"])))  # type: ignore[arg-type]
    return _aligned(table)


def plain(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A heading and one line for each of `rows`; nothing when there are no rows."""
    table = [tuple(shown(cell) for cell in row) for row in rows]
    return _aligned([tuple(heading), *table]) if table else []


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = _widths(table)
    return [
        "  ".join(padded(cell, wide) for cell, wide in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _terminal() -> int:
    """Its columns; 0 where nobody watches, so that scripts get whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def _row(line: ReleaseRow) -> tuple[str, ...]:
    row = (
        f"{line.image}:{line.version}",
        line.platform,
        human_bytes(line.size),
        line.created,
        short(line.sha256),
        ",".join(line.channels) or "-",
        line.state + (" kept" if line.kept else ""),
    )
    return tuple(shown(cell) for cell in row)


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(cells(row[column]) for row in table) for column in range(len(table[0]))]


def _width(table: Sequence[Sequence[str]]) -> int:
    widths = _widths(table)
    return sum(widths) + 2 * (len(widths) - 1)


def _filled(words: Sequence[str], width: int) -> Iterator[str]:
    """Words with two spaces between them, on as many indented lines as they need."""
    line = ""
    for word in words:
        if line and cells(line) + 2 + cells(word) > width:
            yield line
            line = ""
        line += f"  {word}"
    yield line


def facts(release: Release, standing: VersionState | None, channels: Sequence[str]) -> Iterator[str]:
    """What is known of a release, a fact a line, broken on a terminal."""
    width = _terminal()
    for name, value in _facts(release, standing, channels):
        if value:
            line = f"{name:<{_LABEL}}{shown(value, longest=_WHOLE)}"
            yield from folded(line, width, _LABEL) if width else [line]


def _facts(
    release: Release, standing: VersionState | None, channels: Sequence[str]
) -> Iterator[tuple[str, object]]:
    reason = f": {standing.reason}" if standing and standing.reason else ""
    kept = " (kept)" if standing and standing.kept else ""
    yield "release", release.name
    yield "state", f"{release.state}{kept}{reason}"
    yield "channels", ", ".join(channels)
    yield "path", release.public_path
    yield "size", f"{human_bytes(release.size)} ({release.size:,} bytes)"
    yield "sha256", release.sha256
    yield ("kind", DATA) if release.kind == DATA else ("platform", release.platform)
    yield "created", f"{clock(release.created)} UTC"
    source, base = mapping(release.source), mapping(release.base)
    yield "image", source.get("repository")
    yield "" if source.get("repository") else "image", source.get("digest")
    yield "base", base.get("reference")
    yield "", base.get("digest")
    yield from _made(release)
    yield from _scanned(release)


def _made(release: Release) -> Iterator[tuple[str, object]]:
    layers = rows(release.provenance.get("layers"))
    stored = sum(layer["size"] for layer in layers if isinstance(layer.get("size"), int))
    yield "layers", f"{len(layers)}, {human_bytes(stored)} compressed" if layers else ""
    converter = mapping(release.converter)
    options = ", ".join(f"{key} {value}" for key, value in mapping(converter.get("options")).items())
    yield "converter", ", ".join(part for part in (str(converter.get("name") or ""), options) if part)
    yield "checks", ", ".join(release.checks)
    yield "revision", release.provenance.get("revision")
    yield "by", release.provenance.get("by")
    program = release.provenance.get("sqshpipe")
    yield "made by", f"sqshpipe {program}" if program else ""


def _scanned(release: Release) -> Iterator[tuple[str, object]]:
    from pipeline.report.compare import scan_text

    scan = release.scan
    when = clock(scan["completed_at"]) if scan.get("completed_at") else ""
    scanner = scan.get("scanner") if scan.get("scanner") != "none" else ""
    yield "scan", "; ".join(str(part) for part in (scan_text(release), scanner, when) if part)
    for waiver in rows(scan.get("waived")):
        yield "waived", "{id} in {package} until {until}: {reason}".format_map(_Known(waiver))
    warnings = scan.get("warnings")
    for warning in warnings if isinstance(warnings, list) else ():
        yield "warning", warning


class _Known(dict[str, object]):
    """Keys that a waiver lacks are nothing, not an error."""

    def __missing__(self, key: str) -> str:
        return "?"
