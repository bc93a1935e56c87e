"""The merged tree of an image: what is at each path, and where its content comes from."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass

from pipeline.errors import FormatError
from pipeline.oci.entry import Entry, EntryKind

MADE = -1
MAX_FOLLOWED = 40  # symlinks in one path, as Linux allows
_MAX_NAMES = 4_000_000  # passed while symlinks are followed: a second or two


class Steps:
    """How far the symlinks of one image may be followed, in total.

    Forty links of 4,095 bytes each make a path of 80,000 names, and a short layer can name very many paths
    through them.
    """

    def __init__(self, left: int = _MAX_NAMES) -> None:
        self._left = left

    def take(self, names: int) -> None:
        """Raise FormatError once more than all of them are used up."""
        self._left -= names
        if self._left < 0:
            raise FormatError("the symlinks of the image lead a longer way than any sound image's")


@dataclass(slots=True)
class Node:
    """What is at one path of a tree. Treat it as frozen.

    entry    kind, mode, owner, time, size and so on; shared by all names of one inode, so that `entry.path`
             is the path that the layer gave, which for a hard link is that of its target: the path is the
             tree's key. Never of kind HARDLINK.
    layer    position of the layer that supplies the entry and its content, MADE (-1) when no layer does
    index    position of the entry among its layer's entries, MADE (-1) when no layer supplies it; (layer,
             index) distinguishes inodes
    link_to  for the second and further names of an inode: its first name in the tree. None for the first
             name.
    content  the bytes of a file that no layer supplies (`layer` is MADE), else None
    """

    entry: Entry
    layer: int = MADE
    index: int = MADE
    link_to: bytes | None = None
    content: bytes | None = None


class Tree(Mapping[bytes, Node]):
    """Paths of a whole image with their nodes, b"" being the root folder.

    Iteration goes into the depth: each folder comes before what it holds, names within a folder by their
    bytes. All parents of a path are in the tree and are folders.
    """

    __slots__ = ("_nodes",)

    def __init__(self, nodes: dict[bytes, Node]) -> None:
        """`nodes` must be in the order of iteration, each after its parents; `merge` and `rootfs` do so."""
        self._nodes = nodes

    def __getitem__(self, path: bytes) -> Node:
        return self._nodes[path]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    # the dict's own views: those of Mapping cost two calls an element
    def items(self) -> ItemsView[bytes, Node]:
        return self._nodes.items()

    def keys(self) -> KeysView[bytes]:
        return self._nodes.keys()

    def values(self) -> ValuesView[Node]:
        return self._nodes.values()

    def follow(self, path: bytes) -> bytes:
        """Where `path` leads when all symlinks in it, the last one too, are followed inside this root.

        What is missing stays as it is named, so the result need not be in the tree. `/` and `..` in targets
        do not leave the root. Raises FormatError for symlinks in a circle.
        """
        return follow(self._nodes, path, Steps())


def follow(nodes: Mapping[bytes, Node], path: bytes, steps: Steps) -> bytes:
    """`Tree.follow` for nodes that are not a tree yet; `steps` are those of all calls for one image."""
    trail: list[bytes] = []
    names = path.split(b"/")[::-1]
    followed = 0
    while names:
        name = names.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            del trail[-1:]
            continue
        trail.append(name)
        steps.take(1 + len(trail) // 16)  # the next line's cost
        node = nodes.get(b"/".join(trail))
        if node is not None and node.entry.kind is EntryKind.SYMLINK:
            followed += 1
            if followed > MAX_FOLLOWED:
                raise FormatError(f"the symlinks in {path[:200]!r} lead in a circle")
            target = node.entry.target
            del trail[0 if target.startswith(b"/") else -1 :]
            names += target.split(b"/")[::-1]
    return b"/".join(trail)
