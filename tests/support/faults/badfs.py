"""A file system that answers as NFS and Lustre do at their worst: badfs BACKING MOUNTPOINT FAULT…

Every mount is a client of its own of the same server (BACKING). Faults:

    lost-reply   every second link succeeds and says EEXIST
    no-links     links are refused with EPERM
    folders      links and renames between folders are refused with EXDEV
    late         what another client made is seen 0.3 s after it was made
    stale        the first open of a file that was renamed over another is ESTALE
    no-locks     flock, fallocate and extended attributes are not supported
    slow         each read of up to 128 KiB takes 2 ms; pages stay cached, and reads are served side by side
    root-squash  root is nobody (65534), as an NFS or Lustre server has it by default
"""

# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH115, PTH120, PTH208, PTH211
# what the kernel asks is text, and stays text

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mfusepy

LATE_SECONDS = 0.3
SLOW_SECONDS = 0.002
NOBODY = 65534
_STAT = ("st_atime", "st_ctime", "st_gid", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid", "st_ino")


class BadFileSystem(mfusepy.Operations):  # type: ignore[misc]
    """Passes everything on to BACKING, apart from its faults. One thread, but for `slow`."""

    use_ns = True

    def __init__(self, backing: str, faults: Iterable[str]) -> None:
        self.backing = backing
        self.faults = frozenset(faults)
        self.own: set[int] = set()
        self.stale: set[str] = set()
        self.links = 0

    def _at(self, path: str) -> str:
        return self.backing + path

    def _fail(self, code: int) -> None:
        raise mfusepy.FuseOSError(code)

    def _seen(self, path: str) -> None:
        """ENOENT for what another client made a moment ago."""
        if "late" not in self.faults or path == "/":
            return
        status = os.lstat(self._at(path))
        young = time.time() - status.st_ctime < LATE_SECONDS
        if young and status.st_ino not in self.own and not stat.S_ISDIR(status.st_mode):
            self._fail(errno.ENOENT)

    def _mine(self, path: str, *, made: bool = True) -> None:
        status = os.lstat(self._at(path))
        self.own.add(status.st_ino)
        if made and "root-squash" in self.faults:
            uid, gid, _ = mfusepy.fuse_get_context()
            group = (
                os.lstat(os.path.dirname(self._at(path))).st_gid if self._is_setgid(path) else gid or NOBODY
            )
            os.lchown(self._at(path), uid or NOBODY, group)
            if stat.S_ISDIR(status.st_mode):
                os.chmod(self._at(path), stat.S_IMODE(status.st_mode))  # chown takes the setgid bit away

    def _is_setgid(self, path: str) -> bool:
        return bool(os.lstat(os.path.dirname(self._at(path))).st_mode & stat.S_ISGID)

    def _may_change(self, path: str) -> None:
        """EACCES when root, who is nobody here, may not change the folder that `path` lies in."""
        if "root-squash" not in self.faults or mfusepy.fuse_get_context()[0] != 0:
            return
        status = os.lstat(os.path.dirname(self._at(path)))
        if not (status.st_mode & 0o002 or (status.st_uid == NOBODY and status.st_mode & 0o200)):
            self._fail(errno.EACCES)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        self._seen(path)
        status = os.lstat(self._at(path))
        found = {key: getattr(status, key) for key in _STAT}
        times = ("st_atime", "st_ctime", "st_mtime")
        return found | {key: getattr(status, f"{key}_ns") for key in times}

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        found = []
        for name in (".", "..", *os.listdir(self._at(path))):
            try:
                if not name.startswith(".."):
                    self._seen(f"{path.rstrip('/')}/{name}")
                status = os.lstat(self._at(f"{path}/{name}"))
            except OSError:
                continue
            found.append((name, {"st_mode": status.st_mode, "st_ino": status.st_ino}, 0))
        return found

    def open(self, path: str, flags: int) -> int:
        self._seen(path)
        if path in self.stale:
            self.stale.discard(path)
            self._fail(errno.ESTALE)
        return os.open(self._at(path), flags)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self._may_change(path)
        handle = os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self._mine(path)
        return handle

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if "slow" in self.faults:
            time.sleep(SLOW_SECONDS)
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._at(path) if fh is None else fh, length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def link(self, target: str, source: str) -> int:
        if "no-links" in self.faults:
            self._fail(errno.EPERM)
        self._same_folder(source, target)
        self._may_change(target)
        os.link(self._at(source), self._at(target))
        self._mine(target, made=False)
        self.links += 1
        if "lost-reply" in self.faults and self.links % 2:
            self._fail(errno.EEXIST)
        return 0

    def rename(self, old: str, new: str) -> int:
        self._same_folder(old, new)
        self._may_change(new)
        replaced = os.path.lexists(self._at(new))
        os.rename(self._at(old), self._at(new))
        self._mine(new, made=False)
        if "stale" in self.faults and replaced:
            self.stale.add(new)
        return 0

    def _same_folder(self, old: str, new: str) -> None:
        if "folders" in self.faults and os.path.dirname(old) != os.path.dirname(new):
            self._fail(errno.EXDEV)

    def symlink(self, target: str, source: str) -> int:
        self._may_change(target)
        os.symlink(source, self._at(target))
        self._mine(target)
        return 0

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def unlink(self, path: str) -> int:
        self._may_change(path)
        os.unlink(self._at(path))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._may_change(path)
        os.mkdir(self._at(path), mode)
        self._mine(path)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._at(path))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._at(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.chown(self._at(path), uid, gid)
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        os.utime(self._at(path), ns=times)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(self._at(path))
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize")
        return {name: getattr(status, name) for name in names}


def main() -> None:
    backing, mountpoint, *faults = sys.argv[1:]
    mfusepy.FUSE(
        BadFileSystem(str(Path(backing).absolute()), faults),
        mountpoint,
        foreground=True,
        nothreads="slow" not in faults,
        use_ino=True,
        attr_timeout=3600 if "slow" in faults else 0,
        entry_timeout=0,
        negative_timeout=0,
        ac_attr_timeout=0,
        **({"kernel_cache": True} if "slow" in faults else {}),
        **({"allow_other": True, "default_permissions": True} if "root-squash" in faults else {}),
    )


if __name__ == "__main__":
    main()
