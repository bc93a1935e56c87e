"""A layer pack: one layer's compressed blocks with their index, in a file that proves its own completeness.

    data      blocks and fragments, from position 0, so that an aligned copy can clone them
    index     see packindex
    footer    magic, format version, data size, index size, sha256 of the index

The index holds a crc32 for each stored block and fragment, so that each can be checked alone and the footer's
digest vouches for all of the file. The index is checked when a pack is opened, the data when it is read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from isal import isal_zlib

from pipeline.errors import FormatError
from pipeline.squashfs.codecs import Codec
from pipeline.squashfs.packindex import PackIndex, Piece
from pipeline.system import untrusted

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT_VERSION = 2
_MAGIC = b"sqshpack"
_FOOTER = struct.Struct("<8sIIQQ32s")


class PackDamaged(FormatError):
    """A pack whose bytes are not what was written: it must be made again."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"the layer pack {path} is damaged: {what}",
            hint="it is made again from the layer; check the disk",
        )
        self.path = path


def footer(index: bytes, data_size: int) -> bytes:
    """The footer of a pack file with this encoded index."""
    return _FOOTER.pack(_MAGIC, FORMAT_VERSION, 0, data_size, len(index), sha256(index).digest())


Place = tuple[int, int, int]  # an open file, a position in it, a length


class Tail(NamedTuple):
    """The stored fragment that a file's content is in, and the content's offset when it is expanded.

    `number` is that of the fragment: of two tails with the same number only one has to be expanded.
    """

    number: int
    descriptor: int
    position: int
    word: int
    offset: int


class Pack:
    """An open pack, held with a shared lock so that trimming the cache passes it by."""

    def __init__(self, path: Path, descriptor: int, index: PackIndex) -> None:
        self.path = path
        self.descriptor = descriptor
        self.index = index
        self.data_size = index.data_size
        self._pieces: list[Piece] = []

    @classmethod
    def open(cls, path: Path) -> Pack:
        """Open a pack and check its index; FileNotFoundError without one, PackDamaged if it is not whole."""
        try:
            descriptor = untrusted.open_regular(path)
        except OSError as error:
            if isinstance(error, untrusted.NotRegularError) or error.errno == errno.ELOOP:
                raise PackDamaged(path, "it is not a regular file") from error
            raise
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            return cls(path, descriptor, _read_index(path, descriptor))
        except FormatError as error:
            os.close(descriptor)
            raise error if isinstance(error, PackDamaged) else PackDamaged(path, error.message) from error
        except BaseException:
            os.close(descriptor)
            raise

    def pieces(self) -> list[Piece]:
        """The (position, length, crc32) of each stored block and fragment, in the order of the data."""
        if not self._pieces:
            self._pieces = self.index.pieces()
        return self._pieces

    def read_pieces(self, pieces: Sequence[Piece], into: memoryview) -> None:
        """Fill `into` with pieces that follow each other, and check each; PackDamaged if one is not what was
        written.
        """
        start = pieces[0][0]
        self.read(start, into)
        for position, length, checksum in pieces:
            if isal_zlib.crc32(into[position - start : position - start + length]) != checksum:
                raise self.damaged(f"the {length} bytes at {position} have another checksum", position)

    def read(self, position: int, into: memoryview) -> None:
        """Fill `into` with the data at `position`, without a check; PackDamaged if there are fewer bytes."""
        for descriptor, place, length in self.where(position, len(into)):
            try:
                count = os.preadv(descriptor, [into[:length]], place)
            except OSError as error:
                raise self.unreadable(error, position) from error
            if count != length:
                raise self.damaged(f"it ends inside the {length} bytes at {position}", position)
            position += length
            into = into[length:]

    def where(self, position: int, length: int) -> Iterable[Place]:
        """Where `length` bytes of the data lie: descriptor, position in that file and length of each part."""
        yield self.descriptor, position, length

    def tail(self, number: int) -> Tail:
        """Where the content of an entry lies that is shorter than a block."""
        index = self.index
        fragment = index.places[number]
        position, word = index.fragment_positions[fragment], index.fragment_words[fragment]
        return Tail(fragment, self.descriptor, position, word, index.details[number])

    def damaged(self, what: str, position: int) -> FormatError:  # noqa: ARG002 - others lie in several files
        """The error to raise for bytes of the data at `position` that are not what was written."""
        return PackDamaged(self.path, what)

    def unreadable(self, error: OSError, position: int) -> Exception:  # noqa: ARG002 - as above
        """The error to raise when reading at `position` failed with `error`."""
        return error

    def tail_damaged(self, number: int, what: str) -> FormatError:
        """The error to raise for the content of an entry that is not what was written."""
        return self.damaged(what, self.index.places[number])

    def lacking(self) -> FormatError:
        """The error to raise when the index of a layer is incomplete."""
        return PackDamaged(self.path, "its index is not complete")

    def provide(self, extents: Sequence[tuple[int, int]], codec: Codec) -> None:
        """Make the data of these (position, length) readable; nothing to do where the pack has all of it."""

    def bring(self, extents: Sequence[tuple[int, int]], tails: Iterable[int]) -> None:
        """Fetch the data of these (position, length) and the content of these entries at once, where they lie
        on another machine. What is not asked for here is fetched when it is read.
        """

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_index(path: Path, descriptor: int) -> PackIndex:
    size = os.fstat(descriptor).st_size
    raw = os.pread(descriptor, _FOOTER.size, max(size - _FOOTER.size, 0))
    if len(raw) != _FOOTER.size:
        raise PackDamaged(path, f"it has {size} bytes")
    magic, version, _, data_size, index_size, digest = _FOOTER.unpack(raw)
    if magic != _MAGIC or version != FORMAT_VERSION or data_size + index_size + _FOOTER.size != size:
        raise PackDamaged(path, "its end is not that of a whole pack")
    stored = os.pread(descriptor, index_size, data_size)
    if sha256(stored).digest() != digest:
        raise PackDamaged(path, "its index has another digest")
    index = PackIndex.decode(stored)
    if index.data_size != data_size:
        raise PackDamaged(path, "its index is of other data")
    return index
