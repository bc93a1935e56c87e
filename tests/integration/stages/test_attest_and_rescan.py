"""What belongs to a release: provenance, SBOM, signature; and another look at what is published."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from demo.registry import PrivateRegistry
from pipeline.attest.attest import PROVENANCE, SIGNATURE, attest
from pipeline.aws.ecr import AwsRefused, Ecr
from pipeline.config.types import Config, ImageSpec, RegistrySettings, ScanPolicy, StoreSettings
from pipeline.errors import ToolError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Manifest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.referrers import referrers
from pipeline.scan.ecr import Waiting
from pipeline.scan.judge import Judge
from pipeline.scan.rescan import Rescan, rescan
from pipeline.scan.trivy import Trivy
from pipeline.store.layout import SBOM
from pipeline.store.record import Record, Release
from pipeline.store.store import Store
from tests.support.command_line import app
from tests.support.images.pushed import push_image
from tests.support.servers import scans
from tests.support.store.releases import new_store

pytestmark = pytest.mark.needs("docker-registry", "htpasswd")

NOW = datetime(2026, 6, 15, tzinfo=timezone.utc)
ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com/team/demo"
DIGEST = Digest.of(b"image")
TRIVY = """#!/bin/sh
# Answers like trivy, and notes how it was called and what it was given.
[ "$1" = --version ] && { echo "Version: 0.99.0"; exit 0; }
echo "$@" >> "$FAKE_LOG"
echo "user=$TRIVY_USERNAME" >> "$FAKE_LOG"
while [ $# -gt 0 ]; do
    case "$1" in --output) out=$2; shift ;; --format) format=$2; shift ;; esac
    shift
