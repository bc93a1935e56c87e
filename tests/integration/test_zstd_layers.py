"""``compression: zstd`` with an engine that always pushes gzip, and one with the containerd image store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.docker import buildkit
from pipeline.docker.engine import Engine
from pipeline.errors import ToolError
from pipeline.oci.manifest import Manifest
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from tests.support.store.releases import new_store

pytestmark = pytest.mark.needs("dockerd", "docker-registry", "htpasswd", "root")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def client(registry: PrivateRegistry) -> Iterator[RegistryClient]:
    mine = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _host: mine) as found:
        yield found


@pytest.fixture
def sqshpipe(tmp_path: Path, base: Reference, registry: PrivateRegistry) -> Run:
    """Run sqshpipe in a project with one image, `demo`, whose entry gets the lines `entry`."""
    new_store(tmp_path / "store")

    def run(
        *words: str, host: str, entry: str = "compression: zstd", step: str = "a", check: int = 0
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "demo").mkdir(exist_ok=True)
        (tmp_path / "demo" / "Dockerfile").write_text(
            f"FROM {base}\nRUN echo {tmp_path.name} > /first\nRUN echo {step} > /second\n"
        )
        (tmp_path / "images.yaml").write_text(
            f"version: 1\nregistry: {{url: {registry.address}/zstd}}\nstore: {{root: store}}\n"
            "defaults: {scan: {scanner: none}, convert: {converter: native}}\n"
            f"images:\n  demo:\n    base: {base}\n    dockerfile: demo/Dockerfile\n    {entry}\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            cwd=tmp_path,
            env={
                **os.environ,
                "DOCKER_HOST": host,
                "SQSHPIPE_REGISTRY_USER": registry.username,
                "SQSHPIPE_REGISTRY_PASSWORD": registry.password,
                "SQSHPIPE_CACHE": str(tmp_path / "cache"),
                "SQSHPIPE_SCRATCH": str(tmp_path / "scratch"),
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == check, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def test_an_engine_that_always_pushes_gzip_is_refused_before_the_build(
    engine: PrivateEngine, sqshpipe: Run
) -> None:
    with Engine.connect(engine.host) as connected:
        if connected.containerd_store:
            pytest.skip("this Docker Engine has the containerd image store, so it pushes zstd")
    said = sqshpipe("release", "demo", "--tag", "v1", host=engine.host, check=3).stderr
    assert "always pushes gzip" in said
    assert "containerd-snapshotter" in said
    assert "/second" not in said, "no step has run"


@pytest.fixture(scope="module")
def modern() -> Iterator[str]:
    """DOCKER_HOST of an engine with the containerd image store."""
    with PrivateEngine(containerd_store=True) as private:
        with Engine.connect(private.host) as connected:
            try:
                buildkit.require_zstd(buildkit.find_frontend(connected), connected, "this test")
            except ToolError as error:
                pytest.skip(f"{error.message}; {error.hint}")
        yield private.host


def pushed(client: RegistryClient, release: Path) -> Manifest:
    record = json.loads(release.with_suffix(".json").read_text())
    manifest = client.get_manifest("zstd/demo", record["source"]["digest"])
    assert isinstance(manifest, Manifest)
    return manifest


def test_built_layers_are_zstd_and_the_base_keeps_its_own(
    modern: str, sqshpipe: Run, client: RegistryClient, base: Reference, tmp_path: Path
) -> None:
    below = client.get_manifest(base.repository, str(base.tag))
    assert isinstance(below, Manifest)
    sqshpipe("release", "demo", "--tag", "v1", host=modern, entry="keep: 5")
    assert [layer.compression for layer in pushed(client, tmp_path / "store/demo/v1.sqsh").layers] == [
        "gzip"
    ] * 3

    # the engine's cache has the same steps with gzip
    said = sqshpipe("release", "demo", "--tag", "v2", host=modern).stderr
    second = pushed(client, tmp_path / "store/demo/v2.sqsh")
    assert [layer.compression for layer in second.layers] == ["gzip", "zstd", "zstd"]
    assert second.layers[0] == below.layers[0]
    assert "running all steps again" in said

    # now it has them with zstd
    said = sqshpipe("release", "demo", "--tag", "v3", host=modern, step="b").stderr
    third = pushed(client, tmp_path / "store/demo/v3.sqsh")
    assert third.layers[:2] == second.layers[:2]
    assert third.layers[2].compression == "zstd"
    assert "running all steps again" not in said
