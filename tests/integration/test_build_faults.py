"""Builds that meet a full disk, ours or the engine's, and an impatient person."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.config.types import ImageSpec
from pipeline.docker import buildkit
from pipeline.docker.engine import Engine
from pipeline.errors import ToolError
from pipeline.image import build as stage
from pipeline.image.build import BuiltImage, build, build_key
from pipeline.image.pin import pin
from pipeline.image.push import adopt, push
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from tests.support.waiting import until

pytestmark = pytest.mark.needs("dockerd", "docker", "docker-registry", "htpasswd", "root", "mount")

ROOT = Path(__file__).parents[2]
PLATFORM = Platform.parse("linux/amd64")
Build = Callable[..., BuiltImage]


@pytest.fixture(params=["buildkit", "classic"])
def builder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "classic":
        monkeypatch.setattr(buildkit, "find_frontend", lambda _engine: None)
    return str(request.param)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of memory; called again, it gets another size."""
    place = tmp_path / "small"
    place.mkdir()

    def sized(options: str) -> Path:
        remount = "remount," if os.path.ismount(place) else ""
        words = ["mount", "-t", "tmpfs", "-o", f"{remount}{options}", "tmpfs", str(place)]
        subprocess.run(words, check=True)
        return place

    yield sized
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def spec(tmp_path: Path, base: Reference) -> ImageSpec:
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {base}\nCOPY . /app\n")
    return ImageSpec(
        name="demo", base=base, platform=PLATFORM, dockerfile=folder / "Dockerfile", context=folder
    )


@pytest.fixture
def made(spec: ImageSpec, registry: PrivateRegistry) -> Build:
    mine = Credentials(username=registry.username, password=registry.password)

    def made(host: str, scratch: Path | None = None) -> BuiltImage:
        with (
            RegistryClient(registry.address, credentials=lambda _: mine) as client,
            Engine.connect(host) as connected,
        ):
            pinned = pin(spec.base, PLATFORM, None, lambda _host: client)
            return build(
                spec,
                pinned,
                key=build_key(spec, pinned),
                version="v1",
                revision=None,
                engine=connected,
                credentials=lambda _host: mine,
                scratch=scratch,
            )

    return made


def test_our_disk_is_full_when_a_build_begins(
    builder: str, engine: PrivateEngine, spec: ImageSpec, made: Build, small: Callable[[str], Path]
) -> None:
    """A copy of the context goes to disk; without BuildKit a tar of it as well."""
    assert spec.dockerfile is not None
    assert spec.context is not None
    with spec.dockerfile.open("a") as file:
        file.write("# a long comment\n" * 20_000)
    (spec.context / "data").write_bytes(os.urandom(300_000))
    place = small("size=128k")
    with pytest.raises(ToolError, match=r"not enough space .* for a copy of the build's context") as caught:
        made(engine.host, place)
    assert str(place) in caught.value.message
    assert "SQSHPIPE_SCRATCH" in caught.value.hint
    assert list(place.iterdir()) == []
    made(engine.host, small("size=4m"))
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("size", "file"), [("128k", "data"), ("450k", r"context\.tar")])
def test_our_disk_fills_while_the_context_is_copied(
    engine: PrivateEngine,
    spec: ImageSpec,
    made: Build,
    small: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    size: str,
    file: str,
) -> None:
    assert spec.context is not None
    (spec.context / "data").write_bytes(os.urandom(300_000))
    monkeypatch.setattr(buildkit, "find_frontend", lambda _engine: None)
    monkeypatch.setattr(stage, "require_space", lambda _needs: None)
    place = small(f"size={size}")
    with pytest.raises(ToolError, match=f"no space left for {file}") as caught:
        made(engine.host, place)
    assert str(place) in caught.value.message
    assert list(place.iterdir()) == []


def test_our_disk_has_no_inode_left(
    builder: str, engine: PrivateEngine, made: Build, small: Callable[[str], Path]
) -> None:
    place = small("size=1m,nr_inodes=1")
    with pytest.raises(ToolError, match="No space left on device") as caught:
        made(engine.host, place)
    assert str(place) in caught.value.message
    made(engine.host, small("size=4m,nr_inodes=100"))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("moment", ["step", "pull"])
