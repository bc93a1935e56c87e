"""Copying ranges of packs into an image, inside the kernel or the server where possible."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

from pipeline.squashfs.layout import ALIGNMENT, Range
from pipeline.squashfs.pack import Pack
from pipeline.system.parallel import Crew

_PIECE = 1 << 20
_MOST = 16 << 20  # bytes of a piece
_AT_ONCE = 8  # pieces: a disk, and a store that is far away, answer several reads in the time of one
_UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY)


def copy_ranges(
    packs: Sequence[Pack],
    ranges: Iterable[Range],
    target: int,
    stopped: Callable[[], bool],
    on_bytes: Callable[[int], None],
) -> None:
    """Copy every range to its place in the file `target`, several pieces at once.

    `on_bytes` is called with the bytes of each piece. Returns early when `stopped()`. OSError when the file
    cannot be written.
    """
    in_kernel: dict[int, bool] = {}
    under_way: deque[tuple[Pack, Range, Future[None]]] = deque()

    def copy(source: int, part: Range) -> None:
        in_kernel[source] = copy_range(source, target, part, stopped, in_kernel=in_kernel.get(source, True))

    def take_oldest() -> None:
        pack, piece, future = under_way.popleft()
        try:
            future.result()
        except OSError as error:
            raise pack.unreadable(error, piece.source) from error
        # The kernel begins to write it to the disk now; by itself it waits for seconds, or for gigabytes.
        os.posix_fadvise(target, piece.target, piece.length, os.POSIX_FADV_DONTNEED)
        on_bytes(piece.length)

    with Crew(_AT_ONCE, name="stitch-pieces") as crew:
        for piece, source, position in _parts(packs, ranges):
            if len(under_way) == 2 * _AT_ONCE:
                take_oldest()
            if stopped():
                return
            part = Range(piece.layer, position, piece.length, piece.target)
            under_way.append((packs[piece.layer], piece, crew.submit(copy, source, part)))
        while under_way:
            take_oldest()


def _parts(packs: Sequence[Pack], ranges: Iterable[Range]) -> Iterator[tuple[Range, int, int]]:
    """Pieces of the ranges, with the open file that has each, and its position there."""
    for item in ranges:
        done = 0
        for source, begin, length in packs[item.layer].where(item.source, item.length):
            at, end = begin, begin + length
            while at < end:
                count = min(_MOST - at % ALIGNMENT, end - at)  # a block is cloned as a whole
                yield Range(item.layer, item.source + done, count, item.target + done), source, at
                at, done = at + count, done + count


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
