"""An image's Env as the lines of /etc/environment, and those lines as variables again.

enroot reads the file in three steps, and `write` chooses lines that come out of them as they went in:

1. `${NAME}` is replaced by the value of NAME on the host, or by nothing where the host has no such variable.
   There is no escape for it. So `${X}` is written as `$${` + NEVER_SET + `}{X}`: the reference to a variable
   that nobody sets disappears, and what is left is not looked at again.
2. Twice, one pair of quotes around a value is removed, with the white space behind it; a backslash counts as
   a quote. So a value that begins with one gets two pairs more.
3. Names that a shell could not hold, and names that begin with ENROOT_, are dropped.

Lines are bytes here, and end at a line feed only: no other character takes a value apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

NEVER_SET = "__SQSHPIPE_NEVER_SET"
"""A variable that no host has: its value is always nothing."""

_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(rb"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_QUOTED = re.compile(rb"[\"'\\](.*)[\"'\\]\s*", re.DOTALL)
_RESERVED = b"ENROOT_"
_OF_SHELLS = frozenset({"IFS", "OLDPWD", "OPTERR", "OPTIND", "PPID", "PS1", "PS2", "PS4", "PWD", "_"})
_NO_REFERENCE = b"$${" + NEVER_SET.encode() + b"}{"


def write(env: Iterable[str]) -> bytes:
    """The content of /etc/environment for the `NAME=value` items of an image's Env.

    A line feed in a value becomes a space, since the rest of the value would be read as another variable;
    what the format cannot express is left out. `losses` names both.
    """
    return b"".join(line + b"\n" for item in env if (line := _line(item)) is not None)


def losses(env: Iterable[str]) -> list[tuple[str, str]]:
    """(name, reason) of each variable that Docker gives to a container and /etc/environment cannot carry."""
    found = []
    for item in env:
        name, equals, value = item.partition("=")
        if not equals:
            continue  # Docker does not set it either
        if not _NAME.fullmatch(name.encode("utf-8", "surrogateescape")):
            found.append((name, "left out: its name is not letters, digits and _"))
        elif name.startswith(_RESERVED.decode()):
            found.append((name, "left out: enroot keeps names that begin with ENROOT_ for itself"))
        elif "\n" in value:
            found.append((name, "its line breaks become spaces"))
        elif name in _OF_SHELLS:
            found.append((name, "the shell that starts the image may set it itself"))
    return found


def is_plain(item: str) -> bool:
    """Whether enroot reads the item, written as it is, as Docker gives it (or nobody gives it at all)."""
    line = _line(item)
    return line is None or line == item.encode("utf-8", "surrogateescape")


def read(content: bytes, host: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The variables that enroot makes of /etc/environment on a host with the environment `host`."""
    found = {}
    for line in content.split(b"\n"):
        text = _REFERENCE.sub(lambda reference: host.get(reference[1], b""), line).lstrip()
        name, equals, value = text.partition(b"=")
        if not equals or not _NAME.fullmatch(name) or name.startswith(_RESERVED) or b"\0" in value:
            continue
        for _ in range(2):
            quoted = _QUOTED.fullmatch(value)
            value = quoted[1] if quoted else value
        found[name] = value
    return found


def _line(item: str) -> bytes | None:
    name, equals, value = item.encode("utf-8", "surrogateescape").partition(b"=")
    if not equals or not _NAME.fullmatch(name) or name.startswith(_RESERVED):
        return None
    value = _REFERENCE.sub(lambda found: _NO_REFERENCE + found[1] + b"}", value.replace(b"\n", b" "))
    if value[:1] in (b'"', b"'", b"\\"):
        value = b'""' + value + b'""'
    return name + b"=" + value
