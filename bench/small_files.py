"""Reading many small files: as a folder of a distant file system, and as one .sqsh that lies on the same.

    python -m bench.small_files [--files 20000] [--delay 0.5] [--readers 8] [--json FILE]

The distant file system is a FUSE file system that waits --delay milliseconds before it answers each request
(look-up, open, read, listing), as a server of Lustre or NFS over a network does. Each way begins with nothing
cached. The .sqsh is made by `store import`, whose time is measured on the same file system.
"""

# ruff: noqa: ARG002 - what the kernel calls has these arguments

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import mfusepy

from pipeline.release.publish import publish_data
from pipeline.system import mount as mounts
from tests.support.store.releases import new_store

_STAT = ("st_atime", "st_ctime", "st_gid", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid", "st_ino")
_FOLDERS = 100
_BYTES = 4096


class Distant(mfusepy.Operations):  # type: ignore[misc]
    """Passes reads on to `backing`, late, and counts them."""

    use_ns = True

    def __init__(self, backing: str, delay: float, count: Path) -> None:
        self.backing, self.delay, self.count = backing, delay, count
        self.asked = 0

    def _wait(self) -> None:
        self.asked += 1
        time.sleep(self.delay)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        self._wait()
        try:
            status = os.lstat(self.backing + path)
        except FileNotFoundError:
            raise mfusepy.FuseOSError(errno.ENOENT) from None
        found = {name: getattr(status, name) for name in _STAT}
        return found | {name: getattr(status, f"{name}_ns") for name in ("st_atime", "st_ctime", "st_mtime")}

    def readdir(self, path: str, fh: int) -> list[str]:
        self._wait()
        return [".", "..", *(each.name for each in Path(self.backing + path).iterdir())]

    def open(self, path: str, flags: int) -> int:
        self._wait()
        return os.open(self.backing + path, os.O_RDONLY)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._wait()
        return os.pread(fh, size, offset)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def destroy(self, path: str) -> None:
        self.count.write_text(str(self.asked))


@contextlib.contextmanager
def distant(backing: Path, folder: Path, delay: float) -> Iterator[Path]:
    """`backing` as a distant file system on FOLDER/far; FOLDER/asked then has how often it was asked."""
    far = folder / "far"
    far.mkdir(exist_ok=True)
    argv = [sys.executable, "-m", "bench.small_files", "--serve", backing, far, folder / "asked"]
    server = subprocess.Popen([str(each) for each in [*argv, "--delay", delay]])
    try:
        while not far.is_mount():
            time.sleep(0.05)
        yield far
    finally:
        mounts.unmount(far, "fuse")
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=10)
        server.terminate()  # another mount namespace may have a copy of the mount
        server.wait(timeout=60)


def read_folder(folder: Path) -> int:
    """Read every file below `folder`; the bytes that were read."""
    return sum(
        len((Path(above) / name).read_bytes()) for above, _, names in os.walk(folder) for name in names
    )


def forget() -> None:
    """Begin with nothing in the page cache, where this user may ask for that."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def timed(root: Path, readers: int) -> float:
    """Seconds until so many processes have read all folders of `root`."""
    began = time.monotonic()
    with ProcessPoolExecutor(readers) as pool:
        list(pool.map(read_folder, sorted(root.iterdir())))
    return time.monotonic() - began


def measure(folder: Path, files: int, delay: float, readers: int) -> list[dict[str, Any]]:
    backing = folder / "backing"
    for number in range(files):
        path = backing / "data" / f"{number % _FOLDERS:03}" / f"{number:06}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(_BYTES // 4) * 4)
    rows: list[dict[str, Any]] = []

    def row(way: str, seconds: float) -> None:
        rows.append({"way": way, "seconds": round(seconds, 2), "requests": 0})
        print(f"{way:<24} {seconds:8.2f} s", flush=True)

    def counted() -> None:
        rows[-1]["requests"] = int((folder / "asked").read_text())

    for many in (1, readers):
        forget()
        with distant(backing, folder, delay) as far:
            row(f"folder, readers: {many}", timed(far / "data", many))
        counted()
    store = new_store(backing / "store")
    forget()
    with distant(backing, folder, delay) as far:
        began = time.monotonic()
        release = publish_data(far / "data", store=store, image="data", version="v1")
        row("store import", time.monotonic() - began)
    counted()
    kinds: list[mounts.Kind] = ["kernel", "fuse"] if os.geteuid() == 0 else ["fuse"]
    for kind in kinds:
        for many in (1, readers):
            forget()
            with distant(backing, folder, delay) as far:
                file = far / release.path.relative_to(backing)
                (folder / "root").mkdir(exist_ok=True)
                with mounts.mounted(file, folder / "root", kind=kind) as mounted:
                    row(f".sqsh by {kind}, readers: {many}", timed(mounted.folder, many))
            counted()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--delay", type=float, default=0.5, help="milliseconds before each answer")
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here")
    parser.add_argument("--serve", type=Path, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        backing, far, count = given.serve
        served = Distant(str(backing), given.delay / 1000, count)
        with contextlib.suppress(RuntimeError):  # it was ended after its mount was gone
            mfusepy.FUSE(served, str(far), foreground=True, ro=True, max_threads=32)
        return
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as folder:
        rows = measure(Path(folder), given.files, given.delay, given.readers)
    if given.json:
        facts = {"files": given.files, "delay_ms": given.delay, "rows": rows}
        given.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
