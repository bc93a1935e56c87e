"""The content of one member of a tar, taken from the pieces of the stream, without a copy where possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from isal import isal_zlib

from pipeline.errors import FormatError
from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.sparse import SparseMap

_crc32 = isal_zlib.crc32
_PIECE = 1 << 20
_VIEW_FROM = 1 << 14  # a copy of less costs no more than a view
_ZEROS = memoryview(bytes(_PIECE))


class Window:
    """The piece of the stream that is being looked at, and the way to the next."""

    __slots__ = ("_next", "_piece", "_position", "_size")

    def __init__(self, following: Callable[[], bytes]) -> None:
        self._next = following
        self._piece = b""
        self._position = 0
        self._size = 0

    def take(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises FormatError when the stream has fewer."""
        start = self._position
        stop = start + size
        if stop <= self._size:
            self._position = stop
            return self._piece[start:stop]
        return self._gather(size)

    def take_or_end(self, size: int) -> bytes:
        """Exactly `size` bytes, or none at all where the stream ends."""
        start = self._position
        stop = start + size
        if stop <= self._size:
            self._position = stop
            return self._piece[start:stop]
        if start == self._size and not self._refill():
            return b""
        return self._gather(size)

    def view(self, size: int) -> bytes | memoryview:
        """Exactly `size` bytes, without a copy where they lie in one piece."""
        start = self._position
        stop = start + size
        if stop <= self._size:
            self._position = stop
            return memoryview(self._piece)[start:stop]
        return self._gather(size)

    def skip(self, size: int) -> None:
        """Skip `size` bytes (a small number), or what is left when the stream has fewer."""
        stop = self._position + size
        if stop <= self._size:
            self._position = stop
            return
        while size and (part := self.piece(size)):
            size -= len(part)

    def piece(self, most: int) -> memoryview:
        """The next 1 to `most` bytes, not copied; empty only at the end of the stream."""
        if self._position == self._size and not self._refill():
            return _ZEROS[:0]
        start = self._position
        stop = min(start + most, self._size)
        self._position = stop
        return memoryview(self._piece)[start:stop]

    def _refill(self) -> bool:
        self._piece = self._next()
        self._position = 0
        self._size = len(self._piece)
        return self._size > 0

    def _gather(self, size: int) -> bytes:
        parts: list[memoryview] = []
        while size:
            part = self.piece(size)
            if not part:
                raise cut_short()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def cut_short() -> FormatError:
    return FormatError("a tar ends in the middle of a member", hint="the layer was cut short; fetch it again")


def too_late() -> ValueError:
    return ValueError("the reader is already at the next member")