def test_the_engines_disk_fills_while_it_builds(
    moment: str, builder: str, spec: ImageSpec, made: Build, small: Callable[[str], Path]
) -> None:
    assert spec.dockerfile is not None
    with spec.dockerfile.open("a") as file:
        file.write('RUN ["python3", "-c", "open(\'/large\', \'wb\').write(bytes(200 << 20))"]\n')
    place = small("size=150m" if moment == "step" else "size=30m")
    with PrivateEngine(parent=place) as own:
        with pytest.raises(ToolError, match=r"(?i)no space left on device") as caught:
            made(own.host)
        assert "Docker Engine's disk is full" in caught.value.hint
        assert str(place) in caught.value.hint
        client = docker.APIClient(base_url=own.host)
        assert client.containers(all=True) == []
        client.close()
        small("size=600m")
        made(own.host)


def test_the_engines_disk_is_full_when_it_pushes(
    made: Build, small: Callable[[str], Path], registry: PrivateRegistry
) -> None:
    mine = Credentials(username=registry.username, password=registry.password)
    place, target = small("size=200m"), Reference.parse(f"{registry.address}/full/engine")
    with (
        PrivateEngine(parent=place) as own,
        Engine.connect(own.host) as connected,
        RegistryClient(registry.address, credentials=lambda _: mine) as client,
    ):
        built = made(own.host)
        with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(ToolError, match="no space left on device") as caught:
            push(built, target, connected, client, credentials=lambda _: mine)
        assert "Docker Engine's disk is full" in caught.value.hint
        (place / "filler").unlink()
        pushed = push(built, target, connected, client, credentials=lambda _: mine)
        assert adopt(target, built.key, built.base, client) is not None
        assert pushed.size > 1 << 20


def test_our_disk_fills_while_the_engine_saves_an_image(
    engine: PrivateEngine, made: Build, small: Callable[[str], Path]
) -> None:
    built = made(engine.host)
    place = small("size=1m")
    with Engine.connect(engine.host) as connected:
        with pytest.raises(ToolError, match=r"no space left for image\.tar") as caught:
            connected.save(built.local_id, place / "image.tar")
        assert str(place) in caught.value.message
        connected.save(built.local_id, small("size=200m") / "image.tar")


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT] * 2, [signal.SIGTERM]], ids=repr)
@pytest.mark.parametrize("way", ["buildkit", "classic"])
def test_a_build_that_is_ended_by_a_signal_leaves_no_step_at_work(
    way: str,
    signals: list[signal.Signals],
    spec: ImageSpec,
    engine: PrivateEngine,
    registry: PrivateRegistry,
    tmp_path: Path,
) -> None:
    mark = f"time.sleep({50_000 + os.getpid()}.{len(signals)}{way == 'classic':d}{signals[0]:d})"
    assert spec.dockerfile is not None
    spec.dockerfile.write_text(f'FROM {spec.base}\nRUN ["python3", "-c", "import time; {mark}"]\n')
    (tmp_path / "images.yaml").write_text(
        f"version: 1\nregistry: {{url: {registry.address}/signal}}\nstore: {{root: store}}\n"
        f"scratch: scratch\nimages:\n  demo:\n    base: {spec.base}\n    dockerfile: image/Dockerfile\n"
    )
    environment = {**os.environ, **registry.variables, "DOCKER_HOST": engine.host, "PYTHONPATH": str(ROOT)}
    if way == "classic":
        environment["PATH"] = str(tmp_path)  # without any docker
    argv = [sys.executable, "-m", "pipeline", "release", "demo", "--until", "build"]
    process = subprocess.Popen(argv, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert until(lambda: _at_work(mark) or process.poll() is not None)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    _, reported = process.communicate(timeout=60)
    assert process.returncode == 128 + signals[0], reported
    assert "Traceback" not in reported
    assert until(lambda: not _at_work(mark))
    client = docker.APIClient(base_url=engine.host)
    assert until(lambda: client.containers(all=True) == [])
    client.close()
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == []


def _at_work(mark: str) -> bool:
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in process.read_bytes():
                return True
    return False
