"""A streaming reader of tars from strangers.

It reads ustar, PAX, GNU long names, base-256 numbers, sparse files and xattrs.

It reads pieces of about a megabyte and hands content on as slices of them, so that Python works once for each
member and once for each piece, never for each block. Where readers of tar are known to disagree about what a
member means, the member is refused: what is checked here must be what is unpacked elsewhere.

Of engines' habits it follows: a plain tar may end without its marker and without the padding of its last
member (Go's archive/tar), what follows the marker is not looked at, the time of a member before 1970 is 1970
(docker and containerd), links and folders have no data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from pipeline.errors import FormatError, LimitError
from pipeline.oci import pax, sparse
from pipeline.oci.content import EMPTY, Content, SparseContent, Window
from pipeline.oci.entry import DEFAULT_LIMITS, HOLES, Entry, EntryKind, Limits, beyond_ratio
from pipeline.oci.tar_header import (
    BLOCK,
    ZERO_BLOCK,
    Header,
    access,
    long_number,
    natural,
    parse_header,
    plain_file,
)

__all__ = ["Content", "Entry", "EntryKind", "Limits", "TarReader"]

_KINDS = {
    b"0": EntryKind.FILE,
    b"\0": EntryKind.FILE,
    b"7": EntryKind.FILE,
    b"S": EntryKind.FILE,
    b"1": EntryKind.HARDLINK,
    b"2": EntryKind.SYMLINK,
    b"3": EntryKind.CHAR,
    b"4": EntryKind.BLOCK,
    b"5": EntryKind.DIRECTORY,
    b"6": EntryKind.FIFO,
}
_FILE = EntryKind.FILE
_EXTENDED = b"xgLK"
_ROOT = "a tar makes the root something else than a folder"
_ODD = re.compile(rb"/\.\.?(?:/|\Z)")
_DOT = ord(".")
_MAX_ID = (1 << 32) - 1
_MAX_EXTENDED = 1 << 20  # bytes of a long name or of PAX records, as Go's archive/tar bounds it


class Pieces(Protocol):
    """Where the bytes come from."""

    def next(self) -> bytes:
        """The next piece, of any size; empty at the end."""


class TarReader:
    """Iterate once over the members: each an Entry and its Content, which is valid until the next member."""

    def __init__(self, pieces: Pieces, limits: Limits = DEFAULT_LIMITS) -> None:
        self._window = Window(pieces.next)
        self._limits = limits
        self._files = self.holes = 0
        self._metadata = 0
        self._folder = (b"", b"")  # of the previous member: its raw name, and its name in an entry
        self.ended_with_marker = False

    def __iter__(self) -> Iterator[tuple[Entry, Content]]:
        """Raises FormatError for anything that is not a tar, hostile, ambiguous or beyond the limits."""
        count = 0
        most = self._limits.max_entries
        while (block := self._next_header()) is not None:
            count += 1
            if count > most:
                raise LimitError(f"a layer has more than {most} members")
            entry, content = self._plain_file(block) or self._any_member(block)
            self._metadata += len(entry.path)
            if entry.target or entry.xattrs:
                self._metadata += len(entry.target) + sum(
                    len(key) + len(value) for key, value in entry.xattrs
                )
            if self._metadata > self._limits.max_metadata:
                raise LimitError(
                    f"the names and attributes of a layer take more than {self._limits.max_metadata} bytes"
                )
            yield entry, content
            content.finish()
        while self._window.piece(1 << 62):  # what follows the end marker belongs to the diff_id
            pass

    def _next_header(self) -> bytes | None:
        """The next header block; None at the end marker or where the stream ends between members."""
        block = self._window.take_or_end(BLOCK)
        if block == ZERO_BLOCK:
            second = self._window.take_or_end(BLOCK)
            if second not in (ZERO_BLOCK, b""):
                raise FormatError("a tar continues after half of its end marker")
            self.ended_with_marker = True
            return None
        return block or None

    def _plain_file(self, block: bytes, long_name: bytes = b"") -> tuple[Entry, Content] | None:
        """What nearly all members are, in little time: a file that one header describes. None for others."""
        plain = plain_file(block)
        if plain is None:
            return None
        name, owner, size, mtime = plain
        name = long_name or name
        mode, uid, gid = access(owner)
        entry = Entry(self._path(name), _FILE, mode, uid, gid, mtime, size)
        if not entry.path:
            raise FormatError(_ROOT)
        if not size:
            return entry, EMPTY
        self._count(entry)
        return entry, Content(entry, self._window, size, -size % BLOCK)

    def _any_member(self, block: bytes) -> tuple[Entry, Content]:
        pending = None
        header = parse_header(block)
        while header.kind in _EXTENDED:
            pending = pending or _Pending()
            self._extended(header, pending)
            block = self._window.take(BLOCK)
            if block == ZERO_BLOCK:
                raise FormatError("a tar ends after an extended header, without its member")
            if (name := pending.long_name_alone) and (found := self._plain_file(block, name)):
                return found
            header = parse_header(block)
        return self._member(header, block, pending)

    def _extended(self, header: Header, pending: _Pending) -> None:
        size = natural(header.size, "size")
        if size > _MAX_EXTENDED:
            raise FormatError(f"a tar has an extended header of {size} bytes")
        body = self._window.take(size + -size % BLOCK)[:size]
        if header.kind == b"g":
            if pax.parse_records(body).changes_members:
                raise FormatError(
                    "a tar sets values for all members at once, which engines ignore and tar does not"
                )
        elif header.kind == b"x":
            pending.set_pax(pax.parse_records(body))
        else:
            pending.set_gnu(header.kind, body.partition(b"\0")[0])

    def _member(self, header: Header, block: bytes, pending: _Pending | None) -> tuple[Entry, Content]:
        kind = _KINDS.get(header.kind)
        if kind is None:
            raise FormatError(
                f"member {header.name[:200]!r} has type {header.kind!r}, which no engine unpacks"
            )
        name, target, records = header.name, header.target, _NO_RECORDS
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        mode, uid, gid = access(header.access)
        mtime, size = long_number(header.mtime), long_number(header.size)
        if pending is not None:
            name, target, records = pending.name(name), pending.target(target), pending.pax.sparse
            if pending.pax is not _NO_PAX:
                uid, gid, size, mtime = pending.numbers(uid, gid, size, mtime)
                xattrs = tuple(sorted(pending.pax.xattrs.items()))
        if size < 0 or uid > _MAX_ID or gid > _MAX_ID:
            raise FormatError(f"member {name[:200]!r} has a size or an owner that cannot be")
        if kind is EntryKind.FILE and name[-1:] == b"/":
            if size or records:
                raise FormatError(f"member {name[:200]!r} is a file by its content and a folder by its name")
            kind = EntryKind.DIRECTORY
        entry = Entry(self._path(name), kind, mode, uid, gid, max(mtime, 0), 0, b"", 0, 0, xattrs)
        if kind is EntryKind.DIRECTORY:
            return entry, EMPTY
        if not entry.path:
            raise FormatError(_ROOT)
        if kind is EntryKind.FILE:
            return entry, self._content(entry, header, block, size, records)
        self._special(entry, header, target)
        return entry, EMPTY

    def _special(self, entry: Entry, header: Header, target: bytes) -> None:
        """Fill in what links and devices have."""
        if entry.kind is EntryKind.HARDLINK:
            entry.target = self._path(target)
        elif entry.kind is EntryKind.SYMLINK:
            if not target or len(target) > self._limits.max_path or b"\0" in target:
                raise FormatError(f"symlink {entry.path[:200]!r} has a target that cannot be")
            entry.target = target
        elif entry.kind is not EntryKind.FIFO:
            entry.major, entry.minor = (
                natural(header.device[:8], "a device"),
                natural(header.device[8:], "a device"),
            )
            if entry.major >= 1 << 12 or entry.minor >= 1 << 20:
                raise FormatError(f"device {entry.path[:200]!r} has numbers beyond Linux's")

    def _content(
        self, entry: Entry, header: Header, block: bytes, stored: int, records: list[tuple[bytes, bytes]]
    ) -> Content:
        """The content of a file of `stored` bytes here, and its size without holes left out in `entry`."""
        padding = -stored % BLOCK
        stretches: list[tuple[int, int]] | None = None
        size = stored
        if header.kind == b"S":
            size = natural(block[483:495], "the size of a sparse file")
            stretches = sparse.from_old_header(
                block, lambda: self._window.take(BLOCK), lambda field: natural(field, "a sparse map")
            )
        elif records:
            size, stretches = _sparse_size(records, entry.path), sparse.from_records(records)
            if stretches is None:
                stretches, used = sparse.from_data(self._window.take)
                stored -= used
        entry.size = size
        if stretches is None:
            self._count(entry)
            return Content(entry, self._window, size, padding)
        found = sparse.checked(stretches, size, stored)
        self._count(entry, holes=size - stored)
        return SparseContent(entry, self._window, found, padding)

    def _count(self, entry: Entry, holes: int = 0) -> None:
        """Raise LimitError when the sizes, holes included, exceed the limit in total.

        Holes cost their author nothing, so they also have a limit: a ratio to what is stored, which is a
        header at least.
        """
        self._files += entry.size
        self.holes += holes
        if self._files > self._limits.max_unpacked:
            raise LimitError(
                f"file {entry.path[:200]!r} takes its layer beyond {self._limits.max_unpacked} bytes",
                hint="no sound layer is that large",
            )
        limits = self._limits
        stored = self._files - self.holes
        if self.holes > max(limits.ratio_floor * HOLES, (stored + BLOCK) * limits.max_ratio):
            raise LimitError(
                f"the sparse files of a layer have {self.holes} bytes of holes for {stored} stored",
                hint=beyond_ratio(limits),
            )

    def _path(self, raw: bytes) -> bytes:
        """`raw` relative to the root and without needless parts. Raises FormatError for `..` and the like."""
        cut = raw.rfind(b"/") + 1
        if raw[:cut] == self._folder[0] and (name := raw[cut:]) and name[0] != _DOT and b"\0" not in name:
            path = self._folder[1] + name  # nearly all members are in the folder of the one before
            if len(path) <= self._limits.max_name:
                return path
        path = self._clean(raw)
        if path and path[-1:] == raw[-1:]:
            self._folder = (raw[:cut], path[: path.rfind(b"/") + 1])
        return path

    def _clean(self, raw: bytes) -> bytes:
        path = raw[2:] if raw[:2] == b"./" else raw
        if path[-1:] == b"/":
            path = path[:-1]
        if path[:1] in b"/." or b"//" in path or (b"/." in path and _ODD.search(path)) or path[-1:] == b"/":
            parts = [part for part in path.split(b"/") if part not in (b"", b".")]
            if b".." in parts:
                raise FormatError(f"member {raw[:200]!r} tries to leave the root by '..'")
            path = b"/".join(parts)
        if not raw or b"\0" in path:
            raise FormatError(f"a tar has a member named {raw[:200]!r}, which cannot be")
        limits = self._limits
        if len(path) > limits.max_name and (
            len(path) > limits.max_path or max(map(len, path.split(b"/"))) > limits.max_name
        ):
            raise FormatError(f"member {raw[:200]!r}… has a name that is longer than a file system takes")
        return path


class _Pending:
    """What extended headers said of the member to come."""

    __slots__ = ("_long", "pax")

    def __init__(self) -> None:
        self.pax = _NO_PAX
        self._long: dict[bytes, bytes] = {}

    def set_pax(self, header: pax.PaxHeader) -> None:
        if self.pax is not _NO_PAX:
            raise FormatError("a member of a tar has two extended headers, which readers take differently")
        self.pax = header

    def set_gnu(self, kind: bytes, value: bytes) -> None:
        if kind in self._long:
            raise FormatError("a member of a tar has two long names")
        self._long[kind] = value

    @property
    def long_name_alone(self) -> bytes:
        """GNU's long name when it is the only extended header and does not name a folder; else empty."""
        name = self._long.get(b"L", b"") if self.pax is _NO_PAX else b""
        return b"" if name.endswith(b"/") else name

    def numbers(self, uid: int, gid: int, size: int, mtime: int) -> tuple[int, int, int, int]:
        """The header's numbers, replaced where the extended header has others."""
        values = self.pax.values
        if b"uid" in values:
            uid = pax.number(values[b"uid"], "uid")
        if b"gid" in values:
            gid = pax.number(values[b"gid"], "gid")
        if b"size" in values:
            size = pax.number(values[b"size"], "size")
        if b"mtime" in values:
            mtime = pax.seconds(values[b"mtime"])
        return uid, gid, size, mtime

    def name(self, short: bytes) -> bytes:
        """The member's name; that of a sparse file is in a record of its own, beside a made-up one."""
        for key, value in self.pax.sparse:
            if key == b"name" and value:
                return value
        return self._agreed(b"path", b"L", short)

    def target(self, short: bytes) -> bytes:
        return self._agreed(b"linkpath", b"K", short)

    def _agreed(self, key: bytes, kind: bytes, short: bytes) -> bytes:
        from_pax, from_gnu = self.pax.values.get(key), self._long.get(kind)
        if from_pax is not None and from_gnu is not None and from_pax != from_gnu:
            raise FormatError(f"a member of a tar has two names, {from_pax[:100]!r} and {from_gnu[:100]!r}")
        if from_pax is not None:
            return from_pax
        return short if from_gnu is None else from_gnu


_NO_PAX = pax.PaxHeader()
_NO_RECORDS: list[tuple[bytes, bytes]] = []


def _sparse_size(records: list[tuple[bytes, bytes]], path: bytes) -> int:
    """The size that a sparse file has with its holes, out of GNU.sparse.* records."""
    values = dict(records)
    for key in (b"realsize", b"size"):
        if key in values:
            return pax.number(values[key], "the size of a sparse file")
    raise FormatError(f"sparse file {path[:200]!r} has no size")
