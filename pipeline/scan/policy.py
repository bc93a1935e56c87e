"""From findings to a verdict. Pure functions: the day is an argument.

A finding blocks unless the policy gives one reason why it does not; the first that applies is reported.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal

from pipeline.config.types import ScanPolicy
from pipeline.scan.findings import Base, Finding, ScanResult, Severity
from pipeline.scan.waivers import Waiver

Decision = Literal["blocks", "waived", "base", "unfixable", "ignored", "below"]
_WARN_BEFORE = timedelta(days=14)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A finding and what the policy makes of it; ``waiver`` is the one that covers it, ended or not."""

    finding: Finding
    decision: Decision
    waiver: Waiver | None = None
    maybe_base: bool = False
    """It blocks, and whether the base brought it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All findings judged, the worst first, and messages for people about them."""

    scanner: str
    completed_at: datetime
    judged: tuple[Judged, ...]
    warnings: tuple[str, ...]

    @property
    def blocking(self) -> tuple[Judged, ...]:
        return tuple(one for one in self.judged if one.decision == "blocks")

    @property
    def passed(self) -> bool:
        return not self.blocking

    @property
    def certain(self) -> bool:
        """Whether the decision would be the same if more were known about the base."""
        return self.passed or any(not one.maybe_base for one in self.blocking)

    @property
    def counts(self) -> dict[str, int]:
        """Findings by severity, the worst first."""
        found = Counter(one.finding.severity for one in self.judged)
        return {str(severity): found[severity] for severity in sorted(found, reverse=True)}

    def as_json(self) -> dict[str, Any]:
        """For machines and for the release's records."""
        return {
            "scanner": self.scanner,
            "completed_at": f"{self.completed_at:%Y-%m-%dT%H:%M:%SZ}",
            "passed": self.passed,
            "counts": self.counts,
            "warnings": list(self.warnings),
            "findings": [_finding_json(one) for one in self.judged],
        }


def evaluate(
    result: ScanResult,
    policy: ScanPolicy,
    waivers: Sequence[Waiver],
    base: Base,
    *,
    image: str,
    today: date,
    vex: Mapping[Finding, Waiver] | None = None,
) -> Verdict:
    """Judge every finding of ``result`` for ``image`` on the day ``today`` (UTC).

    ``vex`` holds the findings that VEX statements excuse.
    """
    stated = vex or {}
    judged = [
        _judge(finding, policy, (*waivers, *filter(None, [stated.get(finding)])), base, image, today)
        for finding in result.findings
    ]
    judged.sort(
        key=lambda one: (one.decision != "blocks", -one.finding.severity, one.finding.id, one.finding.package)
    )
    return Verdict(
        scanner=result.scanner,
        completed_at=result.completed_at,
        judged=tuple(judged),
        warnings=tuple(_warnings(judged, today)),
    )


def _judge(
    finding: Finding, policy: ScanPolicy, waivers: Sequence[Waiver], base: Base, image: str, today: date
) -> Judged:
    covering = [waiver for waiver in waivers if waiver.covers(finding, image)]
    # the one that holds longest counts, so that an ended one may stand beside its renewal
    waiver = max(covering, key=lambda one: one.until, default=None)
    decision = _decide(finding, policy, waiver, base, today)
    unknown = decision == "blocks" and policy.new_since_base and base.brought(finding) is None
    return Judged(finding=finding, decision=decision, waiver=waiver, maybe_base=unknown)


def _decide(finding: Finding, policy: ScanPolicy, waiver: Waiver | None, base: Base, today: date) -> Decision:
    if not _severe(finding.severity, policy):
        return "below"
    if any(fnmatch.fnmatchcase(finding.package, pattern) for pattern in policy.ignore_packages):
        return "ignored"
    if policy.fixable_only and finding.fix == "no":
        return "unfixable"
    if policy.new_since_base and base.brought(finding):
        return "base"
    if waiver is not None and today <= waiver.until:
        return "waived"
    return "blocks"


def _severe(severity: Severity, policy: ScanPolicy) -> bool:
    if policy.fail_on is None:
        return False
    threshold = Severity[policy.fail_on.upper()]
    # what nobody has judged yet could be anything: it counts where everything counts
    return severity >= threshold or (severity is Severity.UNKNOWN and threshold <= Severity.LOW)


def _warnings(judged: Sequence[Judged], today: date) -> list[str]:
    warnings: list[str] = []
    for one in judged:
        if one.waiver is None or one.decision not in ("waived", "blocks"):
            continue
        about = f"the {one.waiver.source} of {one.waiver.id} in {one.waiver.package}"
        left = (one.waiver.until - today).days
        if left < 0:
            warnings.append(f"{about} ended on {one.waiver.until}")
        elif one.waiver.until - today <= _WARN_BEFORE:
            warnings.append(f"{about} ends on {one.waiver.until}, in {left} days")
    unknown = sum(one.finding.severity is Severity.UNKNOWN for one in judged)
    if unknown:
        warnings.append(f"{unknown} findings have no severity yet")
    unknown = sum(one.maybe_base for one in judged)
    if unknown:
        warnings.append(f"{unknown} blocking findings may come from the base or not: they count as new")
    return list(dict.fromkeys(warnings))


def _finding_json(one: Judged) -> dict[str, Any]:
    finding = one.finding
    entry: dict[str, Any] = {
        "id": finding.id,
        "severity": str(finding.severity),
        "package": finding.package,
        "version": finding.version,
        "fix": finding.fix,
        "fixed_in": finding.fixed_in,
        "title": finding.title,
        "url": finding.url,
        "decision": one.decision,
    }
    if one.waiver is not None:
        entry["waiver"] = {"reason": one.waiver.reason, "until": one.waiver.until.isoformat()}
    return entry
