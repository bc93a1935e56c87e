"""Working folders: made for one run, removed on any exit, looked at for space before the work begins."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from pipeline.errors import ToolError

log = structlog.get_logger()

SCRATCH_VARIABLE = "SQSHPIPE_SCRATCH"
CACHE_VARIABLE = "SQSHPIPE_CACHE"
PREFIX = "sqshpipe-scratch-"
_LOCK = ".lock"
_UPPER = ".upper"
_YOUNG = 60.0  # seconds in which a folder may still be without its lock
_SHARED_TYPES = frozenset({"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "afs", "9p"})


THE_RESULT = "the .sqsh"  # the purpose of a need where the file itself is written, such as a store


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """``size`` bytes and ``files`` inodes that will be wanted in ``folder`` for ``purpose``, a plain noun."""

    folder: Path
    size: int
    purpose: str
    files: int = 0


def default_scratch() -> Path:
    """SQSHPIPE_SCRATCH, else TMPDIR, else /var/tmp: /tmp is memory on many hosts."""
    for variable in (SCRATCH_VARIABLE, "TMPDIR"):
        if chosen := os.environ.get(variable):
            return Path(chosen)
    return Path("/var/tmp")  # noqa: S108 - folders in it are made by mkdtemp


def default_cache() -> Path:
    """SQSHPIPE_CACHE, else the user's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqshpipe"


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` for us alone; it is gone on the way out, whatever happened inside.

    What killed runs of the same user left there is removed as well. Raises ToolError when ``parent`` cannot
    be written.
    """
    parent = parent.absolute()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(parent)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        raise ToolError(
            f"cannot make a scratch folder in {parent}: {error.strerror}",
            hint=f"set {SCRATCH_VARIABLE} to a folder on a local disk that you can write",
        ) from error
    lock = -1
    try:
        folder.chmod(0o700)  # no setgid from the parent: files inside get our own group
        (folder / _UPPER).mkdir()  # for the way out: a full disk makes no folder any more
        with contextlib.suppress(OSError):  # a file system without locks: no orphan is removed there either
            lock = _hold(folder)
        _warn_if_shared(folder)
        yield folder
    finally:
        remove_tree(folder)
        if lock >= 0:
            os.close(lock)


def remove_orphans(parent: Path) -> None:
    """Remove scratch folders of ours whose run ended without doing so, known by a lock that nobody holds.

    A folder without a lock file is none of ours, whatever its name: it stays.
    """
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                found = folder.lstat()
                if (
                    found.st_uid != os.geteuid()
                    or time.time() - found.st_mtime < _YOUNG
                    or folder.is_symlink()
                ):
                    continue
                lock = _hold(folder, make=False)
                try:
                    log.info("removing what a killed run left behind", folder=str(folder))
                    remove_tree(folder)
                finally:
                    os.close(lock)


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours, however deep it is and whatever modes it has; never follows a link.

    Folders inside are moved up before they are entered, so that neither a path nor a recursion grows with the
    depth that an image has chosen. What cannot be removed is told, not raised: this runs on the way out.
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


def require_space(needs: Sequence[Need]) -> None:
    """Raise ToolError when a file system has less room than what is needed on it, all folders together."""
    by_device: dict[int, list[Need]] = {}
    for need in needs:
        by_device.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    for together in by_device.values():
        place = _existing(together[0].folder)
        status = os.statvfs(place)
        free = status.f_bavail * status.f_frsize
        wanted = sum(need.size for need in together)
        files = sum(need.files for need in together)
        if free < wanted:
            short = f"space on {mount_of(place).point}: {human(free)} free, {human(wanted - free)} missing"
        elif status.f_files and status.f_favail < files:
            short = f"inodes on {mount_of(place).point}: {status.f_favail} free, {files} needed"
        else:
            continue
        what = ", ".join(f"{human(n.size)} for {n.purpose} in {n.folder}" for n in together if n.size)
        hint = f"free some, or set {SCRATCH_VARIABLE} or {CACHE_VARIABLE} to a folder on a larger disk"
        if all(need.purpose == THE_RESULT for need in together):
            hint = "free some there: in a store, sqshpipe du tells what costs, prune removes what is unused"
        raise ToolError(f"not enough {short} ({what})", hint=hint)


def human(size: int) -> str:
    """``1.5 GB``: powers of ten, as disks are sold."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPoint:
    """Where a file system is mounted, and of which type it is (``ext4``, ``nfs4``)."""

    point: Path
    type: str


def mount_of(path: Path, *, mountinfo: Path = Path("/proc/self/mountinfo")) -> MountPoint:
    """The mount that ``path`` is on (proc(5), mountinfo); type ``unknown`` where that cannot be read."""
    real = _existing(path).resolve()
    best = MountPoint(point=Path("/"), type="unknown")
    try:
        lines = mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return best
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(_unescaped(before.split(" ")[4]))
        # a later line hides an earlier one of the same place
        if real.is_relative_to(point) and len(point.parts) >= len(best.point.parts):
            best = MountPoint(point=point, type=after.split(" ")[0])
    return best


def _unescaped(word: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(code, character)
    return word


def _warn_if_shared(folder: Path) -> None:
    mount = mount_of(folder)
    if mount.type in _SHARED_TYPES:
        log.warning(
            "scratch is on a shared file system, which is slow for many small files",
            folder=str(folder),
            type=mount.type,
            advice=f"set {SCRATCH_VARIABLE} to a local disk",
        )


def _existing(path: Path) -> Path:
    """The nearest folder upwards that is there already."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _hold(folder: Path, *, make: bool = True) -> int:
    """Take the lock of a scratch folder; OSError when another run has it. Closing the descriptor lets go."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(folder / _LOCK, flags | os.O_CREAT if make else flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
