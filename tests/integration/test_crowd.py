"""Eight publishers and three readers on one store at once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.store.store import Store
from tests.support.store import crowd, invariants
from tests.support.store.releases import caches, new_store

PUBLISHERS, READERS, ROUNDS = 8, 3, 4


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.store.crowd", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(300)
def test_nobody_sees_half_a_release_and_one_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, stop = tmp_path / "containers", tmp_path / "stop"
    new_store(root)
    readers = [start("read", root, stop) for _ in range(READERS)]
    publishers = [start("publish", root, number, ROUNDS) for number in range(PUBLISHERS)]
    reported = [process.communicate(timeout=240) for process in publishers]
    stop.touch()
    looked = [process.communicate(timeout=60) for process in readers]
    for process, (_, trouble) in zip(publishers + readers, reported + looked, strict=True):
        assert process.returncode == 0, trouble[-2000:]

    outcomes = Counter(line for out, _ in reported for line in out.splitlines())
    for turn in range(ROUNDS):
        assert outcomes[f"won contested{turn}"] == 1
        assert outcomes[f"lost contested{turn}"] == PUBLISHERS - 1
    looks = sum(int(out) for out, _ in looked)
    with capsys.disabled():
        print(f"\n{PUBLISHERS} publishers, {READERS} readers: {looks} looks, none at something half")  # noqa: T201
    assert looks > 200

    store = Store(root)
    versions = {line.version for line in store.listed("demo")}
    assert len(versions) == ROUNDS * (PUBLISHERS + 2)
    invariants.check(store, {version: crowd.content(version) for version in versions if version[0] != "c"})
    left = caches(store)
    assert store.rebuild() == []
    assert caches(store) == left, "the last to write did not leave the truth"
