"""The verbs against a real registry behind a proxy that does not answer HEAD for manifests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from demo.registry import PrivateRegistry
from pipeline.config.lock import read_lock
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from tests.support.command_line import app
from tests.support.images.tiny_images import push_image
from tests.support.servers.registry import Fault, FaultyProxy
from tests.support.store.releases import new_store

pytestmark = pytest.mark.needs("docker-registry", "htpasswd", "skopeo")
ALWAYS = 1_000_000
ODD = {
    "404": Fault(method="HEAD", path="/manifests/", times=ALWAYS, status=404),
    "405": Fault(method="HEAD", path="/manifests/", times=ALWAYS, status=405),
    "403 without a challenge": Fault(method="HEAD", path="/manifests/", times=ALWAYS, status=403),
    "no digest": Fault(path="/manifests/", times=ALWAYS, headers={"Docker-Content-Digest": ""}),
}


@pytest.fixture
def proxy(registry: PrivateRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(registry.address) as made:
        for name, value in registry.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SQSHPIPE_REGISTRY", f"{made.address}/port{made.address.rpartition(':')[2]}")
        yield made


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    return result.exit_code, result.output


@pytest.mark.parametrize("odd", ODD)
def test_lock_plan_mirror_and_release_work(
    proxy: FaultyProxy, registry: PrivateRegistry, odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQSHPIPE_STORE", str(new_store(tmp_path / "store").root))
    monkeypatch.setenv("SQSHPIPE_CACHE", str(tmp_path / "cache"))
    mine = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _: mine) as client:
        digest = push_image(client, "headless/base", "1", content=odd)
    proxy.faults.append(ODD[odd])
    images = tmp_path / "images.yaml"
    images.write_text(
        f"version: 1\nimages:\n  demo: {{base: '{proxy.address}/headless/base:1', scan: {{scanner: none}}}}\n"
    )
    config = ["--config", str(images)]
    assert run("lock", *config)[0] == 0
    held = next(iter(read_lock(tmp_path / "images.lock").bases.values()))
    skopeo = ["skopeo", "inspect", "--raw", "--tls-verify=false"]
    skopeo += [f"--creds={mine.username}:{mine.password}", f"docker://{proxy.address}/headless/base:1"]
    raw = subprocess.run(skopeo, capture_output=True, check=True, timeout=60).stdout
    assert json.loads(raw)["schemaVersion"] == 2
    assert str(held.digest) == str(digest)
    code, said = run("plan", *config)
    assert code == 10, said
    code, said = run("registry", "mirror", "demo", *config)
    assert code == 0, said
    code, said = run("release", "demo", "--tag", "v1", *config)
    assert code == 0, said
    assert run("registry", "mirror", "demo", *config)[0] == 0