class Content:
    """The bytes of one file, to be read while its entry is the current one. Other kinds have none.

    What is not read is passed over. Once all is read or passed over, `entry.crc32` is set.
    """

    __slots__ = ("_crc", "_entry", "_left", "_padding", "_window")

    def __init__(self, entry: Entry, window: Window, size: int, padding: int) -> None:
        self._entry = entry
        self._window = window
        self._left = size
        self._padding = padding
        self._crc = 0

    @property
    def left(self) -> int:
        """Bytes that are still to be read."""
        return max(self._left, 0)

    @property
    def stretches(self) -> SparseMap | None:
        """For a sparse file, the (offset, length) pairs of what is not hole; None for any other."""
        return None

    def read(self, size: int = -1) -> bytes:
        """Exactly `size` bytes, fewer only at the end; all that is left when `size` is negative."""
        left = self._left
        if left < 0:
            raise too_late()
        if size < 0 or size > left:
            size = left
        if not size:
            return b""
        data = self._take(size)
        self._crc = _crc32(data, self._crc)
        self._left = left = left - size
        if not left:
            self._entry.crc32 = self._crc
        return data

    def view(self, size: int) -> bytes | memoryview:
        """`read` without a copy where that pays. The bytes stay as they are for as long as they are held."""
        if not _VIEW_FROM <= size <= self._left:
            return self.read(size)
        data = self._view(size)
        self._passed(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill `buffer` as far as there is content; returns how many bytes."""
        view = memoryview(buffer).cast("B")
        done = 0
        for part in self.pieces(most=len(view)):
            view[done : done + len(part)] = part
            done += len(part)
        return done

    def pieces(self, *, most: int = 1 << 62) -> Iterator[memoryview]:
        """The next bytes, at most `most`, as views without a copy. A view is never longer than a piece."""
        if self._left < 0:
            raise too_late()
        most = min(most, self._left)
        while most > 0:
            part = self._piece(most)
            if not part:
                raise cut_short()
            most -= len(part)
            self._passed(part)
            yield part

    def finish(self) -> None:
        """Skip the unread rest of the content and its padding; the content cannot be read any more.

        The last member of a tar may lack its padding: engines read with Go's archive/tar, which accepts that.
        """
        if self._left > 0:
            self._skip()
        self._left = -1
        if self._padding:
            self._window.skip(self._padding)

    def _passed(self, data: bytes | memoryview) -> None:
        self._crc = _crc32(data, self._crc)
        self._left -= len(data)
        if not self._left:
            self._entry.crc32 = self._crc

    def _take(self, size: int) -> bytes:
        return self._window.take(size)

    def _view(self, size: int) -> bytes | memoryview:
        return self._window.view(size)

    def _piece(self, most: int) -> memoryview:
        return self._window.piece(most)

    def _skip(self) -> None:
        for _ in self.pieces():
            pass


class SparseContent(Content):
    """A file whose holes are not in the archive; reads as zero bytes there."""

    __slots__ = ("_at", "_holes", "_index", "_map")

    def __init__(self, entry: Entry, window: Window, stretches: SparseMap, padding: int) -> None:
        super().__init__(entry, window, entry.size, padding)
        self._map = stretches
        self._index = 0
        self._at = 0

    @property
    def stretches(self) -> SparseMap | None:
        return self._map

    def _take(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._piece(size)
            if not part:
                raise cut_short()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _view(self, size: int) -> bytes | memoryview:
        return self._take(size)

    def _piece(self, most: int) -> memoryview:
        hole = self._hole()
        if hole:
            part = _ZEROS[: min(hole, most, _PIECE)]
        else:
            offset, length = self._map[self._index]
            part = self._window.piece(min(most, offset + length - self._at))
            if self._at + len(part) == offset + length:
                self._index += 1
        self._at += len(part)
        return part

    def _hole(self) -> int:
        """Bytes of hole from here on."""
        next_data = self._map[self._index][0] if self._index < len(self._map) else self._entry.size
        return max(next_data - self._at, 0)  # 0 inside a stretch

    def _skip(self) -> None:
        """Holes may be terabytes that nobody stored: their checksum is computed, not read."""
        while self._left:
            hole = min(self._hole(), self._left)
            if hole:
                self._crc = isal_zlib.crc32_combine(self._crc, _crc_of_zeros(hole), hole)
                self._at += hole
                self._left -= hole
                if not self._left:
                    self._entry.crc32 = self._crc
            else:
                part = self._piece(self._left)
                if not part:
                    raise cut_short()
                self._passed(part)


def _crc_of_zeros(size: int) -> int:
    """The crc32 of `size` zero bytes, by doubling."""
    crc, power, length = 0, _crc32(b"\0"), 1
    while size:
        if size & 1:
            crc = isal_zlib.crc32_combine(crc, power, length)
        power = isal_zlib.crc32_combine(power, power, length)
        length *= 2
        size >>= 1
    return int(crc)


class _Empty(Content):
    """The content of all members that have none, one for all of them."""

    __slots__ = ()

    def finish(self) -> None:
        pass


EMPTY: Content = _Empty(Entry(b"", EntryKind.FIFO), Window(lambda: b""), 0, 0)
