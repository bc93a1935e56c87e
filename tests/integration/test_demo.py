"""``make demo`` as a newcomer runs it, and interrupted: all ranks on one mount, and nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.needs(
    "dockerd", "docker-registry", "htpasswd", "mksquashfs", "unshare", "/dev/fuse", "root"
)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A running demo that publishes below tmp_path, without an engine that answers already."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQSHPIPE_")}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "demo", str(tmp_path / "out")],
        cwd=PROJECT,
        env={**environment, "DOCKER_HOST": f"unix://{tmp_path}/no-engine", "DOCKER_CONFIG": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_whole_path_and_eight_ranks_on_one_mount(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    said, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, said
    ranks = re.findall(r"^ +([0-7]) +\d+ +(\d+:\d+) +(\d+) +16\.8 MB +([0-9a-f]{24})$", said, re.MULTILINE)
    assert [rank[0] for rank in ranks] == list("01234567"), said
    assert len({rank[1:] for rank in ranks}) == 1, "one device, one mount, one content"
    assert (tmp_path / "out/containers/demo/v1.0.sqsh").resolve().stat().st_size > 16 << 20
    again = re.search(r"^  (\d+\.\d) s$", said, re.MULTILINE)
    assert again is not None, said
    assert "nothing changed" in said[: again.start()]
    assert max(len(line) for line in said.replace(f"{tmp_path}/", "").splitlines()) <= 100, said
    _nothing_stays(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_stops_all_that_it_started(
    demo: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("$ sqshpipe release"):
            break
    time.sleep(1)
    os.killpg(demo.pid, number)  # as a terminal does
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 128 + number, said
    assert "Traceback" not in said
    assert not (tmp_path / "out/containers/demo/v1.0.sqsh").exists()
    _nothing_stays(tmp_path)


def _nothing_stays(tmp_path: Path) -> None:
    assert str(tmp_path) not in Path("/proc/mounts").read_text(encoding="utf-8")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (process / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        mine = f"{tmp_path}/no-engine" in environment or str(tmp_path) in command
        assert not mine or int(process.name) == os.getpid(), f"still running: {command}"
