"""An output file of the name /dev/null: root's command put a regular file in the place of the device.

Every later writer to /dev/null then filled that file, and other users were refused.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system import untrusted
from tests.support.store.releases import new_store

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device of the numbers of /dev/null, in a folder of the test."""
    path = tmp_path / "null"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return path


def test_a_device_is_never_replaced(device: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(device)
    for name in (device, link):
        with pytest.raises(OSError, match="it is a device"):
            untrusted.replace_file(name, b"text")
    assert device.is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "null"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["report", "--store", "STORE", "-o"], 3),
        (["cluster", "bootstrap", "--values", "VALUES", "-o"], 3),
        (["convert", "docker://127.0.0.1:1/x:1", "--force", "-o"], 2),
    ],
)
def test_verbs_say_so(words: list[str], code: int, device: Path, tmp_path: Path) -> None:
    store = new_store(tmp_path / "containers")
    values = tmp_path / "cluster.yaml"
    assert _sqshpipe("cluster", "init", "-o", str(values)).returncode == 0
    given = {"STORE": str(store.root), "VALUES": str(values)}
    done = _sqshpipe(*(given.get(word, word) for word in words), str(device))
    assert done.returncode == code, done.stderr
    assert device.is_char_device()
    assert str(device) in done.stderr


def _sqshpipe(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pipeline", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)
