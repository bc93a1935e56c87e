"""The private engine: it answers, it is alone, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import docker
import pytest

from demo.engine import PrivateEngine

pytestmark = pytest.mark.needs("dockerd", "root")


def test_answers_and_leaves_nothing(tmp_path: Path) -> None:
    with PrivateEngine(parent=tmp_path) as engine:
        client = docker.APIClient(base_url=engine.host)
        assert client.info()["Containers"] == 0
        client.close()
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text(encoding="utf-8")


def test_is_gone_after_its_owner_was_killed(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from demo.engine import PrivateEngine
engine = PrivateEngine(parent=Path(sys.argv[1]))
engine.start()
print(engine.host, flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    host = owner.stdout.readline().strip()
    assert host.startswith("unix://")
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while _commands_naming(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _commands_naming(str(tmp_path)) == []


def _commands_naming(text: str) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if text in command and "dockerd" in command:
                found.append(command)
    return found
