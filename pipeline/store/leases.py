"""Who uses what: one small file in <root>/leases/ for each holder, made and dropped without a lock.

Anyone may write there, so nothing that a lease says is believed unless the file's owner is the user whose
job it speaks of, and none counts for longer than `LONGEST_SECONDS` after it was last changed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, PublishError
from pipeline.store import folders
from pipeline.store.events import moment, whoami
from pipeline.store.layout import Layout
from pipeline.store.record import Record, Release
from pipeline.system import atomic
from pipeline.system.log import log
from pipeline.text import shown, utc

SCHEMA = 1
LONGEST_SECONDS = 60 * 24 * 3600.0
FOLDER_MODE = 0o1777
_LIMIT = 64 << 10
_NAMED = 5
_OCTAL = re.compile(rb"\\([0-7]{3})")
"""How mountinfo writes spaces and line ends in a path."""
_FAILS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""What no user can make another one's reading of a file answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One holder's word that it uses a file. `job` and `cluster` are empty for a person; times are
    seconds.
    """

    name: str
    sha256: str
    image: str = ""
    version: str = ""
    host: str = ""
    job: str = ""
    step: str = ""
    uid: int
    owner: int = -1
    """The user that owns the file; a lease counts only when it is `uid`."""
    cluster: str = ""
    expires: float

    def holder(self) -> str:
        """Who holds it, for people."""
        if self.job:
            return f"job {self.job} on {self.host}" + (f" of {self.cluster}" if self.cluster else "")
        return f"{self.name.removesuffix('.json')} (uid {self.uid})"


def take(layout: Layout, release: Record, *, seconds: float, job: str = "", cluster: str = "") -> Path:
    """Leave a lease on the bytes of `release` for `seconds`; gives its path, which `drop` takes."""
    if not 0 < seconds <= LONGEST_SECONDS:
        raise ConfigError(
            f"a lease cannot last {seconds / 86400:.0f} days",
            hint=f"the longest is {LONGEST_SECONDS / 86400:.0f}; use sqshpipe keep for what must stay",
        )
    now = time.time()
    host = os.uname().nodename
    data = {
        "schema": SCHEMA,
        "sha256": release.sha256,
        "image": release.image,
        "version": release.version,
        "host": host,
        "job": job,
        "step": "",
        "uid": os.getuid(),
        "cluster": cluster,
        "created": utc(now),
        "expires": utc(now + seconds),
    }
    path = layout.leases / f"person-{whoami().replace('/', '_')}-{secrets.token_hex(4)}.json"
    refused = f"let the store's owner make the folder: mkdir -m 1777 {layout.leases}"
    with atomic.translate_errors("leaving a lease", refused=refused):
        prepare(layout)
        atomic.create(path, json.dumps(data).encode() + b"\n", mode=0o644)
    return path


def drop(path: Path) -> None:
    """Remove a lease file; a missing one is not an error. Raises PublishError when it cannot be removed."""
    with atomic.translate_errors("dropping a lease"):
        path.unlink(missing_ok=True)


@contextmanager
def held(layout: Layout, release: Release, *, seconds: float) -> Iterator[None]:
    """Hold a lease for as long as the block runs."""
    path = take(layout, release, seconds=seconds)
    try:
        yield
    finally:
        drop(path)


def prepare(layout: Layout) -> None:
    """Make the folder in which everyone may leave leases and nobody may touch another's."""
    folders.make(layout.leases)
    status = layout.leases.stat()
    if stat.S_IMODE(status.st_mode) != FOLDER_MODE and status.st_uid == os.geteuid():
        layout.leases.chmod(FOLDER_MODE)  # also after a run that died in between


def read_all(layout: Layout, *, warn: bool = False) -> list[Lease]:
    """The leases that can be believed, expired ones too.

    A file that may not be read, or that is not a lease, is ignored: otherwise any user could stop every
    prune. With `warn` one line of the log names them. Raises PublishError when the folder cannot be read, or
    the file system fails in a way that no user can cause: then it is not known what is in use.
    """
    with atomic.translate_errors("listing the leases"):
        try:
            names = sorted(entry.name for entry in layout.leases.iterdir() if not entry.name.startswith("."))
        except FileNotFoundError:
            return []
    found: list[Lease] = []
    unread: list[str] = []
    mounted = _mounted(layout.leases)
    for name in names:
        if name in mounted:
            unread.append(shown(f"{name} (a file system is mounted there)"))
            continue
        lease = _read(layout.leases / name)
        if isinstance(lease, Lease):
            found.append(lease)
        elif lease:
            unread.append(lease)
    if warn and unread:
        log.warning(
            f"{len(unread)} files among the leases cannot be read as leases, so they hold nothing",
            files="; ".join(unread[:_NAMED]) + ("; …" if len(unread) > _NAMED else ""),
        )
    return found


def _mounted(folder: Path) -> set[str]:
    """Names in `folder` where a file system is mounted: with FUSE any user can do that to a folder of theirs,
    and then decides what opening it answers, and when.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return set()
    where = os.path.realpath(folder)
    points = [_OCTAL.sub(lambda code: bytes([int(code[1], 8)]), line.split()[4]) for line in lines]
    return {name for above, name in map(os.path.split, map(os.fsdecode, points)) if above == where}


def _read(path: Path) -> Lease | str:
    """A lease, or why it does not count; empty when it was removed or belongs to another user's job."""
    try:
        lease = _parse(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno in _FAILS or not _is_there(path):
            raise PublishError(
                f"the lease {path} cannot be read ({error.strerror}), so it is not known what is in use",
                hint="wait until the file system works again, and check that this user may enter the folder",
            ) from error
        return _why_not(path, error.strerror or "cannot be opened")
    if lease is None:
        return _why_not(path, "no lease")
    return lease if lease.uid == lease.owner else ""


def _is_there(path: Path) -> bool:
    """Whether this user may look into the folder: a permission that is missing there is not the lease's."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _why_not(path: Path, why: str) -> str:
    try:
        owner = f" of user {path.lstat().st_uid}"
    except OSError:
        owner = ""
    return shown(f"{path.name}{owner} ({why})")


def remove_remains(layout: Layout, counting: Container[str], now: float) -> None:
    """Remove what has held nothing for longer than a lease can last, where we may: nonsense, links, what
    killed jobs left half-written. ``counting`` are names that stay, however old.
    """
    with atomic.translate_errors("listing the leases"):
        try:
            entries = list(os.scandir(layout.leases))
        except FileNotFoundError:
            return
    for entry in entries:
        with contextlib.suppress(OSError):  # another's, where the folder is not ours; a folder with content
            if entry.name in counting or entry.stat(follow_symlinks=False).st_ctime + LONGEST_SECONDS > now:
                continue
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


def _parse(path: Path) -> Lease | None:
    """The lease in a file; None when it is not one. With O_NONBLOCK no pipe or fcntl(2) lease blocks us."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LIMIT:
            return None
        data: Any = json.loads(os.read(descriptor, _LIMIT))
        latest = status.st_ctime + LONGEST_SECONDS
        return Lease(
            name=path.name,
            sha256=str(data["sha256"]),
            image=str(data.get("image", "")),
            version=str(data.get("version", "")),
            host=str(data.get("host", "")),
            job=str(data.get("job") or ""),
            step=str(data.get("step") or ""),
            uid=int(data["uid"]),
            owner=status.st_uid,
            cluster=str(data.get("cluster") or ""),
            expires=min(moment(str(data["expires"])).timestamp(), latest),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    finally:
        os.close(descriptor)
