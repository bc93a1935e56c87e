"""Copying ranges of packs into an image, inside the kernel or the server where possible."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence

from pipeline.squashfs.layout import ALIGNMENT, Range
from pipeline.squashfs.pack import Pack

_PIECE = 1 << 20
_MOST = 1 << 30  # bytes that one copy call may take, so that an interruption is noticed
_UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY)


def copy_ranges(
    packs: Sequence[Pack],
    ranges: Iterable[Range],
    target: int,
    stopped: Callable[[], bool],
    on_bytes: Callable[[int], None],
) -> None:
    """Copy every range to its place in the file `target`; `on_bytes` is called with the bytes of each.

    Returns early when `stopped()`. OSError when the file cannot be written.
    """
    in_kernel: dict[int, bool] = {}
    for item in ranges:
        pack, done = packs[item.layer], 0
        for source, position, length in pack.where(item.source, item.length):
            part = Range(item.layer, position, length, item.target + done)
            try:
                in_kernel[source] = copy_range(
                    source, target, part, stopped, in_kernel=in_kernel.get(source, True)
                )
            except OSError as error:
                raise pack.unreadable(error, item.source + done) from error
            done += length
        on_bytes(item.length)


def copy_range(
    source: int,
    target: int,
    item: Range,
    stopped: Callable[[], bool] = lambda: False,
    *,
    in_kernel: bool = True,
) -> bool:
    """Copy `item` from one open file into another; the kernel or the server does it, or clones, where it can.

    False when that was not possible, so that the next range of these files need not try: `in_kernel`. Raises
    OSError; returns early when `stopped()`.
    """
    done = 0
    while done < item.length and not stopped():
        if in_kernel:
            count = _copy_in_kernel(source, target, item, done)
            in_kernel = count > 0
        else:
            count = _copy_plainly(source, target, item, done)
        done += count
    return in_kernel


def _copy_in_kernel(source: int, target: int, item: Range, done: int) -> int:
    """Bytes copied; 0 when this pair of files cannot be copied that way.

    A file system clones only what begins on a border of its blocks, so a range that begins elsewhere is
    copied up to the next border first.
    """
    count = min(item.length - done, _MOST)
    to_border = -(item.source + done) % ALIGNMENT
    if to_border and to_border < count:
        count = to_border
    try:
        return os.copy_file_range(
            source,
            target,
            count,
            offset_src=item.source + done,
            offset_dst=item.target + done,
        )
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return 0
        raise


def _copy_plainly(source: int, target: int, item: Range, done: int) -> int:
    data = os.pread(source, min(item.length - done, _PIECE), item.source + done)
    if not data:
        raise OSError(errno.EIO, "a file became shorter while it was copied")
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, item.target + done + len(data) - len(view))
        view = view[written:]
    return len(data)