done
[ "$format" = cyclonedx ] && { echo '{"bomFormat": "CycloneDX"}' > "$out"; exit 0; }
cp "$FAKE_REPORT" "$out"
"""


@pytest.fixture
def client(registry: PrivateRegistry) -> Iterator[RegistryClient]:
    held = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _: held) as made:
        yield made


@pytest.fixture
def trivy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trivy that reports what ``report.json`` in the returned folder says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "trivy").write_text(TRIVY)
    (folder / "trivy").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_LOG", str(folder / "log"))
    monkeypatch.setenv("FAKE_REPORT", str(folder / "report.json"))
    report(folder)
    return folder


def report(folder: Path, *found: str) -> None:
    one = {"PkgName": "openssl", "InstalledVersion": "1.0", "FixedVersion": "1.1", "Severity": "HIGH"}
    results = [{"Vulnerabilities": [{**one, "VulnerabilityID": id_} for id_ in found]}]
    (folder / "report.json").write_text(json.dumps({"SchemaVersion": 2, "Results": results}))


def publish(tmp_path: Path, source: dict[str, str] | None, version: str = "v1.0") -> tuple[Store, Release]:
    file = tmp_path / "made.sqsh"
    file.write_bytes(f"bytes of {version}".encode())
    store = new_store(tmp_path / "store")
    record = Record(
        image="demo",
        version=version,
        platform="linux/amd64",
        sha256=Digest.of(file.read_bytes()).hex,
        size=file.stat().st_size,
        source=source,
        base={"reference": "nvcr.io/nvidia/pytorch:24.01-py3", "digest": str(Digest.of(b"base"))},
        keys={"build": "b" * 64},
        converter={"name": "mksquashfs", "versions": {"mksquashfs": "4.5.1"}},
        scan={"status": "passed", "scanner": "ecr basic"},
        provenance={
            "revision": "c0ffee",
            "sqshpipe": "0.1.0",
            "inputs": {"dockerfile": "d" * 64, "args": {"TRANSFORMERS": "4.36.0"}},
        },
        created="2026-06-01T00:00:00Z",
    )
    return store, store.publish(record, file)


def pushed(client: RegistryClient, name: str) -> tuple[Manifest, dict[str, str]]:
    manifest = push_image(client, name, b"layer")
    return manifest, {"repository": f"{client.host}/{name}", "digest": str(manifest.digest)}


def test_a_release_gets_its_provenance_beside_it_and_in_the_registry(
    client: RegistryClient, tmp_path: Path, trivy: Path, registry: PrivateRegistry
) -> None:
    manifest, source = pushed(client, "attest/demo")
    store, release = publish(tmp_path, source)
    held = Credentials(username=registry.username, password=registry.password)
    made = attest(release, store, client_for=lambda _: client, credentials=lambda _: held)
    folder = store.layout.attachments("demo", "v1.0", "linux/amd64")
    statement = json.loads((folder / PROVENANCE).read_text())
    assert statement["subject"][0]["digest"] == {"sha256": release.sha256}
    definition = statement["predicate"]["buildDefinition"]
    assert {one["name"]: one["digest"] for one in definition["resolvedDependencies"]} == {
        "base": {"sha256": Digest.of(b"base").hex},
        "image": {"sha256": manifest.digest.hex},
        "Dockerfile": {"sha256": "d" * 64},
        "source": {"gitCommit": "c0ffee"},
    }
    assert definition["externalParameters"]["buildArgs"] == {"TRANSFORMERS": "4.36.0"}
    assert definition["internalParameters"]["converter"]["name"] == "mksquashfs"
    assert definition["internalParameters"]["scan"]["status"] == "passed"
    assert json.loads((folder / SBOM).read_text()) == {"bomFormat": "CycloneDX"}
    found = referrers(client, "attest/demo", manifest.digest)
    assert sorted(one.artifact_type for one in found) == [
        "application/vnd.cyclonedx+json",
        "application/vnd.in-toto+json",
    ]
    assert {str(one.digest) for one in found} == set(made.attached)
    artifact = client.get_manifest("attest/demo", made.attached[0])
    assert isinstance(artifact, Manifest)
    assert client.read_blob("attest/demo", artifact.layers[0]) == (folder / PROVENANCE).read_bytes()
    assert json.loads((folder / SIGNATURE).read_text())["status"] == "unsigned"
    again = attest(release, store, client_for=lambda _: client, credentials=lambda _: held)
    assert again == made
    assert len(referrers(client, "attest/demo", manifest.digest)) == 2
    log = (trivy / "log").read_text()
    assert f"user={registry.username}" in log
    assert registry.password not in log


def test_without_tools_and_registry_a_release_stands_and_says_what_is_missing(
    client: RegistryClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    _, source = pushed(client, "attest/missing")
    store, release = publish(tmp_path, {**source, "digest": str(DIGEST)})
    made = attest(release, store, client_for=lambda _: client)
    assert any("neither syft nor trivy" in one for one in made.missing)
    assert any("is no longer in the registry" in one for one in made.missing)
    assert made.files == (PROVENANCE,)
    made = attest(publish(tmp_path, None, "v2.0")[1], store, client_for=lambda _: client)
    assert made.signature.status == "unsigned"


def test_what_is_installed_signs_and_its_failure_is_recorded(
    client: RegistryClient, tmp_path: Path, trivy: Path
) -> None:
    _, source = pushed(client, "attest/signed")
    store, release = publish(tmp_path, source)
    notation = trivy / "notation"
    for script, status in (("exit 1", "failed"), ('echo "$@" > "$FAKE_LOG"', "signed")):
        notation.write_text(f"#!/bin/sh\n{script}\n")
        notation.chmod(0o755)
        made = attest(release, store, client_for=lambda _: client)
        assert (made.signature.status, made.signature.tool) == (status, "notation")
    image = f"{source['repository']}@{source['digest']}"
    assert (trivy / "log").read_text() == f"sign --insecure-registry {image}\n"


def test_signers_get_the_registrys_password_and_nobody_else_sees_it(
    client: RegistryClient,
    registry: PrivateRegistry,
    tmp_path: Path,
    trivy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, source = pushed(client, "attest/passwords")
    store, release = publish(tmp_path, source)
    held = Credentials(username=registry.username, password=registry.password)
    shows = 'test "$NOTATION_PASSWORD" = "$EXPECTED" || cat "$DOCKER_CONFIG/config.json" >'
    shows = f'echo "$@" >> "$FAKE_LOG"; {shows}'
    for tool in ("notation", "cosign"):
        (trivy / tool).write_text(f"#!/bin/sh\n{shows} '{tmp_path}/seen'\n")
        (trivy / tool).chmod(0o755)
    monkeypatch.setenv("EXPECTED", registry.password)
    monkeypatch.setenv("COSIGN_KEY", "awskms:///alias/x")
    made = attest(release, store, client_for=lambda _: client, credentials=lambda _: held)
    assert (made.signature.status, made.signature.tool) == ("signed", "notation")
    assert not (tmp_path / "seen").exists()
    (trivy / "notation").unlink()
    made = attest(release, store, client_for=lambda _: client, credentials=lambda _: held)
    assert (made.signature.status, made.signature.tool) == ("signed", "cosign")
    assert held.basic().partition(" ")[2] in (tmp_path / "seen").read_text()
    assert registry.password not in (trivy / "log").read_text()


# --- looking again


class FixedEcr(Ecr):
    """Always the same answer."""

    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        super().__init__("123456789012", "us-east-1")
        self.answer = answer

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        if operation == "start_image_scan":
            raise AwsRefused("once a day", hint="", code="LimitExceededException", operation=operation)
        assert operation == "describe_image_scan_findings"
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Time:
    """A clock that waiting turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def waiting(self) -> Waiting:
        return Waiting(sleep=self.sleep, clock=lambda: self.now)


