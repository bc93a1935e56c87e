"""The order of the stages, and that a check judges, limits and tests as a release does. No engine needed."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from pipeline.config.lock import Lock
from pipeline.config.names import Version
from pipeline.config.types import Config, ImageSpec, RegistrySettings, ScanPolicy, StoreSettings
from pipeline.errors import ConfigError
from pipeline.image.pin import BaseImage
from pipeline.image.push import PushedImage
from pipeline.oci.digest import Digest
from pipeline.oci.entry import DEFAULT_LIMITS
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.release import path, stages
from pipeline.release.pinned import Pinned
from pipeline.release.run import Run, Stage
from pipeline.scan.gate import ScanReport
from pipeline.store.sync import sync
from tests.support.progress import NO_PROGRESS
from tests.support.store.releases import new_store, publish

BASE = Reference.parse("registry.example/base:1")
LINUX = Platform.parse("linux/amd64")
V1 = Version("v1.0")


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def spec() -> ImageSpec:
    return ImageSpec(name="demo", base=BASE, platform=LINUX, test=("true",), channels=("nightly",))


@pytest.fixture
def run(tmp_path: Path, spec: ImageSpec) -> Run:
    config = Config(
        path=tmp_path / "images.yaml",
        registry=RegistrySettings(url="registry.example/team"),
        store=StoreSettings(configured=tmp_path / "store"),
        images={"demo": spec},
        cache=tmp_path / "cache",
        scratch=tmp_path / "scratch",
        limits=dataclasses.replace(DEFAULT_LIMITS, max_ratio=7),
    )
    clients: Any = MagicMock()
    return Run(config=config, lock=Lock(), clients=clients, progress=NO_PROGRESS)


@pytest.fixture(autouse=True)
def _stages(monkeypatch: pytest.MonkeyPatch, calls: list[str], run: Run) -> None:
    """Each stage notes that it was called, and gives what the next one takes."""
    base = BaseImage(reference=BASE, platform=LINUX, digest=Digest.of(b"b"), index_digest=None, locked=True)
    pushed = PushedImage(
        repository=run.config.registry.repository("demo"),
        digest=Digest.of(b"image"),
        config_digest=Digest.of(b"config"),
        size=3,
        base=base,
        build_key=None,
        adopted=False,
    )

    def noted(name: str, result: Any) -> Any:
        def call(*_: Any, **more: Any) -> Any:
            calls.append(name)
            if name == "convert":
                assert more["limits"] is run.config.limits
                Path(more["output"]).write_bytes(b"squashfs")
            if name == "test":
                assert _[1] == ("true",)
            return result

        return call

    file = SimpleNamespace(converter=SimpleNamespace(name="native"), sha256="0" * 64, tree={})
    names = {"image": "demo", "version": "v1.0", "platform": str(LINUX)}
    made = SimpleNamespace(name="demo:v1.0", public_path=Path("/x"), external=False, **names)
    found = SimpleNamespace(release=made, sentence="all of it")
    monkeypatch.setattr(path, "pin_base", noted("pin", Pinned(base=base, inputs=None)))
    monkeypatch.setattr(path, "published", noted("look", None))
    monkeypatch.setattr(stages, "chosen", noted("scanner", "none"))
    monkeypatch.setattr(stages, "prepare", noted("prepare", None))
    monkeypatch.setattr(stages, "mirror", noted("mirror", pushed))
    monkeypatch.setattr(
        stages, "scan", noted("scan", ScanReport(image=pushed, scanner="none", status="unscanned"))
    )
    monkeypatch.setattr(stages, "early_packs", lambda *_: nullcontext())
    monkeypatch.setattr(stages, "pack_early", noted("pack", None))
    monkeypatch.setattr(stages, "_source", noted("source", None))
    monkeypatch.setattr(stages, "convert", noted("convert", file))
    monkeypatch.setattr(stages, "verify", noted("verify", SimpleNamespace(tree={}, file=file)))
    monkeypatch.setattr(stages, "smoke_test", noted("test", ("true",)))
    monkeypatch.setattr(stages, "same_file", noted("same", None))
    monkeypatch.setattr(stages, "tag_version", noted("tag", None))
    monkeypatch.setattr(stages, "attest", noted("attest", found))
    monkeypatch.setattr(stages.start_profile, "attach", noted("profile", "startup-1.json"))

    def publish(*_: Any, **more: Any) -> Any:
        calls.append("publish")
        assert more["channels"] == ("nightly",), "a release takes the channels that images.yaml lists"
        return made

    monkeypatch.setattr(stages, "publish", publish)


WHOLE = ["pin", "scanner", "prepare", "mirror", "pack", "scan", "source", "convert", "verify", "test"]


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (Stage.PIN, ["pin"]),
        (Stage.PUSH, ["pin", "prepare", "mirror"]),
        (Stage.SCAN, [*WHOLE[:4], "scan"]),
        (Stage.CONVERT, WHOLE[:8]),
        (Stage.VERIFY, WHOLE[:9]),
        (Stage.TEST, WHOLE),
    ],
)
def test_the_path_ends_after_the_stage_that_is_asked_for(
    run: Run, spec: ImageSpec, calls: list[str], until: Stage, expected: list[str], tmp_path: Path
) -> None:
    path.release(run, spec, V1, until=until)
    assert calls == expected
    assert not (tmp_path / "store").exists(), "only publish touches the store"
    assert not list((tmp_path / "scratch").glob("*")), "what was tried is removed"


def test_a_release_runs_what_a_check_runs_and_publishes(run: Run, spec: ImageSpec, calls: list[str]) -> None:
    run.store().create()
    path.release(run, spec, V1)
    shared = [name for name in calls if name in WHOLE]
    assert shared == WHOLE
    assert calls[-4:] == ["tag", "publish", "profile", "attest"]


def test_what_sync_brought_is_not_attested_as_made_here(run: Run, calls: list[str], tmp_path: Path) -> None:
    store, other = new_store(tmp_path / "made"), new_store(tmp_path / "brought")
    own = publish(store, "v1.0")
    sync(store, other)
    stages.attested(run, own, store)
    assert calls == ["attest"]
    stages.attested(run, other.resolve("demo:v1.0", own.platform), other)
    assert calls == ["attest"]


@pytest.mark.parametrize("until", [Stage.SCAN, Stage.TEST, Stage.PUBLISH])
def test_a_missing_scanner_ends_the_run_before_anything_is_built(
    run: Run, spec: ImageSpec, calls: list[str], until: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ConfigError("nothing here can scan it")

    monkeypatch.setattr(stages, "chosen", missing)
    run.store().create()
    with pytest.raises(ConfigError, match="nothing here can scan"):
        path.release(run, spec, V1, until=until)
    assert "mirror" not in calls
    assert "prepare" not in calls


def test_the_gate_is_given_what_finds_the_base_in_our_registry(
    run: Run, spec: ImageSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def scan(pushed: PushedImage, policy: ScanPolicy, **more: Any) -> ScanReport:
        seen.update(more)
        return ScanReport(image=pushed, scanner="none", status="unscanned")

    monkeypatch.setattr(stages, "scan", scan)
    path.release(run, spec, V1, until=Stage.TEST)
    assert (seen["config"], seen["image"]) == (run.config, "demo")
