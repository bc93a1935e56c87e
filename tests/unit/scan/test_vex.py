"""VEX statements for findings of a scanner that gives no package URL, and where the policy of VEX shows."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.reading import load
from pipeline.config.types import ScanPolicy, VexPolicy
from pipeline.errors import ConfigError
from pipeline.image.inputs import scan_policy
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.scan import vex
from pipeline.scan.findings import Finding, Severity
from pipeline.scan.policy import Judged
from pipeline.scan.waivers import Waiver

NOW = datetime(2026, 6, 15, tzinfo=timezone.utc)
IMAGE = Reference.parse("registry.example.com/team/demo").with_digest(Digest.of(b"image"))


def accepted(finding: Finding, product: dict[str, Any], days: int = 1) -> dict[Finding, Waiver]:
    statement = {
        "vulnerability": {"name": "CVE-1"},
        "products": [product],
        "status": "not_affected",
        "justification": "component_not_present",
    }
    raw = {"@context": vex.VERSION, "timestamp": f"{NOW - timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"}
    read = vex.parse(json.dumps({**raw, "statements": [statement]}).encode(), "a file")
    return vex.accepted(
        [read],
        [finding],
        image=IMAGE,
        architecture="amd64",
        name="demo",
        max_age=timedelta(days=90),
        now=NOW,
    )


def of_ecr(**more: Any) -> Finding:
    return Finding(
        **{"id": "CVE-1", "severity": Severity.HIGH, "package": "openssl", "version": "3.0-1", **more}
    )


@pytest.mark.parametrize(
    ("product", "counts"),
    [
        ("pkg:deb/debian/openssl", True),
        ("pkg:deb/debian/openssl@3.0-1", True),
        ("pkg:rpm/amzn/openssl?arch=x86_64", True),
        ("pkg:deb/debian/openssl@3.0-2", False),
        ("pkg:deb/debian/openssl-libs", False),
        ("pkg:deb/openssl/", True),
        ("pkg:", False),
        ("pkg:deb", False),
        ("openssl", False),
    ],
)
def test_a_finding_without_a_package_url_is_known_by_name_and_version(product: str, counts: bool) -> None:
    assert bool(accepted(of_ecr(), {"@id": product})) is counts
    image = {"@id": "pkg:oci/demo", "subcomponents": [{"@id": product}]}
    assert bool(accepted(of_ecr(), image)) is counts


def test_two_versions_of_one_package_are_two_findings() -> None:
    """A statement about one of them says nothing of the other."""
    stated = {"@id": "pkg:pypi/urllib3@1.26"}
    old = of_ecr(package="urllib3", version="1.26", purl="pkg:pypi/urllib3@1.26")
    new = of_ecr(package="urllib3", version="2.0", purl="pkg:pypi/urllib3@2.0")
    assert accepted(old, stated)
    assert not accepted(new, stated)


def test_it_ends() -> None:
    (waiver,) = accepted(of_ecr(), {"@id": "pkg:deb/debian/openssl"}, days=100).values()
    assert waiver.until == date(2026, 6, 5)
    assert waiver.source == "VEX statement"
    assert waiver.reason == "component_not_present"


PACKAGE = {"@id": "pkg:deb/debian/openssl"}


def document(days: float, status: str = "not_affected", **more: Any) -> vex.Document:
    """One statement about openssl, made so many days ago."""
    statement = {
        "vulnerability": {"name": "CVE-1"},
        "products": [PACKAGE],
        "status": status,
        "justification": "component_not_present",
        **more,
    }
    stamp = f"{NOW - timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"
    raw = {"@context": vex.VERSION, "timestamp": stamp, "statements": [statement]}
    return vex.parse(json.dumps(raw).encode(), "a file")


def until(*documents: vex.Document) -> date | None:
    found = vex.accepted(
        documents,
        [of_ecr()],
        image=IMAGE,
        architecture="amd64",
        name="demo",
        max_age=timedelta(days=90),
        now=NOW,
    )
    return next((one.until for one in found.values()), None)


@pytest.mark.parametrize("status", ["affected", "under_investigation"])
@pytest.mark.parametrize("days", [1, 5, -3], ids=["later", "at the same time", "in the future"])
def test_a_later_document_takes_back_what_an_earlier_one_says(status: str, days: int) -> None:
    """What is attached to an image stays there when a new document is attached."""
    old = document(5)
    assert until(old) is not None
    assert until(old, document(days, status)) is None
    assert until(document(days, status), old) is None


def test_a_later_document_excuses_again() -> None:
    assert until(document(5, "affected"), document(1)) == date(2026, 9, 12)
    assert until(document(1), document(-3)) == date(2026, 9, 12), "one from the future is not looked at"
    assert until(document(-3)) is None


@pytest.mark.parametrize(
    ("notes", "end"),
    [
        ("Until 2026-07-01", date(2026, 7, 1)),
        ("until 2026-08-01, in production until 2026-07-01", date(2026, 7, 1)),
        ("until 2026-08-01 and until 2026-02-31", date.min),
        ("", date(2026, 9, 12)),
    ],
)
def test_the_first_day_that_notes_name_is_the_end(notes: str, end: date) -> None:
    assert until(document(1, status_notes=notes)) == end


def test_a_statement_with_something_left_empty_does_not_cover_more() -> None:
    """As a template does whose variable had no value."""
    for product in ("pkg:deb/debian/openssl@", "pkg:deb/debian/openssl@?arch=amd64"):
        assert until(document(1, products=[{"@id": product}])) is None
        assert (
            until(document(1, products=[{"@id": "pkg:oci/demo", "subcomponents": [{"@id": product}]}]))
            is None
        )
    assert until(document(1, justification="  ")) is None
    with pytest.raises(ConfigError, match="subcomponents"):
        document(1, products=[{"@id": "pkg:oci/demo"}], subcomponents=[{"@id": "pkg:deb/debian/zlib"}])


def test_what_is_written_has_no_statement_of_others() -> None:
    """A waiver that ended and what VEX excuses already are left out."""
    held = Waiver(id="CVE-1", package="openssl", reason="not reachable", until=date(2026, 7, 1))
    ended = Waiver(id="CVE-1", package="openssl", reason="not reachable", until=date(2026, 6, 1))
    stated = Waiver(id="CVE-1", package="openssl", reason="x", until=date(2026, 7, 1), source="VEX statement")
    judged = [Judged(finding=of_ecr(), decision="waived", waiver=one) for one in (held, ended, stated, None)]
    (made,) = vex.statements(judged, IMAGE, today=NOW.date())
    assert made["status_notes"] == "accepted by a waiver until 2026-07-01"
    again = vex.parse(vex.document([made], author="x", now=NOW), "made")
    assert accepted(of_ecr(), made["products"][0])
    assert again.statements[0].vulnerability.name == "CVE-1"


def test_images_yaml(tmp_path: Path) -> None:
    def text(vex_lines: str) -> Path:
        path = tmp_path / "images.yaml"
        path.write_text(
            f"version: 1\ndefaults: {{scan: {{vex: {{{vex_lines}}}}}}}\nimages: {{demo: {{base: 'a:1'}}}}\n"
        )
        return path

    with pytest.raises(ConfigError, match=r"demo\.vex\.json does not exist"):
        load(text("files: [demo.vex.json]"))
    (tmp_path / "demo.vex.json").write_text("{}")
    policy = load(text("files: [demo.vex.json], max_age: 30d")).image("demo").scan
    assert policy.vex == VexPolicy(files=(tmp_path / "demo.vex.json",), max_age=timedelta(days=30))
    before = scan_policy(policy)
    (tmp_path / "demo.vex.json").write_text("{ }")
    assert scan_policy(policy) != before
    assert "vex" not in scan_policy(ScanPolicy())
