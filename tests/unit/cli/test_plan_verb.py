"""``sqshpipe plan`` as a script uses it: exit code 0 or 10, JSON, and nothing is another after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.errors import ConfigError
from tests.support.command_line import app


def plan(folder: Path, *words: str) -> Result:
    words = ("plan", *words, "--config", str(folder / "images.yaml"))
    return CliRunner().invoke(app, words, catch_exceptions=False)


def tree(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Every path below ``folder`` with mode, inode, time of change and bytes."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mode, status.st_ino, status.st_ctime_ns, content)
    return found


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQSHPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SQSHPIPE_SCRATCH", str(tmp_path / "scratch"))
    for name in ("SQSHPIPE_STORE", "SQSHPIPE_REGISTRY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("words", "code"), [([], 0), (["--tag", "v1"], 0), (["--tag", "v2"], 10)], ids=["", "v1", "v2"]
)
def test_exit_code_says_whether_something_would_run_and_nothing_changes(
    released: Path, words: list[str], code: int
) -> None:
    before = tree(released)
    for more in ([], ["--json"]):
        reported = plan(released, *words, *more)
        assert reported.exit_code == code
    assert json.loads(reported.stdout)["changes"] is (code == 10)
    assert tree(released) == before


def test_where_and_how_much_is_shown_to_people_and_machines(released: Path) -> None:
    reported = plan(released, "--tag", "v2")
    target = str(released / "store" / "demo" / "v2.sqsh")
    assert target in reported.stdout
    (image,) = json.loads(plan(released, "--tag", "v2", "--json").stdout)["images"]
    assert (image["publishes"], image["writes"]) == (target, 0)  # the same bytes under one more name


def offline(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["plan", "--offline", *words, "--config", str(folder / "images.yaml")])


def sources(folder: Path, images: str, lock: str = "version: 1\nbases: {}\n") -> Path:
    (folder / "images.yaml").write_text(
        "version: 1\nregistry: {url: registry.invalid/team}\nstore: {root: /nonexistent}\n"
        f"images: {images}\n"
    )
    (folder / "images.lock").write_text(lock)
    return folder


DIGEST = "sha256:" + "a" * 64
LOCKED = (
    'version: 1\nbases:\n  "registry.invalid/base:1":\n    linux/amd64:\n'
    f"      digest: {DIGEST}\n      locked_at: 2026-01-01T00:00:00Z\n"
)
ON_BASE = "{demo: {base: 'registry.invalid/base:1', dockerfile: Dockerfile}}"


def test_sound_sources_are_reported_without_asking_anybody(tmp_path: Path) -> None:
    """The registry's name leads nowhere, and there is no store."""
    (tmp_path / "Dockerfile").write_text("FROM registry.invalid/base:1\nRUN true\n")
    done = offline(sources(tmp_path, ON_BASE, LOCKED))
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads(offline(tmp_path, "--json").stdout) == {"invalid": [], "stale": []}


@pytest.mark.parametrize(
    ("images", "lock", "sentence"),
    [
        (
            "{demo: {base: 'registry.invalid/base:1'}}",
            "",
            "demo: registry.invalid/base:1 for linux/amd64 is not locked",
        ),
        (
            f"{{demo: {{base: 'registry.invalid/base@{DIGEST}'}}}}",
            LOCKED,
            "registry.invalid/base:1 for linux/amd64 is locked, and no image has it as base",
        ),
        (
            "{demo: {base: 'registry.invalid/base:2'}}",
            LOCKED,
            "demo: registry.invalid/base:2 for linux/amd64 is not",
        ),
    ],
    ids=["missing", "unused", "another tag"],
)
def test_a_lock_that_does_not_fit_is_named(tmp_path: Path, images: str, lock: str, sentence: str) -> None:
    done = offline(sources(tmp_path, images, lock or "version: 1\nbases: {}\n"))
    assert done.exit_code == 10
    assert sentence in done.stdout
    assert "sqshpipe lock" in done.stderr


def test_a_base_that_images_yaml_makes_may_come_later(tmp_path: Path) -> None:
    images = (
        f"{{below: {{base: 'registry.invalid/base@{DIGEST}'}}, "
        "above: {base: 'registry.invalid/team/below:v1'}}"
    )
    assert offline(sources(tmp_path, images)).exit_code == 0


@pytest.mark.parametrize(
    ("dockerfile", "sentence"),
    [
        ("FROM another:1\n", "builds on another:1"),
        ("FROM registry.invalid/base:1 AS\n", "line 1"),
        ("FROM ${NOTHING}\n", "line 1"),
        (b"\xff\xfe", "cannot be read"),
        (None, "Dockerfile"),
    ],
    ids=["another base", "half a FROM", "no value", "not UTF-8", "missing"],
)
def test_a_dockerfile_that_no_build_takes_is_not_valid(
    tmp_path: Path, dockerfile: str | bytes | None, sentence: str
) -> None:
    if dockerfile is not None:
        raw = dockerfile if isinstance(dockerfile, bytes) else dockerfile.encode()
        (tmp_path / "Dockerfile").write_bytes(raw)
    done = offline(sources(tmp_path, ON_BASE, LOCKED))
    assert isinstance(done.exception, ConfigError)
    assert sentence in done.exception.message


def test_an_unknown_key_is_not_valid(tmp_path: Path) -> None:
    done = offline(sources(tmp_path, "{demo: {base: 'registry.invalid/base:1', bace: x}}", LOCKED))
    assert isinstance(done.exception, ConfigError)
