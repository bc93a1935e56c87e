"""Copying ranges of packs into an image inside the kernel, and hashing the image from the packs meanwhile."""

from __future__ import annotations

import errno
import os
import queue
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from pipeline.squashfs.layout import ALIGNMENT, Range
from pipeline.squashfs.pack import Pack

_PIECE = 1 << 20
_MOST = 1 << 30  # bytes that one copy call may take, so that an interruption is noticed
_UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY)


class Hasher(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


def copy_ranges(
    packs: Sequence[Pack], ranges: Iterable[Range], target: int, stopped: Callable[[], bool]
) -> None:
    """Copy every range to its place in the file `target`, inside the kernel or the server where possible.

    Returns early when `stopped()`. OSError when the file cannot be written.
    """
    in_kernel = True
    for item in ranges:
        source = packs[item.layer].descriptor
        in_kernel = copy_range(source, target, item, stopped, in_kernel=in_kernel)


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


def hash_ranges(
    packs: Sequence[Pack], ranges: Sequence[Range], hasher: Hasher, *, start: int, end: int
) -> None:
    """Feed the image's bytes from `start` to `end` to `hasher`: the ranges out of their packs, zeros between.

    Each stored block and fragment is checked on the way; PackDamaged when it is not what was
    written.
    """
    position = start
    buffers = _Buffers()
    read: queue.SimpleQueue[_Filled | BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    reader = threading.Thread(
        target=_read_ahead, args=(packs, ranges, buffers, read, stop), name="stitch-read", daemon=True
    )
    reader.start()
    try:
        while (filled := read.get()) is not None:
            if isinstance(filled, BaseException):
                raise filled
            buffer, parts = filled
            for target, view in parts:
                feed_zeros(hasher, target - position)
                hasher.update(view)
                position = target + len(view)
            buffers.give_back(buffer)
    finally:
        stop.set()
        buffers.give_back(bytearray(_PIECE))  # wakes a reader that waits for one
        reader.join()
    feed_zeros(hasher, end - position)


def _read_ahead(
    packs: Sequence[Pack],
    ranges: Sequence[Range],
    buffers: _Buffers,
    read: queue.SimpleQueue[_Filled | BaseException | None],
    stop: threading.Event,
) -> None:
    """Read and check all pieces, a few ahead of the hash; what comes last is None or a failure."""
    try:
        for layer, pack in enumerate(packs):
            mine = [item for item in ranges if item.layer == layer]
            for filled in _checked(pack, mine, buffers):
                if stop.is_set():
                    return
                read.put(filled)
        read.put(None)
    except BaseException as failure:  # noqa: BLE001 - raised again where the pieces are taken
        read.put(failure)


def feed_zeros(hasher: Hasher, count: int) -> None:
    """Feed `count` zero bytes to `hasher`."""
    while count > 0:
        size = min(count, _PIECE)
        hasher.update(bytes(size))
        count -= size


class _Buffers:
    """Memory for pieces on their way from the thread that reads to the one that hashes, used again."""

    _COUNT = 3

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(self._COUNT):
            self._free.put(bytearray(_PIECE))

    def take(self, length: int) -> bytearray:
        buffer = self._free.get()
        return buffer if length <= len(buffer) else bytearray(length)

    def give_back(self, buffer: bytearray) -> None:
        self._free.put(buffer)


# A buffer with what was read into it, and where parts of that lie in the image.
_Filled = tuple[bytearray, list[tuple[int, memoryview]]]


def _checked(pack: Pack, ranges: Iterable[Range], buffers: _Buffers) -> Iterator[_Filled]:
    """What lies in the ranges of one pack, in order, checked. A range is whole pieces without gaps."""
    pieces = pack.pieces()
    for item in ranges:
        at, position, end = bisect_left(pieces, (item.source,)), item.source, item.source + item.length
        while position < end:
            batch, length = at, 0
            while (
                at < len(pieces)
                and pieces[at][0] == position + length < end
                and (not length or length + pieces[at][1] <= _PIECE)
            ):
                length += pieces[at][1]
                at += 1
            if not length or position + length > end:
                raise pack.damaged(f"no block of it begins at {position + length}")
            buffer = buffers.take(length)
            view = memoryview(buffer)[:length]
            pack.read_pieces(pieces[batch:at], view)
            yield buffer, [(item.target + position - item.source, view)]
            position += length


def hash_file(descriptor: int, hasher: Hasher, *, start: int, end: int) -> None:
    """Feed a part of a file to `hasher`; OSError when it is shorter."""
    while start < end:
        data = os.pread(descriptor, min(_PIECE, end - start), start)
        if not data:
            raise OSError(errno.EIO, "the image became shorter while it was written")
        hasher.update(data)
        start += len(data)
