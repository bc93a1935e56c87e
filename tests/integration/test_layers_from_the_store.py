"""The whole path on machines without packs: what a registry that writes down each request is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from typer.testing import CliRunner

from demo.registry import PrivateRegistry
from pipeline.aws.s3 import S3Bucket
from pipeline.bases.clients import Clients
from pipeline.config.lock import Lock
from pipeline.config.names import Version
from pipeline.config.types import (
    Config,
    ConvertOptions,
    ImageSpec,
    RegistrySettings,
    ScanPolicy,
    StoreSettings,
)
from pipeline.convert.packing import pack_cache
from pipeline.errors import PublishError
from pipeline.oci.manifest import OCI_LAYER, Manifest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.plan.changes import plan
from pipeline.plan.known import known_releases
from pipeline.plan.observe import observe
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.release import path
from pipeline.release.run import Run, Stage
from pipeline.squashfs.codecs import Codec
from pipeline.store.record import Release
from pipeline.store.sync import sync
from pipeline.text import human_bytes
from tests.support.command_line import app
from tests.support.images.layers import LayerBuilder
from tests.support.images.pushed import push_image
from tests.support.progress import NO_PROGRESS
from tests.support.servers import aws
from tests.support.servers.registry import Fault, FaultyProxy
from tests.support.store.releases import new_store
from tests.unit.convert.test_from_store import SHELL, files

pytestmark = pytest.mark.needs("docker-registry", "htpasswd")

LINUX = Platform.parse("linux/amd64")
BASE = files("base", 300, size=2000)
MIDDLE = files("middle", 40, seed=2, size=90_000).file("middle/secret", b"s" * 999)


@pytest.fixture
def proxy(registry: PrivateRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    monkeypatch.setenv("SQSHPIPE_REGISTRY_USER", registry.username)
    monkeypatch.setenv("SQSHPIPE_REGISTRY_PASSWORD", registry.password)
    with FaultyProxy(registry.address) as proxy:
        yield proxy


class Site:
    """A registry and a store; each release is made by another machine."""

    def __init__(self, folder: Path, registry: PrivateRegistry, proxy: FaultyProxy) -> None:
        self._folder = folder
        self.own = f"own-{folder.name.replace('_', '-').lower()}"
        self._credentials = Credentials(username=registry.username, password=registry.password)
        self._proxy = proxy
        self.store = new_store(folder / "store")
        self.settings = StoreSettings(configured=self.store.root)
        self.manifest: Manifest | None = None

    def release(self, version: str, *layers: LayerBuilder) -> tuple[Release, list[str]]:
        """Make and publish a release; gives the digests of the blobs that were downloaded."""
        reached, asked = self.reach(version, *layers)
        assert reached.release is not None
        return reached.release, asked

    def reach(
        self, version: str, *layers: LayerBuilder, until: Stage = Stage.PUBLISH
    ) -> tuple[path.Reached, list[str]]:
        """Take the path up to `until`; gives the digests of the blobs that were downloaded."""
        spec = self._spec(version, *layers)
        with self._machine(version) as run:
            before = len(self._proxy.seen)
            reached = path.release(run, spec, Version(version), until=until)
        assert not [thread for thread in threading.enumerate() if thread.name == "early-packing"]
        prefix = f"/v2/{self.own}/demo/blobs/"  # all else are manifests, by tag and digest
        asked = [seen.path for seen in self._proxy.seen[before:] if seen.method == "GET"]
        return reached, [one.rpartition("/")[2] for one in asked if one.startswith(prefix)]

    def plan(self, version: str, *layers: LayerBuilder) -> tuple[str, ...]:
        """The notes of a plan on another machine."""
        spec = self._spec(version, *layers)
        with self._machine(version) as run, known_releases(run.config) as known:
            seen = observe(run.config, [spec], run.lock, run.clients, known, version=version)
        return plan(seen).images[0].notes

    def _spec(self, version: str, *layers: LayerBuilder) -> ImageSpec:
        name = f"{self.own}-base/{version}"
        with RegistryClient(self._proxy.address, credentials=lambda _: self._credentials) as client:
            self.manifest = push_image(
                client, name, *(layer.tar() for layer in [SHELL, *layers]), tag="v1", layer_type=OCI_LAYER
            )
        return ImageSpec(
            name="demo",
            base=Reference.parse(f"{self._proxy.address}/{name}:v1"),
            platform=LINUX,
            convert=ConvertOptions(converter="native"),
            scan=ScanPolicy(scanner="none"),
        )

    @contextmanager
    def _machine(self, name: str) -> Iterator[Run]:
        config = Config(
            path=self._folder / "images.yaml",
            registry=RegistrySettings(url=f"{self._proxy.address}/{self.own}"),
            store=self.settings,
            images={},
            cache=self._folder / name / "cache",
            scratch=self._folder / name / "scratch",
        )
        with Clients(config) as clients:
            yield Run(config=config, lock=Lock(), clients=clients, progress=NO_PROGRESS)

    def packs(self, name: str) -> int:
        return len(pack_cache(self._folder / name / "cache").packs())


@pytest.fixture
def site(tmp_path: Path, registry: PrivateRegistry, proxy: FaultyProxy) -> Site:
    return Site(tmp_path, registry, proxy)


def blobs(asked: list[str], manifest: Manifest | None) -> list[int]:
    """Numbers of the layers among what was downloaded."""
    assert manifest is not None
    digests = [str(layer.digest) for layer in manifest.layers]
    return sorted(digests.index(one) for one in asked if one in digests)


def test_a_fresh_machine_downloads_manifest_config_and_the_changed_layer(site: Site) -> None:
    hiding = LayerBuilder().whiteout("middle/secret")
    _, asked = site.release("v1.0", BASE, MIDDLE, hiding, files("top", 10, seed=5))
    assert blobs(asked, site.manifest) == [0, 1, 2, 3, 4]
    made, asked = site.release("v1.1", BASE, MIDDLE, hiding, files("top", 10, seed=6))
    assert blobs(asked, site.manifest) == [4]
    assert site.manifest is not None
    assert set(asked) == {str(site.manifest.config.digest), str(site.manifest.layers[4].digest)}
    assert site.packs("v1.1") == 1
    _, asked = site.release("v1.2", BASE, MIDDLE, hiding, files("top", 10, seed=6), files("more", 3))
    assert blobs(asked, site.manifest) == [5]
    assert list(site.store.layout.leases.iterdir()) == []
    assert set(made.attachments) == {"ranges.json", "layers.bin"}


def test_what_was_hidden_before_is_downloaded_when_it_is_shown(site: Site) -> None:
    site.release("v1.0", BASE, MIDDLE, LayerBuilder().whiteout("middle/secret"))
    _, asked = site.release("v1.1", BASE, MIDDLE)
    assert blobs(asked, site.manifest) == [2]
    _, asked = site.release("v1.2", BASE, MIDDLE, files("more", 3))
    assert blobs(asked, site.manifest) == [3]


def test_the_plan_says_where_layers_would_come_from(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = files("top", 10, seed=5), files("top", 90, seed=6)
    (note,) = site.plan("v1.0", BASE, old)
    assert note.startswith("layers of the base: 0 B from the cache, 0 B from the store, ")
    site.release("v1.0", BASE, old)
    (note,) = site.plan("v1.1", BASE, new)
    assert site.manifest is not None
    *held, top = [layer.size for layer in site.manifest.layers]
    assert note == (
        f"layers of the base: 0 B from the cache, {human_bytes(sum(held))} from the store, "
        f"{human_bytes(top)} from the registry"
    )
    monkeypatch.setattr(Codec, "versions", lambda _: {"zstd": "9.9.9"})
    _, other = site.plan("v1.1", BASE, new)
    assert other.startswith("demo:v1.0 has it, packed with zstd ")
    assert other.endswith("; here 9.9.9")


def test_a_full_scrub_asks_the_registry_only_for_images(
    site: Site, proxy: FaultyProxy, tmp_path: Path
) -> None:
    site.release("v1.0", BASE, LayerBuilder().whiteout("base/007"), files("top", 10, seed=5))
    config = tmp_path / "images.yaml"
    config.write_text(
        f"version: 1\nregistry: {{url: {proxy.address}/{site.own}}}\nstore: {{root: {site.store.root}}}\n"
        "images: {demo: {base: 'debian:12', scan: {scanner: none}}}\n"
    )

    def scrub(option: str) -> tuple[int, str, int]:
        before = len(proxy.seen)
        cache = {"SQSHPIPE_CACHE": str(tmp_path / "scrubbed")}
        found = CliRunner().invoke(app, ["store", "scrub", option, "--config", str(config)], env=cache)
        code = found.exit_code if found.exception is None else getattr(found.exception, "exit_code", 1)
        return code, found.output + repr(found.exception), len(proxy.seen) - before

    code, said, asked = scrub("--full")
    assert (code, asked) == (0, 0), said
    assert "1 files read, 0 damaged, the content of 1 releases compared" in said
    code, said, asked = scrub("--against-image")
    assert code == 0, said
    assert "1 files read, 0 damaged, the content of 1 releases compared" in said
    assert asked > 4
    proxy.faults.append(Fault(status=404, times=1000))
    code, said, _ = scrub("--against-image")
    assert code == 4, said
    assert "failed   demo:v1.0: " in said
    assert site.store.resolve("demo:v1.0").state == "published"
    assert scrub("--full")[0] == 0


def test_rebuild_makes_the_layers_that_a_killed_release_left_out(
    site: Site, proxy: FaultyProxy, tmp_path: Path
) -> None:
    made, _ = site.release("v1.0", BASE, files("top", 10, seed=5))
    beside = site.store.layout.attachments("demo", "v1.0", "linux/amd64")
    lost = {name: (beside / name).read_bytes() for name in made.attachments}
    for name in lost:
        (beside / name).unlink()
    config = tmp_path / "images.yaml"
    config.write_text(
        f"version: 1\nregistry: {{url: {proxy.address}/{site.own}}}\nstore: {{root: {site.store.root}}}\n"
        "images: {demo: {base: 'debian:12', scan: {scanner: none}}}\n"
    )
    arguments = ["store", "rebuild", "--layers", "--config", str(config)]
    folders = {"SQSHPIPE_CACHE": str(tmp_path / "rebuilt"), "SQSHPIPE_SCRATCH": str(tmp_path / "scratch")}
    (fault,) = proxy.faults = [Fault(status=404, times=1000)]
    failed = CliRunner().invoke(app, arguments, env=folders)
    assert isinstance(failed.exception, PublishError), failed.output
    assert "demo:v1.0: " in failed.output
    proxy.faults.remove(fault)
    found = CliRunner().invoke(app, arguments, env=folders)
    assert found.exit_code == 0, found.output
    assert "demo:v1.0  linux/amd64" in found.output
    assert {name: (beside / name).read_bytes() for name in lost} == lost
    _, asked = site.release("v1.1", BASE, files("top", 10, seed=6))
    assert blobs(asked, site.manifest) == [2]


def listing(prefixes: list[str]) -> Callable[[S3Bucket, str], Iterator[tuple[str, int]]]:
    """`S3Bucket.keys` that writes down what is listed."""
    real = S3Bucket.keys

    def keys(self: S3Bucket, prefix: str) -> Iterator[tuple[str, int]]:
        prefixes.append(prefix)
        return real(self, prefix)

    return keys


def test_a_runner_without_the_file_system_uses_the_copy_in_s3(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It downloads the changed layer and makes the same file; its plan says where layers come from."""
    old, new, mounted = files("top", 10, seed=5), files("top", 90, seed=6), site.settings
    site.release("v1.0", BASE, MIDDLE, old)
    url = "s3://containers/team"
    with aws.moto_server() as address:
        aws.use(monkeypatch, address)
        boto3.client("s3").create_bucket(Bucket="containers")
        sync(site.store, S3Bucket(url))
        empty = new_store(tmp_path / "empty").root
        site.settings = StoreSettings(configured=empty, trust_synced=True, s3=url)
        (note,) = site.plan("runner", BASE, MIDDLE, new)
        assert site.manifest is not None
        *held, top = [layer.size for layer in site.manifest.layers]
        assert note == (
            "layers of the base: 0 B from the cache, 0 B from the store, "
            f"{human_bytes(sum(held))} from {url}, {human_bytes(top)} from the registry"
        )
        site.settings = replace(site.settings, configured=tmp_path / "not-mounted")
        listed: list[str] = []
        monkeypatch.setattr(S3Bucket, "keys", listing(listed))
        reached, asked = site.reach("runner", BASE, MIDDLE, new, until=Stage.TEST)
        assert blobs(asked, site.manifest) == [3]
        assert listed.count("") == 1, "the bucket is listed more than once"
        assert site.packs("runner") == 1
        assert [entry.name for entry in (tmp_path / "runner" / "scratch").iterdir()] == []
    site.settings = mounted
    made, _ = site.release("v1.1", BASE, MIDDLE, new)
    assert reached.verified is not None
    assert reached.verified.file.sha256 == made.sha256


