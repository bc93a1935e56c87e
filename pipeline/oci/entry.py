"""One member of a layer, and the bounds that reading a layer keeps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class EntryKind(IntEnum):
    """What a member of a layer is. In a merged tree a HARDLINK has the kind of the file that it links to."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    HARDLINK = 4
    CHAR = 5
    BLOCK = 6
    FIFO = 7


@dataclass(slots=True)
class Entry:
    """A member of a layer. Not frozen since a layer has up to a million of them; treat it as if it were.

    path    relative to the root, no leading or trailing "/", no "." or ".." components; b"" is the root
    mode    permission bits with setuid, setgid and sticky: 0o7777 at most
    mtime   seconds since 1970, never negative
    size    bytes of a file's content (holes of a sparse file included); 0 for all other kinds
    target  a symlink's target, unchanged, or a hard link's target in the form of `path`
    xattrs  (name, value) pairs sorted by name; names with their prefix, as b"user.note"
    crc32   of a file's content (zlib's polynomial); 0 until the reader has passed the content
    """

    path: bytes
    kind: EntryKind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    target: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    crc32: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a layer, and an image, may hold.

    The defaults are far above any image that was seen, and below what a host can hold.

    max_unpacked  bytes of a layer's tar, bytes of all its files with their holes, and bytes of all files of
                  an image
    max_entries   members of a layer, and of all layers of an image together
    max_metadata  bytes of the names, link targets and attributes of a layer, and of all layers together: they
                  are kept in memory
    max_ratio     bytes unpacked for one byte stored (gzip ends at 1032), and bytes of holes for one byte of
                  files
    ratio_floor   bytes that a layer, and all layers together, may always have, however small they are
                  stored; `HOLES` times as many bytes of holes
    max_path      bytes of a path or of a link's target (Linux: PATH_MAX)
    max_name      bytes of one component of a path (Linux: NAME_MAX)
    devices       whether an image may have device nodes outside /dev, which is left out anyway
    setuid        whether an image may have setuid or setgid files (they mean nothing where enroot runs them)
    """

    max_unpacked: int = 1 << 40
    max_entries: int = 8_000_000
    max_metadata: int = 1 << 29
    max_ratio: int = 250
    ratio_floor: int = 4 << 30
    max_path: int = 4095
    max_name: int = 255
    devices: bool = True
    setuid: bool = True


DEFAULT_LIMITS = Limits()
WITHHELD = b"\0"
"""The target of a link that is not known; merging shows whether it is needed. No path has a NUL."""
HOLES = 16  # bytes of a hole that cost no more than one that is unpacked: nothing is read or stored


def beyond_ratio(limits: Limits) -> str:
    """What to do about more than `max_ratio`."""
    return (
        f"more than {limits.max_ratio} to one is taken for a decompression bomb;"
        " limits: {ratio: …} in images.yaml says how many may be"
    )
