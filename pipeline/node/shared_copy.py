"""A copy of a .sqsh out of copies of other releases that lie on the node, and of the rest from the store.

Beside each copy lies FOLDER/<sha256>.ranges: which of its bytes are which bytes of which layer pack. It is
a hint alone: whoever makes a copy here compares its sha256 before the copy counts.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import FormatError
from pipeline.squashfs.copying import copy_range
from pipeline.squashfs.layout import Range
from pipeline.squashfs.ranges import MOST_BYTES, PackRanges, pieces
from pipeline.system import untrusted
from pipeline.system.log import log

SUFFIX = ".ranges"
_COPY = ".sqsh"
_MOST_COPIES = 16
_SHORTEST = 4096  # what is shorter is read from the store


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """Bytes taken from other copies on the node, and bytes read from the store."""

    reused: int
    read: int


def read_ranges(path: Path | None, size: int) -> PackRanges | None:
    """The ranges of a file of `size` bytes in the store; None when none can be used."""
    if path is None:
        return None
    try:
        found = PackRanges.decode(untrusted.read_regular(path, limit=MOST_BYTES))
    except (FormatError, OSError) as error:
        log.debug("ranges are not used", path=str(path), why=str(error))
        return None
    return found if found.size == size else None


def keep_ranges(place: int, copy: str, ranges: PackRanges) -> None:
    """Put the ranges beside a copy, for the next version. Without them that one is read as a whole."""
    with contextlib.suppress(OSError):
        untrusted.replace_in(place, _beside(copy), ranges.encode())


def forget_ranges(place: int, copy: str) -> None:
    """Remove the ranges of a copy that is removed."""
    with contextlib.suppress(OSError):
        os.unlink(_beside(copy), dir_fd=place)


def fill(source: int, target: int, place: int, size: int, ranges: PackRanges | None) -> Copied:
    """Write the file open as `source` to `target`; what copies in the folder `place` have is taken from them.

    `ranges` are those of the file; None takes all from `source`. Bytes of a copy that cannot be read are read
    from `source`. Raises OSError when that cannot be read, or `target` not be written.
    """
    whole = PackRanges(size=size, packs=(), ranges=())
    reused = 0
    in_kernel = True
    with contextlib.ExitStack() as opened:
        held = list(_held(place, ranges, opened)) if ranges else []
        for piece in pieces(ranges or whole, [each for _, each in held], shortest=_SHORTEST):
            if piece.held is not None:
                with contextlib.suppress(OSError):
                    copy_range(
                        held[piece.held][0], target, Range(0, piece.source, piece.length, piece.target)
                    )
                    reused += piece.length
                    continue
            own = Range(0, piece.target, piece.length, piece.target)
            in_kernel = copy_range(source, target, own, in_kernel=in_kernel)
    return Copied(reused=reused, read=size - reused)


def _held(place: int, wanted: PackRanges, opened: contextlib.ExitStack) -> Iterator[tuple[int, PackRanges]]:
    """Copies of ours with packs of the wanted file: an open descriptor and the ranges of each, best first."""
    keys = set(wanted.keys)
    found = []
    for name in os.listdir(place):
        if not name.endswith(SUFFIX) or name.startswith("."):
            continue
        ranges = _own_ranges(place, name)
        if ranges is not None and (common := len(keys & set(ranges.keys))):
            found.append((-common, name, ranges))
    for _, name, ranges in sorted(found, key=lambda each: each[:2])[:_MOST_COPIES]:
        try:
            copy = untrusted.open_regular(name.removesuffix(SUFFIX) + _COPY, dir_fd=place)
        except OSError:
            continue
        opened.callback(os.close, copy)
        if _is_own(copy) and os.fstat(copy).st_size == ranges.size:
            yield copy, ranges


def _own_ranges(place: int, name: str) -> PackRanges | None:
    try:
        file = untrusted.open_regular(name, dir_fd=place)
    except OSError:
        return None
    with os.fdopen(file, "rb") as stream:
        if not _is_own(file):
            return None
        try:
            return PackRanges.decode(stream.read(MOST_BYTES + 1))
        except (FormatError, OSError):
            return None


def _is_own(file: int) -> bool:
    status = os.fstat(file)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _beside(copy: str) -> str:
    return copy.removesuffix(_COPY) + SUFFIX