def test_a_runner_without_the_file_system_plans_with_the_copy_in_s3(
    site: Site, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows what is published; without a copy that it may believe, one sentence says what it needs."""
    site.release("v1.0", BASE, files("top", 10, seed=5))
    base = f"{proxy.address}/{site.own}-base/v1.0:v1"
    config, url = tmp_path / "images.yaml", "s3://containers/team"

    def planned(store: str, *words: str) -> tuple[int, str]:
        config.write_text(
            f"version: 1\nregistry: {{url: {proxy.address}/{site.own}}}\nstore: {{{store}}}\n"
            f"images:\n  demo: {{base: '{base}', scan: {{scanner: none}}, convert: {{converter: native}}}}\n"
        )
        argv = [sys.executable, "-m", "pipeline", "plan", "--config", str(config), *words]
        folders = {"SQSHPIPE_CACHE": str(tmp_path / "c"), "SQSHPIPE_SCRATCH": str(tmp_path / "s")}
        done = subprocess.run(
            argv, env={**os.environ, **folders}, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    with aws.moto_server() as address:
        aws.use(monkeypatch, address)
        boto3.client("s3").create_bucket(Bucket="containers")
        sync(site.store, S3Bucket(url))
        root = f"root: {tmp_path / 'not-mounted'}, "
        code, said = planned(f"{root}s3: '{url}', trust_synced: true")
        assert code == 0, said
        assert "demo  nothing to do: nothing changed since v1.0" in said
        code, said = planned(f"{root}s3: '{url}', trust_synced: true", "--tag", "v1.1")
        assert code == 10, said
        assert "the file of v1.0 is the same" in said
        code, said = planned(root.removesuffix(", "))
        assert code == 8, said
        assert "is its file system mounted?" in said
        assert "store: {s3: s3://BUCKET/PREFIX, trust_synced: true}" in said
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        code, said = planned(f"{root}s3: '{url}', trust_synced: true")
        assert code not in (0, 1, 10), said
        assert "containers" in said
