"""Eight ranks inside one mounted .sqsh, started as enroot starts a container: ``/bin/sh /etc/rc`` in its
root."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.system import process
from pipeline.system.mount import Mounted

PATIENCE = 60  # seconds for a rank to speak


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What one rank read, as it says itself, and the mount that its root is, as the kernel says."""

    rank: int
    pid: int
    device: str
    mount_id: int
    size: int
    sha256: str
    seconds: float


def run_ranks(mounted: Mounted, world: int) -> list[Rank]:
    """Start `world` ranks at once, hear them all while all of them are alive, and let them end.

    Raises ToolError when one of them fails.
    """
    with _started(mounted.folder, world) as started:
        return [_heard(number, rank) for number, rank in enumerate(started)]


def check_namespaces() -> None:
    """Raises ToolError where this user may not enter an image as `run_ranks` does."""
    unshare = process.which("unshare", hint="it comes with util-linux, which is for Linux")
    if (
        os.geteuid() != 0
        and process.run([unshare, "--user", "--map-root-user", "true"], check=False).returncode
    ):
        raise ToolError("this system does not let users make namespaces", hint="run it as root")


def bytes_delivered(mounted: Mounted) -> int | None:
    """How many bytes the mount's block device has given so far; None for a FUSE mount, which has none."""
    statistics = Path(f"/sys/dev/block/{os.major(mounted.device)}:{os.minor(mounted.device)}/stat")
    try:
        sectors = int(statistics.read_text(encoding="ascii").split()[2])
    except (OSError, IndexError, ValueError):
        return None
    return sectors * 512


@contextmanager
def _started(root: Path, world: int) -> Iterator[list[subprocess.Popen[str]]]:
    environment = dict(_image_environment(root))
    argv = [str(process.which("unshare", hint="it comes with util-linux")), f"--root={root}"]
    if os.geteuid() != 0:
        argv += ["--user", "--map-root-user"]
    ranks: list[subprocess.Popen[str]] = []
    try:
        for number in range(world):
            places = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world)}
            ranks.append(
                subprocess.Popen(
                    [*argv, "/bin/sh", "/etc/rc"],
                    env={**environment, **places},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield ranks
        for rank in ranks:
            rank.communicate(timeout=PATIENCE)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def _heard(number: int, process_: subprocess.Popen[str]) -> Rank:
    assert process_.stdout is not None
    assert process_.stderr is not None
    line = process_.stdout.readline()
    if not line:
        raise ToolError(f"rank {number} printed nothing:", details=process_.stderr.read().splitlines())
    said = json.loads(line)
    return Rank(
        rank=said["rank"],
        pid=process_.pid,
        device=said["device"],
        mount_id=_root_mount(process_.pid),
        size=said["bytes"],
        sha256=said["sha256"],
        seconds=said["seconds"],
    )


def _root_mount(pid: int) -> int:
    """The kernel's number of the mount that is this process's root (proc_pid_mountinfo(5))."""
    for line in Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[4] == "/":
            return int(words[0])
    raise ToolError(f"process {pid} has a root that is no mount")


def _image_environment(root: Path) -> Iterator[tuple[str, str]]:
    """The variables of the image, which enroot reads from the same file."""
    for line in (root / "etc/environment").read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals:
            yield name, value
