"""What the whole path makes of bad images, full disks and impatient people: one sentence, nothing left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_LAYER
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from tests.support.images.layers import LayerBuilder
from tests.support.images.pushed import push_image
from tests.support.store.releases import new_store

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.needs("dockerd", "docker-registry", "htpasswd", "mksquashfs", "root")
GOOD = LayerBuilder().dir("bin").file("bin/sh", b"#!", mode=0o755)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrivateRegistry, Path]]:
    """A registry and the folder that its bytes lie in."""
    folder = tmp_path_factory.mktemp("registry")
    registry = PrivateRegistry()
    registry.start(folder)
    yield registry, folder
    registry.stop()


@pytest.fixture
def client(private: tuple[PrivateRegistry, Path]) -> Iterator[RegistryClient]:
    registry, _ = private
    login = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _: login) as opened:
        yield opened


class Person:
    """Runs `sqshpipe` in a project of one image, whose base is ``base/NAME:v1``."""

    def __init__(self, registry: PrivateRegistry, folder: Path, name: str, more: str = "") -> None:
        self.folder, self.password = folder, registry.password
        self.store, self.scratch = folder / "store", folder / "scratch"
        folder.mkdir(exist_ok=True)
        new_store(self.store)
        (folder / "images.yaml").write_text(
            f"version: 1\nstore: {{root: {self.store}}}\n"
            f"registry: {{url: {registry.address}/mirror-{name}}}\n"
            "defaults: {scan: {scanner: none}}\nimages:\n"
            f"  it:\n    base: {registry.address}/base/{name}:v1\n{more}"
        )
        self.environment = {
            **os.environ,
            **registry.variables,
            "PYTHONPATH": str(ROOT),
            "SQSHPIPE_CACHE": str(folder / "cache"),
            "SQSHPIPE_SCRATCH": str(self.scratch),
        }
        self.environment.pop("SQSHPIPE_REGISTRY", None)

    def start(self, *words: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "pipeline", *words]
        return subprocess.Popen(
            argv,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def reads(self, *words: str, code: int) -> str:
        """What stderr says of a run that has to end with ``code``."""
        child = self.start(*words)
        out, err = child.communicate(timeout=180)
        assert child.returncode == code, err
        assert "Traceback" not in err
        assert self.password not in out + err
        return err

    def assert_nothing_left(self) -> None:
        assert not list(self.scratch.glob("*"))
        assert not list(self.store.glob("it/*.json"))
        assert not list(self.store.glob("it/*.sqsh"))
        assert not list(self.store.glob("blobs/sha256/.*"))


LEAVING = {
    "dot-dot": LayerBuilder().file("../outside", b"x"),
    "hard link": LayerBuilder().hardlink("inside", "../../etc/passwd"),
    "below a file": LayerBuilder().file("etc", b"").file("etc/../../outside", b"x"),
}


@pytest.mark.parametrize("name", LEAVING)
def test_a_layer_that_would_leave_the_root(
    name: str, private: tuple[PrivateRegistry, Path], client: RegistryClient, tmp_path: Path
) -> None:
    base = name.replace(" ", "-")
    push_image(client, f"base/{base}", GOOD.tar(), LEAVING[name].tar())
    person = Person(private[0], tmp_path / "project", base)
    said = person.reads("release", "it", "--tag", "v1", code=6)
    assert f"mirror-{base}/it" in said
    assert ".." in said
    person.assert_nothing_left()


def test_a_link_to_outside_is_a_link_and_is_never_followed(
    private: tuple[PrivateRegistry, Path], client: RegistryClient, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    layer = LayerBuilder().symlink("way", str(canary)).file("way/planted", b"x")
    push_image(client, "base/through-link", GOOD.tar(), layer.tar())
    person = Person(private[0], tmp_path / "project", "through-link")
    person.reads("release", "it", "--tag", "v1", code=0)
    assert list(canary.iterdir()) == []


def test_a_base_without_the_wanted_platform_names_those_that_there_are(
    private: tuple[PrivateRegistry, Path], client: RegistryClient, tmp_path: Path
) -> None:
    push_image(client, "base/amd", GOOD.tar())
    person = Person(private[0], tmp_path / "project", "amd", "    platform: linux/arm64\n")
    said = person.reads("release", "it", "--tag", "v1", code=2)
    assert "linux/arm64" in said
    assert "linux/amd64" in said
    person.assert_nothing_left()


def test_a_layer_whose_bytes_are_not_those_of_its_digest(
    private: tuple[PrivateRegistry, Path], client: RegistryClient, tmp_path: Path
) -> None:
    registry, folder = private
    layer = LayerBuilder().file("big", os.urandom(100_000)).tar()
    manifest = push_image(client, "base/damaged", GOOD.tar(), layer)
    blob = (
        folder
        / f"data/docker/registry/v2/blobs/sha256/{Digest.of(layer).hex[:2]}/{Digest.of(layer).hex}/data"
    )
    blob.write_bytes(blob.read_bytes()[:-2000] + bytes(2000 - 1) + b"\1")
    person = Person(registry, tmp_path / "project", "damaged")
    said = person.reads("release", "it", "--tag", "v1", code=4)
    assert str(manifest.layers[1].digest) in said
    person.assert_nothing_left()


def test_a_layer_that_is_not_what_its_type_says(
    private: tuple[PrivateRegistry, Path], client: RegistryClient, tmp_path: Path
) -> None:
    push_image(client, "base/noise", os.urandom(3000), layer_type=f"{OCI_LAYER}+gzip")
    person = Person(private[0], tmp_path / "project", "noise")
    assert "mirror-noise/it" in person.reads("release", "it", "--tag", "v1", code=6)
    person.assert_nothing_left()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize(
    ("full", "said"),
    [("cache", ["not enough space", "SQSHPIPE_CACHE"]), ("store", ["4.2 MB free", "sqshpipe store usage"])],
)
def test_a_full_disk_is_reported_before_the_work(
    full: str,
    said: list[str],
    private: tuple[PrivateRegistry, Path],
    client: RegistryClient,
    small: Path,
    tmp_path: Path,
) -> None:
    push_image(client, "base/large", GOOD.tar(), LayerBuilder().file("big", os.urandom(20_000_000)).tar())
    person = Person(private[0], tmp_path / "project", "large")
    where = small / full
    where.mkdir()
    if full == "store":
        shutil.rmtree(person.store)
        new_store(where)
    (person.folder / full).symlink_to(where)
    reported = person.reads("release", "it", "--tag", "v1", code=3)
    assert "convert  native" not in reported
    assert [words for words in said if words not in reported] == []
    assert [path for path in where.rglob("*") if path.is_file() and path.stat().st_size > 100_000] == []
    person.assert_nothing_left()


STAGES = ("pin", "build", "push", "scan", "convert", "verify", "publish")


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_at_any_stage_leaves_nothing_and_the_next_run_ends_the_work(
    stage: str, base: Reference, engine: PrivateEngine, registry: PrivateRegistry, tmp_path: Path
) -> None:
    more = "    dockerfile: context/Dockerfile\n"
    person = Person(registry, tmp_path / "project", f"stage-{stage}")
    yaml = person.folder / "images.yaml"
    yaml.write_text(yaml.read_text().replace(f"{registry.address}/base/stage-{stage}:v1", str(base)) + more)
    steps = f"ARG BASE_IMAGE\nFROM {base}\nRUN echo {stage} > /etc/stage\nCOPY noise /\n"
    context = person.folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(steps)
    (context / "noise").write_bytes(os.urandom(8_000_000))
    person.environment["DOCKER_HOST"] = engine.host
    child = person.start("--log-format", "json", "release", "it", "--tag", "v1")
    assert child.stderr is not None
    before = STAGES[STAGES.index(stage) - 1] if stage != "pin" else ""
    while not before and "pydantic_core" not in Path(f"/proc/{child.pid}/maps").read_text():
        time.sleep(0.02)  # Python itself is still starting
    while before and (line := child.stderr.readline()) and f'"stage": "{before}"' not in line:
        pass
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()  # communicate() would miss what readline() has buffered
    child.communicate(timeout=120)
    # CPython ends by the signal itself, all handled, when Ctrl-C came inside an exec(), as a dataclass has
    assert child.returncode in (130, 0, -signal.SIGINT), rest
    assert "Traceback" not in rest
    if child.returncode:
        assert not list(person.scratch.glob("*")), rest
        assert not list(person.store.glob("blobs/sha256/.*")), rest
    person.reads("release", "it", "--tag", "v1", code=0)
    assert (person.store / "it" / "v1.sqsh").exists()
