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
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from isal import isal_zlib

from pipeline.errors import FormatError
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
    """What ends a pack file with this encoded index."""
    return _FOOTER.pack(_MAGIC, FORMAT_VERSION, 0, data_size, len(index), sha256(index).digest())


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
        self.read(pieces[0][0], into)
        start = pieces[0][0]
        for position, length, checksum in pieces:
            if isal_zlib.crc32(into[position - start : position - start + length]) != checksum:
                raise self.damaged(f"the {length} bytes at {position} have another checksum")

    def read(self, position: int, into: memoryview) -> None:
        """Fill `into` with the data at `position`, without a check; PackDamaged if there are fewer bytes."""
        if os.preadv(self.descriptor, [into], position) != len(into):
            raise self.damaged(f"it ends inside the {len(into)} bytes at {position}")

    def damaged(self, what: str) -> PackDamaged:
        """The error to raise for bytes that are not what was written."""
        return PackDamaged(self.path, what)

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
