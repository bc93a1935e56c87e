"""Layers are packed beside build and scan: what follows the verdict, and what a rejection leaves."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
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
from pipeline.errors import RegistryError, ScanRejected, ToolError
from pipeline.oci.manifest import OCI_LAYER
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.source import RegistrySource
from pipeline.release import path, stages
from pipeline.release.run import Run, Stage
from pipeline.scan.gate import ScanReport
from pipeline.store.store import Store
from pipeline.system import polite
from pipeline.system.parallel import CancelToken, StoppedError
from tests.support.images.layers import LayerBuilder
from tests.support.images.pushed import push_image
from tests.support.progress import NO_PROGRESS
from tests.support.store.releases import new_store
from tests.support.waiting import until

pytestmark = pytest.mark.needs("docker-registry", "htpasswd")

LINUX = Platform.parse("linux/amd64")
V1 = Version("v1.0")
LAYERS = [
    LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755),
    LayerBuilder().file("opt/a", bytes(range(256)) * 4000),
    LayerBuilder().file("opt/b", b"top" * 100_000),
]


class Watched:
    """Every opening of a layer, and how long each takes."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.before: Callable[[], None] = lambda: None


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    real = RegistrySource.open_layer

    @contextmanager
    def opening(source: RegistrySource, index: int) -> Iterator[BinaryIO]:
        watched.opened.append(threading.current_thread().name)
        watched.before()
        opened: AbstractContextManager[BinaryIO] = real(source, index)
        with opened as blob:
            yield blob

    monkeypatch.setattr(RegistrySource, "open_layer", opening)
    return watched


@pytest.fixture
def base(registry: PrivateRegistry, tmp_path: Path) -> Reference:
    credentials = Credentials(username=registry.username, password=registry.password)
    name = f"early/{tmp_path.name.replace('_', '-').lower()}"
    with RegistryClient(registry.address, credentials=lambda _: credentials) as client:
        push_image(client, name, *(layer.tar() for layer in LAYERS), tag="v1", layer_type=OCI_LAYER)
    return Reference.parse(f"{registry.address}/{name}:v1")


