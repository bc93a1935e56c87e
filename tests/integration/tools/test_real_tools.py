"""The programs themselves, where they are: syft's SBOM of an image, signatures by notation and cosign."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.registry import PrivateRegistry
from pipeline.attest import image_signing
from pipeline.attest.sbom import make_sbom
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.referrers import referrers
from tests.conftest import missing
from tests.integration.tools.test_trivy import PACKAGE, RELEASE, layer, push

pytestmark = pytest.mark.needs("docker-registry", "htpasswd")


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> str:
    """PATH with what is installed beside this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    return path


@pytest.fixture
def client(registry: PrivateRegistry) -> Iterator[RegistryClient]:
    held = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _: held) as made:
        yield made


def image(client: RegistryClient, name: str) -> Reference:
    packages = {"var/lib/dpkg/status": PACKAGE.format("libbase") + "\n"}
    made = push(client, name, "v1", layer({**RELEASE, **packages}))
    return Reference.parse(f"{client.host}/{name}").with_digest(made.digest)


def test_syft_lists_what_an_image_holds(
    client: RegistryClient, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shutil.which("syft", path=path) is None:
        missing("syft is not here (pip install --require-hashes -r tests/requirements-scanners.txt)")
    monkeypatch.setenv("HOME", str(tmp_path))
    reference = image(client, "real/syft")
    made = make_sbom(reference, client.credentials(client.host), platform="linux/amd64")
    assert made is not None
    name, sbom = made
    assert name == "syft"
    value = json.loads(sbom)
    assert value["bomFormat"] == "CycloneDX"
    assert "libbase" in {one["name"] for one in value["components"]}
    held = client.credentials(client.host)
    assert held is not None
    assert held.password.encode() not in sbom


@pytest.mark.parametrize("tool", ["notation", "cosign"])
def test_a_signature_is_made_and_found(
    client: RegistryClient, path: str, tool: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = shutil.which(tool, path=path)
    if program is None:
        pytest.skip(f"{tool} is not here: no package registry has it, see its project for a binary")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("COSIGN_PASSWORD", "")
    if tool == "notation":
        subprocess.run([program, "cert", "generate-test", "--default", "tests"], check=True, timeout=60)
    else:
        subprocess.run([program, "generate-key-pair"], check=True, timeout=60, cwd=tmp_path)
        monkeypatch.setenv("COSIGN_KEY", str(tmp_path / "cosign.key"))
        monkeypatch.setenv("PATH", f"{Path(program).parent}{os.pathsep}/usr/bin:/bin")
    reference = image(client, f"real/{tool}")
    made = image_signing.sign(reference, client.credentials(client.host))
    assert (made.status, made.tool) == ("signed", tool), made.why
    assert reference.digest is not None
    there = image_signing.found_among(referrers(client, reference.repository, reference.digest))
    assert there is not None
    assert there.tool == tool