def config(store: Store, **policy: Any) -> Config:
    spec = ImageSpec(
        name="demo",
        base=Reference.parse("nvcr.io/nvidia/pytorch:24.01-py3"),
        platform=Platform.parse("linux/amd64"),
        scan=ScanPolicy(scanner="ecr", **policy),
    )
    return Config(
        path=Path("images.yaml"),
        registry=RegistrySettings(),
        store=StoreSettings(configured=store.root),
        images={"demo": spec},
        cache=store.root,
        scratch=store.root,
    )


def look(tmp_path: Path, answer: dict[str, Any] | Exception, **policy: Any) -> tuple[Rescan, Store]:
    registry, _, _ = ECR.partition("/")
    store, _ = publish(tmp_path, {"repository": ECR, "digest": str(DIGEST)})
    assert registry in ECR
    settings, ecr = config(store, **policy), FixedEcr(answer)
    looks = rescan(store, settings, judge=Judge(ecr_for=lambda _: ecr, waiting=Time().waiting, now=NOW))
    assert len(looks) == 1
    return looks[0], store


BAD = scans.complete([scans.basic_finding("CVE-9", "openssl", "CRITICAL")])


def test_what_is_still_fine_stays(tmp_path: Path) -> None:
    found, store = look(tmp_path, scans.complete([]), published="yank")
    assert (found.status, found.yanked) == ("acceptable", False)
    assert store.resolve("demo:v1.0").state == "published"


