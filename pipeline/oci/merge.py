"""Layers merged to the tree of an image (OCI image-spec layer.md, "Applying Changesets").

Each layer changes what lower layers made, in the order of its entries, with these rules where the
specification is silent or engines differ:

- Whiteouts (`.wh.NAME`, and `.wh..wh..opq` for all of a folder) hide what LOWER layers have, wherever in the
layer
  they stand: they take effect before the layer's first entry. `.wh.foo` beside `foo` leaves the new foo; a
  folder that is hidden and there again has only what its own layer puts into it.
- The last entry of a name wins, whatever kinds the two have. A folder over a folder changes mode, owner,
time and
  xattrs and keeps what is in it; anything else over a folder drops what was in it.
- A hard link is one more name for the file that its target names at that point: one that this layer gave
before,
  else that of lower layers, also if this layer hides it there (a file that was moved). The inode keeps the
  mode, owner and time that it has; those in the link's own header are not looked at. Replacing the target
  later leaves the link with the old content.
- A parent that has no entry is made: 0755, root's, with the time of the first entry in it. A parent that is
a file
  is replaced by a folder.
- A parent that is a symlink, with no entry of its own in this layer that makes it a folder, is followed, as
  containerd does (and docker on a plain file system): `lib/x` over `lib -> usr/lib` lands in usr/lib/x, and a
  whiteout there hides in usr/lib. Following never leaves the root: `/` and `..` in targets stay within it,
  as in a chroot. A folder ENTRY of that name replaces the symlink, as everywhere.
- Names in the root that begin with `.wh..wh.`, but for `.wh..wh..opq`, are bookkeeping of AUFS
  (`.wh..wh.plnk`, `.wh..wh.aufs`, `.wh..wh.orph`): they and what lies below them are ignored, as by docker,
  except that a hard link may be to a file in `.wh..wh.plnk` that this layer gave before. Elsewhere such a
  name hides a name that no layer can have.
- `.wh.` alone, `.wh..` and `.wh...` are refused, and so is an entry inside a folder of a whiteout's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.errors import FormatError
from pipeline.oci.entry import DEFAULT_LIMITS, WITHHELD, Entry, EntryKind
from pipeline.oci.tree import MADE, MAX_FOLLOWED, Node, Steps, Tree

__all__ = ["MADE", "Node", "Tree", "WithheldError", "merge"]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_AUFS_LINKS = b".wh..wh.plnk/"
_MAX_PATH, _MAX_NAME = DEFAULT_LIMITS.max_path, DEFAULT_LIMITS.max_name
_MAX_MADE = 1_000_000  # folders without an entry; a short tar can ask for very many
_MAX_MADE_BYTES = 1 << 28  # of their paths together, which grow with the depth
_MAX_MOVED_BYTES = 1 << 29  # of paths that symlinks made others than the layers gave them
_MAX_STEPS = 16_000_000  # names on the way through symlinks, of all entries: some seconds
_DIRECTORY = EntryKind.DIRECTORY
_SYMLINK = EntryKind.SYMLINK
_HARDLINK = EntryKind.HARDLINK


class WithheldError(FormatError):
    """Merging needs the target of a link of layer number `layer` that is WITHHELD."""

    def __init__(self, node: Node) -> None:
        super().__init__(f"the target of the link {node.entry.path[:200]!r} is needed and not known")
        self.layer = node.layer


class _Folder:
    """A folder while layers are being merged; `room` is how long the path below it may still be."""

    __slots__ = ("children", "node", "room")

    def __init__(self, node: Node, room: int) -> None:
        self.node = node
        self.room = room
        self.children: dict[bytes, Node | _Folder] = {}


def merge(layers: Sequence[Iterable[Entry]]) -> Tree:
    """The tree that `layers`, lowest first, add up to.

    Entries are those of `LayerReader`, one for each member in the order of the tar, so Node.index counts
    members. A hard link with a WITHHELD target becomes a node of kind HARDLINK: the caller refuses a tree
    with one. Raises FormatError for whiteouts that cannot be, links to what is not there and symlink loops,
    WithheldError. About a microsecond or two for each entry, and well below a kilobyte of memory for each.
    """
    merging = _Merging()
    for number, entries in enumerate(layers):
        merging.apply(number, entries if isinstance(entries, list) else list(entries))
    return merging.tree()


class _Merging:
    """The tree so far. `apply` takes one layer after the other."""

    def __init__(self) -> None:
        self._root = _Folder(Node(Entry(b"", _DIRECTORY)), _MAX_PATH)
        self._steps = Steps(_MAX_STEPS)
        self._linked: set[tuple[int, int]] = set()
        self._made = self._made_bytes = 0
        self._known: dict[bytes, _Folder] = {}
        self._hidden: dict[bytes, Node | _Folder] = {}
        self._aufs_links: dict[bytes, Node] = {}

    def apply(self, layer: int, entries: list[Entry]) -> None:
        self._hidden, self._aufs_links = {}, {}
        whiteouts = {entry.path for entry in entries if _WHITEOUT in entry.path and _is_whiteout(entry.path)}
        if whiteouts:
            self._hide(whiteouts, entries)
        # Paths of folders that entries of this layer were put in. It is dropped whenever a folder or a
        # symlink is replaced, since a path may then lead elsewhere.
        known = self._known = {b"": self._root}
        for index, entry in enumerate(entries):
            path = entry.path
            if path in whiteouts:
                if path.startswith(_AUFS_LINKS) and entry.kind is EntryKind.FILE:
                    self._aufs_links[path] = Node(entry, layer, index)
                continue
            head, _, name = path.rpartition(b"/")
            folder = known.get(head)
            if folder is None:
                folder = known[head] = self._parent(head, entry.mtime)
            if len(name) > folder.room:  # through symlinks: the path as it was given is bounded
                raise _too_long(path)
            kind = entry.kind
            if kind is _HARDLINK:
                node = self._link(entry) if entry.target != WITHHELD else Node(entry, layer, index)
            else:
                node = Node(entry, layer, index)
                if kind is _DIRECTORY:
                    self._put_folder(folder, name, node)
                    continue
            children = folder.children
            old = children.get(name)
            if old is not None and (isinstance(old, _Folder) or old.entry.kind is _SYMLINK):
                known.clear()
                known[b""] = self._root
            children[name] = node

    def _put_folder(self, parent: _Folder, name: bytes, node: Node) -> None:
        if not name:
            self._root.node = node
            return
        old = parent.children.get(name)
        if isinstance(old, _Folder):
            old.node = node
            return
        if old is not None and old.entry.kind is _SYMLINK:
            self._known.clear()
            self._known[b""] = self._root
        parent.children[name] = _Folder(node, parent.room - len(name) - 1)

    def _parent(self, path: bytes, mtime: int) -> _Folder:
        """The folder at `path`, made where it is missing."""
        head, _, name = path.rpartition(b"/")
        above = self._known.get(head)
        if above is not None:
            child = above.children.get(name)
            if type(child) is _Folder:
                return child
        found = self._walk(path, mtime)
        if found is None:
            raise FormatError(f"nothing can be put below {path[:200]!r}")
        return found

    def _walk(self, path: bytes, make: int | None) -> _Folder | None:
        """Follow `path` as a process with this root would.

        `make` is None to be given None where something is missing, or the time of folders to be made there.
        """
        trail = [self._root]
        names: list[bytes] = path.split(b"/")[::-1]
        followed = 0
        while names:
            name = names.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            child = trail[-1].children.get(name)
            if isinstance(child, Node) and child.entry.target == WITHHELD:
                raise WithheldError(child)
            if isinstance(child, Node) and child.entry.kind is _SYMLINK:
                followed += 1
                if followed > MAX_FOLLOWED:
                    raise FormatError(f"the symlinks in {path[:200]!r} lead in a circle")
                target = child.entry.target
                if target.startswith(b"/"):
                    del trail[1:]
                further = target.split(b"/")
                self._steps.take(len(further))
                names += further[::-1]
                continue
            if not isinstance(child, _Folder):
                if make is None:
                    return None
                child = self._make(trail[-1], name, make)
            trail.append(child)
        return trail[-1]

    def _make(self, parent: _Folder, name: bytes, mtime: int) -> _Folder:
        room = parent.room - len(name) - 1
        if len(name) > _MAX_NAME or room < 0:
            raise _too_long(name)
        self._made += 1
        above = parent.node.entry.path
        path = above + b"/" + name if above else name
        self._made_bytes += _MAX_PATH - room
        if self._made > _MAX_MADE or self._made_bytes > _MAX_MADE_BYTES:
            raise FormatError(
                f"the layers leave out more than {self._made - 1} folders that their entries lie in"
            )
        made = parent.children[name] = _Folder(Node(Entry(path, _DIRECTORY, mtime=mtime)), room)
        return made

    def _link(self, entry: Entry) -> Node:
        """One more name for what the target of `entry` is."""
        head, _, name = entry.target.rpartition(b"/")
        found: Node | _Folder | None = self._aufs_links.get(entry.target)
        if found is None:
            folder = self._known.get(head) or self._walk(head, None)
            found = folder.children.get(name) if folder is not None else None
        if found is None:
            found = self._find_hidden(entry.target)
        if found is None:
            raise FormatError(
                f"hard link {entry.path[:200]!r} is to {entry.target[:200]!r}, which is not there (yet)"
            )
        if isinstance(found, _Folder):
            raise FormatError(
                f"hard link {entry.path[:200]!r} is to {entry.target[:200]!r}, which is a folder"
            )
        self._linked.add((found.layer, found.index))
        return Node(found.entry, found.layer, found.index)

    def _find_hidden(self, path: bytes) -> Node | _Folder | None:
        """What this layer's whiteouts have hidden at `path`."""
        prefix = path
        while prefix:
            found = self._hidden.get(prefix)
            if found is not None:
                for name in path[len(prefix) + 1 :].split(b"/") if len(path) > len(prefix) else ():
                    if not isinstance(found, _Folder):
                        return None
                    found = found.children.get(name)
                return found
            prefix = prefix.rpartition(b"/")[0]
        return None

    def _hide(self, whiteouts: set[bytes], entries: list[Entry]) -> None:
        given: set[bytes] = set()
        for path in sorted(whiteouts):
            if _is_of_aufs(path):
                continue
            head, _, name = path.rpartition(b"/")
            folder = self._lower(head, given, entries)
            if folder is None:
                continue
            before = head + b"/" if head else b""
            if name == _OPAQUE:
                self._hidden.update((before + child, node) for child, node in folder.children.items())
                folder.children = {}
                continue
            hidden = folder.children.pop(name[len(_WHITEOUT) :], None)
            if hidden is not None:
                self._hidden[before + name[len(_WHITEOUT) :]] = hidden

    def _lower(self, path: bytes, given: set[bytes], entries: list[Entry]) -> _Folder | None:
        """The folder of lower layers at `path`; None where they have none, and nothing can be hidden.

        A symlink is followed unless this layer replaces it: then the whiteout is about the new folder.
        """
        folder = self._root
        end = 0
        for name in path.split(b"/") if path else ():
            end += len(name)
            child = folder.children.get(name)
            if isinstance(child, _Folder):
                folder = child
            elif child is not None and child.entry.target == WITHHELD:
                raise WithheldError(child)
            elif child is not None and child.entry.kind is _SYMLINK:
                if not given:
                    given.update(entry.path for entry in entries)
                return None if path[:end] in given else self._walk(path, None)
            else:
                return None
            end += 1
        return folder

    def tree(self) -> Tree:
        """The finished tree; this object is used up."""
        nodes: dict[bytes, Node] = {b"": self._root.node}
        moved = 0
        trail = [(b"", iter(sorted(self._root.children.items(), key=_name)))]
        while trail:
            before, items = trail[-1]
            for name, child in items:
                path = before + name
                node = child.node if isinstance(child, _Folder) else child
                own = node.entry.path
                if own == path:
                    path = own  # one object of a path instead of two
                else:
                    moved += len(path)
                    if moved > _MAX_MOVED_BYTES:
                        raise FormatError(f"the layers give names of more than {moved} bytes by symlinks")
                nodes[path] = node
                if isinstance(child, _Folder):
                    trail.append((path + b"/", iter(sorted(child.children.items(), key=_name))))
                    break
            else:
                trail.pop()
        if self._linked:
            self._name_links(nodes)
        return Tree(nodes)

    def _name_links(self, nodes: dict[bytes, Node]) -> None:
        """Give every further name of an inode a link to its first name."""
        first: dict[tuple[int, int], bytes] = {}
        for path, node in nodes.items():
            inode = (node.layer, node.index)
            if inode in self._linked:
                known = first.setdefault(inode, path)
                if known is not path:
                    node.link_to = known


def _too_long(path: bytes) -> FormatError:
    return FormatError(f"{path[:200]!r}… lies, through symlinks, deeper than a file system takes")


def _name(item: tuple[bytes, Node | _Folder]) -> bytes:
    return item[0]


def _is_of_aufs(path: bytes) -> bool:
    """Whether it is bookkeeping in the root that AUFS kept, which engines of that time put into layers."""
    return path.startswith(_AUFS) and path.partition(b"/")[0] != _OPAQUE


def _is_whiteout(path: bytes) -> bool:
    """Whether an entry of that name is left out of the tree. Raises FormatError for names that cannot be."""
    if _is_of_aufs(path):
        return True
    head, _, name = path.rpartition(b"/")
    if head.startswith(_WHITEOUT) or b"/.wh." in head:
        raise FormatError(f"{path[:200]!r} lies in a folder with the name of a whiteout")
    if not name.startswith(_WHITEOUT):
        return False
    if name[len(_WHITEOUT) :] in (b"", b".", b".."):
        raise FormatError(f"{path[:200]!r} is not a valid whiteout")
    return True
