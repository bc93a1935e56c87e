"""Every state that ECR knows, and every answer that looks complete and is not."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import FormatError
from pipeline.oci.digest import Digest
from pipeline.scan.ecr_result import Ended, Pending, read
from pipeline.scan.findings import ScanResult, Severity
from tests.support.servers.scans import DONE, basic_finding, complete, enhanced_finding, state


@pytest.mark.parametrize("name", ["IN_PROGRESS", "PENDING", "COMPLETE", "ACTIVE", "SOMETHING_NEW", ""])
def test_states_that_are_waited_for(name: str) -> None:
    assert isinstance(read([state(name)]), Pending)


@pytest.mark.parametrize(
    "name",
    [
        "FAILED",
        "UNSUPPORTED_IMAGE",
        "SCAN_ELIGIBILITY_EXPIRED",
        "FINDINGS_UNAVAILABLE",
        "LIMIT_EXCEEDED",
        "IMAGE_ARCHIVED",
        "IMAGE_SIZE_EXCEEDED",
    ],
)
def test_states_after_which_nothing_comes(name: str) -> None:
    found = read([state(name, "because")])
    assert isinstance(found, Ended)
    assert (found.state, "because" in found.why, bool(found.hint)) == (name, True, True)
    # findings beside such a state are left-overs of an earlier scan, not a result
    assert isinstance(read([complete([basic_finding("CVE-1", "a")], status=name)]), Ended)


def test_inspectors_own_setting_is_named_where_it_has_stopped_to_look() -> None:
    found = read([state("SCAN_ELIGIBILITY_EXPIRED")])
    assert isinstance(found, Ended)
    assert "rescanDuration to LIFETIME" in found.hint
    assert ".sqsh" in found.why


def test_no_scan_yet() -> None:
    found = read([])
    assert isinstance(found, Pending)
    assert found.state == ""


@pytest.mark.parametrize("status", ["COMPLETE", "ACTIVE"])
@pytest.mark.parametrize("lacks", ["imageScanCompletedAt", "findingSeverityCounts"])
def test_a_result_lacks_nothing(status: str, lacks: str) -> None:
    answer = complete([], status=status)
    assert isinstance(read([answer]), ScanResult)
    del answer["imageScanFindings"][lacks]
    assert isinstance(read([answer]), Pending)


def test_a_result_lists_what_it_counts() -> None:
    answer = complete([basic_finding("CVE-1", "a"), basic_finding("CVE-2", "b")])
    answer["imageScanFindings"]["findings"].pop()
    found = read([answer])
    assert isinstance(found, Pending)
    assert "counts 2 findings but lists 1" in found.why


def test_a_finding_in_several_packages_is_one_of_those_that_are_counted() -> None:
    answer = complete([enhanced_finding("CVE-1", "a"), enhanced_finding("CVE-2", "b")], status="ACTIVE")
    listed = answer["imageScanFindings"]["enhancedFindings"]
    details = listed[0]["packageVulnerabilityDetails"]
    details["vulnerablePackages"] = [*details["vulnerablePackages"], {"name": "a-dev", "version": "1.0"}]
    whole = read([answer])
    assert isinstance(whole, ScanResult)
    assert [one.package for one in whole.findings] == ["a", "a-dev", "b"]
    listed.pop()
    assert isinstance(read([answer]), Pending), "two packages of one finding stand for no second finding"


@pytest.mark.parametrize(("later", "kind"), [("PENDING", Pending), ("FAILED", Ended), ("", Pending)])
def test_a_scan_that_changes_while_its_pages_are_read_gives_no_result(later: str, kind: type) -> None:
    first, second = complete([basic_finding("CVE-1", "a")]), complete([])
    assert isinstance(read([first, second]), ScanResult)
    assert isinstance(read([first, {**second, "imageScanStatus": {"status": later}}]), kind)


def test_basic_findings_over_pages() -> None:
    first, second = (
        complete([basic_finding("CVE-1", "a")]),
        complete([basic_finding("CVE-2", "b", "UNDEFINED")]),
    )
    first["imageScanFindings"]["findingSeverityCounts"] = {"HIGH": 1, "UNDEFINED": 1}
    found = read([first, second])
    assert isinstance(found, ScanResult)
    assert (found.scanner, found.completed_at) == ("ecr basic", DONE)
    assert [(one.id, one.package, one.version, one.severity, one.fix) for one in found.findings] == [
        ("CVE-1", "a", "1.0", Severity.HIGH, "unknown"),
        ("CVE-2", "b", "1.0", Severity.UNKNOWN, "unknown"),
    ]


def test_enhanced_findings_are_reported_by_their_key() -> None:
    layer = str(Digest.of(b"layer"))
    found = read(
        [
            complete(
                [
                    enhanced_finding("CVE-1", "a", layer=layer),
                    enhanced_finding("CVE-2", "b", "UNTRIAGED", fix="NO"),
                ],
                status="ACTIVE",
            )
        ]
    )
    assert isinstance(found, ScanResult)
    assert found.scanner == "ecr enhanced"
    assert [(one.id, one.version, one.fix, one.fixed_in, one.layer) for one in found.findings] == [
        ("CVE-1", "1.0-2", "yes", "0:1.1-1", Digest.of(b"layer")),
        ("CVE-2", "1.0-2", "no", "0:1.1-1", None),
    ]
    closed = complete([enhanced_finding("CVE-1", "a", status="CLOSED")])
    closed["imageScanFindings"]["findingSeverityCounts"] = {}
    assert read([closed]) == ScanResult(scanner="ecr enhanced", findings=(), completed_at=DONE)


@pytest.mark.parametrize("broken", [{"severity": "HIGH"}, None, "text", {"name": "x", "attributes": [{}]}])
def test_findings_that_cannot_be_read_are_no_findings_at_all(broken: Any) -> None:
    answer = complete([])
    answer["imageScanFindings"]["findings"] = [broken]
    with pytest.raises(FormatError, match="cannot be read"):
        read([answer])
