"""OpenVEX: a real trivy with the same document and our gate agree; what we write, trivy reads."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from demo.registry import PrivateRegistry
from pipeline.config.types import ScanPolicy, VexPolicy
from pipeline.errors import ConfigError, RegistryError
from pipeline.oci.manifest import Descriptor
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.referrers import attach
from pipeline.scan import vex
from pipeline.scan.findings import ScanResult
from pipeline.scan.judge import Judge, Subject
from pipeline.scan.trivy import Trivy
from tests.integration.tools.test_trivy import PACKAGE, RELEASE, layer, push
from tests.integration.tools.test_trivy import database as database  # noqa: PLC0414 - a fixture
from tests.support.command_line import app
from tests.support.servers.trivy_database import Advisory, write_database

pytestmark = pytest.mark.needs("docker-registry", "htpasswd")

NOW = datetime.now(timezone.utc)
FIRST, SECOND = "CVE-2026-0001", "CVE-2026-0002"
ONE, TWO = "libone", "libtwo"
BOTH = frozenset({(FIRST, ONE), (SECOND, ONE), (FIRST, TWO)})
"""What is found without VEX."""

WORDS = ["trivy", "image", "--image-src", "remote", "--quiet", "--scanners", "vuln", "--format", "json"]

Case = Callable[["Image"], "dict[str, Any]"]


@dataclass(frozen=True)
class Image:
    """An image in the registry, in which trivy finds `BOTH`."""

    reference: Reference
    held: Credentials
    client: RegistryClient
    found: ScanResult
    """What trivy finds without VEX."""

    @property
    def place(self) -> str:
        return f"{self.reference.registry}/{self.reference.repository}".replace(":", "%3A").replace(
            "/", "%2F"
        )

    @property
    def whole(self) -> str:
        return f"pkg:oci/ours@{self.digest}?repository_url={self.place}"

    @property
    def digest(self) -> str:
        return str(self.reference.digest).replace(":", "%3A")

    def ours(self, *files: Path, **policy: Any) -> frozenset[tuple[str, str]]:
        """What blocks."""
        settings = ScanPolicy(scanner="trivy", fail_on="low", vex=VexPolicy(files=files, **policy))
        subject = Subject(name="ours", image=self.reference, platform="linux/amd64")
        judge = Judge(client_for=lambda _: self.client, credentials=lambda _: self.held)
        verdict = judge.evaluate(subject, settings, self.found)
        return frozenset((one.finding.id, one.finding.package) for one in verdict.blocking)

    def trivys(self, file: Path) -> frozenset[tuple[str, str]]:
        """What trivy reports."""
        report = subprocess.run(
            [*WORDS, "--vex", str(file), str(self.reference)],
            env={**os.environ, "TRIVY_USERNAME": self.held.username, "TRIVY_PASSWORD": self.held.password}
            | {"TRIVY_INSECURE": "true"},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        results = json.loads(report).get("Results") or ()
        found = (one for result in results for one in result.get("Vulnerabilities") or ())
        return frozenset((one["VulnerabilityID"], one["PkgName"]) for one in found)


@pytest.fixture
def image(database: Path, registry: PrivateRegistry) -> Iterator[Image]:
    write_database(
        database,
        Advisory(id=FIRST, package=ONE, fixed="1.1-1", severity="CRITICAL"),
        Advisory(id=SECOND, package=ONE, severity="HIGH"),
        Advisory(id=FIRST, package=TWO, severity="CRITICAL"),
    )
    held = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _: held) as client:
        status = "var/lib/dpkg/status.d"
        files = {f"{status}/{name}": PACKAGE.format(name) for name in (ONE, TWO)}
        pushed = push(client, "vex/ours", "v1", layer({**RELEASE, **files}))
        reference = Reference.parse(f"{registry.address}/vex/ours").with_digest(pushed.digest)
        yield Image(reference, held, client, Trivy.find().scan_image(reference, held, platform="linux/amd64"))


def stamp(days: float) -> str:
    return f"{NOW - timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"


def statement(
    product: str, *parts: str, of: str = FIRST, status: str = "not_affected", **more: Any
) -> dict[str, Any]:
    reason = {"justification": "vulnerable_code_not_present"} if status == "not_affected" else {}
    made: dict[str, Any] = {"@id": product}
    if parts:
        made["subcomponents"] = [{"@id": part} for part in parts]
    return {"vulnerability": {"name": of}, "products": [made], "status": status, **reason, **more}


def document(*statements: dict[str, Any], days: float = 1) -> dict[str, Any]:
    return {
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": "urn:test",
        "author": "a test",
        "timestamp": stamp(days),
        "version": 1,
        "statements": list(statements),
    }


DEB = f"pkg:deb/debian/{ONE}"
EXACT = f"{DEB}@1.0-1"
FULL = f"{EXACT}?arch=amd64&distro=debian-12.5"
OTHER = f"pkg:deb/debian/{TWO}"


def _one(product: str, *parts: str, **more: Any) -> Case:
    return lambda _: document(statement(product, *parts, **more))


def _whole(*parts: str, **more: Any) -> Case:
    return lambda image: document(statement(image.whole, *parts, **more))


def _oci(text: str, *parts: str) -> Case:
    """The image by another package URL: {digest} and {place} are its own."""
    return lambda image: document(statement(text.format(digest=image.digest, place=image.place), *parts))


def _several(*statements: dict[str, Any]) -> Case:
    return lambda _: document(*statements)


NAMED = {"identifiers": {"purl": DEB}}
CASES: dict[str, Case] = {
    # the package itself
    "package": _one(DEB),
    "package with its version": _one(EXACT),
    "package with all qualifiers": _one(FULL),
    "package with one qualifier": _one(f"{DEB}?arch=amd64"),
    "package with a qualifier that is wrong": _one(f"{DEB}?arch=arm64"),
    "package with a qualifier that it has not": _one(f"{DEB}?flavour=x"),
    "package of another version": _one(f"{DEB}@1.0-2"),
    "package of another distribution": _one(f"pkg:deb/ubuntu/{ONE}"),
    "package without a distribution": _one(f"pkg:deb/{ONE}"),
    "package of another type": _one(f"pkg:rpm/debian/{ONE}"),
    "package of another name": _one("pkg:deb/debian/libother"),
    "package whose name begins alike": _one("pkg:deb/debian/lib"),
    "package in upper case": _one(f"pkg:DEB/Debian/{ONE.upper()}"),
    "package without pkg": _one(f"deb/debian/{ONE}"),
    "package by name": _one(ONE),
    "no package URL": _one("https://example.com/libone"),
    "package in an identifier": lambda _: document(
        {**statement(""), "products": [{"@id": "https://example.com/one", **NAMED}]}
    ),
    "package in an identifier of another kind": lambda _: document(
        {**statement(""), "products": [{"@id": "x", "identifiers": {"cpe23": "cpe:2.3:a:x:libone:1"}}]}
    ),
    "package with an encoded version": _one(f"{DEB}@1.0%2D1"),
    "package with a subpath": _one(f"{EXACT}#usr/lib"),
    # the image
    "image and package": _whole(DEB),
    "image and package with its version": _whole(EXACT),
    "image and package of another version": _whole(f"{DEB}@2"),
    "image and another package": _whole(OTHER),
    "image and both packages": _whole(DEB, OTHER),
    "image and no package": _whole(),
    "image and a package that it has not": _whole("pkg:deb/debian/libother"),
    "image by name": _oci("pkg:oci/ours", DEB),
    "image by digest": _oci("pkg:oci/ours@{digest}", DEB),
    "image by repository": _oci("pkg:oci/ours?repository_url={place}", DEB),
    "image and architecture": _oci("pkg:oci/ours?arch=amd64", DEB),
    "image and another architecture": _oci("pkg:oci/ours?arch=arm64", DEB),
    "image by tag": _oci("pkg:oci/ours?tag=v1", DEB),
    "image of another repository": _oci("pkg:oci/ours?repository_url=example.com%2Fours", DEB),
    "image of another digest": _oci("pkg:oci/ours@sha256%3A" + "0" * 64, DEB),
    "another image": _oci("pkg:oci/theirs@{digest}", DEB),
    # the vulnerability
    "another vulnerability": _one(DEB, of="CVE-2026-9999"),
    "the second vulnerability": _one(DEB, of=SECOND),
    "alias": lambda _: document(
        {**statement(DEB), "vulnerability": {"name": "GHSA-xxxx", "aliases": [SECOND, FIRST]}}
    ),
    "id of the vulnerability": lambda _: document(
        {**statement(DEB), "vulnerability": {"@id": FIRST, "name": "something"}}
    ),
    # what it says
    "fixed": _one(DEB, status="fixed"),
    "affected": _one(DEB, status="affected", action_statement="update it"),
    "under investigation": _one(DEB, status="under_investigation"),
    "both vulnerabilities": _several(statement(DEB), statement(DEB, of=SECOND)),
    "later affected": _several(
        statement(DEB, timestamp=stamp(5)), statement(DEB, status="affected", timestamp=stamp(2))
    ),
    "later not affected": _several(
        statement(DEB, status="affected", timestamp=stamp(5)), statement(DEB, timestamp=stamp(2))
    ),
    "later not affected, written first": _several(
        statement(DEB, timestamp=stamp(2)), statement(DEB, status="affected", timestamp=stamp(5))
    ),
    "later than the document": _several(
        statement(DEB, status="affected"), statement(DEB, timestamp=stamp(0.5))
    ),
    "later about another package": _several(
        statement(DEB, timestamp=stamp(5)), statement(OTHER, status="affected", timestamp=stamp(2))
    ),
    "package excused, image affected": lambda image: document(
        statement(DEB, timestamp=stamp(5)),
        statement(image.whole, DEB, status="affected", timestamp=stamp(2)),
    ),
    "image excused, package affected": lambda image: document(
        statement(image.whole, DEB, timestamp=stamp(5)), statement(DEB, status="affected", timestamp=stamp(2))
    ),
    "no statement": _several(),
    "several products": lambda _: document(
        {**statement(DEB), "products": [{"@id": "pkg:deb/debian/libother"}, {"@id": OTHER}]}
    ),
}


def test_trivy_and_the_gate_agree(image: Image, tmp_path: Path) -> None:
    """Both ways: what neither may let pass, and what neither may hold back."""
    assert image.ours() == BOTH
    file, different, excused = tmp_path / "vex.json", {}, 0
    for name, case in CASES.items():
        file.write_text(json.dumps(case(image)))
        ours, theirs = image.ours(file), image.trivys(file)
        excused += ours != BOTH
        if ours != theirs:
            different[name] = (sorted(ours), sorted(theirs))
    assert not different
    assert len(CASES) >= 50
    assert 15 < excused < 40, "both answers have to be among the cases"


def test_where_the_gate_asks_for_more(image: Image, tmp_path: Path) -> None:
    """Age, a reason, agreement of statements of the same time, and a time that has been."""
    file = tmp_path / "vex.json"

    def blocked(*statements: dict[str, Any], days: float = 1, **policy: Any) -> bool:
        file.write_text(json.dumps(document(*statements, days=days)))
        return (FIRST, ONE) in image.ours(file, **policy)

    assert not blocked(statement(DEB))
    assert not blocked(statement(DEB), days=89)
    assert blocked(statement(DEB), days=91)
    assert not blocked(statement(DEB), days=91, max_age=timedelta(days=92))
    assert not blocked(statement(DEB, timestamp=stamp(91), last_updated=stamp(3)), days=100)
    assert blocked(statement(DEB, status_notes=f"accepted until {NOW - timedelta(days=2):%Y-%m-%d}"))
    assert not blocked(statement(DEB, status_notes=f"accepted until {NOW + timedelta(days=2):%Y-%m-%d}"))
    assert blocked(statement(DEB, status_notes="until 2099-01-01"), days=91)
    assert blocked(statement(DEB, status_notes="until 2026-02-31"))
    assert blocked({**statement(DEB), "justification": ""})
    assert not blocked({**statement(DEB), "justification": "", "impact_statement": "it is not called"})
    assert blocked(statement(DEB), statement(DEB, status="affected"))
    assert blocked(statement(DEB, timestamp=stamp(-3)))


def test_documents_that_are_attached_to_the_image(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each form in which tools attach them, where the policy says so; another document excuses nothing."""
    client, repository = image.client, image.reference.repository
    assert image.reference.digest is not None
    subject = client.head(repository, str(image.reference.digest))
    assert isinstance(subject, Descriptor)

    def put(kind: str, content: object, **annotations: str) -> None:
        data = json.dumps(content).encode()
        attach(client, repository, subject, artifact_type=kind, data=data, annotations=annotations)

    def in_toto(predicate: object, kind: str = "https://openvex.dev/ns/v0.2.0") -> dict[str, Any]:
        return {"_type": "https://in-toto.io/Statement/v1", "predicateType": kind, "predicate": predicate}

    def envelope(content: object) -> dict[str, Any]:
        payload = base64.b64encode(json.dumps(content).encode()).decode()
        return {"payload": payload, "payloadType": "application/vnd.in-toto+json", "signatures": []}

    put("application/vnd.in-toto+json", in_toto({"builder": "x"}, "https://slsa.dev/provenance/v1"))
    put("application/vnd.in-toto+json", {"broken": True})
    put("application/vnd.cyclonedx+json", document(statement(DEB)))
    marked = {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}
    put("application/vnd.in-toto+json", in_toto(document(statement(DEB))), **marked)
    assert image.ours(attached=True) == BOTH
    put("application/vnd.in-toto+json", in_toto(document(statement(DEB))))
    assert image.ours(attached=True) == BOTH - {(FIRST, ONE)}
    put("application/vnd.in-toto+json", envelope(in_toto(document(statement(DEB, of=SECOND)))))
    assert image.ours(attached=True) == {(FIRST, TWO)}
    bundle: dict[str, Any] = {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}
    bundle["dsseEnvelope"] = envelope(in_toto(document(statement(OTHER))))
    put("application/vnd.dev.sigstore.bundle.v0.3+json", bundle)
    assert image.ours(attached=True) == frozenset()
    assert image.ours() == BOTH
    later = document(statement(OTHER, status="affected"), days=0.5)
    put("application/vnd.in-toto+json", in_toto(later))
    assert image.ours(attached=True) == {(FIRST, TWO)}

    # one that is not read may take back what another says, so then none counts
    with monkeypatch.context() as patched:
        read = RegistryClient.read_blob

        def failing(self: RegistryClient, repository: str, blob: Descriptor, **more: Any) -> bytes:
            content = read(self, repository, blob, **more)
            if b'"affected"' in content:
                raise RegistryError("the registry answers 503")
            return content

        patched.setattr(RegistryClient, "read_blob", failing)
        assert image.ours(attached=True) == BOTH
    for number in range(31):
        put("application/vnd.openvex+json", document(days=number + 1))
    assert image.ours(attached=True) == BOTH


