"""trivy's JSON report (schema 2) as findings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipeline.errors import FormatError, ScanRejected
from pipeline.oci.digest import Digest
from pipeline.scan.findings import Finding, ScanResult, parse_severity


def read(report: str, *, scanner: str, completed_at: datetime) -> ScanResult:
    """Read what ``trivy --format json`` wrote.

    Raises FormatError when it is not such a report, ScanRejected when trivy recognised nothing in the image:
    it reports no findings then, which is not the same as clean.
    """
    try:
        value = json.loads(report)
        if value["SchemaVersion"] != 2:
            raise FormatError(f"trivy's report has schema {value['SchemaVersion']}, not 2")
        found = [
            _finding(raw)
            for result in value.get("Results") or ()
            for raw in result.get("Vulnerabilities") or ()
        ]
        system = (value.get("Metadata") or {}).get("OS") or {}
        if not value.get("Results") and system.get("Family", "none") in ("", "none"):
            name = value.get("ArtifactName", "the image")
            raise ScanRejected(
                f"trivy does not know what is in {name}: no system, no packages",
                hint="scan: {scanner: none} publishes it with a record that says unscanned",
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"trivy's report cannot be read: {type(error).__name__}") from error
    return ScanResult(scanner=scanner, findings=tuple(found), completed_at=completed_at)


def _finding(raw: Mapping[str, Any]) -> Finding:
    fixed_in = str(raw.get("FixedVersion") or "")
    layer = raw.get("Layer") or {}
    named = layer.get("DiffID") or layer.get("Digest")
    return Finding(
        id=str(raw["VulnerabilityID"]),
        severity=parse_severity(str(raw.get("Severity", ""))),
        package=str(raw["PkgName"]),
        version=str(raw.get("InstalledVersion", "")),
        fix="yes" if fixed_in else "no",
        fixed_in=fixed_in,
        title=" ".join(str(raw.get("Title") or "").split())[:160],
        url=str(raw.get("PrimaryURL", "")),
        layer=Digest.parse(str(named)) if named else None,
        purl=str((raw.get("PkgIdentifier") or {}).get("PURL") or ""),
    )
