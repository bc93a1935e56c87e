"""What a scanner found, in one form for all scanners."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Literal

from pipeline.oci.digest import Digest


class Severity(IntEnum):
    """Severities in ascending order; UNKNOWN has not been assessed by anybody yet."""

    UNKNOWN = 0
    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4
    CRITICAL = 5

    def __str__(self) -> str:
        return self.name.lower()


_OTHER_NAMES = {
    "UNDEFINED": "UNKNOWN",
    "UNTRIAGED": "UNKNOWN",
    "NEGLIGIBLE": "INFORMATIONAL",
    "NONE": "INFORMATIONAL",
}


def parse_severity(text: str) -> Severity:
    """The severity that a scanner's `text` means; UNKNOWN for any other text."""
    word = text.strip().upper()
    return Severity.__members__.get(_OTHER_NAMES.get(word, word), Severity.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One vulnerability in one package.

    ``fix`` says whether an update fixes it, ``fixed_in`` which one. ``layer`` is the blob digest or the
    diff_id of the layer with the package, ``purl`` the package's URL, where the scanner reports them.
    """

    id: str
    severity: Severity
    package: str
    version: str = ""
    fix: Literal["yes", "no", "unknown"] = "unknown"
    fixed_in: str = ""
    title: str = ""
    url: str = ""
    layer: Digest | None = None
    purl: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanResult:
    """A complete result; ``scanner`` such as ``ecr enhanced``; ``completed_at`` in UTC."""

    scanner: str
    findings: tuple[Finding, ...]
    completed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What is known of the base: the layers that come from it, or what a scan of it alone has found.

    ``layers`` holds blob digests and diff_ids. None: not known.
    """

    layers: frozenset[Digest] | None = None
    findings: frozenset[tuple[str, str]] | None = None

    def brought(self, finding: Finding) -> bool | None:
        """Whether the finding comes with the base; None when that is unknown."""
        if finding.layer is not None and self.layers is not None:
            return finding.layer in self.layers
        if self.findings is not None:
            return (finding.id, finding.package) in self.findings
        return None
