"""The packages that the SBOM of a release lists.

CycloneDX JSON (https://cyclonedx.org/docs/1.6/json/), each package known by its purl
(https://github.com/package-url/purl-spec). Nothing in it is believed beyond name and version.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pipeline.errors import FormatError, PublishError
from pipeline.oci.strict_json import parse_object
from pipeline.report.contents import Package
from pipeline.store import attachments
from pipeline.store.layout import SBOM, Layout
from pipeline.store.record import Release, mapping, rows

_LIMIT = 64 << 20
_MOST_PACKAGES = 50_000
_PURL = re.compile(r"pkg:/*(?P<type>[A-Za-z][A-Za-z0-9.+-]*)/(?P<name>[^@?#]+)(?:@(?P<version>[^?#]+))?")
# As the packages that are read from an image are called.
_SOURCES = {"deb": "debian", "apk": "alpine", "pypi": "python"}
# Where the namespace is the distribution, and no part of the name.
_OF_A_DISTRIBUTION = frozenset({"deb", "apk", "rpm", "alpm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sbom:
    """The names of the tools that made it, and versions by package."""

    tools: tuple[str, ...]
    packages: Mapping[Package, str]


def comparable(layout: Layout, before: Release, after: Release) -> tuple[Sbom, Sbom] | None:
    """The SBOMs of both, where both have one and the same tools made them: others name the same packages
    differently, and so does the image itself. Raises FormatError when one cannot be read.
    """
    one, other = (read_sbom(layout, release) for release in (before, after))
    if one is None or other is None:
        return None
    return (one, other) if one.tools == other.tools else None


def read_sbom(layout: Layout, release: Release) -> Sbom | None:
    """The packages in the SBOM of a release; None when there is no SBOM.

    Raises FormatError when it is not CycloneDX, or cannot be read.
    """
    path = layout.attachments(release.image, release.version, release.platform) / SBOM
    try:
        raw = attachments.read(layout, release, SBOM, limit=_LIMIT)
    except PublishError as error:
        raise FormatError(error.message) from error
    return None if raw is None else parse_sbom(raw, str(path))


def parse_sbom(raw: bytes, what: str) -> Sbom:
    """What the bytes of an SBOM list; `what` names it in errors.

    Raises FormatError when they are not CycloneDX.
    """
    data = parse_object(raw, max_size=_LIMIT, what=what)
    if data.get("bomFormat") != "CycloneDX":
        raise FormatError(f"{what} is not an SBOM in CycloneDX")
    packages: dict[Package, set[str]] = defaultdict(set)
    for component in _components(data):
        if (known := _package(component)) is not None:
            packages[known[0]].add(known[1])
        if len(packages) > _MOST_PACKAGES:
            raise FormatError(f"{what} lists more than {_MOST_PACKAGES} packages")
    versions = {key: ", ".join(sorted(found)) for key, found in packages.items()}
    return Sbom(tools=_tools(data), packages=versions)


def _components(data: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    left = [data]
    while left:
        below = rows(left.pop().get("components"))
        yield from below
        left += below


def _package(component: Mapping[str, Any]) -> tuple[Package, str] | None:
    """None for what is not a package: files, lock files, the operating system."""
    match = _PURL.match(str(component.get("purl", "")))
    if match is None:
        return None
    kind, name = match["type"].lower(), unquote(match["name"].strip("/"))
    if kind in _OF_A_DISTRIBUTION:
        name = name.rpartition("/")[2]
    if kind == "pypi":
        name = name.replace("_", "-").lower()
    version = component.get("version") or unquote(match["version"] or "")
    return (_SOURCES.get(kind, kind), name), str(version)


def _tools(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Names only, since a newer version of a tool is still the same. A list up to 1.4, an object from 1.5."""
    tools = mapping(data.get("metadata")).get("tools")
    listed = rows(tools) or [*rows(mapping(tools).get("components")), *rows(mapping(tools).get("services"))]
    return tuple(sorted({str(tool.get("name", "")) for tool in listed}))
