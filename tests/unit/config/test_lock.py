"""images.lock: read, written, stable, and errors that name the line."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from pipeline.config.lock import Lock, LockedBase, read_lock, render_lock, write_lock
from pipeline.errors import ConfigError
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=timezone.utc)
LATER = datetime(2026, 2, 1, tzinfo=timezone.utc)
NGC, UBUNTU = Reference.parse("nvcr.io/nvidia/pytorch:24.01-py3"), Reference.parse("ubuntu:24.04")
AMD, ARM = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")
A, B = Digest.of(b"a"), Digest.of(b"b")


def full() -> Lock:
    return (
        Lock()
        .updated(UBUNTU, AMD, LockedBase(digest=A, locked_at=NOW))
        .updated(NGC, ARM, LockedBase(digest=B, index_digest=A, locked_at=NOW))
        .updated(NGC, AMD, LockedBase(digest=A, index_digest=A, locked_at=NOW))
    )


def test_round_trip_is_sorted_and_second_write_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "images.lock"
    assert write_lock(path, full())
    assert read_lock(path) == full()
    assert not write_lock(path, read_lock(path))
    assert path.read_text().startswith("# Written by sqshpipe lock")
    assert path.read_text().index("docker.io/library/ubuntu") < path.read_text().index("nvcr.io")
    assert [child.name for child in tmp_path.iterdir()] == ["images.lock"]


def test_missing_file_is_an_empty_lock(tmp_path: Path) -> None:
    assert read_lock(tmp_path / "images.lock") == Lock()
    assert render_lock(Lock()).endswith("bases: {}\n")
    write_lock(tmp_path / "images.lock", Lock())
    assert read_lock(tmp_path / "images.lock") == Lock()


def test_same_digest_keeps_its_time() -> None:
    lock = full()
    same = lock.updated(UBUNTU, AMD, LockedBase(digest=A, locked_at=LATER))
    moved = lock.updated(UBUNTU, AMD, LockedBase(digest=B, locked_at=LATER))
    assert same == lock
    assert moved.get(UBUNTU, AMD) == LockedBase(digest=B, locked_at=LATER)
    assert moved.get(UBUNTU, ARM) is None


def test_only_drops_what_nothing_wants() -> None:
    assert set(full().only([(UBUNTU, AMD), (UBUNTU, ARM)]).bases) == {(str(UBUNTU), "linux/amd64")}


ERRORS = {
    "digest": ("digest: sha256:aa", r"line 5, bases\.ubuntu:1\.linux/amd64\.digest: "),
    "unknown key": (f"digest: {A}\n      digset: x", r"line 6, bases\.ubuntu:1\.linux/amd64\.digset: "),
    "time": (f"digest: {A}\n      locked_at: yesterday", r"line 6, .*locked_at: 'yesterday' is not a time"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_file_line_and_key(tmp_path: Path, case: str) -> None:
    text, pattern = ERRORS[case]
    path = tmp_path / "images.lock"
    tail = "" if "locked_at" in text else "\n      locked_at: 2026-01-31T12:00:00Z"
    path.write_text(f"version: 1\nbases:\n  ubuntu:1:\n    linux/amd64:\n      {text}{tail}\n")
    with pytest.raises(ConfigError, match=pattern) as caught:
        read_lock(path)
    assert str(path) in str(caught.value)
    assert "sqshpipe lock" in caught.value.hint


def test_unwritable_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_lock(tmp_path / "no" / "images.lock", full())
