"""Base classes for our streams: a subclass defines `read` and gets the other methods of a binary file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class ReadOnly(io.RawIOBase):
    """A raw stream whose `read` is its one source of bytes; `readinto` follows from it."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view)) or b""
        view[: len(data)] = data
        return len(data)
