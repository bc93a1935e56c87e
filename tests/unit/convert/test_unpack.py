from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from pipeline.convert import unpack as module
from pipeline.convert.unpack import Preserve, clamped, unpack
from pipeline.errors import FormatError, ToolError
from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.layer import Content, read_layer
from pipeline.oci.merge import merge
from pipeline.oci.tree import MADE, Node, Tree
from pipeline.progress import NO_TASK
from pipeline.system.parallel import CancelToken
from tests.support.images.layer_cases import LAYER_CASES, Expected, LayerCase
from tests.support.images.layers import MTIME, LayerBuilder


class Layers:
    """Layers in memory, as `unpack` wants to open them."""

    def __init__(self, *layers: LayerBuilder) -> None:
        self._tars = [layer.tar() for layer in layers]

    def tree(self) -> Tree:
        return merge([read_layer(io.BytesIO(tar), diff_id=None).entries() for tar in self._tars])

    def open(self, layer: int, _halt: CancelToken) -> AbstractContextManager[Iterator[tuple[Entry, Content]]]:
        @contextmanager
        def opened() -> Iterator[Iterator[tuple[Entry, Content]]]:
            yield iter(read_layer(io.BytesIO(self._tars[layer]), diff_id=None))

        return opened()


def unpacked(layers: Layers, root: Path, tree: Tree | None = None, keep: Preserve = Preserve()) -> Path:  # noqa: B008
    root.mkdir(exist_ok=True)
    unpack(tree or layers.tree(), layers.open, root, keep=keep, task=NO_TASK, workers=2)
    return root


def below(root: Path, path: bytes) -> bytes:
    return os.fsencode(root) + b"/" + path


def check(root: Path, path: bytes, expected: Expected) -> None:
    found = os.lstat(below(root, path))
    kinds = {
        EntryKind.FILE: stat.S_IFREG,
        EntryKind.DIRECTORY: stat.S_IFDIR,
        EntryKind.SYMLINK: stat.S_IFLNK,
        EntryKind.FIFO: stat.S_IFIFO,
    }
    assert stat.S_IFMT(found.st_mode) == kinds[expected.kind], path
    assert stat.S_IMODE(found.st_mode) == expected.mode, path
    if expected.kind is EntryKind.FILE:
        with open(below(root, path), "rb") as stream:  # noqa: PTH123 - a path of any bytes
            assert stream.read() == expected.content
    if expected.kind is EntryKind.SYMLINK:
        assert os.readlink(below(root, path)) == expected.content  # noqa: PTH115


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_layer_cases(case: LayerCase, tmp_path: Path) -> None:
    if os.geteuid() != 0 and any(entry.mode & 0o700 != 0o700 for entry in case.tree.values()):
        pytest.skip("modes are opened by the transform that comes before, here they are as in the layer")
    root = unpacked(Layers(*case.layers), tmp_path / "root")
    devices = (EntryKind.CHAR, EntryKind.BLOCK)
    for path, expected in case.tree.items():
        if expected.kind not in devices:
            check(root, path, expected)
    there = {
        (top + b"/" + name)[len(os.fsencode(root)) + 1 :]
        for top, folders, files in os.walk(os.fsencode(root))
        for name in folders + files
    }
    assert there == {path for path, expected in case.tree.items() if expected.kind not in devices}
    groups: dict[str, set[int]] = {}
    for path, expected in case.tree.items():
        if expected.group is not None and expected.kind not in devices:
            groups.setdefault(expected.group, set()).add(os.lstat(below(root, path)).st_ino)
    assert all(len(inodes) == 1 for inodes in groups.values())
    assert len(set.union(set(), *groups.values())) == len(groups)


def test_times_are_those_of_the_image_also_of_folders_and_links(tmp_path: Path) -> None:
    layer = LayerBuilder().dir("d", mtime=1).file("d/f", b"x", mtime=2).symlink("d/l", "f", mtime=3)
    layer.fifo("d/p", mtime=4).dir("d/e", mtime=5).file("d/e/g", mtime=MTIME + 0.5).hardlink(
        "d/h", "d/f", mtime=9
    )
    root = unpacked(Layers(layer), tmp_path / "root")
    times = {
        name: (root / name).lstat().st_mtime_ns for name in ("d", "d/f", "d/l", "d/p", "d/e", "d/e/g", "d/h")
    }
    seconds = {"d": 1, "d/f": 2, "d/l": 3, "d/p": 4, "d/e": 5, "d/e/g": MTIME, "d/h": 2}
    assert times == {name: value * 10**9 for name, value in seconds.items()}


def test_holes_take_no_space(tmp_path: Path) -> None:
    data = b"a" + bytes(8 << 20) + b"b" + bytes(3 << 20)
    root = unpacked(
        Layers(LayerBuilder().file("sparse", data).file("zeros", bytes(1 << 20))), tmp_path / "root"
    )
    assert (root / "sparse").read_bytes() == data
    assert (root / "sparse").stat().st_blocks * 512 < 1 << 20
    assert (root / "zeros").read_bytes() == bytes(1 << 20)
    assert (root / "zeros").stat().st_blocks == 0


