"""The merged layers as the tree that `enroot import` makes, without enroot's mistakes.

- Below /dev nothing is kept; the folder stays if it is there.
- Modes get `u+rX`, folders `u+w` too: under squashfuse the job's user appears as the owner of every file and
mode
  bits count, so a file of mode 000 would be readable by nobody.
- Owners become root and extended attributes are dropped, unless they are to be kept. setuid bits stay.
- Times stay, as far as squashfs can hold them (1970 to 2106).
- /etc/rc, /etc/rc.local, /etc/environment and /etc/fstab (see startup.py) replace whatever had their names.
/etc
  is followed if it is a symlink.
- The working directory and the volumes are created where they are missing, through symlinks as in a chroot;
folders
  that are there keep their modes.
"""

from __future__ import annotations

import calendar
import re
import zlib
from collections.abc import Iterable

from pipeline.errors import FormatError
from pipeline.oci.config import ImageConfig
from pipeline.oci.digest import Digest
from pipeline.oci.enroot_files import FORMAT_VERSION, absolute, startup_files
from pipeline.oci.entry import DEFAULT_LIMITS, Entry, EntryKind
from pipeline.oci.tree import Node, Steps, Tree, follow

__all__ = ["FORMAT_VERSION", "enroot_rootfs"]

MAX_TIME = (1 << 32) - 1
_MAX_MADE = 20_000  # folders for volumes; each may be as deep as a path is long
_CREATED = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.\d+)?(?:[Zz]|([+-])(\d\d):(\d\d))?"
)


def enroot_rootfs(
    tree: Tree,
    config: ImageConfig,
    *,
    keep_owners: bool = False,
    keep_xattrs: bool = False,
    provenance: Digest | None = None,
) -> Tree:
    """A new tree; `tree` stays as it is. Nodes of the four files have `content`.

    Raises FormatError where the working directory or /etc cannot be folders. Made files and folders have the
    time at which the config says that the image was created, 1970 when it does not.
    """
    etc = tree.follow(b"etc")
    if etc == b"dev" or etc.startswith(b"dev/"):
        raise FormatError(f"/etc of the image leads to {etc[:200]!r}, and below /dev nothing is kept")
    files = {
        (etc + path.encode()[3:]).lstrip(b"/"): data
        for path, data in startup_files(config, provenance).items()
    }
    nodes = _transformed(tree, [*files, b"dev/"], keep_owners=keep_owners, keep_xattrs=keep_xattrs)
    mtime = created_seconds(config.created)
    _make_folder(nodes, etc, mtime, "the folder of enroot's files")
    for path, data in files.items():
        _require_short(path, "a file of enroot's")
        entry = Entry(path, EntryKind.FILE, 0o644, mtime=mtime, size=len(data), crc32=zlib.crc32(data))
        nodes[path] = Node(entry, content=data)
    before, steps = len(nodes), Steps()
    working = _inside(config.working_dir, "the working directory")
    _make_folder(nodes, follow(nodes, working, steps), mtime, "the working directory")
    for volume in config.volumes:
        path = follow(nodes, _inside(volume, "a volume"), steps)
        if not _blocked(nodes, path):
            _make_folder(nodes, path, mtime, "a volume")
        if len(nodes) - before > _MAX_MADE:
            raise FormatError(f"the volumes of the image are more than {_MAX_MADE} folders")
    # "/" sorts before every other byte once it is NUL, which no name holds: into the depth, names by their
    # bytes.
    return Tree({path: nodes[path] for path in sorted(nodes, key=lambda path: path.replace(b"/", b"\0"))})


