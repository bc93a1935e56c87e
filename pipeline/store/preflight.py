"""What can be known before the work: whether a store can be written, has room, and is one that works.

`examine` is what `sqshpipe doctor` asks; `make_room` is asked before every publish.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, SqshpipeError, ToolError
from pipeline.store import atomic, leases
from pipeline.store.layout import Layout
from pipeline.store.reading import load, read_head
from pipeline.store.writer import temporary_name

MARGIN_BYTES = 16 << 20
LOW_BYTES = 50 << 30
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at: "ok", "warn" or "fail", what was found, and what to do about it."""

    level: str
    found: str
    advice: str = ""


def make_room(layout: Layout, size: int) -> None:
    """Raise ToolError when `size` more bytes do not fit into the store."""
    place = layout.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size + MARGIN_BYTES:
        raise ToolError(
            f"{layout.root} has {free >> 20:,} MiB free, and {(size + MARGIN_BYTES) >> 20:,} MiB is needed",
            hint="see sqshpipe du and sqshpipe prune --dry-run for what could go",
        )


def reserve(descriptor: int, size: int) -> None:
    """Take `size` bytes of the disk and of the quota for an open file now, where the file system can.

    Raises OSError with ENOSPC or EDQUOT, before hours of writing rather than after.
    """
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    answer = library.fallocate64(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) if size else 0
    code = ctypes.get_errno()
    if answer != 0 and code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code))


def stripe(layout: Layout, *, count: int, size: int) -> bool:
    """On Lustre, let new files of the store be spread over `count` targets in pieces of `size` bytes.

    False where the store is not on Lustre or `lfs` is not there. Raises ToolError as lfs does.
    """
    if file_system(layout.root) != "lustre" or shutil.which("lfs") is None:
        return False
    from pipeline.tools import process

    process.run(
        ["lfs", "setstripe", "-c", str(count), "-S", str(size), layout.blobs],
        hint="check store: {stripe: …} in images.yaml against `lfs osts`",
    )
    return True


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, as mount(8) calls it; empty when that cannot be told."""
    best, kind = "", ""
    resolved = str(path.resolve())
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        _, point, this, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, this
    return kind


def examine(root: Path) -> list[Finding]:
    """Look at a store as its publisher will use it. Makes and removes probe files; changes nothing else."""
    layout = Layout(root)
    if not root.exists():
        advice = "the first publish makes it; check the path if there should be one"
        return [Finding(level="warn", found=f"{root} does not exist yet", advice=advice)]
    if not root.is_dir():
        return [Finding(level="fail", found=f"{root} is no folder", advice="name a folder")]
    findings = [Finding(level="ok", found=f"{root} is on {file_system(root) or 'an unknown file system'}")]
    for look in (_writing, _room, _leases, _caches):
        findings += look(layout)
    return findings


def _writing(layout: Layout) -> Iterator[Finding]:
    folder = layout.blobs if layout.blobs.is_dir() else layout.root
    probe = folder / temporary_name()
    try:
        with atomic.told("trying to write"):
            probe.write_bytes(b"probe")
    except SqshpipeError as error:
        yield Finding(level="fail", found=error.message, advice=error.hint)
        return
    try:
        owner = probe.stat().st_uid
        if owner != os.geteuid():
            yield Finding(
                level="warn",
                found=f"files written as uid {os.geteuid()} belong to uid {owner}",
                advice="the server has root_squash: publish as the store's own user",
            )
        yield from _linking(probe)
    finally:
        probe.unlink(missing_ok=True)


def _linking(probe: Path) -> Iterator[Finding]:
    other = probe.with_name(temporary_name())
    try:
        os.link(probe, other)
    except OSError as error:
        yield Finding(
            level="warn",
            found=f"hard links are refused ({error.strerror})",
            advice="publishing works by renameat2 or claims instead; prefer a file system with links",
        )
    else:
        yield Finding(level="ok", found="files and hard links can be made")
    finally:
        other.unlink(missing_ok=True)


def _room(layout: Layout) -> Iterator[Finding]:
    free = shutil.disk_usage(layout.root).free
    inodes = os.statvfs(layout.root)
    if free < LOW_BYTES:
        yield Finding(
            level="warn",
            found=f"{free / 1e9:.1f} GB free",
            advice="sqshpipe prune --dry-run says what could go",
        )
    else:
        yield Finding(level="ok", found=f"{free / 1e9:.1f} GB free")
    if inodes.f_files and inodes.f_favail < 10000:
        yield Finding(level="warn", found=f"{inodes.f_favail} inodes left", advice="ask for more inodes")


def _leases(layout: Layout) -> Iterator[Finding]:
    if not layout.leases.is_dir():
        yield Finding(
            level="warn",
            found="there is no folder for leases, so prune cannot know who uses what",
            advice=f"mkdir -m 1777 {layout.leases}",
        )
    elif stat.S_IMODE(layout.leases.stat().st_mode) != leases.FOLDER_MODE:
        yield Finding(
            level="warn", found=f"{layout.leases} is not mode 1777", advice=f"chmod 1777 {layout.leases}"
        )


def _caches(layout: Layout) -> Iterator[Finding]:
    for image in layout.images():
        try:
            loaded = load(layout, image)
        except SqshpipeError as error:
            yield Finding(level="fail", found=error.message, advice=error.hint)
            continue
        for message in loaded.broken:
            yield Finding(level="fail", found=message, advice="restore it from a backup or another copy")
        if loaded.state.releases and read_head(layout, image) is None:
            yield Finding(
                level="warn", found=f"the index of {image} is stale", advice="sqshpipe store rebuild"
            )


def check_group(layout: Layout, group: str | None) -> None:
    """Raise ConfigError when the store that is there does not belong to the group that it should."""
    if group is None or not layout.root.is_dir():
        return
    import grp

    try:
        wanted = grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(
            f"there is no group {group!r} on this host", hint="check store: {group: …}"
        ) from None
    if layout.root.stat().st_gid != wanted:
        raise ConfigError(
            f"{layout.root} does not belong to group {group}",
            hint=f"once, as its owner: chgrp -R {group} {layout.root} && chmod -R g+rwXs {layout.root}",
        )
