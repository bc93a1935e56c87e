"""A blob that checks itself while it is read."""

from __future__ import annotations

from typing import BinaryIO

from pipeline.errors import FormatError
from pipeline.oci.manifest import Descriptor
from pipeline.oci.stream import ReadOnly


class CheckedBlob(ReadOnly):
    """The bytes of `stream`, which must have the size and the digest that `descriptor` says.

    FormatError is raised by the read that gets beyond the size, or reaches the end and finds something else.
    `what` names the blob in it. Closing closes `stream`.
    """

    def __init__(self, stream: BinaryIO, descriptor: Descriptor, what: str) -> None:
        self._stream = stream
        self._descriptor = descriptor
        self._what = what
        self._hasher = descriptor.digest.hasher()
        self._left = descriptor.size

    def read(self, size: int | None = -1, /) -> bytes:
        size = -1 if size is None else size
        data = self._stream.read(size)
        self._hasher.update(data)
        self._left -= len(data)
        if self._left < 0:
            raise FormatError(
                f"{self._what} is longer than the {self._descriptor.size} bytes that it should have"
            )
        if size < 0 or (not data and size):
            self._check_end()
        return data

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def _check_end(self) -> None:
        if self._left:
            size = self._descriptor.size
            raise FormatError(f"{self._what} ends after {size - self._left} of {size} bytes")
        found = self._hasher.hexdigest()
        if found != self._descriptor.digest.hex:
            raise FormatError(
                f"{self._what} has digest {self._descriptor.digest.algorithm}:{found},"
                f" not {self._descriptor.digest}",
                hint="its bytes were changed or damaged; fetch or write it again",
            )


class Section(ReadOnly):
    """`size` bytes of `file` from `offset` on. It owns `file`: closing closes it."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file = file
        self._left = size
        file.seek(offset)

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._file.read(self._left if size is None or size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
