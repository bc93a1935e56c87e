"""Hash the bytes of a file: the one function for all code that compares files with digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hashlib import _Hash

PIECE = 1 << 20


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def hashed(
    stream: Readable, each: Callable[[bytes], object] | None = None, *, into: _Hash | None = None
) -> _Hash:
    """The hash of what is left of ``stream``: ``into``, or a new sha256, with all of it.

    ``each`` gets every piece, of at most 1 MiB: to write it elsewhere, or to count it. Raises OSError.
    """
    digest = hashlib.sha256() if into is None else into
    while piece := stream.read(PIECE):
        digest.update(piece)
        if each is not None:
            each(piece)
    return digest
