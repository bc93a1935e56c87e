"""A build that was killed left the password for its base in memory until the machine restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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
    (left,) = tmp_path.iterdir()
    with docker_config({}):
        assert left.exists(), "so young that it may not have its lock yet"
    long_ago = time.time() - 3600
    os.utime(left, (long_ago, long_ago))
    with docker_config({}) as in_use:
        os.utime(in_use, (long_ago, long_ago))
        with docker_config({}):
            assert in_use.exists()
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []
