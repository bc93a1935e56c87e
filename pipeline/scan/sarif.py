"""A verdict as SARIF 2.1.0, for GitHub code scanning.

Every finding that is not below the policy's severity is a result; those that do not block are suppressed with
their reason, so that the security tab shows what was decided and not only what was found.
"""

from __future__ import annotations

from typing import Any

from pipeline import __version__
from pipeline.scan.findings import Severity
from pipeline.scan.policy import Judged, Verdict

_LEVEL = {
    Severity.CRITICAL: "error",
    Severity.HIGH: "error",
    Severity.MEDIUM: "warning",
    Severity.LOW: "note",
    Severity.INFORMATIONAL: "note",
    Severity.UNKNOWN: "warning",
}
# GitHub sorts by this number: over 9.0 is critical, over 7.0 high, 4.0 medium (its documentation of SARIF
# support).
_SCORE = {
    Severity.CRITICAL: "9.5",
    Severity.HIGH: "8.0",
    Severity.MEDIUM: "5.5",
    Severity.LOW: "2.0",
    Severity.INFORMATIONAL: "0.1",
    Severity.UNKNOWN: "5.0",
}
_WHY = {
    "base": "brought by the base image",
    "unfixable": "no update fixes it yet",
    "ignored": "its package is in scan.ignore_packages",
}


def as_sarif(verdict: Verdict, *, image: str, reference: str, location: str) -> dict[str, Any]:
    """SARIF for one image; ``location`` is the file to point at (the Dockerfile, or images.yaml)."""
    shown = [one for one in verdict.judged if one.decision != "below"]
    rules = {one.finding.id: _rule(one) for one in shown}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": f"sqshpipe ({verdict.scanner})",
                        "version": __version__,
                        "rules": list(rules.values()),
                    }
                },
                "automationDetails": {"id": f"sqshpipe/{image}/"},
                "properties": {"image": reference},
                "results": [_result(one, image, location, list(rules)) for one in shown],
            }
        ],
    }


def _rule(one: Judged) -> dict[str, Any]:
    finding = one.finding
    rule: dict[str, Any] = {
        "id": finding.id,
        "shortDescription": {"text": finding.title or finding.id},
        "properties": {"security-severity": _SCORE[finding.severity], "tags": ["security"]},
    }
    if finding.url:
        rule["helpUri"] = finding.url
    return rule


def _result(one: Judged, image: str, location: str, rules: list[str]) -> dict[str, Any]:
    finding = one.finding
    fix = f"fixed in {finding.fixed_in}" if finding.fixed_in else "no fix known"
    result: dict[str, Any] = {
        "ruleId": finding.id,
        "ruleIndex": rules.index(finding.id),
        "level": _LEVEL[finding.severity],
        "message": {"text": f"{image}: {finding.package} {finding.version} ({finding.severity}), {fix}"},
        "locations": [
            {"physicalLocation": {"artifactLocation": {"uri": location}, "region": {"startLine": 1}}}
        ],
        "partialFingerprints": {"package/v1": f"{image}/{finding.id}/{finding.package}"},
    }
    if one.decision != "blocks":
        why = one.waiver.reason if one.decision == "waived" and one.waiver else _WHY[one.decision]
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": why}]
    return result
