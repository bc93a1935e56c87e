"""One mount of a .sqsh for all callers on a node, counted by who is still alive.

    NODE/<sha256>[-<job>.<step>]/root       where it is mounted
    NODE/<sha256>…/holders/<pid>-<start>…   one empty file a caller; or job-<id>, made by a prolog
    NODE/<sha256>…/lock                     flock: this folder is on the node's own disk or memory

A caller that was killed leaves its file behind, but no process has that number and start time any more, so
it does not count and the next caller clears it away. A squashfuse belongs to the step that started it (Slurm
ends it with the step), so such mounts are one a step; kernel mounts are one a node.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from pipeline.errors import ConfigError, ToolError
from pipeline.node import pyxis_importer
from pipeline.system import mount as mounts
from pipeline.system import untrusted
from pipeline.system.alive import has_ended, start_time

log = structlog.get_logger()

ROOT_NODE_FOLDER = Path("/run/sqshpipe")
_NAME = re.compile(r"[0-9a-f]{64}(-[\w.]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMount:
    """A .sqsh that is mounted on this node; `device` is what stat shows for everything in it."""

    folder: Path
    root: Path
    kind: mounts.Kind
    device: int


def node_folder() -> Path:
    """Where this node's mounts of this user lie: SQSHPIPE_NODE_DIR, /run/sqshpipe for root, else in /tmp.

    Where another user has taken the usual name in /tmp, it is another one. Raises ToolError when the folder
    cannot be made or is not this user's own.
    """
    named = os.environ.get("SQSHPIPE_NODE_DIR")
    if not named and os.geteuid() != 0:
        return _in_tmp()
    folder = Path(named) if named else ROOT_NODE_FOLDER
    try:
        with untrusted.folder_to_write(folder, make=0o755 if os.geteuid() == 0 else 0o700) as opened:
            status = os.fstat(opened)
    except OSError as error:
        raise ToolError(
            f"cannot make {folder}, where mounts lie: {error.strerror}",
            hint="set SQSHPIPE_NODE_DIR to a folder of your own on this node",
        ) from error
    if status.st_uid != os.geteuid():
        raise ToolError(
            f"{folder} belongs to somebody else", hint="set SQSHPIPE_NODE_DIR to a folder of your own"
        )
    if status.st_mode & stat.S_IWOTH:
        raise ToolError(
            f"everybody may write to {folder}, and could plant symlinks where images are mounted",
            hint="take that right away (chmod o-w), or set SQSHPIPE_NODE_DIR to a folder of your own",
        )
    return folder


def _in_tmp() -> Path:
    try:
        return Path(pyxis_importer.own_folder("/tmp", f"sqshpipe-{os.geteuid()}"))  # noqa: S108 - its owner is checked
    except (OSError, pyxis_importer.Refused) as error:
        raise ToolError(
            f"cannot make a folder for mounts in /tmp: {error}",
            hint="set SQSHPIPE_NODE_DIR to a folder of your own on this node",
        ) from error


def holder_of(pid: int) -> str:
    """How a living process is counted. Raises ConfigError when there is none of that number."""
    start = start_time(pid)
    if not start:
        raise ConfigError(f"no process {pid} here that could hold a mount")
    return f"{pid}-{start}"


def job_holder(job: str) -> str:
    """How a whole job is counted: from its prolog to its epilog, whatever its processes do."""
    if not re.fullmatch(r"\d+", job):
        raise ConfigError(f"{job!r} is not the number of a job")
    return f"job-{job}"


def acquire(file: Path, sha256: str, holder: str, *, kind: mounts.Kind | None = None) -> SharedMount:
    """Mount a file unless this node has it mounted, and count `holder` as a user of it.

    Raises ToolError when it can be mounted neither by the kernel nor by squashfuse.
    """
    ready = _made_by_prolog(sha256)
    if ready is not None:
        return ready
    node = node_folder()
    clear(node)
    folder = node / (sha256 if os.geteuid() == 0 and kind != "fuse" else f"{sha256}-{_step()}")
    while True:
        (folder / "holders").mkdir(parents=True, exist_ok=True)
        with _locked(folder) as still_there:
            if still_there:
                return _acquire(folder, file, holder, kind)


def release(sha256: str, holder: str) -> None:
    """Count `holder` no longer; the last one's release unmounts. Nothing to release is not an error."""
    for folder in _folders(node_folder()):
        if folder.name.startswith(sha256):
            with _locked(folder) as still_there:
                if still_there:
                    (folder / "holders" / holder).unlink(missing_ok=True)
                    _unmount_if_unused(folder)


