"""One mount for all callers of a node, and commands that run in it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, FormatError, ToolError
from pipeline.node import run as running
from pipeline.node import shared_mount
from pipeline.system.mount import Kind

CALLERS = 8
SQSHPIPE = [sys.executable, "-m", "pipeline"]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Path) -> Iterator[Path]:
    """A node folder of this test's own; nothing may stay mounted in it."""
    if os.geteuid() != 0 and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("mounting needs root or /dev/fuse")
    folder = tmp_path / "node"
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(folder))
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    left = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    for line in left:
        subprocess.run(["umount", "-l", line.split()[1]], check=False, timeout=30)
    assert not left


def sqshpipe(*words: str | Path, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SQSHPIPE, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,  # type: ignore[call-overload]
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, f"{out}\n{err}"
    assert "Traceback" not in err
    return out


def mounts(node: Path) -> list[str]:
    return [
        line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if str(node) in line
    ]


def test_eight_callers_share_one_mount_and_the_last_unmounts(node: Path, image: Path) -> None:
    holders = [subprocess.Popen(["sleep", "600"]) for _ in range(CALLERS)]
    try:
        calls = [sqshpipe("node", "mount", image, "--holder-pid", str(each.pid)) for each in holders]
        folders = {ended(each).strip() for each in calls}
        assert len(folders) == 1
        (folder,) = folders
        assert (Path(folder) / "word").read_text() == "one mount\n"
        assert mounts(node) == [folder]
        for each in holders[:-1]:
            ended(sqshpipe("node", "unmount", image, "--holder-pid", str(each.pid)))
        assert mounts(node) == [folder]
        ended(sqshpipe("node", "unmount", image, "--holder-pid", str(holders[-1].pid)))
        assert mounts(node) == []
        assert [each for each in node.iterdir() if each.is_dir()] == []
    finally:
        for each in holders:
            each.kill()
            each.wait()


@pytest.mark.parametrize("kind", ["kernel", "fuse"])
def test_a_killed_caller_does_not_hold_the_mount(node: Path, image: Path, kind: Kind) -> None:
    if kind == "kernel" and os.geteuid() != 0:
        pytest.skip("a kernel mount needs root")
    file = running.image_file(image)
    doomed, other = subprocess.Popen(["sleep", "600"]), subprocess.Popen(["sleep", "600"])
    try:
        for each in (doomed, other):
            shared_mount.acquire(image, file.sha256, shared_mount.holder_of(each.pid), kind=kind)
        doomed.send_signal(signal.SIGKILL)
        doomed.wait()
        shared_mount.clear(node)
        assert len(mounts(node)) == 1, "somebody lives"
        other.kill()
        other.wait()
        ended(sqshpipe("node", "unmount"))
        assert mounts(node) == []
    finally:
        for each in (doomed, other):
            each.kill()
            each.wait()


def _server_of(root: Path) -> int:
    """The process that serves a FUSE mount; others come and go while /proc is read."""
    for each in Path("/proc").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, NotADirectoryError):
            if each.name.isdigit() and str(root).encode() in (each / "cmdline").read_bytes():
                return int(each.name)
    raise AssertionError(f"nobody serves {root}")


