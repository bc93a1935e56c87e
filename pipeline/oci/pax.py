"""Extended headers: PAX records, and which of them change a member (POSIX pax, "pax Extended Header").

A record is `LENGTH KEY=VALUE\\n` with LENGTH counting all of it. Values are bytes: a name that is not UTF-8
is kept as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import FormatError

_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
_MEMBER_KEYS = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"))
_IGNORED = frozenset((b"atime", b"ctime", b"uname", b"gname", b"comment"))
MAX_NUMBER = (1 << 63) - 1
# A first field longer than this is not a length; it also keeps int() away from long digit strings.
_LENGTH_DIGITS = 10
_NUMBER_DIGITS = 19


@dataclass(slots=True)
class PaxHeader:
    """What one extended header says of the member that follows.

    values  of path, linkpath, size, uid, gid, mtime, those that are given and not empty
    xattrs  name without the SCHILY.xattr. prefix to value
    sparse  GNU.sparse.* records without that prefix, in order: format 0.0 repeats its keys
    """

    values: dict[bytes, bytes] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def changes_members(self) -> bool:
        return bool(self.values or self.xattrs or self.sparse)


def parse_records(body: bytes) -> PaxHeader:
    """Parse the body of an `x` or `g` member. The last record of a key wins. Raises FormatError."""
    header = PaxHeader()
    position, size = 0, len(body)
    while position < size:
        space = body.find(b" ", position, position + _LENGTH_DIGITS + 1)
        digits = body[position:space] if space > 0 else b""
        if not digits.isdigit():
            raise FormatError("an extended header has a record without its length")
        end = position + int(digits)
        equals = body.find(b"=", space + 1, end)
        if end > size or equals <= space + 1 or body[end - 1 : end] != b"\n":
            raise FormatError("an extended header has a record whose length is wrong")
        key = body[space + 1 : equals]
        if key not in _IGNORED:
            _take(header, key, body[equals + 1 : end - 1])
        position = end
    return header


def _take(header: PaxHeader, key: bytes, value: bytes) -> None:
    if key in _MEMBER_KEYS:
        if b"\0" in value:
            raise FormatError(f"an extended header gives a {key.decode()} with a NUL byte")
        if value:
            header.values[key] = value
        else:
            header.values.pop(key, None)
    elif key.startswith(_XATTR):
        name = key[len(_XATTR) :]
        if not name or b"\0" in name:
            raise FormatError("an extended header names an extended attribute that cannot be")
        header.xattrs[name] = value
    elif key.startswith(_SPARSE):
        header.sparse.append((key[len(_SPARSE) :], value))


def number(text: bytes, what: str) -> int:
    """A decimal number, zero or more and below 2^63. Raises FormatError naming `what`."""
    if not text.isdigit() or len(text) > _NUMBER_DIGITS or (value := int(text)) > MAX_NUMBER:
        raise FormatError(f"an extended header gives {what} as {text[:40]!r}")
    return value


def seconds(text: bytes) -> int:
    """A time as decimal seconds with a fraction, rounded down; may be below zero."""
    whole, dot, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    if dot and fraction and not fraction.isdigit():
        raise FormatError(f"an extended header gives mtime as {text[:40]!r}")
    value = number(whole[1:] if negative else whole, "mtime")
    if not negative:
        return value
    return -value - (1 if fraction.strip(b"0") else 0)