def clear(node: Path) -> None:
    """Unmount what only dead callers held, and remove what they left."""
    for folder in _folders(node):
        if not any(_alive(each.name) for each in _holders(folder)):
            with _locked(folder) as still_there:
                if still_there:
                    _unmount_if_unused(folder)
    for root in node.glob("root-*"):  # where the command of a `run` that was killed had its root
        pid = root.name.split("-")[1]
        if pid.isdecimal() and not start_time(int(pid)):
            with contextlib.suppress(OSError):
                root.rmdir()


def release_job(job: str) -> None:
    """What an epilog does: the job holds nothing any more, and neither do its dead processes."""
    node = node_folder()
    for folder in _folders(node):
        (folder / "holders" / job_holder(job)).unlink(missing_ok=True)
    clear(node)


def _acquire(folder: Path, file: Path, holder: str, kind: mounts.Kind | None) -> SharedMount:
    root = folder / "root"
    if _is_broken(root):
        mounts.unmount(root, "fuse")
    root.mkdir(exist_ok=True)
    if not root.is_mount():
        used = mounts.mount(file, root, kind=kind)
        (folder / "kind").write_text(used)
        log.debug("mounted", file=str(file), folder=str(root), by=used)
    (folder / "holders" / holder).touch()
    return _mounted(folder)


def _mounted(folder: Path) -> SharedMount:
    root = folder / "root"
    kind: mounts.Kind = "kernel" if (folder / "kind").read_text() == "kernel" else "fuse"
    return SharedMount(folder=folder, root=root, kind=kind, device=root.stat().st_dev)


def _made_by_prolog(sha256: str) -> SharedMount | None:
    """A mount that root made for a job of ours: everybody may read it, and the epilog takes it away."""
    folder = ROOT_NODE_FOLDER / sha256
    job = os.environ.get("SLURM_JOB_ID", "")
    if os.geteuid() == 0 or not job.isdigit() or not (folder / "holders" / job_holder(job)).exists():
        return None
    with contextlib.suppress(OSError):
        if (folder / "root").is_mount():
            return _mounted(folder)
    return None


def _unmount_if_unused(folder: Path) -> None:
    dead = [each for each in _holders(folder) if not _alive(each.name)]
    for each in dead:
        each.unlink(missing_ok=True)
    if _holders(folder):
        return
    root = folder / "root"
    if _is_broken(root) or root.is_mount():
        kind = (folder / "kind").read_text() if (folder / "kind").exists() else "fuse"
        mounts.unmount(root, "kernel" if kind == "kernel" else "fuse")
    for each in (root, folder / "holders"):
        with contextlib.suppress(FileNotFoundError):
            each.rmdir()
    for name in ("kind", "lock"):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; False when somebody removed the folder while we waited for it."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            same = os.fstat(lock).st_ino == (folder / "lock").stat().st_ino
        except FileNotFoundError:
            same = False
        yield same
    finally:
        os.close(lock)


def _folders(node: Path) -> list[Path]:
    return [each for each in node.iterdir() if _NAME.fullmatch(each.name)] if node.is_dir() else []


def _holders(folder: Path) -> list[Path]:
    try:
        return list((folder / "holders").iterdir())
    except FileNotFoundError:
        return []


def _alive(holder: str) -> bool:
    pid, _, rest = holder.partition("-")
    return pid == "job" or (pid.isdecimal() and not has_ended(int(pid), rest.partition("-")[0]))


def _is_broken(root: Path) -> bool:
    """A squashfuse that was killed leaves a mount that answers nothing (ENOTCONN)."""
    try:
        root.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _step() -> str:
    job, step = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_STEP_ID", "")
    return f"{job}.{step}" if job.isdigit() and step.isdigit() else "shell"
