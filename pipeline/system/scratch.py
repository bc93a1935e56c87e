"""Working folders: made for one run, removed on any exit, looked at for space before the work begins."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.system.log import log
from pipeline.system.mountinfo import existing, mount_of
from pipeline.text import human_bytes

SCRATCH_VARIABLE = "SQSHPIPE_SCRATCH"
CACHE_VARIABLE = "SQSHPIPE_CACHE"
PREFIX = "sqshpipe-scratch-"
_LOCK = ".lock"  # ends the name of the lock file beside a folder
_UPPER = ".upper"


THE_RESULT = "the .sqsh"  # the purpose of a need where the file itself is written, such as a store


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceRequirement:
    """``size`` bytes and ``files`` inodes that will be wanted in ``folder`` for ``purpose``, a plain noun."""

    folder: Path
    size: int
    purpose: str
    files: int = 0


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` for us alone; it is removed when the block ends, whatever happened inside.

    What killed runs of the same user left there is removed as well. Raises ToolError when ``parent`` cannot
    be written.
    """
    hint = f"set {SCRATCH_VARIABLE} to a folder on a local disk that you can write"
    with held_folder(parent.absolute(), hint=hint) as folder:
        folder.chmod(0o700)  # no setgid from the parent: files inside get our own group
        _warn_if_shared(folder)
        yield folder


@contextlib.contextmanager
def held_folder(parent: Path, *, hint: str) -> Iterator[Path]:
    """A new folder of mode 0700 in ``parent``, removed when the block ends, or by a later run.

    The file FOLDER.lock beside it is made first and deleted last, and locked in between: wherever a run is
    killed, a lock file is left that nobody holds, and `remove_orphans` finds the folder by it. Raises
    ToolError with ``hint`` when ``parent`` cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(parent)
        held = _held_name(parent)
    except OSError as error:
        raise ToolError(f"cannot make a scratch folder in {parent}: {error.strerror}", hint=hint) from error
    folder = held.path.with_suffix("")
    try:
        try:
            folder.mkdir(mode=0o700)
            (folder / _UPPER).mkdir()  # for the removal: a full disk makes no folder any more
        except OSError as error:
            raise ToolError(
                f"cannot make a scratch folder in {parent}: {error.strerror}", hint=hint
            ) from error
        yield folder
    finally:
        _remove_held(held)


def remove_orphans(parent: Path) -> None:
    """Remove our scratch folders in ``parent`` that a run left when it was killed.

    A run is over when nobody holds its lock file any more. A folder without a lock file is not ours,
    whatever its name. Locks may reach no further than one host on a shared file system: there only those
    of this host are looked at.
    """
    with contextlib.suppress(OSError):
        names = f"{PREFIX}{_host()}-*" if mount_of(parent).is_shared else f"{PREFIX}*"
        for path in parent.glob(names + _LOCK):
            with contextlib.suppress(OSError):
                held = _Held(path=path, lock=_taken(path))
                log.info("removing what a killed run left behind", folder=str(path.with_suffix("")))
                _remove_held(held)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A lock file, open and locked by us."""

    path: Path
    lock: int


def _held_name(parent: Path) -> _Held:
    """A new lock file, locked. Who looks for orphans may remove it before it is locked: then another one."""
    while True:
        path = parent / f"{PREFIX}{_host()}-{secrets.token_hex(8)}{_LOCK}"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with contextlib.suppress(OSError):  # without locks on a file system, no orphan there is removed
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_named(lock, path):
                return _Held(path=path, lock=lock)
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _taken(path: Path) -> int:
    """The lock file ``path`` of an earlier run, open and locked by us. OSError when it cannot be ours."""
    lock = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(lock)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "not a lock file of ours", str(path))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_named(lock, path):
            raise FileNotFoundError(errno.ENOENT, "removed meanwhile", str(path))
    except BaseException:
        os.close(lock)
        raise
    return lock


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _remove_held(held: _Held) -> None:
    """Remove the folder, then its lock file; a folder that cannot be removed keeps it, for a later run.

    A signal that comes meanwhile waits until all is gone; the second one does not.
    """
    try:
        _remove(held.path)
    except BaseException as error:
        if not isinstance(error, Exception):
            _remove(held.path)
        raise
    finally:
        os.close(held.lock)


def _remove(lock: Path) -> None:
    folder = lock.with_suffix("")
    try:
        with contextlib.suppress(FileNotFoundError):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                remove_tree(folder)
                if folder.is_dir():
                    return
        lock.unlink(missing_ok=True)
    except OSError as error:
        log.warning("scratch could not be removed", folder=str(folder), why=error.strerror)


def _host() -> str:
    """The name of this host as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_]", "_", os.uname().nodename)[:64]


def remove_tree(folder: Path) -> None:
    """Remove one of our folders, of any depth and with any modes; links are never followed.

    Folders inside are moved up before they are entered, so that neither a path nor a recursion grows with the
    depth that an image has chosen. What cannot be removed is logged, not raised, since this runs during
    cleanup.
    """
    try:
        upper = folder / _UPPER
        upper.mkdir(exist_ok=True)
        _empty(folder, upper)
        while waiting := list(upper.iterdir()):
            for current in waiting:
                _empty(current, upper)
                current.rmdir()
        upper.rmdir()
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            log.warning("scratch could not be removed", folder=str(folder), why=error.strerror)


def _empty(folder: Path, upper: Path) -> None:
    """Unlink the files of ``folder`` and move its folders into ``upper``, which may be one of them."""
    folder.chmod(0o700)
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)  # noqa: PTH108 - pathlib would decode a name for each of a million
            elif entry.path != str(upper):
                os.chmod(entry.path, 0o700)  # noqa: PTH101 - its ".." changes, so it must be writable
                os.rename(entry.path, upper / uuid.uuid4().hex)  # noqa: PTH104


def require_space(needs: Sequence[SpaceRequirement]) -> None:
    """Raise ToolError when a file system has less room than what is needed on it, all folders together."""
    by_device: dict[int, list[SpaceRequirement]] = {}
    for need in needs:
        by_device.setdefault(existing(need.folder).stat().st_dev, []).append(need)
    for together in by_device.values():
        place = existing(together[0].folder)
        status = os.statvfs(place)
        free = status.f_bavail * status.f_frsize
        wanted = sum(need.size for need in together)
        files = sum(need.files for need in together)
        if free < wanted:
            missing = human_bytes(wanted - free)
            short = f"space on {mount_of(place).point}: {human_bytes(free)} free, {missing} missing"
        elif status.f_files and status.f_favail < files:
            short = f"inodes on {mount_of(place).point}: {status.f_favail} free, {files} needed"
        else:
            continue
        what = ", ".join(f"{human_bytes(n.size)} for {n.purpose} in {n.folder}" for n in together if n.size)
        hint = f"free some, or set {SCRATCH_VARIABLE} or {CACHE_VARIABLE} to a folder on a larger disk"
        if all(need.purpose == THE_RESULT for need in together):
            hint = "free some: sqshpipe store usage shows what costs, store prune deletes what is unused"
        raise ToolError(f"not enough {short} ({what})", hint=hint)


def _warn_if_shared(folder: Path) -> None:
    mount = mount_of(folder)
    if mount.is_shared:
        log.warning(
            "scratch is on a shared file system, which is slow for many small files",
            folder=str(folder),
            type=mount.type,
            advice=f"set {SCRATCH_VARIABLE} to a local disk",
        )