def _transformed(
    tree: Tree, left_out: Iterable[bytes], *, keep_owners: bool, keep_xattrs: bool
) -> dict[bytes, Node]:
    """The nodes with their new modes, owners and times, without `left_out` and what is below those paths."""
    exact = frozenset(left_out)
    below = tuple(path if path.endswith(b"/") else path + b"/" for path in exact)
    nodes: dict[bytes, Node] = {}
    # first names of inodes that are left out, to the names that became the first
    renamed: dict[bytes, bytes] = {}
    modes = _Modes()
    for path, node in tree.items():
        if path in exact or path.startswith(below):
            continue
        first = node.link_to
        if first is not None:
            first = renamed.get(first, first)
            if first in nodes:
                nodes[path] = Node(nodes[first].entry, node.layer, node.index, first, node.content)
                continue
            renamed[first] = path
        entry = node.entry
        if (
            modes[entry.kind, entry.mode] != entry.mode
            or ((entry.uid or entry.gid) and not keep_owners)
            or (entry.xattrs and not keep_xattrs)
            or entry.mtime > MAX_TIME
        ):
            entry = Entry(
                entry.path,
                entry.kind,
                modes[entry.kind, entry.mode],
                entry.uid if keep_owners else 0,
                entry.gid if keep_owners else 0,
                min(entry.mtime, MAX_TIME),
                entry.size,
                entry.target,
                entry.major,
                entry.minor,
                entry.xattrs if keep_xattrs else (),
                entry.crc32,
            )
        elif first is None:
            nodes[path] = node
            continue
        nodes[path] = Node(entry, node.layer, node.index, None, node.content)
    return nodes


class _Modes(dict[tuple[EntryKind, int], int]):
    """The mode in the file for a kind and a layer's mode, of which an image has few."""

    def __missing__(self, key: tuple[EntryKind, int]) -> int:
        kind, mode = key
        if kind is EntryKind.SYMLINK:
            made = 0o777  # as Linux has them all, whatever a tar says
        elif kind is EntryKind.DIRECTORY:
            made = mode | 0o700
        else:
            made = mode | (0o500 if mode & 0o111 else 0o400)
        self[key] = made
        return made


def _inside(path: str, what: str) -> bytes:
    """`path` as a key of the tree, without the leading slash. Raises FormatError when it is too long."""
    inside = absolute(path).encode("utf-8")[1:]
    _require_short(inside, what)
    return inside


def _require_short(path: bytes, what: str) -> None:
    limits = DEFAULT_LIMITS
    if len(path) > limits.max_path or max(map(len, path.split(b"/"))) > limits.max_name:
        raise FormatError(
            f"{what} {path[:200]!r}… is longer than a file system takes",
            hint="a container of this image would not start either; fix its Dockerfile",
        )


def _blocked(nodes: dict[bytes, Node], path: bytes) -> bool:
    """Whether no folder can be made at `path`: something else is there, or it lies below /dev."""
    if path.startswith(b"dev/"):
        return True
    _require_short(path, "a volume")
    return any(
        (node := nodes.get(prefix)) is not None and node.entry.kind is not EntryKind.DIRECTORY
        for prefix in _prefixes(path)
    )


def _make_folder(nodes: dict[bytes, Node], path: bytes, mtime: int, what: str) -> None:
    """Make `path`, which has no symlinks, and its parents where they are missing; nothing below /dev."""
    if path.startswith(b"dev/"):
        return
    _require_short(path, what)  # a symlink may have made it long
    for prefix in _prefixes(path):
        node = nodes.get(prefix)
        if node is None:
            nodes[prefix] = Node(Entry(prefix, EntryKind.DIRECTORY, 0o755, mtime=mtime))
        elif node.entry.kind is not EntryKind.DIRECTORY:
            raise FormatError(
                f"{what} is {path[:200]!r} but {prefix[:200]!r} is not a folder in the image",
                hint="a container of this image would not start either; fix its Dockerfile",
            )


def _prefixes(path: bytes) -> list[bytes]:
    parts = path.split(b"/") if path else []
    return [b"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def created_seconds(created: str | None) -> int:
    """RFC 3339 as seconds since 1970, within what squashfs holds; 0 for None and for any other text."""
    match = _CREATED.fullmatch(created or "")
    if match is None:
        return 0
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    if not (1 <= month <= 12 and 1 <= day <= 31) or year < 1970:
        return 0
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    if match.group(7):
        offset = int(match.group(8)) * 3600 + int(match.group(9)) * 60
        seconds += -offset if match.group(7) == "+" else offset
    return min(max(seconds, 0), MAX_TIME)
