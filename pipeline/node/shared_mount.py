"""One mount of a .sqsh for all callers on a node, counted by who is still alive.

    NODE/<sha256>[-<job>.<step>]/path           the file, and what it was when it was mounted
    NODE/<sha256>…/names                        paths for which the mounts of `users` stand
    NODE/<sha256>…/own/root                     where it is mounted; only this user enters `own`
    NODE/<sha256>…/holders/<pid>-<start>…       one empty file a caller; or job-<id>[-<uid>.<gid>]
    NODE/<sha256>…/users/<uid>.<gid>/root       the same mount as the files of that user, who alone gets there
    NODE/<sha256>…/lock                         flock: this folder is on the node's own disk or memory

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, ToolError
from pipeline.node import mounted_file, pyxis_importer, user_mount
from pipeline.node.user_mount import User
from pipeline.system import mount as mounts
from pipeline.system import untrusted
from pipeline.system.alive import has_ended, start_time
from pipeline.system.log import log

ROOT_NODE_FOLDER = Path("/run/sqshpipe")
_LONGEST = 1 << 14  # bytes of the names of a file
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
    if status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if os.geteuid() == 0 else 0)):
        raise ToolError(
            f"others may write to {folder}, and could plant symlinks where images are mounted",
            hint="take that right away (chmod go-w), or set SQSHPIPE_NODE_DIR to a folder of your own",
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
    """How a living process is counted. Raises ConfigError when no process has that number."""
    start = start_time(pid)
    if not start:
        raise ConfigError(f"no process {pid} here that could hold a mount")
    return f"{pid}-{start}"


def job_holder(job: str, user: User | None = None) -> str:
    """How a whole job is counted: from its prolog to its epilog, whatever its processes do."""
    if not re.fullmatch(r"\d+", job):
        raise ConfigError(f"{job!r} is not the number of a job")
    return f"job-{job}-{user.name}" if user else f"job-{job}"


def acquire(
    file: Path,
    sha256: str,
    holder: str,
    *,
    kind: mounts.Kind | None = None,
    most: int | None = None,
    opened: int | None = None,
) -> SharedMount:
    """Mount a file unless this node has it mounted, and count `holder` as a user of it.

    `opened` is the file as the caller has opened and checked it: no other is mounted. Raises ToolError when
    another file is mounted under this digest, when it can be mounted neither by the kernel nor by squashfuse,
    or would be more than the `most` files that may be mounted on this node.
    """
    ready = _made_for_us(file, sha256)
    if ready is not None:
        return ready
    node = node_folder()
    clear(node)
    folder = node / (sha256 if os.geteuid() == 0 and kind != "fuse" else f"{sha256}-{_step()}")
    while True:
        if most is not None:
            _reserve(node, folder, most)
        (folder / "holders").mkdir(parents=True, exist_ok=True)
        with _locked(folder) as still_there:
            if still_there:
                return _acquire(folder, file, holder, kind, opened)


def show_to(mounted: SharedMount, user: User, names: Sequence[str]) -> Path:
    """The folder in which this user sees a kernel mount as files of their own. Raises ToolError.

    It stands for the file under each of these paths, which have no symlink in them.
    """
    text = "".join(f"{each}\n" for each in names)
    with _locked(mounted.folder):
        mounted.folder.chmod(0o711)
        untrusted.replace_file(mounted.folder / "names", text.encode(), mode=0o644)
        return user_mount.show(mounted.root, mounted.folder / "users", user)


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
    """What an epilog does: the job holds nothing any more, and neither do its dead processes.

    Files that were damaged or changed below its mounts are named, and their mounts taken away.
    """
    node = node_folder()
    mine = job_holder(job)
    was = []
    for folder in _folders(node):
        for each in _holders(folder):
            if each.name == mine or each.name.startswith(f"{mine}-"):
                was.append((folder, _seen(folder)))
                with _locked(folder) as still_there:
                    if still_there:
                        each.unlink(missing_ok=True)
                        _drop_users(folder)
    clear(node)
    for folder, seen in was:  # last: a store that does not answer must not keep us from the rest
        _look_at(folder, *seen)


def look_at(folder: Path) -> None:
    """Name the file of a mount when it was damaged or has changed, and take its mount away then."""
    _look_at(folder, *_seen(folder))


def _seen(folder: Path) -> tuple[tuple[str, str], str, bool]:
    digest = mounted_file.digest_of(folder)
    return mounted_file.noted(folder), digest, bool(digest) and mounted_file.had_errors(folder)


def folders() -> list[Path]:
    """The folders of all mounts of this user on this node. Raises ToolError as `node_folder` does."""
    return _folders(node_folder())


def job_holders(node: Path) -> dict[str, float]:
    """Numbers of the jobs that hold mounts here, and when the last of these mounts was asked for."""
    found: dict[str, float] = {}
    for folder in _folders(node):
        for each in _holders(folder):
            kind, _, rest = each.name.partition("-")
            if kind == "job":
                with contextlib.suppress(FileNotFoundError):
                    job = rest.partition("-")[0]
                    found[job] = max(found.get(job, 0.0), each.stat().st_mtime)
    return found


def _acquire(
    folder: Path, file: Path, holder: str, kind: mounts.Kind | None, opened: int | None
) -> SharedMount:
    root = folder / "own" / "root"
    if _is_broken(root):
        mounts.unmount(root, "fuse")
    else:
        changed = mounted_file.has_changed(folder)
        if changed:
            log.warning("a file has changed since it was mounted, and is mounted anew", file=changed)
            _retire(folder)
    (folder / "holders" / holder).touch()
    try:
        if not root.is_mount():
            root.mkdir(parents=True, exist_ok=True)
            (folder / "own").chmod(0o700)
            found = file.resolve()
            mounted_file.note(folder, found, mounted_file.identity(found if opened is None else opened))
            used = mounts.mount(file, root, kind=kind, opened=opened)
            (folder / "kind").write_text(used)
            log.debug("mounted", file=str(file), folder=str(root), by=used)
        if opened is not None and mounted_file.noted(folder)[1] != mounted_file.identity(opened):
            raise ToolError(f"{file} is not the file that is mounted on this node under its digest")
        return _mounted(folder, root)
    except BaseException:
        (folder / "holders" / holder).unlink(missing_ok=True)
        _unmount_if_unused(folder)
        raise


def _reserve(node: Path, folder: Path, most: int) -> None:
    """Make the folder of a mount unless as many files as may be are mounted. Raises ToolError."""
    with _locked(node):
        there = _folders(node)
        if folder not in there and len(there) >= most:
            raise ToolError(
                f"{len(there)} files are mounted on this node, as many as may be",
                hint="kernel_mounts in pyxis-importer.json is the number",
            )
        folder.mkdir(exist_ok=True)


def _look_at(folder: Path, noted: tuple[str, str], sha256: str, errors: bool) -> None:
    changed = mounted_file.differs(*noted)
    if changed:
        log.warning("a file has changed since it was mounted", file=noted[0])
        _retire_locked(folder)
    if (changed or errors) and not mounted_file.examine(folder.parent, sha256, noted[0]):
        log.warning("a file is damaged, its bytes are not those of its digest", file=noted[0])
        _retire_locked(folder)
    elif errors:
        with contextlib.suppress(OSError):
            os.utime(folder / "path")  # errors until now were those of another file


def _retire_locked(folder: Path) -> None:
    with _locked(folder) as still_there:
        if still_there:
            _retire(folder)


def _retire(folder: Path) -> None:
    """Take a mount away whose file has changed; who reads it now keeps what the kernel still has."""
    (folder / "path").unlink(missing_ok=True)
    user_mount.drop(folder / "users")
    if (folder / "own" / "root").is_mount():
        mounts.unmount(folder / "own" / "root", "kernel")


def _mounted(folder: Path, root: Path) -> SharedMount:
    kind: mounts.Kind = "kernel" if (folder / "kind").read_text() == "kernel" else "fuse"
    return SharedMount(folder=folder, root=root, kind=kind, device=root.stat().st_dev)


def _made_for_us(file: Path, sha256: str) -> SharedMount | None:
    """The mount of this very file that root made for a job of ours; the epilog takes it away."""
    folder = ROOT_NODE_FOLDER / sha256
    root = user_mount.place(folder / "users", User(uid=os.geteuid(), gid=os.getegid()))
    if os.geteuid() == 0:
        return None
    with contextlib.suppress(OSError):
        names = untrusted.read_regular(folder / "names", limit=_LONGEST).decode().splitlines()
        if str(file.resolve()) in names and root.is_mount():
            return _mounted(folder, root)
    return None


def _drop_users(folder: Path) -> None:
    """Unmount what was made for users who have no job here any more."""
    held = {each.name.split("-")[2] for each in _holders(folder) if each.name.count("-") == 2}
    user_mount.drop(folder / "users", keep=held)


def _unmount_if_unused(folder: Path) -> None:
    dead = [each for each in _holders(folder) if not _alive(each.name)]
    for each in dead:
        each.unlink(missing_ok=True)
    if _holders(folder):
        return
    user_mount.drop(folder / "users")
    root = folder / "own" / "root"
    if _is_broken(root) or root.is_mount():
        kind = (folder / "kind").read_text() if (folder / "kind").exists() else "fuse"
        mounts.unmount(root, "kernel" if kind == "kernel" else "fuse")
    for each in (root, root.parent, folder / "holders", folder / "users"):
        with contextlib.suppress(FileNotFoundError):
            each.rmdir()
    for name in ("kind", "path", "names", "lock"):
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:  # what an older version left in it holds nobody up
        log.debug("a folder of mounts stays", folder=str(folder), why=error.strerror)


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