@pytest.fixture
def run(
    registry: PrivateRegistry, base: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    monkeypatch.setenv("SQSHPIPE_REGISTRY_USER", registry.username)
    monkeypatch.setenv("SQSHPIPE_REGISTRY_PASSWORD", registry.password)
    own = tmp_path.name.replace("_", "-").lower()
    config = Config(
        path=tmp_path / "images.yaml",
        registry=RegistrySettings(url=f"{registry.address}/own-{own}"),
        store=StoreSettings(configured=new_store(tmp_path / "store").root),
        images={},
        cache=tmp_path / "cache",
        scratch=tmp_path / "scratch",
    )
    with Clients(config) as clients:
        yield Run(config=config, lock=Lock(), clients=clients, progress=NO_PROGRESS)


def spec_of(base: Reference, **options: Any) -> ImageSpec:
    convert = ConvertOptions(converter="native", **options)
    return ImageSpec(name="demo", base=base, platform=LINUX, convert=convert, scan=ScanPolicy(scanner="none"))


def scanner(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    """The gate of a scanner that does `work` and then passes."""

    def scan(pushed: Any, *_: Any, **__: Any) -> ScanReport:
        work()
        return ScanReport(image=pushed, scanner="none", status="unscanned")

    monkeypatch.setattr(stages, "scan", scan)


def packs(run: Run) -> list[bool]:
    """Whether each file among the packs is complete."""
    return [pack.complete for pack in pack_cache(run.config.cache).packs()]


def no_thread() -> bool:
    return all(thread.name != "early-packing" for thread in threading.enumerate())


def test_after_the_verdict_no_layer_is_read(
    run: Run, base: Reference, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer takes two seconds to come; the scanner takes until all are packed."""
    watched.before = lambda: time.sleep(2)
    read: list[int] = []
    verdict: list[float] = []

    def work() -> None:
        assert until(lambda: packs(run).count(True) == len(LAYERS) and no_thread())
        read.append(len(watched.opened))
        verdict.append(time.monotonic())

    scanner(monkeypatch, work)
    reached = path.release(run, spec_of(base), V1)
    after = time.monotonic() - verdict[0]
    assert read == [len(LAYERS)] == [len(watched.opened)]
    assert reached.release is not None
    assert Store(run.config.store.root).resolve("demo:v1.0").sha256 == reached.release.sha256
    assert after < 20, "stitching, verifying and publishing a megabyte"


def test_a_scan_that_ends_first_is_followed_by_the_rest_of_the_packing(
    run: Run, base: Reference, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.before = lambda: time.sleep(1)
    scanner(monkeypatch, lambda: None)
    path.release(run, spec_of(base), V1, until=Stage.VERIFY)
    assert len(watched.opened) == len(LAYERS), "no layer is read twice"
    assert packs(run) == [True] * len(LAYERS)


@pytest.mark.parametrize(
    "end", [ScanRejected("findings block"), KeyboardInterrupt()], ids=["rejected", "Ctrl-C"]
)
def test_what_ends_the_scan_ends_the_packing(
    run: Run, base: Reference, watched: Watched, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    begun = threading.Event()
    release = threading.Event()

    def slow() -> None:
        begun.set()
        release.wait(2)

    def work() -> None:
        assert begun.wait(30)
        raise end

    watched.before = slow
    scanner(monkeypatch, work)
    began = time.monotonic()
    with pytest.raises(type(end)):
        path.release(run, spec_of(base), V1)
    assert time.monotonic() - began < 30
    assert no_thread()
    assert False not in packs(run), "an unfinished pack stays"
    assert len(watched.opened) <= len(LAYERS)
    store = run.config.store.root
    assert not list(store.glob("demo/*")), "the store knows the image"
    assert not list(store.glob("blobs/sha256/*"))
    assert not list(store.glob("blobs/sha256/.*"))


def test_it_can_be_turned_off(
    run: Run, base: Reference, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        assert not until(lambda: watched.opened or not no_thread(), 2)

    scanner(monkeypatch, work)
    path.release(run, spec_of(base, early=False), V1)
    assert len(watched.opened) == len(LAYERS)


def test_no_packing_when_the_store_has_the_file(
    run: Run, base: Reference, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanner(monkeypatch, lambda: None)
    path.release(run, spec_of(base), V1)
    for pack in pack_cache(run.config.cache).packs():
        pack.path.unlink()
    read = len(watched.opened)
    again = path.release(run, spec_of(base, early=True), Version("v1.1"))
    assert again.release is not None
    assert again.release.name == "demo:v1.1"
    assert len(watched.opened) == read


def test_a_failure_before_the_verdict_is_no_error_of_the_release(
    run: Run, base: Reference, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = threading.Event()
    failing.set()

    def fail() -> None:
        if failing.is_set():
            raise RegistryError("the registry is away")

    def work() -> None:
        assert until(lambda: bool(watched.opened) and no_thread())
        failing.clear()

    watched.before = fail
    scanner(monkeypatch, work)
    assert path.release(run, spec_of(base), V1).release is not None


def test_a_failure_that_stays_is_reported_by_the_conversion(
    run: Run, base: Reference, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RegistryError("the registry is away")

    watched.before = fail
    scanner(monkeypatch, lambda: None)
    with pytest.raises(RegistryError, match="the registry is away"):
        path.release(run, spec_of(base), V1)
    assert packs(run) == []


def built_spec(base: Reference, folder: Path, **options: Any) -> ImageSpec:
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {base}\nCOPY train.py /opt/\n", encoding="utf-8")
    (folder / "train.py").write_text("print('training')\n", encoding="utf-8")
    spec = spec_of(base, **options)
    return dataclasses.replace(spec, dockerfile=folder / "Dockerfile", context=folder)


@pytest.fixture
def building(engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Lets builds do some work first, on a machine that has nothing else to do."""
    monkeypatch.setattr(polite, "_share_of_others", lambda _: 0.0)
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    real = stages.build

    def first(work: Callable[[], None]) -> None:
        def build(*given: Any, **named: Any) -> Any:
            work()
            return real(*given, **named)

        monkeypatch.setattr(stages, "build", build)

    return first


@pytest.mark.needs("dockerd", "root")
def test_the_base_is_packed_while_the_image_is_built(
    run: Run,
    base: Reference,
    watched: Watched,
    building: Callable[[Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The packs of the base are there before its first step, and none of its layers is packed again."""
    made: dict[Path, int] = {}

    def work() -> None:
        assert until(lambda: packs(run).count(True) == len(LAYERS) and no_thread(), 60)
        made.update({pack.path: pack.path.stat().st_ino for pack in pack_cache(run.config.cache).packs()})

    building(work)
    scanner(monkeypatch, lambda: None)
    spec = built_spec(base, tmp_path / "sources")
    reached = path.release(run, spec, V1)
    assert reached.release is not None
    after = {pack.path: pack.path.stat().st_ino for pack in pack_cache(run.config.cache).packs()}
    assert len(after) == len(LAYERS) + 1
    assert made.items() <= after.items()


@pytest.mark.needs("dockerd", "root")
def test_a_build_that_fails_ends_the_packing(
    run: Run,
    base: Reference,
    watched: Watched,
    building: Callable[[Callable[[], None]], None],
    tmp_path: Path,
) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        release.wait(2)

    def work() -> None:
        assert begun.wait(30)
        raise ToolError("the build failed")

    watched.before = slow
    building(work)
    with pytest.raises(ToolError, match="the build failed"):
        path.release(run, built_spec(base, tmp_path / "sources"), V1)
    assert no_thread()
    assert False not in packs(run), "an unfinished pack stays"


@pytest.mark.needs("dockerd", "root")
def test_a_busy_machine_does_not_keep_a_release_waiting(
    run: Run,
    base: Reference,
    watched: Watched,
    building: Callable[[Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Others take all processors all the time: only what is packed beside the build waits for them."""
    monkeypatch.setattr(polite, "_share_of_others", lambda seconds: time.sleep(seconds) or 1.0)

    building(lambda: time.sleep(1))
    scanner(monkeypatch, lambda: None)
    path.release(run, built_spec(base, tmp_path / "sources"), V1, until=Stage.VERIFY)
    assert packs(run) == [True] * (len(LAYERS) + 1)


@pytest.mark.needs("dockerd", "root")
@pytest.mark.parametrize("why", ["turned off", "no conversion follows"])
def test_the_base_is_not_packed_in_vain(
    run: Run,
    base: Reference,
    watched: Watched,
    building: Callable[[Callable[[], None]], None],
    tmp_path: Path,
    why: str,
) -> None:
    def work() -> None:
        assert not until(lambda: watched.opened or not no_thread(), 2)

    building(work)
    off = why == "turned off"
    spec = built_spec(base, tmp_path / "sources", early=not off)
    path.release(run, spec, V1, until=Stage.VERIFY if off else Stage.PUSH)
    assert bool(watched.opened) == off, "the conversion reads the layers"


def test_who_works_behind_others_waits_while_they_take_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.9, 1.0, 0.8, 0.2])
    monkeypatch.setattr(polite, "_share_of_others", lambda _: next(shares))
    cancel = polite.PoliteHalt(CancelToken())
    cancel.check()
    assert next(shares, None) is None, "it waited until the others took less"
    cancel.check()  # and does not look again at once


def test_who_waits_for_others_ends_when_it_shall(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = CancelToken()

    def busy(_: float) -> float:
        outer.set()
        return 1.0

    monkeypatch.setattr(polite, "_share_of_others", busy)
    with pytest.raises(StoppedError):
        polite.PoliteHalt(outer).check()
