"""A build that was killed left the password for its base in memory until the machine restarted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.docker import config as module
from pipeline.docker.config import docker_config

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.docker import config as module
module._MEMORY = Path(sys.argv[1])
with module.docker_config({}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_build_removes_it_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEMORY", tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (left / "config.json").exists()
    with docker_config({}) as in_use:
        assert not left.exists()
        with docker_config({}):
            assert (in_use / "config.json").exists()
    assert list(tmp_path.iterdir()) == []