class Rescanning(Ecr):
    """Basic scanning: the result of the push, until a new scan is asked for, which takes two questions."""

    def __init__(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        super().__init__("123456789012", "us-east-1")
        self.answers = {"": before, "after": after}
        self.calls: list[tuple[str, str]] = []
        self.asked: dict[str, int] = {}

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        digest = parameters["imageId"]["imageDigest"]
        self.calls.append((operation, digest))
        if operation == "start_image_scan":
            self.asked[digest] = 0
            return {}
        if digest not in self.asked:
            return self.answers[""]
        self.asked[digest] += 1
        return scans.state("IN_PROGRESS") if self.asked[digest] < 3 else self.answers["after"]


def test_basic_scanning_looks_again_only_when_asked_and_is_asked_for_all_at_once(tmp_path: Path) -> None:
    store, _ = publish(tmp_path, {"repository": ECR, "digest": str(DIGEST)})
    publish(tmp_path, {"repository": ECR, "digest": str(Digest.of(b"other"))}, "v2.0")
    clean, found = scans.complete([]), [scans.basic_finding("CVE-9", "openssl", "CRITICAL")]
    ecr, clock = Rescanning(clean, scans.complete(found, completed=NOW)), Time()
    looks = rescan(store, config(store), judge=Judge(ecr_for=lambda _: ecr, waiting=clock.waiting, now=NOW))
    assert [one.status for one in looks] == ["unacceptable", "unacceptable"]
    started = [number for number, (operation, _) in enumerate(ecr.calls) if operation == "start_image_scan"]
    assert started == [1, 3], "each is asked for before the first is waited for"
    stuck, clock = Rescanning(clean, scans.state("IN_PROGRESS")), Time()
    looks = rescan(store, config(store), judge=Judge(ecr_for=lambda _: stuck, waiting=clock.waiting, now=NOW))
    assert [one.status for one in looks] == ["unknown", "unknown"]
    assert clock.now == pytest.approx(1800, abs=1), "all share one limit"


def test_what_has_become_unacceptable_is_reported_or_yanked_by_policy(tmp_path: Path) -> None:
    found, store = look(tmp_path, BAD)
    assert (found.status, found.yanked) == ("unacceptable", False)
    assert "CVE-9" in found.why
    assert store.resolve("demo:v1.0").state == "published"
    found, store = look(tmp_path, BAD, published="yank")
    assert found.yanked
    release = store.release("demo", "v1.0")
    assert release is not None
    assert release.state == "yanked"
    assert rescan(store, config(store), judge=Judge(ecr_for=lambda _: FixedEcr(BAD), now=NOW)) == []


@pytest.mark.parametrize(
    "answer",
    [
        scans.state("SCAN_ELIGIBILITY_EXPIRED"),
        scans.state("FINDINGS_UNAVAILABLE"),
        scans.state("IMAGE_ARCHIVED"),
        scans.state("IN_PROGRESS"),
        scans.complete([scans.basic_finding("CVE-9", "a", "CRITICAL")], status="SCAN_ELIGIBILITY_EXPIRED"),
        AwsRefused("AWS refused", hint="", code="ScanNotFoundException", operation="X"),
        AwsRefused("AWS denies", hint="", code="AccessDeniedException", operation="X"),
    ],
)
def test_unknown_is_never_a_yank(tmp_path: Path, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found, store = look(tmp_path, answer, published="yank")
    assert (found.status, found.yanked) == ("unknown", False)
    assert found.why
    assert store.resolve("demo:v1.0").state == "published"


def with_sbom(tmp_path: Path) -> tuple[Store, Path]:
    store, _ = publish(tmp_path, {"repository": ECR, "digest": str(DIGEST)})
    folder = store.layout.attachments("demo", "v1.0", "linux/amd64")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SBOM).write_text("{}")
    return store, folder / SBOM


@pytest.mark.parametrize("state", ["SCAN_ELIGIBILITY_EXPIRED", "FINDINGS_UNAVAILABLE"])
def test_what_ecr_no_longer_knows_is_asked_of_the_sbom_and_never_yanked(
    tmp_path: Path, trivy: Path, state: str
) -> None:
    store, sbom = with_sbom(tmp_path)
    ecr = FixedEcr(scans.state(state))
    policy = config(store, published="yank")

    def again() -> Rescan:
        logged: list[dict[str, Any]] = []
        structlog.configure(processors=[lambda _l, _n, event: logged.append(dict(event)) or repr(event)])
        try:
            (found,) = rescan(
                store, policy, judge=Judge(ecr_for=lambda _: ecr, waiting=Time().waiting, now=NOW)
            )
        finally:
            structlog.reset_defaults()
        assert any(state in str(event.get("why")) for event in logged), "it is a warning"
        return found

    fine = again()
    assert (fine.status, fine.by_sbom, state in fine.why) == ("acceptable", True, True)
    assert f"{sbom}" in (trivy / "log").read_text()
    report(trivy, "CVE-7")
    bad = again()
    assert (bad.status, bad.by_sbom, bad.yanked) == ("unacceptable", True, False)
    assert "CVE-7" in bad.why
    (trivy / "report.json").write_text("not JSON")
    broken = again()
    assert (broken.status, broken.yanked) == ("unknown", False)
    assert "SBOM could not be scanned" in broken.why
    assert store.resolve("demo:v1.0").state == "published"


def test_a_policy_that_scans_nothing_scans_no_sbom_either(tmp_path: Path, trivy: Path) -> None:
    store, _ = with_sbom(tmp_path)
    settings = config(store, published="yank")
    spec = dataclasses.replace(settings.images["demo"], scan=ScanPolicy(scanner="none"))
    report(trivy, "CVE-7")
    (found,) = rescan(store, dataclasses.replace(settings, images={"demo": spec}), judge=Judge(now=NOW))
    assert (found.status, found.verdict) == ("unknown", None)
    assert not (trivy / "log").exists()


def test_the_verb_reports_and_exits_with_5(
    client: RegistryClient, tmp_path: Path, trivy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = pushed(client, "attest/verb")
    store, _ = publish(tmp_path, source)
    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    fine = run.invoke(app, ["store", "rescan", "--store", str(store.root)])
    assert (fine.exit_code, fine.stdout.strip()) == (0, "demo:v1.0  linux/amd64  acceptable"), fine
    report(trivy, "CVE-7")
    bad = run.invoke(app, ["store", "rescan", "--store", str(store.root), "--json"])
    assert type(bad.exception).__name__ == "ScanRejected"
    verdict = json.loads(bad.stdout)[0]["verdict"]
    assert [(one["id"], one["decision"]) for one in verdict["findings"]] == [("CVE-7", "blocks")]
    assert dataclasses.is_dataclass(store.release("demo", "v1.0"))


@pytest.mark.needs("root", "mount")
def test_a_store_that_is_full_when_a_release_is_attested(client: RegistryClient, tmp_path: Path) -> None:
    """The release stands, the sentence says what to do, and the next run makes what is missing."""
    _, source = pushed(client, "attest/full")
    (tmp_path / "store").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", tmp_path / "store"], check=True)
    try:
        store, release = publish(tmp_path, source)
        filler = tmp_path / "store" / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        with pytest.raises(ToolError, match="no space left while writing") as caught:
            attest(release, store, client_for=lambda _: client)
        assert "free space" in caught.value.hint
        assert store.resolve("demo:v1.0").path.exists()
        filler.unlink()
        assert PROVENANCE in attest(release, store, client_for=lambda _: client).files
    finally:
        subprocess.run(["umount", tmp_path / "store"], check=True)


@pytest.mark.needs("root", "mount")
def test_a_disk_that_is_full_while_trivy_scans(
    tmp_path: Path, trivy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    image = Reference.parse(f"registry.example.com/demo@{DIGEST}")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        with contextlib.suppress(OSError), (small / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(ToolError, match="No space left on device") as caught:
            Trivy.find().scan_image(image, None, platform="linux/amd64")
        assert "TMPDIR" in caught.value.hint
        (small / "filler").unlink()
        assert Trivy.find().scan_image(image, None, platform="linux/amd64").findings == ()
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
