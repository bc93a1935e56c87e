"""``make demo`` as a newcomer runs it, and interrupted: all ranks on one mount, and nothing stays behind."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from demo.engine import PrivateEngine
from demo.registry import CONTAINER_IMAGE

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


@pytest.mark.timeout(400)
@pytest.mark.parametrize("mounting", [True, False], ids=["with a mount", "without one"])
def test_with_an_engine_alone_the_registry_is_a_container(
    engine: PrivateEngine, tmp_path: Path, *, mounting: bool
) -> None:
    """A machine with Docker and little else: no docker-registry, no squashfs tools, perhaps no unshare."""
    client = docker.APIClient(base_url=engine.host)
    _stand_in_for_the_registry_image(client, tmp_path)
    before = client.containers(all=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in (
        "sh",
        "ls",
        "cat",
        "mkdir",
        "ldd",
        "git",
        "mount",
        "umount",
        *(["unshare"] if mounting else []),
    ):
        (programs / name).symlink_to(shutil.which(name) or "/missing")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SQSHPIPE_")}
    done = subprocess.run(
        [sys.executable, "-m", "demo", str(tmp_path / "out")],
        cwd=PROJECT,
        env={**kept, "DOCKER_HOST": engine.host, "PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"a container of {CONTAINER_IMAGE}, no password" in done.stdout
    assert "converter=native" in done.stdout
    assert (tmp_path / "out/containers/demo/v1.0.sqsh").is_file()
    if mounting:
        assert "8 ranks read 134 MB through one mount" in done.stdout
    else:
        assert "left out: unshare is not installed" in done.stdout
    assert client.containers(all=True) == before, "the registry's container is gone"
    client.close()


def _stand_in_for_the_registry_image(client: docker.APIClient, folder: Path) -> None:
    """An image under the name of the real one, which a test cannot pull: the same program, from Debian."""
    program = Path(shutil.which("docker-registry") or "")
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    with tarfile.open(folder / "registry.tar", "w") as tar:
        for path in {program.resolve(), *(Path(each) for each in re.findall(r"(/\S+) \(0x", listed))}:
            member = tarfile.TarInfo(str(path).lstrip("/"))
            member.size, member.mode = path.stat().st_size, 0o755
            with path.open("rb") as file:
                tar.addfile(member, file)
        settings = b"version: 0.1\nstorage: {filesystem: {rootdirectory: /data}}\nhttp: {addr: ':5000'}\n"
        member = tarfile.TarInfo("config.yml")
        member.size = len(settings)
        tar.addfile(member, io.BytesIO(settings))
    repository, _, tag = CONTAINER_IMAGE.partition(":")
    client.import_image(
        src=str(folder / "registry.tar"),
        repository=repository,
        tag=tag,
        changes=[f'CMD ["{program.resolve()}", "serve", "/config.yml"]'],
    )


@pytest.mark.timeout(200)
def test_the_throwaway_shell_says_what_it_has_and_how_to_leave(engine: PrivateEngine) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "demo.throwaway",
            "--base",
            "sh",
            "-c",
            'echo "$SQSHPIPE_REGISTRY $DEMO_BASE"',
        ],
        cwd=PROJECT,
        env={**os.environ, "DOCKER_HOST": engine.host},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    registry, base = done.stdout.split()
    assert base.startswith(f"{registry}/base/")
    assert f"registry  {registry}" in done.stderr
    assert "exit" in done.stderr
    assert "[debug" not in done.stderr.lower()
    assert len(done.stderr.splitlines()) == 4, done.stderr


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
