"""The commands of `test:` inside a real .sqsh, here and as a Slurm step."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bases.clients import Clients
from pipeline.config.lock import Lock
from pipeline.config.reading import load
from pipeline.errors import VerificationError
from pipeline.release import stages, start_profile
from pipeline.release.run import Run
from pipeline.release.smoke_test import Record, smoke_test
from pipeline.store import profiles
from tests.integration.cluster.conftest import record_of
from tests.support.progress import NO_PROGRESS
from tests.support.servers.slurm import Slurm
from tests.support.store.releases import new_store


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(tmp_path / "node"))


@pytest.mark.usefixtures("_here")
def test_commands_that_pass_are_listed(image: Path) -> None:
    tried = smoke_test(image, ["test -s /word", "python3 -c 'import json'"])
    assert [each.command for each in tried] == ["test -s /word", "python3 -c 'import json'"]
    assert smoke_test(image, []) == ()


@pytest.mark.usefixtures("_here")
def test_the_first_failure_ends_it_and_is_reported(image: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="exit code 7") as failed:
        smoke_test(image, ["echo fine", "echo no CUDA here; exit 7", f"touch {tmp_path}/third"])
    assert "| no CUDA here" in failed.value.message
    assert not (tmp_path / "third").exists()


@pytest.mark.usefixtures("_here")
def test_what_an_image_prints_moves_no_cursor_and_fakes_no_line(image: Path) -> None:
    with pytest.raises(VerificationError) as failed:
        smoke_test(image, ["printf 'a\\033[2Jb\\rc\\303\\277\\377\\n::error::x\\n'; exit 1"])
    said = failed.value.message.partition("exit 1")[2]
    assert all(line.isprintable() for line in said.split("\n"))
    assert "\x1b" not in said
    assert "\n  | ::error::x" in said, "GitHub reads an order only where a line begins with it"


@pytest.mark.usefixtures("_here")
def test_a_step_of_slurm_tries_it_on_a_node(image: Path, slurm: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "step"
    smoke_test(image, [f"echo $SLURMD_NODENAME > {out}; cat /word >> {out}"], slurm_options=["-w", "n2"])
    assert out.read_text() == "n2\none mount\n"
    with pytest.raises(VerificationError, match="exit code 3"):
        smoke_test(image, ["exit 3"], slurm_options=["-w", "n2"], timeout=60)


@pytest.mark.usefixtures("_here", "slurm")
def test_images_yaml_says_which_node_tries_it(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "step"
    (tmp_path / "images.yaml").write_text(
        "version: 1\n"
        "defaults: {test_on: [-wn1]}\n"
        "images:\n"
        f"  demo: {{base: 'debian:12', test_on: [-wn2, --gpus=1], test: ['echo $SLURMD_NODENAME > {out}']}}\n"
    )
    monkeypatch.setenv("SLURM_JOB_ID", "999999")  # as within a job of --executor slurm
    monkeypatch.setenv("SLURM_NODELIST", "n1")
    config = load(tmp_path / "images.yaml")
    run = Run(config=config, lock=Lock(), clients=Clients(config), progress=NO_PROGRESS)
    stages.tested(run, config.images["demo"], image, "demo:v1.0", None)
    assert out.read_text() == "n2\n"


@pytest.mark.needs("strace", "squashfuse", "/dev/fuse")
@pytest.mark.usefixtures("_here")
def test_a_release_gets_the_profile_of_its_tests(image: Path, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    store.publish(record_of(image, "v1.0"), image)
    made, folder = store.resolve("demo:v1.0"), tmp_path / "recorded"
    folder.mkdir()
    record = Record(folder=folder, sha256=made.sha256)
    tried = smoke_test(image, ["cat /word", "python3 -c 'import json'"], record=record)
    assert len(tried) == 2
    assert len(list(folder.iterdir())) == 2
    assert start_profile.attach(made, store, folder).startswith("startup-1.json: ")
    found = profiles.newest(store.layout, made)
    assert found is not None
    assert any(b"bin/python3" in each.path for each in found.files)
    store.publish(record_of(image, "v1.1", "2026-01-02T00:00:00Z"), image)
    (tmp_path / "none").mkdir()
    newer = store.resolve("demo:v1.1")
    assert start_profile.attach(newer, store, tmp_path / "none").endswith("profile of demo:v1.0")
    assert profiles.newest(store.layout, newer) == found
    assert start_profile.attach(newer, store, tmp_path / "none") == ""


@pytest.mark.usefixtures("_here")
def test_recording_decides_no_test(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(folder=tmp_path, sha256="0" * 64)
    monkeypatch.setattr(start_profile, "recording", lambda *_: ["false"])
    monkeypatch.setattr(start_profile, "can_record", lambda: True)
    assert len(smoke_test(image, ["true"], record=record)) == 1
    with pytest.raises(VerificationError, match="exit code 7"):
        smoke_test(image, ["exit 7"], record=record)
    assert not list(tmp_path.glob("*.json"))
