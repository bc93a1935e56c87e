"""A layer as it is stored: unpacked by its first bytes, checked against its diff_id, read member by member.

    with source.open_layer(0) as blob:
        with read_layer(decompressed(blob, descriptor.compression), diff_id=config.diff_ids[0]) as layer:
            for entry, content in layer:
                ...

The bytes decide how a layer is compressed, not its media type, as in docker and containerd: builders that
append to an image of another kind mix them up. What was found is in `Decompressed.compression`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast, final

import zstandard
from isal import igzip
from isal.isal_zlib import IsalError

from pipeline.errors import FormatError, LimitError
from pipeline.oci.content import Content
from pipeline.oci.digest import Digest
from pipeline.oci.entry import DEFAULT_LIMITS, Entry, EntryKind, Limits, beyond_ratio
from pipeline.oci.stream import ReadOnly
from pipeline.oci.tar import TarReader

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "PIECE",
    "Content",
    "Decompressed",
    "Entry",
    "EntryKind",
    "LayerReader",
    "Limits",
    "Readable",
    "decompressed",
    "detect",
    "read_layer",
]

PIECE = 1 << 20
_READ = 1 << 18
_AHEAD = 4  # pieces that wait for the reader, and as many for the thread that hashes
_MAX_WINDOW = 1 << 27  # what zstd itself takes without --long, 128 MiB
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after one byte of 0x50 to 0x5f; zstd:chunked layers may begin so
_OTHERS = {b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x04\x22\x4d\x18": "lz4"}
_DAMAGE: tuple[type[Exception], ...] = (
    EOFError,
    OverflowError,  # a gzip header (a file's name, a comment) of more than half a megabyte
    zlib.error,
    cast("type[Exception]", IsalError),
    zstandard.ZstdError,
    igzip.BadGzipFile,
)


def decompressed(stream: BinaryIO, compression: str, *, limits: Limits = DEFAULT_LIMITS) -> Decompressed:
    """The plain tar inside `stream`: gzip of any number of members, zstd of any number of frames, or plain.

    `compression` is what the media type says; the bytes decide. The result raises FormatError at reads:
    damaged or cut short, followed by something else, or beyond the limits. Closing it leaves `stream` open.
    """
    return Decompressed(stream, compression, limits)


class Decompressed(ReadOnly):
    """A read-only stream of unpacked bytes.

    `compression` is what was found; `claimed` is what was said; `unpacked` counts bytes handed out.
    """

    def __init__(self, stream: BinaryIO, claimed: str, limits: Limits) -> None:
        head = _read_exactly(stream, 6)
        self._stored = _Stored(stream, head)
        self._limits = limits
        self.claimed = claimed
        self.compression = detect(head)
        self.unpacked = 0
        self._decode = _decoder(self.compression, self._stored)

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes, fewer as they come; empty only at the end."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(PIECE), b""))
        try:
            data = self._decode(size)
        except _DAMAGE as error:
            if "not enough memory" in str(error):  # so zstd calls it, as if the data were to blame
                raise MemoryError from error
            raise FormatError(
                f"a layer's {self.compression} data is damaged or cut short: {error}",
                hint="get it again; if that does not help, it is damaged where it comes from",
            ) from None
        self.unpacked += len(data)
        self._check_limits()
        return data

    def _check_limits(self) -> None:
        if self.unpacked > self._limits.max_unpacked:
            raise LimitError(
                f"a layer unpacks to more than {self._limits.max_unpacked} bytes",
                hint="limits: {unpacked: …} in images.yaml says how many may be",
            )
        most = max(self._limits.ratio_floor, self._stored.passed * self._limits.max_ratio)
        if self.unpacked > most:
            raise LimitError(
                f"a layer of {self.unpacked} bytes so far was stored in {self._stored.passed}",
                hint=beyond_ratio(self._limits),
            )


class _Stored:
    """The bytes as they are stored, with the head that was looked at put back, counted."""

    def __init__(self, stream: BinaryIO, head: bytes) -> None:
        self._stream = stream
        self._head = head
        self.passed = 0

    def read(self, size: int = -1) -> bytes:
        if self._head:
            data = self._head
            self._head = b""
            if 0 <= size < len(data):
                data, self._head = data[:size], data[size:]
        else:
            data = self._stream.read(size)
        self.passed += len(data)
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def detect(head: bytes) -> str:
    """gzip, zstd or none (a tar), by the first 6 bytes. Raises FormatError for other kinds of compression."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and 0x50 <= head[0] <= 0x5F):
        return "zstd"
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise FormatError(
                f"a layer is stored as {name}, which is not gzip, zstd or plain",
                hint="push the image again",
            )
    return "none"


