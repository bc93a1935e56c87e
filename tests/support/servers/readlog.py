"""A file system that writes down which bytes of its files are asked for: readlog BACKING MOUNTPOINT LOG.

Direct I/O: the kernel neither caches nor reads ahead, so the log has what the program asked for.
"""

# ruff: noqa: PTH208 - what the kernel asks is text

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import mfusepy

_STAT = ("st_atime", "st_ctime", "st_gid", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid", "st_ino")


class ReadLog(mfusepy.Operations):  # type: ignore[misc]
    """Passes reads on to BACKING. One thread."""

    use_ns = True

    def __init__(self, backing: str, log: Path) -> None:
        self.backing = backing
        self.log = log.open("w", buffering=1)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        try:
            status = os.lstat(self.backing + path)
        except FileNotFoundError:
            raise mfusepy.FuseOSError(errno.ENOENT) from None
        found = {name: getattr(status, name) for name in _STAT}
        return found | {name: getattr(status, f"{name}_ns") for name in ("st_atime", "st_ctime", "st_mtime")}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self.backing + path)]

    def open(self, path: str, flags: int) -> int:
        return os.open(self.backing + path, os.O_RDONLY)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        found = os.pread(fh, size, offset)
        self.log.write(f"{offset} {len(found)}\n")
        return found

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0


def main() -> None:
    backing, mountpoint, log = sys.argv[1:]
    mfusepy.FUSE(
        ReadLog(backing, Path(log)), mountpoint, foreground=True, nothreads=True, direct_io=True, ro=True
    )


if __name__ == "__main__":
    main()
