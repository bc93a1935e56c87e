"""Where a file made by ``enroot import`` differs from the image, and is still taken.

This list is the whole tolerance of verification: whatever is not here fails it. Each line was seen with the
real enroot (4.1.2 and later) and follows from how it works: layers are unpacked by tar into folders of their
own, whiteouts converted, and mksquashfs reads an overlay of them with one more folder on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pipeline.oci.config import ImageConfig
from pipeline.oci.entry import EntryKind
from pipeline.oci.tree import MADE, Node

_FOUR_FILES = frozenset({b"etc/rc", b"etc/rc.local", b"etc/environment", b"etc/fstab"})
_FIND_DEPTH = 15


class Aspect(Enum):
    """In what a path may differ."""

    MISSING = "missing"
    EXTRA = "not in the image"
    KIND = "kind"
    MODE = "mode"
    OWNER = "owner"
    TIME = "time"
    SIZE = "size"
    CONTENT = "content"
    TARGET = "link target"
    DEVICE = "device number"
    XATTRS = "extended attributes"
    LINKS = "hard links"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not as expected. ``node`` is what should be there, None for what is there needlessly.

    ``found`` and ``expected`` are for people; for a mode they are octal digits.
    """

    path: bytes
    aspect: Aspect
    node: Node | None
    found: str = ""
    expected: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDifference:
    """A difference that is taken, and why it arises."""

    why: str
    applies: Callable[[Difference, ImageConfig | None], bool]


def _made_on_top(path: bytes, config: ImageConfig | None) -> bool:
    """Whether enroot's own topmost folder holds ``path``: the root, /etc, the working directory's parents."""
    working = b"" if config is None else config.working_dir.encode("utf-8", "surrogateescape").strip(b"/")
    below = working + b"/"
    return path in (b"", b"etc") or bool(working and below.startswith(path + b"/"))


def _is_folder(difference: Difference) -> bool:
    return difference.node is not None and difference.node.entry.kind is EntryKind.DIRECTORY


def _only_owner_write(difference: Difference) -> bool:
    return int(difference.expected, 8) & ~int(difference.found, 8) == 0o200


KNOWN_ENROOT_DIFFERENCES: tuple[KnownDifference, ...] = (
    KnownDifference(
        why="the four files are written at import: its time, its umask",
        applies=lambda d, _: d.path in _FOUR_FILES and d.aspect in (Aspect.TIME, Aspect.MODE),
    ),
    KnownDifference(
        why="their text changes between versions of enroot",
        applies=lambda d, _: d.path in _FOUR_FILES and d.aspect in (Aspect.SIZE, Aspect.CONTENT),
    ),
    KnownDifference(
        why="the root, /etc and the working directory are made anew on top of all layers, mode 0755",
        applies=lambda d, config: (
            d.aspect is Aspect.MODE and d.found == "755" and _made_on_top(d.path, config)
        ),
    ),
    KnownDifference(
        why="a folder that a layer holds only as the parent of something gets the time of the import",
        applies=lambda d, _: d.aspect is Aspect.TIME and _is_folder(d),
    ),
    KnownDifference(
        why="volumes that are not in the image are made when a container starts, not in the file",
        applies=lambda d, _: (
            d.aspect is Aspect.MISSING and _is_folder(d) and d.node is not None and d.node.layer == MADE
        ),
    ),
    KnownDifference(
        why="device nodes outside of /dev are kept only where the importing user may make them",
        applies=lambda d, _: (
            d.aspect is Aspect.MISSING
            and d.node is not None
            and d.node.entry.kind in (EntryKind.CHAR, EntryKind.BLOCK)
        ),
    ),
    KnownDifference(
        why=f"folders deeper than {_FIND_DEPTH} are not made writable for their owner",
        applies=lambda d, _: (
            d.aspect is Aspect.MODE
            and _is_folder(d)
            and d.path.count(b"/") >= _FIND_DEPTH - 2
            and _only_owner_write(d)
        ),
    ),
)


def is_known(difference: Difference, config: ImageConfig | None = None) -> bool:
    """Whether a difference of a file made by enroot is on the list."""
    return any(known.applies(difference, config) for known in KNOWN_ENROOT_DIFFERENCES)