def _decoder(compression: str, stored: _Stored) -> Callable[[int], bytes]:
    """What gives the next bytes, at most so many."""
    if compression == "gzip":
        file = igzip.IGzipFile(fileobj=stored, mode="rb")  # type: ignore[no-untyped-call]
        return cast("Callable[[int], bytes]", file.read1)  # `read` would fill up each piece by tiny steps
    if compression == "zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        source = cast("BinaryIO", stored)
        return decompressor.stream_reader(source, read_size=_READ, read_across_frames=True).read
    return stored.read


class Readable(Protocol):
    """What a layer can be read from: any binary file, a `Decompressed`."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; empty only at the end."""


def read_layer(
    stream: Readable, *, diff_id: Digest | None, limits: Limits = DEFAULT_LIMITS, background: bool = False
) -> LayerReader:
    """Read the plain tar `stream` (see `decompressed`) as a layer.

    diff_id     the digest that its bytes must have, checked after the last member. None: not checked.
    background  read and decompress in one thread, a few pieces ahead of the reader, and hash in another. So
                only its one gzip stream limits how fast a large layer is read. Both release the GIL.
    """
    return LayerReader(stream, diff_id, limits, background=background)


@final
class LayerReader:
    """Iterate once over (Entry, Content); use it as a context manager, so that a thread never outlives it.

    Content is valid until the next member. Raises FormatError for hostile or damaged tars and, at the end,
    for another diff_id than the one that was wanted.
    """

    def __init__(
        self, stream: Readable, diff_id: Digest | None, limits: Limits, *, background: bool = False
    ) -> None:
        self._diff_id = diff_id
        self._plain = _Pieces(stream, diff_id, background=background)
        self._ahead = _Ahead(self._plain) if background else None
        self._tar = TarReader(self._ahead or self._plain, limits)

    def __iter__(self) -> Iterator[tuple[Entry, Content]]:
        yield from self._tar
        found = self._plain.digest()
        if found != self._diff_id:
            raise FormatError(
                f"a layer's unpacked bytes are {found}, its image says {self._diff_id}",
                hint="the layer was changed or cut short on its way; fetch it again",
            )
        if found is None and not self._tar.ended_with_marker:
            raise FormatError("a tar ends without its end marker, so it may have been cut short")

    @property
    def holes(self) -> int:
        """Bytes so far of sparse files that are not in the tar."""
        return self._tar.holes

    def entries(self) -> list[Entry]:
        """All entries, contents passed over (their crc32 is computed)."""
        return [entry for entry, _ in self]

    def close(self) -> None:
        """End the threads, if there are any. The stream stays open."""
        if self._ahead is not None:
            self._ahead.close()
        self._plain.close()

    def __enter__(self) -> LayerReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Pieces:
    """Pieces of the stream, hashed as they pass."""

    def __init__(self, stream: Readable, diff_id: Digest | None, *, background: bool) -> None:
        self._stream = stream
        self._algorithm = diff_id.algorithm if diff_id else ""
        self._hasher = diff_id.hasher() if diff_id else None
        self._thread = ThreadPoolExecutor(1, "layer-hasher") if diff_id and background else None
        self._hashing: deque[Future[None]] = deque()

    def next(self) -> bytes:
        data = self._stream.read(PIECE)
        if self._thread is None:
            if self._hasher is not None:
                self._hasher.update(data)
        elif data and self._hasher is not None:
            self._hashing.append(self._thread.submit(self._hasher.update, data))
            if len(self._hashing) > _AHEAD:
                self._hashing.popleft().result()
        return data

    def digest(self) -> Digest | None:
        """Of all pieces so far."""
        while self._hashing:
            self._hashing.popleft().result()
        return Digest(algorithm=self._algorithm, hex=self._hasher.hexdigest()) if self._hasher else None

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


class _Ahead:
    """Pieces made by a thread, a few ahead. An exception there is raised here."""

    def __init__(self, pieces: _Pieces) -> None:
        self._source = pieces
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False

    def next(self) -> bytes:
        if self._ended:
            return b""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="layer-reader", daemon=True)
            self._thread.start()
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        self._ended = not item
        return item

    def close(self) -> None:
        """Wait for the thread to end; a read that it is in must return first."""
        self._stop.set()
        self._ended = True
        while self._thread is not None and self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.05)

    def _run(self) -> None:
        item: bytes | BaseException = b"-"
        while item and not self._stop.is_set():
            try:
                item = self._source.next()
            except BaseException as error:  # noqa: BLE001  handed to the reader, which decides
                self._queue.put(error)
                return
            self._queue.put(item)
