"""ECR's answers to DescribeImageScanFindings, as they look for basic and enhanced scanning."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

DONE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def state(name: str, description: str = "") -> dict[str, Any]:
    """An answer that has a state and nothing else."""
    return {"imageScanStatus": {"status": name, "description": description}}


def basic_finding(id_: str, package: str, severity: str = "HIGH") -> dict[str, Any]:
    attributes = [{"key": "package_name", "value": package}, {"key": "package_version", "value": "1.0"}]
    return {"name": id_, "severity": severity, "uri": f"https://cve.example/{id_}", "attributes": attributes}


def enhanced_finding(
    id_: str,
    package: str,
    severity: str = "HIGH",
    *,
    layer: str = "",
    fix: str = "YES",
    status: str = "ACTIVE",
) -> dict[str, Any]:
    named = {"name": package, "version": "1.0", "release": "2", "epoch": 0, "fixedInVersion": "0:1.1-1"}
    if layer:
        named["sourceLayerHash"] = layer
    return {
        "severity": severity,
        "status": status,
        "fixAvailable": fix,
        "title": f"{id_} - {package}",
        "packageVulnerabilityDetails": {"vulnerabilityId": id_, "vulnerablePackages": [named]},
    }


def complete(
    findings: list[dict[str, Any]], *, status: str = "COMPLETE", completed: datetime | None = DONE
) -> dict[str, Any]:
    """A complete answer; enhanced when the findings are."""
    counts: dict[str, int] = {}
    for one in findings:
        counts[one["severity"]] = counts.get(one["severity"], 0) + 1
    key = "enhancedFindings" if any("fixAvailable" in one for one in findings) else "findings"
    summary: dict[str, Any] = {"findingSeverityCounts": counts, key: findings}
    if completed is not None:
        summary["imageScanCompletedAt"] = completed
    return {**state(status), "imageScanFindings": summary}
