"""Each check says what it found and what to do; what images.yaml does not need is no failure."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import doctor
from pipeline.config.reading import load
from pipeline.doctor import Check, examine
from pipeline.errors import ConfigError
from pipeline.squashfs.codecs import Codec
from pipeline.squashfs.superblock import Compressor
from pipeline.system.mountinfo import MountPoint
from tests.support.command_line import app
from tests.support.store.releases import new_store, record_for

MIRROR = "version: 1\nimages: {demo: {base: 'debian:12', scan: {scanner: none}}}\n"


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing installed but what a test puts into the folder that comes back."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr("pipeline.system.process._MORE_PATH", ())
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    for name in ("SQSHPIPE_STORE", "SQSHPIPE_REGISTRY", "SQSHPIPE_SCRATCH", "SQSHPIPE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tools


def put_tool(folder: Path, name: str, says: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


def look(tmp_path: Path, text: str, **environment: str) -> dict[str, Check]:
    (tmp_path / "images.yaml").write_text(text)
    (tmp_path / "Dockerfile").touch()
    defaults = {"SQSHPIPE_SCRATCH": str(tmp_path), "SQSHPIPE_CACHE": str(tmp_path)}
    config = load(tmp_path / "images.yaml", environment={**defaults, **environment})
    return {check.name: check for check in examine(config)}


def test_a_mirror_needs_neither_docker_nor_tools(tmp_path: Path) -> None:
    checks = look(tmp_path, MIRROR)
    assert [check.name for check in checks.values() if check.status == "fail"] == []
    assert checks["docker"].status == "warn"
    assert checks["enroot"].status == "ok"
    assert all(check.advice for check in checks.values() if check.status != "ok")


@pytest.mark.parametrize(("version", "status"), [("0.1.105", "warn"), ("0.6.2", "ok")])
def test_root_hears_what_ranks_under_pyxis_get(
    tmp_path: Path, bare_machine: Path, monkeypatch: pytest.MonkeyPatch, version: str, status: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    put_tool(bare_machine, "squashfuse", f"squashfuse {version}")
    found = look(tmp_path, MIRROR)["mount"]
    assert (found.status, found.found) == ("ok", "kernel mount")
    put_tool(bare_machine, "enroot", "3.5.0")
    found = look(tmp_path, MIRROR)["mount"]
    assert found.status == status
    assert f"ranks under pyxis get squashfuse {version}, single-threaded: 8 ranks" in found.found


def test_a_build_needs_docker(tmp_path: Path) -> None:
    checks = look(tmp_path, "version: 1\nimages: {demo: {base: 'debian:12', dockerfile: Dockerfile}}\n")
    assert checks["docker"].status == "fail"
    assert "none.sock" in checks["docker"].found
    assert checks["docker"].advice


@pytest.mark.parametrize("converter", ["mksquashfs", "enroot"])
def test_a_pinned_converter_must_be_there(tmp_path: Path, bare_machine: Path, converter: str) -> None:
    text = f"version: 1\nimages: {{demo: {{base: 'debian:12', convert: {{converter: {converter}}}}}}}\n"
    assert look(tmp_path, text)[converter].status == "fail"
    put_tool(bare_machine, "enroot", "4.1.2")
    put_tool(bare_machine, "mksquashfs", "mksquashfs version 4.6.1 (2023/03/25)")
    check = look(tmp_path, text)[converter]
    assert (check.status, check.found.startswith("4.")) == ("ok", True)


def test_a_scanner_that_is_asked_for_must_be_there(tmp_path: Path, bare_machine: Path) -> None:
    text = "version: 1\nimages: {demo: {base: 'debian:12', scan: {scanner: trivy}}}\n"
    assert look(tmp_path, text)["scanner"].status == "fail"
    assert look(tmp_path, text.replace("trivy", "auto"))["scanner"].status == "warn"
    put_tool(bare_machine, "trivy", "")
    assert look(tmp_path, text)["scanner"].status == "ok"


def test_the_store_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "store"
    for _ in range(2):
        check = look(tmp_path, MIRROR, SQSHPIPE_STORE=str(root))["store"]
        assert check.status == "fail"
        assert "is its file system mounted?" in check.found
        assert f"sqshpipe store create {root}" in check.advice
        assert not root.exists() or not list(root.iterdir())
        root.mkdir(exist_ok=True)
    store = new_store(root)
    before = sorted(root.rglob("*"))
    assert look(tmp_path, MIRROR, SQSHPIPE_STORE=str(root))["store"].status in ("ok", "warn")
    assert sorted(root.rglob("*")) == before
    assert list(store.layout.blobs.iterdir()) == []
    assert look(tmp_path, MIRROR)["store"].status == "warn"


def test_what_is_wrong_with_a_store_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "images.yaml").write_text(MIRROR)
    root = tmp_path / "store"
    (root / "blobs/sha256").mkdir(parents=True)
    settings = {
        "SQSHPIPE_STORE": str(root),
        "SQSHPIPE_SCRATCH": str(tmp_path),
        "SQSHPIPE_CACHE": str(tmp_path),
    }
    config = load(tmp_path / "images.yaml", environment=settings)
    monkeypatch.setattr(os, "link", refuse)
    reported = [check for check in examine(config) if check.name == "store"]
    assert any("hard links are refused (Operation not permitted)" in check.found for check in reported)
    assert any(
        "no folder for leases" in check.found and "mkdir -m 1777" in check.advice for check in reported
    )
    assert not [path for path in root.rglob("*") if not path.is_dir()]
    grouped = dataclasses.replace(config, store=dataclasses.replace(config.store, group="no-such-group"))
    assert [check.found for check in examine(grouped) if check.status == "fail"] == [
        "there is no group 'no-such-group' on this host"
    ]


def test_a_registry_that_does_not_answer(tmp_path: Path) -> None:
    check = look(tmp_path, MIRROR, SQSHPIPE_REGISTRY="127.0.0.1:1")["registry"]
    assert (check.status, "127.0.0.1:1" in check.found) == ("fail", True)


def test_little_space_and_network_disks_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 5 << 30})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert look(tmp_path, MIRROR)["scratch"].status == "warn"
    usage.free = 1 << 20  # type: ignore[attr-defined]
    assert look(tmp_path, MIRROR)["scratch"].status == "fail"
    lustre = MountPoint(point=tmp_path, type="lustre")
    monkeypatch.setattr(doctor, "mount_of", lambda _: lustre)
    assert "local disk" in look(tmp_path, MIRROR)["scratch"].advice


def test_no_configuration_is_the_first_thing_reported() -> None:
    checks = {check.name: check for check in examine(None, ConfigError("gone", hint="write one"))}
    assert checks["images.yaml"] == Check(name="images.yaml", status="fail", found="gone", advice="write one")


def test_verb_prints_and_exits_with_3(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    result = CliRunner().invoke(app, ["doctor", "--config", missing])
    assert result.exit_code == 3
    assert "fail  images.yaml  " in result.stdout
    listed = json.loads(CliRunner().invoke(app, ["doctor", "--config", missing, "--json"]).stdout)
    assert {"check", "status", "found", "advice"} == set(listed[0])


NATIVE = (
    "version: 1\nimages: {demo: {base: 'debian:12', scan: {scanner: none}, convert: {converter: native}}}\n"
)


def test_layers_that_another_version_of_the_codec_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each image the newest release counts: what was made before an upgrade stays in the store."""
    store = new_store(tmp_path / "store")
    zstd = Codec(compressor=Compressor.ZSTD).versions()["zstd"]
    native = {"name": "native", "options": {}, "versions": {"native": "3", "zstd": zstd}, "format": 1}

    def publish(image: str, version: str, **converter: object) -> None:
        content = f"{image}:{version}".encode()
        record = record_for(content, version, image=image)
        record = dataclasses.replace(record, converter={**native, **converter}, packs=("a" * 64,))
        (tmp_path / "file").write_bytes(content)
        store.publish(record, tmp_path / "file")

    publish("demo", "v1.0")
    publish("other", "v1.0", versions={"zstd": "0.0.1"})
    assert look(tmp_path, NATIVE, SQSHPIPE_STORE=str(store.root))["codec"] == Check(
        name="codec", status="ok", found=f"zstd {zstd}"
    )
    monkeypatch.setattr(Codec, "versions", lambda _: {"zstd": "9.9.9"})
    found = look(tmp_path, NATIVE, SQSHPIPE_STORE=str(store.root))["codec"]
    assert (found.status, found.found) == ("warn", f"demo:v1.0 has it, packed with zstd {zstd}; here 9.9.9")
    assert "packs all layers again" in found.advice
    publish("demo", "v1.1", versions={"zstd": "9.9.9"})
    assert look(tmp_path, NATIVE, SQSHPIPE_STORE=str(store.root))["codec"].status == "ok"


def test_the_codec_without_a_store(tmp_path: Path) -> None:
    assert look(tmp_path, NATIVE)["codec"].status == "ok"
    enroot = NATIVE.replace("converter: native", "converter: mksquashfs")
    assert look(tmp_path, enroot)["codec"].found == "no image is converted by native here"