def test_a_squashfuse_that_was_killed_is_mounted_again(node: Path, image: Path) -> None:
    file, holder = running.image_file(image), shared_mount.holder_of(os.getpid())
    first = shared_mount.acquire(image, file.sha256, holder, kind="fuse")
    server = _server_of(first.root)
    os.kill(server, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            first.root.stat()
        except OSError:
            break
        time.sleep(0.02)
    again = shared_mount.acquire(image, file.sha256, holder, kind="fuse")
    assert (again.root / "word").read_text() == "one mount\n"
    shared_mount.release(file.sha256, holder)
    assert mounts(node) == []


def test_a_job_holds_its_mount_from_prolog_to_epilog(node: Path, image: Path) -> None:
    folder = ended(sqshpipe("node", "mount", image, "--job", "17")).strip()
    ended(sqshpipe("node", "mount", image, "--job", "18"))
    ended(sqshpipe("node", "unmount", "--job", "17"))
    assert mounts(node) == [folder]
    ended(sqshpipe("node", "unmount", "--job", "18"))
    ended(sqshpipe("node", "unmount", "--job", "18"))
    assert mounts(node) == []


def test_commands_run_in_the_image_with_its_environment(node: Path, image: Path, tmp_path: Path) -> None:
    def run(*words: str | Path, code: int = 0, **env: str) -> str:
        return ended(sqshpipe("run", *words, env={**os.environ, **env}), code)

    script = (
        "cat /word; pwd; echo $GREETING, $FROM_HOST, $OF_JOB; python3 -c 'import json; print(json)' | cat"
    )
    reported = run(
        image, "--", "sh", "-c", script, HOST_WORD="a word", OF_JOB="of the job", LD_PRELOAD=""
    ).splitlines()
    assert reported[:3] == ["one mount", "/work", "from the image, a word, of the job"]
    assert reported[3].startswith("<module 'json' from '/usr/lib/python3")
    assert run(image, "-e", "GREETING=mine", "--", "sh", "-c", "echo $GREETING") == "mine\n"
    assert run(image, "--entrypoint", "--", "a", "b") == "entrypoint a b\n"
    assert run(image) == "entrypoint command\n"
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_text("of the host")
    mount = f"{tmp_path}/shared:/fsx"
    assert run(image, "-m", mount, "--", "cat", "/fsx/file") == "of the host"
    run(image, "-m", mount, "--", "sh", "-c", "echo x > /fsx/new", code=2)
    run(image, "-m", f"{mount}:rw", "--", "sh", "-c", "echo x > /fsx/new")
    assert (tmp_path / "shared" / "new").read_text() == "x\n"
    run(image, "--", "sh", "-c", "echo x > /word", code=2)
    run(image, "--", "sh", "-c", "exit 7", code=7)
    run(image, "--", "sh", "-c", "kill -9 $$", code=137)
    run(image, "-m", "/nowhere:/x", "--", "true", code=2)
    run(image, "-m", f"{tmp_path}:/word", "--", "true", code=2)
    run(image, "-m", "relative", "--", "true", code=2)
    assert mounts(node) == []


def test_ranks_that_run_together_read_one_device(node: Path, image: Path) -> None:
    ask = "import os, time; print(os.stat('/word').st_dev, flush=True); time.sleep(1.5)"
    ranks = [sqshpipe("run", image, "--", "python3", "-c", ask) for _ in range(CALLERS)]
    assert len({ended(each) for each in ranks}) == 1
    assert mounts(node) == []


def test_a_kernel_mount_reads_ahead_by_one_block(node: Path, image: Path) -> None:
    """Newer kernels would read 4 MiB of a library around each page that a start needs."""
    if os.geteuid() != 0:
        pytest.skip("a kernel mount needs root")
    file, holder = running.image_file(image), shared_mount.holder_of(os.getpid())
    device = shared_mount.acquire(image, file.sha256, holder, kind="kernel").device
    ahead = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/read_ahead_kb").read_text()
    shared_mount.release(file.sha256, holder)
    assert ahead == "128\n"


def test_a_signal_reaches_the_command_and_the_mount_goes(node: Path, image: Path) -> None:
    rank = sqshpipe(
        "run",
        image,
        "--",
        "sh",
        "-c",
        "trap 'echo stopped; exit 9' TERM; echo up; while :; do sleep 0.1; done",
    )
    assert rank.stdout is not None
    assert rank.stdout.readline() == "up\n"
    rank.terminate()
    ended(rank, 9)
    assert mounts(node) == []


def test_a_run_that_was_killed_leaves_nothing(node: Path, image: Path) -> None:
    rank = sqshpipe("run", image, "--", "sh", "-c", "echo $$; exec sleep 600")
    assert rank.stdout is not None
    command = int(rank.stdout.readline())
    rank.kill()
    os.kill(command, signal.SIGKILL)  # as Slurm does with all processes of a step
    rank.communicate()
    assert len(mounts(node)) == 1
    ended(sqshpipe("node", "unmount"))
    assert mounts(node) == []
    assert not list(node.iterdir())


def test_capture_keeps_what_a_command_says(node: Path, image: Path) -> None:
    with running.held(running.image_file(image)) as mounted:
        done = running.capture_in(mounted.root, ["sh", "-c", "cat /word; echo no >&2; exit 3"], timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "one mount\n", "no\n")
    assert mounts(node) == []


def test_only_squashfs_files_are_mounted(tmp_path: Path) -> None:
    text = tmp_path / "text.sqsh"
    text.write_text("no squashfs")
    with pytest.raises(FormatError, match="not a squashfs"):
        running.image_file(text)
    with pytest.raises(ConfigError, match="No such file"):
        running.image_file(tmp_path / "nothing")


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/etc/passwd/here"])
def test_a_node_folder_that_cannot_be_made_is_reported(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", folder)
    with pytest.raises(ToolError, match=f"cannot make {folder}") as reported:
        shared_mount.node_folder()
    assert "SQSHPIPE_NODE_DIR" in (reported.value.hint or "")


def test_what_else_lies_in_the_node_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "root-of-mine").mkdir()
    (tmp_path / "notes").touch()
    held = tmp_path / ("7" * 64)
    (held / "holders").mkdir(parents=True)
    (held / "holders" / ".nfs0001").touch()
    shared_mount.clear(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["notes", "root-of-mine"]
