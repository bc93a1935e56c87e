from __future__ import annotations

import os
import time
from pathlib import Path

from pipeline.convert.blobs import trim


def put(folder: Path, name: str, size: int, *, days_ago: float = 0.0) -> Path:
    file = folder / name
    file.write_bytes(bytes(size))
    when = time.time() - days_ago * 86400
    os.utime(file, (when, when))
    return file


def digest(number: int) -> str:
    return f"{number:064x}"


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    files = [put(tmp_path, digest(number), 100, days_ago=number) for number in range(5)]
    assert trim(tmp_path, limit=250) == 300
    assert [file.exists() for file in files] == [True, True, False, False, False]
    assert trim(tmp_path, limit=250) == 0


def test_downloads_that_nobody_resumes_are_removed_and_fresh_ones_stay(tmp_path: Path) -> None:
    old = put(tmp_path, f"{digest(1)}.partial", 10, days_ago=8)
    new = put(tmp_path, f"{digest(2)}.partial", 10, days_ago=1)
    assert trim(tmp_path) == 10
    assert not old.exists()
    assert new.exists()


def test_files_of_others_and_missing_folders_are_left_alone(tmp_path: Path) -> None:
    other = put(tmp_path, "notes.txt", 1000, days_ago=100)
    assert trim(tmp_path, limit=0) == 0
    assert other.exists()
    assert trim(tmp_path / "missing") == 0
