"""What blocks, what does not, and the one reason that is given."""

from __future__ import annotations

from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.types import ScanPolicy
from pipeline.errors import ConfigError
from pipeline.oci.digest import Digest
from pipeline.scan.findings import Base, Finding, ScanResult, Severity, parse_severity
from pipeline.scan.policy import Verdict, evaluate
from pipeline.scan.sarif import as_sarif
from pipeline.scan.waivers import Waiver, read_waivers

TODAY = date(2026, 6, 15)
BASE, OWN = Digest.of(b"base"), Digest.of(b"own")


def finding(severity: Severity = Severity.HIGH, **more: Any) -> Finding:
    return Finding(**{"id": "CVE-1", "package": "openssl", "severity": severity, "fix": "yes", **more})


def waiver(until: str, **more: Any) -> Waiver:
    given = {"id": "CVE-1", "package": "openssl", "reason": "not reachable", **more}
    return Waiver(**given, until=date.fromisoformat(until))


def judge(
    *findings: Finding, waivers: tuple[Waiver, ...] = (), base: Base | None = None, **policy: Any
) -> Verdict:
    done = datetime(2026, 6, 14, tzinfo=timezone.utc)
    result = ScanResult(scanner="s", findings=findings, completed_at=done)
    return evaluate(result, ScanPolicy(**policy), waivers, base or Base(), image="demo", today=TODAY)


def decisions(verdict: Verdict) -> list[str]:
    return [one.decision for one in verdict.judged]


@pytest.mark.parametrize("word", ["", "whatever", "UNDEFINED", "UNTRIAGED"])
def test_a_severity_that_nobody_knows_is_unknown(word: str) -> None:
    assert parse_severity(word) is Severity.UNKNOWN


@pytest.mark.parametrize(
    ("fail_on", "blocking"),
    [
        ("critical", ["critical"]),
        ("high", ["critical", "high"]),
        ("medium", ["critical", "high", "medium"]),
        ("low", ["critical", "high", "medium", "low", "unknown"]),
        (None, []),
    ],
)
def test_severity_decides(fail_on: Any, blocking: list[str]) -> None:
    verdict = judge(*(finding(severity, id=severity.name) for severity in Severity), fail_on=fail_on)
    assert [str(one.finding.severity) for one in verdict.blocking] == blocking
    assert verdict.passed == (not blocking)
    assert len(verdict.judged) == len(Severity)
    assert any("no severity yet" in warning for warning in verdict.warnings)


def test_each_reason_why_a_finding_does_not_block() -> None:
    assert decisions(judge(finding())) == ["blocks"]
    assert decisions(judge(finding(fix="no"), fixable_only=True)) == ["unfixable"]
    assert decisions(judge(finding(fix="unknown"), fixable_only=True)) == ["blocks"]
    assert decisions(judge(finding(fix="no"))) == ["blocks"]
    assert decisions(judge(finding(), ignore_packages=("openss*",))) == ["ignored"]
    assert decisions(judge(finding(), ignore_packages=("ssl",))) == ["blocks"]


def test_what_the_base_brought_blocks_only_if_the_policy_says_so() -> None:
    layers = Base(layers=frozenset({BASE}))
    both = (finding(layer=BASE, id="CVE-B"), finding(layer=OWN, id="CVE-O"))
    assert decisions(judge(*both, base=layers)) == ["blocks", "blocks"]
    reported = judge(*both, base=layers, new_since_base=True)
    assert [(one.finding.id, one.decision) for one in reported.judged] == [
        ("CVE-O", "blocks"),
        ("CVE-B", "base"),
    ]
    by_name = Base(findings=frozenset({("CVE-1", "openssl")}))
    assert decisions(judge(finding(), base=by_name, new_since_base=True)) == ["base"]
    assert decisions(judge(finding(package="other"), base=by_name, new_since_base=True)) == ["blocks"]
    unknown = judge(finding(), new_since_base=True)
    assert decisions(unknown) == ["blocks"], "what is not known counts as new"
    assert any("count as new" in warning for warning in unknown.warnings)


@pytest.mark.parametrize(
    ("until", "decision", "warns"),
    [
        ("2027-01-01", "waived", ""),
        ("2026-06-29", "waived", "ends on 2026-06-29, in 14 days"),
        ("2026-06-15", "waived", "in 0 days"),
        ("2026-06-14", "blocks", "ended on 2026-06-14"),
    ],
)
def test_a_waiver_holds_until_its_last_day(until: str, decision: str, warns: str) -> None:
    verdict = judge(finding(), waivers=(waiver(until),))
    assert decisions(verdict) == [decision]
    assert (warns in " ".join(verdict.warnings)) if warns else verdict.warnings == ()


def test_a_waiver_is_for_one_finding_in_one_package_of_its_images() -> None:
    for other in (
        waiver("2027-01-01", id="CVE-2"),
        waiver("2027-01-01", package="libssl"),
        waiver("2027-01-01", images=("other",)),
    ):
        assert decisions(judge(finding(), waivers=(other,))) == ["blocks"]
    assert decisions(judge(finding(), waivers=(waiver("2027-01-01", images=("demo",)),))) == ["waived"]
    renewed = (waiver("2026-01-01"), waiver("2027-01-01"), waiver("2026-02-01"))
    assert decisions(judge(finding(), waivers=renewed)) == ["waived"]


GOOD = """version: 1
waivers:
  - id: CVE-2024-1234
    package: openssl
    reason: the function is not reachable
    until: 2026-12-31
    images: [demo]
"""


def test_waivers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "waivers.yaml"
    path.write_text(GOOD)
    assert read_waivers(path) == (
        Waiver(
            id="CVE-2024-1234",
            package="openssl",
            reason="the function is not reachable",
            until=date(2026, 12, 31),
            images=("demo",),
        ),
    )
    assert read_waivers(None) == ()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("images: [demo]", "image: demo", 7),
        ("    until: 2026-12-31\n", "", 3),
        ("until: 2026-12-31", "until: soon", 6),
        ("until: 2026-12-31", "until: 20261231", 6),
        ("id: CVE-2024-1234", "id: CVE-*", 3),
        ("package: openssl", "package: '*'", 4),
        ("reason: the function is not reachable", "reason: later", 5),
        ("version: 1", "version: 2", 1),
    ],
)
def test_a_waiver_with_a_fault_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, line: int
) -> None:
    path = tmp_path / "waivers.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=rf"waivers\.yaml, line {line}\b"):
        read_waivers(path)


def test_sarif_shows_what_was_decided() -> None:
    verdict = judge(
        finding(id="CVE-B"),
        finding(id="CVE-W"),
        finding(id="CVE-B", package="other", layer=BASE),
        finding(Severity.LOW, id="CVE-L"),
        waivers=(waiver("2027-01-01", id="CVE-W"),),
        base=Base(layers=frozenset({BASE})),
        new_since_base=True,
    )
    run = as_sarif(verdict, image="demo", reference="r/demo@sha256:…", location="Dockerfile")["runs"][0]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["CVE-B", "CVE-W"]
    reported = [
        (one["ruleId"], [s["justification"] for s in one.get("suppressions", [])]) for one in run["results"]
    ]
    assert reported == [("CVE-B", []), ("CVE-B", ["brought by the base image"]), ("CVE-W", ["not reachable"])]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