def test_a_file_that_no_layer_brought(tmp_path: Path) -> None:
    root_node = Node(entry=Entry(b"", EntryKind.DIRECTORY))
    made = Node(entry=Entry(b"rc", EntryKind.FILE, 0o755, mtime=7, size=5), layer=MADE, content=b"hello")
    root = unpacked(Layers(), tmp_path / "root", Tree({b"": root_node, b"rc": made}))
    assert (root / "rc").read_bytes() == b"hello"
    assert (root / "rc").stat().st_mtime == 7


def test_setuid_and_sticky_bits_stay(tmp_path: Path) -> None:
    layer = LayerBuilder().file("su", b"x", mode=0o4755).dir("tmp", mode=0o1777).dir("g", mode=0o2775)
    root = unpacked(Layers(layer), tmp_path / "root")
    modes = [stat.S_IMODE((root / name).stat().st_mode) for name in ("su", "tmp", "g")]
    assert modes == [0o4755, 0o1777, 0o2775]


def test_a_tree_deeper_than_a_path_may_be_long(tmp_path: Path) -> None:
    layer = LayerBuilder()
    deep = "/".join(["d" * 20] * 150)
    layer.file(f"{deep}/f", b"x").hardlink(f"{deep}/g", f"{deep}/f")
    root = unpacked(Layers(layer), tmp_path / ("r" * 200))
    descriptor = os.open(root, os.O_RDONLY)
    for _ in range(150):
        under = os.open("d" * 20, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = under
    assert os.stat("g", dir_fd=descriptor).st_nlink == 2
    os.close(descriptor)


def test_more_folders_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OPEN_FOLDERS", 2)
    layer = LayerBuilder()
    for number in range(40):
        layer.file(f"a{number % 7}/b{number % 5}/f{number}", b"%d" % number)
    layer.hardlink("a0/link", "a6/b3/f13")
    root = unpacked(Layers(layer), tmp_path / "root")
    assert (root / "a6/b3/f13").read_bytes() == (root / "a0/link").read_bytes() == b"13"


def test_nothing_is_written_through_a_symlink(tmp_path: Path) -> None:
    """Should a tree ever hold a name below a symlink, the system refuses it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    nodes = {
        b"": Node(entry=Entry(b"", EntryKind.DIRECTORY)),
        b"l": Node(entry=Entry(b"l", EntryKind.SYMLINK, 0o777, target=os.fsencode(outside))),
        b"l/f": Node(entry=Entry(b"l/f", EntryKind.FILE, size=1), content=b"x"),
    }
    with pytest.raises(ToolError, match="cannot unpack /l/f"):
        unpacked(Layers(), tmp_path / "root", Tree(nodes))
    assert list(outside.iterdir()) == []


def test_nothing_that_is_there_is_opened(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "f").symlink_to(target)
    with pytest.raises(ToolError, match="cannot unpack /f"):
        unpacked(Layers(LayerBuilder().file("f", b"x")), tmp_path / "root")
    assert target.read_text() == "kept"


def test_content_that_changed_since_the_tree_was_read_is_noticed(tmp_path: Path) -> None:
    tree = Layers(LayerBuilder().file("f", b"one")).tree()
    with pytest.raises(FormatError, match="/f has changed"):
        unpacked(Layers(LayerBuilder().file("f", b"two")), tmp_path / "root", tree)


def test_a_layer_that_lost_members_is_noticed(tmp_path: Path) -> None:
    tree = Layers(LayerBuilder().file("a").file("f", b"one")).tree()
    with pytest.raises(FormatError, match="no longer there"):
        unpacked(Layers(LayerBuilder().file("a")), tmp_path / "root", tree)


def test_a_full_disk_is_reported_with_place_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(ToolError, match=r"no space left in .* while unpacking /f") as caught:
        unpacked(Layers(LayerBuilder().file("f", b"x")), tmp_path / "root")
    assert "SQSHPIPE_SCRATCH" in caught.value.hint


def test_a_time_that_scratch_cannot_hold_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "utime", lambda *_, **__: None)
    with pytest.raises(ToolError, match=r"cannot hold the time of /f"):
        unpacked(Layers(LayerBuilder().file("f", b"x", mtime=0x9000_0000)), tmp_path / "root")


def test_times_are_clamped_to_what_squashfs_holds() -> None:
    assert [clamped(time) for time in (-1, 0, 5, 0xFFFF_FFFF, 1 << 40)] == [0, 0, 5, 0xFFFF_FFFF, 0xFFFF_FFFF]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owners_are_kept_when_asked_for(tmp_path: Path) -> None:
    layer = LayerBuilder().dir("d", uid=3, gid=4).file("d/f", b"x", mode=0o4755, uid=5, gid=6)
    layer.symlink("l", "d", uid=7, gid=8)
    root = unpacked(Layers(layer), tmp_path / "root", keep=Preserve(owners=True))
    owners = [((root / name).lstat().st_uid, (root / name).lstat().st_gid) for name in ("d", "d/f", "l")]
    assert owners == [(3, 4), (5, 6), (7, 8)]
    assert stat.S_IMODE((root / "d/f").stat().st_mode) == 0o4755