def test_what_we_write_is_read_by_trivy_and_by_us(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`scan --vex` writes the waivers that hold; an ended one is left out."""
    future, past = f"{NOW + timedelta(days=30):%Y-%m-%d}", f"{NOW - timedelta(days=1):%Y-%m-%d}"
    reason = "reason: 'made up for a test, \"quoted\"'"
    (tmp_path / "waivers.yaml").write_text(
        "version: 1\nwaivers:\n"
        f"- {{id: {FIRST}, package: {ONE}, {reason}, until: {future}}}\n"
        f"- {{id: {SECOND}, package: {ONE}, {reason}, until: {past}}}\n"
        f"- {{id: CVE-2026-9999, package: {ONE}, {reason}, until: {future}}}\n"
    )
    registry = f"{image.reference.registry}/vex"
    (tmp_path / "images.yaml").write_text(
        f"version: 1\nregistry: {{url: '{registry}'}}\nstore: {{root: {tmp_path / 'store'}}}\n"
        "defaults: {scan: {scanner: trivy, fail_on: low, waivers: waivers.yaml}}\n"
        f"images: {{ours: {{base: '{registry}/ours:v1'}}}}\n"
    )
    docker = tmp_path / "docker"
    docker.mkdir()
    token = base64.b64encode(f"{image.held.username}:{image.held.password}".encode()).decode()
    (docker / "config.json").write_text(json.dumps({"auths": {image.reference.registry: {"auth": token}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(docker))
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "made.json"
    done = CliRunner().invoke(app, ["scan", "ours", "--tag", "v1", "--vex", str(made)])
    assert done.exception is not None, "two findings are left, so it is blocked"
    left = BOTH - {(FIRST, ONE)}
    assert image.trivys(made) == left
    assert image.ours(made) == left
    (said,) = json.loads(made.read_text())["statements"]
    assert said["impact_statement"] == 'made up for a test, "quoted"'
    assert future in said["status_notes"]
    (read,) = vex.read_files([made])
    assert read.statements[0].status == "not_affected"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"@context": "https://example.com"}',
        json.dumps({**document(), "@context": "https://openvex.dev/ns/v0.3.0"}),
        json.dumps({**document(), "timestamp": "yesterday"}),
        json.dumps({**document(), "timestamp": "2026-01-01T00:00:00"}),
        json.dumps(document({**statement(DEB), "status": "safe"})),
        json.dumps({"payload": "%%%"}),
    ],
)
def test_files_that_are_no_openvex(tmp_path: Path, text: str) -> None:
    file = tmp_path / "vex.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"vex\.json"):
        vex.read_files([file])
