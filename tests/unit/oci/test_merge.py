"""The merge against a model that is slow and plain, and what it refuses."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import FormatError
from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.merge import MADE, merge

FILE, DIRECTORY, SYMLINK, HARDLINK = (
    EntryKind.FILE,
    EntryKind.DIRECTORY,
    EntryKind.SYMLINK,
    EntryKind.HARDLINK,
)

# The model: a flat dict from path to (entry, inode); an inode is (layer, index).
Flat = dict[bytes, tuple[Entry, tuple[int, int]]]


def below(path: bytes, folder: bytes) -> bool:
    return path != folder and (not folder or path.startswith(folder + b"/"))


def remove(flat: Flat, path: bytes) -> Flat:
    gone = {p: flat[p] for p in flat if p == path or below(p, path)}
    for p in gone:
        del flat[p]
    return gone


def resolve(flat: Flat, path: bytes, depth: int = 0) -> bytes:
    """Where `path` leads, following symlinks; what is missing is taken unchanged."""
    if depth > 40:
        raise FormatError("circle")
    done: list[bytes] = []
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    for number, part in enumerate(parts):
        if part == b"..":
            done = done[:-1]
            continue
        here = b"/".join([*done, part])
        if here in flat and flat[here][0].kind is SYMLINK:
            target = flat[here][0].target
            start = b"" if target.startswith(b"/") else b"/".join(done)
            return resolve(flat, b"/".join([start, target, *parts[number + 1 :]]), depth + 1)
        done.append(part)
    return b"/".join(done)


def model(layers: list[list[Entry]], at: list[int]) -> Flat:
    """`at` says where it is: layer and index of the entry that it works on."""
    flat: Flat = {}
    for number, entries in enumerate(layers):
        hidden: Flat = {}
        given = {entry.path for entry in entries}
        for index, entry in sorted(enumerate(entries), key=lambda item: item[1].path):
            at[:] = number, index
            if b".wh." in entry.path:
                hide(flat, hidden, entry.path, given)
        for index, entry in enumerate(entries):
            at[:] = number, index
            if b".wh." not in entry.path:
                put(flat, hidden, entry, (number, index))
    return flat


def hide(flat: Flat, hidden: Flat, path: bytes, given: set[bytes]) -> None:
    """Take what a whiteout hides out of `flat`, and keep it in `hidden` by the path that it gave."""
    head, _, name = path.rpartition(b"/")
    prefixes = [b"/".join(head.split(b"/")[:n]) for n in range(1, head.count(b"/") + 2)] if head else []
    links = [p for p in prefixes if p in flat and flat[p][0].kind is SYMLINK]
    if links and links[0] in given:
        return
    folder = resolve(flat, head)
    if folder and (folder not in flat or flat[folder][0].kind is not DIRECTORY):
        return
    shown = head + b"/" if head else b""
    real = folder + b"/" if folder else b""
    names = [p for p in flat if below(p, folder)] if name == b".wh..wh..opq" else [real + name[4:]]
    for gone in [remove(flat, name) for name in names]:
        hidden.update({shown + p[len(real) :]: value for p, value in gone.items()})


def put(flat: Flat, hidden: Flat, entry: Entry, inode: tuple[int, int]) -> None:
    head, _, name = entry.path.rpartition(b"/")
    parts = [part for part in resolve(flat, head).split(b"/") if part]
    for depth in range(1, len(parts) + 1):
        parent = b"/".join(parts[:depth])
        if parent not in flat or flat[parent][0].kind is not DIRECTORY:
            remove(flat, parent)
            flat[parent] = (Entry(parent, DIRECTORY), (MADE, MADE))
    path = b"/".join([*parts, name])
    value = (entry, inode)
    if entry.kind is HARDLINK:
        target_head, _, target_name = entry.target.rpartition(b"/")
        folder = resolve(flat, target_head)
        found = flat.get(folder + b"/" + target_name if folder else target_name) or hidden.get(entry.target)
        if found is None or found[0].kind is DIRECTORY:
            raise FormatError("link")
        value = found
    if not (entry.kind is DIRECTORY and path in flat and flat[path][0].kind is DIRECTORY):
        remove(flat, path)
    flat[path] = value


names = st.sampled_from([b"a", b"b", b"c"])
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
targets = st.sampled_from([b"a", b"b", b"../c", b"/a/b", b"c/a", b"/", b"../../..", b"."])
entries = st.one_of(
    st.builds(Entry, paths, st.just(FILE)),
    st.builds(Entry, paths, st.just(DIRECTORY), st.sampled_from([0o700, 0o755])),
    st.builds(lambda path, target: Entry(path, SYMLINK, target=target), paths, targets),
    st.builds(lambda path, target: Entry(path, HARDLINK, target=target), paths, paths),
    paths.map(lambda path: Entry(b"/".join([*path.split(b"/")[:-1], b".wh." + path.split(b"/")[-1]]), FILE)),
    paths.map(lambda path: Entry(path + b"/.wh..wh..opq", FILE)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(entries, max_size=8), min_size=1, max_size=4))
def test_merge_does_what_the_model_does(layers: list[list[Entry]]) -> None:
    expected: Flat | None = None
    while expected is None:
        at = [0, 0]
        try:
            expected = model(layers, at)
        except FormatError:
            with pytest.raises(FormatError):
                merge(layers)
            del layers[at[0]][at[1]]
    tree = merge(layers)
    found = {
        path: (node.entry.kind, node.entry.mode, (node.layer, node.index)) for path, node in tree.items()
    }
    del found[b""]
    assert found == {path: (entry.kind, entry.mode, inode) for path, (entry, inode) in expected.items()}
    assert list(tree) == sorted(tree, key=lambda path: path.split(b"/") if path else [])
    assert all(tree[path.rpartition(b"/")[0]].entry.kind is DIRECTORY for path in tree if path)
    for path, node in tree.items():
        if node.link_to is not None:
            assert tree[node.link_to].link_to is None
            assert tree[node.link_to].entry is node.entry
            assert list(tree).index(node.link_to) < list(tree).index(path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([Entry(b".wh.", FILE)], "not a valid whiteout"),
        ([Entry(b"d/.wh..", FILE)], "not a valid whiteout"),
        ([Entry(b".wh...", FILE)], "not a valid whiteout"),
        ([Entry(b"d/.wh..wh.aufs/a", FILE)], "name of a whiteout"),
        ([Entry(b".wh..wh..opq/a", FILE)], "name of a whiteout"),
        ([Entry(b".wh..wh.plnk/1", FILE), Entry(b"a", HARDLINK, target=b".wh..wh.plnk/2")], "not there"),
        ([Entry(b".wh..wh.plnk/1", DIRECTORY), Entry(b"a", HARDLINK, target=b".wh..wh.plnk/1")], "not there"),
        ([Entry(b"a", HARDLINK, target=b".wh..wh.plnk/1"), Entry(b".wh..wh.plnk/1", FILE)], "not there"),
        ([Entry(b".wh.d/file", FILE)], "name of a whiteout"),
        ([Entry(b"x/.wh.d/file", FILE)], "name of a whiteout"),
        ([Entry(b"a", HARDLINK, target=b"b")], "not there"),
        ([Entry(b"b", FILE), Entry(b"a", HARDLINK, target=b"b/c")], "not there"),
        ([Entry(b"b", DIRECTORY), Entry(b"a", HARDLINK, target=b"b")], "folder"),
        ([Entry(b"a", HARDLINK, target=b"b"), Entry(b"b", FILE)], "not there"),
        (
            [Entry(b"a", SYMLINK, target=b"b"), Entry(b"b", SYMLINK, target=b"a"), Entry(b"a/x", FILE)],
            "circle",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(entries: list[Entry], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        merge([entries])


def test_a_short_tar_cannot_ask_for_endless_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.oci.merge._MAX_MADE", 1000)
    deep = b"/".join([b"d"] * 100)
    with pytest.raises(FormatError, match="leave out more"):
        merge([[Entry(b"%d/%s/f" % (number, deep), FILE) for number in range(10)]])


def test_names_that_only_look_like_whiteouts_are_kept() -> None:
    tree = merge([[Entry(b"a.wh.b", FILE), Entry(b"d/x.wh.", FILE), Entry(b".whx", FILE)]])
    assert list(tree) == [b"", b".whx", b"a.wh.b", b"d", b"d/x.wh."]


def test_the_root_takes_its_entry() -> None:
    tree = merge([[Entry(b"", DIRECTORY, 0o700, 1, 2, 3)]])
    assert (tree[b""].entry.mode, tree[b""].layer, tree[b""].index) == (0o700, 0, 0)


def test_follow() -> None:
    tree = merge(
        [
            [
                Entry(b"usr/bin", DIRECTORY),
                Entry(b"bin", SYMLINK, target=b"usr/bin"),
                Entry(b"usr/bin/sh", SYMLINK, target=b"/bin/dash"),
                Entry(b"loop", SYMLINK, target=b"loop"),
                Entry(b"out", SYMLINK, target=b"../../x"),
            ]
        ]
    )
    assert tree.follow(b"bin/sh") == b"usr/bin/dash"
    assert tree.follow(b"out/y/../z") == b"x/z"
    assert tree.follow(b"") == b""
    with pytest.raises(FormatError, match="circle"):
        tree.follow(b"loop/x")


def test_a_hundred_thousand_entries_take_no_time() -> None:
    layer = [Entry(b"folder%d/file%d" % (number % 1000, number), FILE) for number in range(100_000)]
    start = time.process_time()
    assert len(merge([layer])) == 101_001
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "name",
    [
        b".wh..wh.aufs",
        b".wh..wh.orph",
        b".wh..wh.plnk",
        b".wh..wh.plnk/1",
        b".wh..wh.orph/a/b",
        b".wh..wh.",
        b".wh..wh.new",
        b"d/.wh..wh.aufs",
        b"d/.wh..wh.",
    ],
)
def test_bookkeeping_of_aufs_changes_nothing(name: bytes) -> None:
    """What an engine wrote into layers while it kept images in AUFS; in the root alone it has folders."""
    below = [Entry(b"d", DIRECTORY), Entry(b"d/x", FILE), Entry(b"aufs", FILE), Entry(b"plnk", FILE)]
    for kind in (FILE, DIRECTORY):
        assert list(merge([below, [Entry(name, kind), Entry(b"y", FILE)]])) == [
            *(b"", b"aufs", b"d", b"d/x", b"plnk", b"y")
        ]


def test_links_to_a_file_that_aufs_kept_are_of_their_layer_alone() -> None:
    kept = Entry(b".wh..wh.plnk/1", FILE, size=3)
    links = [Entry(name, HARDLINK, target=b".wh..wh.plnk/1") for name in (b"a", b"b")]
    tree = merge([[kept, *links]])
    assert {path: (node.index, node.link_to) for path, node in tree.items() if path} == {
        b"a": (0, None),
        b"b": (0, b"a"),
    }
    with pytest.raises(FormatError, match="not there"):
        merge([[kept], links])
