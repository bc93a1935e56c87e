"""The merged tree of an image: what is at each path, and where its content comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.oci.entry import Entry

MADE = -1


@dataclass(slots=True)
class Node:
    """What is at one path of a tree. Treat it as frozen.

    entry    kind, mode, owner, time, size and so on; shared by all names of one inode, so that `entry.path`
             is the path that the layer gave, which for a hard link is that of its target: the path is the
             tree's key. Never of kind HARDLINK.
    layer    position of the layer that supplies the entry and its content, MADE (-1) when no layer does
    index    position of the entry among its layer's entries, MADE (-1) when no layer supplies it; (layer,
             index) tells inodes apart
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
        """`nodes` must be in the order of iteration with all parents there; `merge` and `rootfs` make it
        so.
        """
        self._nodes = nodes

    def __getitem__(self, path: bytes) -> Node:
        return self._nodes[path]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)
