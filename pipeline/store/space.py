"""What can be known before the work: whether there is room, by free space and by quota; on Lustre, how files
are spread.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from pipeline.errors import ConfigError, ToolError
from pipeline.store.layout import Layout
from pipeline.system.mountinfo import mount_of
from pipeline.system.temporary import temporary_name
from pipeline.text import human_bytes

MARGIN_BYTES = 16 << 20
PROBED_BYTES = 1 << 20
"""From this size on, bytes are reserved first: then the file system reports a quota that is too small."""
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})


def make_room(layout: Layout, size: int) -> None:
    """Raise ToolError when `size` more bytes do not fit into the store."""
    place = layout.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size + MARGIN_BYTES:
        raise ToolError(
            f"{layout.root} has {human_bytes(free)} free, and {human_bytes(size + MARGIN_BYTES)} is needed",
            hint="see sqshpipe store usage and sqshpipe store prune --dry-run for what could go",
        )
    if size >= PROBED_BYTES and layout.blobs.is_dir():
        _ask_for(layout, size)


def _ask_for(layout: Layout, size: int) -> None:
    """Reserve `size` bytes and free them again: that checks every quota, of user, group and project.

    Where a file system cannot reserve bytes, Lustre's own tool is asked.
    """
    probe = layout.blobs / temporary_name()
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        known = reserve(descriptor, size)
    except OSError as error:
        if error.errno != errno.EDQUOT:
            raise
        raise _over_quota(layout, size, "the quota there does not allow it") from error
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)
    if not known and (left := lustre_quota_left(layout.root)) is not None and left < size:
        raise _over_quota(layout, size, f"{human_bytes(left)} are left of the quota")


def _over_quota(layout: Layout, size: int, why: str) -> ToolError:
    return ToolError(
        f"{human_bytes(size)} more are needed in {layout.root}, and {why}",
        hint="raise the quota of its user, group or project, or let sqshpipe store prune free some",
    )


def lustre_quota_left(root: Path) -> int | None:
    """Bytes that the quotas of this user and of the store's group leave on Lustre; None where it is missing.

    Root is above quotas. What `lfs quota` says is read leniently: its words differ between versions.
    """
    if os.geteuid() == 0 or mount_of(root).type != "lustre" or shutil.which("lfs") is None:
        return None
    from pipeline.system import process

    left: list[int] = []
    for option, number in (("-u", os.geteuid()), ("-g", root.stat().st_gid)):
        asked = ["lfs", "quota", "-q", option, str(number), str(root)]
        said = process.run(asked, check=False, timeout=30).stdout.split()
        numbers = [word.rstrip("*").strip("[]") for word in said if not word.startswith("/")][:3]
        if len(numbers) == 3 and all(word.isdigit() for word in numbers):
            used, soft, hard = map(int, numbers)  # kilobytes; 0 is no limit
            if limit := hard or soft:
                left.append((limit - used) * 1024)
    return max(0, min(left)) if left else None


def reserve(descriptor: int, size: int) -> bool:
    """Take `size` bytes of the disk and of the quota for an open file now. False where the file system
    cannot.

    Raises OSError with ENOSPC or EDQUOT, before hours of writing rather than after.
    """
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    answer = library.fallocate64(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) if size else 0
    code = ctypes.get_errno()
    if answer != 0 and code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code))
    return bool(answer == 0)


def stripe(layout: Layout, *, count: int, size: int) -> bool:
    """On Lustre, let new files of the store be spread over `count` targets in pieces of `size` bytes.

    False where the store is not on Lustre or `lfs` is not there. Raises ToolError as lfs does.
    """
    if mount_of(layout.root).type != "lustre" or shutil.which("lfs") is None:
        return False
    from pipeline.system import process

    process.run(
        ["lfs", "setstripe", "-c", str(count), "-S", str(size), layout.blobs],
        hint="check store: {stripe: …} in images.yaml against `lfs osts`",
    )
    return True


def striping(layout: Layout) -> tuple[int, int]:
    """(targets, bytes of a piece) of new files in the store on Lustre. Raises ToolError as lfs does."""
    from pipeline.system import process

    printed = process.run(["lfs", "getstripe", "-d", "-c", "-S", layout.blobs], timeout=30).stdout
    numbers = [int(word) for word in printed.split() if word.lstrip("-").isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) > 1 else (0, 0)


def targets(file: Path) -> int:
    """Over how many targets of Lustre a file is spread, in its widest part. Raises ToolError as lfs does."""
    from pipeline.system import process

    printed = process.run(["lfs", "getstripe", "-c", file], timeout=30).stdout
    return max((int(word) for word in printed.split() if word.isdigit()), default=0)


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
