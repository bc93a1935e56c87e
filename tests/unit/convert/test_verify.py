from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import SquashfsFile, convert
from pipeline.convert.verify import CHECKS, QUICK_CHECKS, verify
from pipeline.errors import VerificationError
from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.tree import Node, Tree
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder

BASE = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)


def made(tmp_path: Path, layers: Sequence[LayerBuilder]) -> SquashfsFile:
    """A file by the native converter: no tool is needed for it."""
    return convert(
        image(tmp_path / "image", layers),
        ConvertOptions(converter="native"),
        output=tmp_path / "x.sqsh",
        scratch=tmp_path / "scratch",
        cache=tmp_path / "cache",
    )


@pytest.fixture
def file(tmp_path: Path) -> SquashfsFile:
    layer = (
        LayerBuilder()
        .dir("d")
        .file("d/a", random.Random(1).randbytes(400_000))
        .file("d/b", b"b")
        .hardlink("d/c", "d/b")
    )
    layer.symlink("l", "d/a").device("n", 1, 3).device("m", 8, 1, block=True).fifo("p")
    return made(tmp_path, [BASE, layer])


def test_a_sound_file_passes_and_names_its_checks(file: SquashfsFile) -> None:
    assert verify(file).checks == QUICK_CHECKS
    assert verify(file, full=True).checks == CHECKS
    assert verify(dataclasses.replace(file, read=None)).checks == CHECKS, "as after the other converters"


def with_entry(file: SquashfsFile, path: bytes, **changes: object) -> SquashfsFile:
    """As if the image had something else at `path`."""
    node = file.tree[path]
    entry = dataclasses.replace(node.entry, **changes)  # type: ignore[arg-type]
    changed = Node(entry, node.layer, node.index, node.link_to, node.content)
    return dataclasses.replace(file, tree=Tree({**file.tree, path: changed}))


@pytest.mark.parametrize(
    ("path", "changes", "reported"),
    [
        (b"d/a", {"mode": 0o600}, "mode 644, should be 600"),
        (b"d/a", {"mtime": 5}, "time 1700000000, should be 5"),
        (b"d", {"mtime": 5}, "time 1700000000, should be 5"),
        (b"d/a", {"uid": 7}, "owner 0:0, should be 7:0"),
        (b"d/a", {"size": 3}, "size 400000, should be 3"),
        (b"d/a", {"crc32": 1}, "content differs"),
        (b"etc/rc", {"mode": 0o755}, "mode 644, should be 755"),
        (b"l", {"target": b"else\x1b[31m"}, "link target /d/a, should be /else\\x1b[31m"),
        (b"n", {"minor": 4}, "device number 1:3, should be 1:4"),
        (b"p", {"kind": EntryKind.FILE}, "kind fifo, should be file"),
        (b"d/a", {"xattrs": ((b"user.x", b"1"),)}, "extended attributes differ"),
    ],
)
def test_each_difference_is_named(
    file: SquashfsFile, path: bytes, changes: dict[str, object], reported: str
) -> None:
    with pytest.raises(VerificationError) as caught:
        verify(with_entry(file, path, **changes))
    assert f"{file.path} differs from what it was made of in one place" in caught.value.message
    assert f"/{path.decode()}: {reported}" in caught.value.message


def test_missing_and_needless_paths_are_named(file: SquashfsFile) -> None:
    nodes = {path: node for path, node in file.tree.items() if path != b"d/a"}
    nodes[b"z"] = Node(Entry(b"z", EntryKind.FILE))
    with pytest.raises(VerificationError, match="in 2 places") as caught:
        verify(dataclasses.replace(file, tree=Tree(nodes)))
    assert "/d/a: not in the image" in caught.value.message
    assert "/z: missing" in caught.value.message


def test_hard_links_are_compared_in_both_directions(file: SquashfsFile) -> None:
    nodes = dict(file.tree)
    nodes[b"d/c"] = dataclasses.replace(nodes[b"d/c"], link_to=None)  # two files of the same content
    with pytest.raises(VerificationError, match="/d/c: hard links differ"):
        verify(dataclasses.replace(file, tree=Tree(nodes)))
    nodes = dict(file.tree)
    nodes[b"etc/rc.local"] = dataclasses.replace(nodes[b"etc/rc.local"], link_to=b"etc/rc")
    with pytest.raises(VerificationError, match=r"/etc/rc\.local: hard links differ"):
        verify(dataclasses.replace(file, tree=Tree(nodes)))


def test_only_the_first_few_differences_are_named(tmp_path: Path) -> None:
    layer = LayerBuilder()
    for number in range(20):
        layer.file(f"f{number:02}", b"x")
    file = made(tmp_path, [BASE, layer])
    nodes = {
        path: dataclasses.replace(node, entry=dataclasses.replace(node.entry, mode=0o777))
        if path.startswith(b"f")
        else node
        for path, node in file.tree.items()
    }
    with pytest.raises(VerificationError, match="in 20 places") as caught:
        verify(dataclasses.replace(file, tree=Tree(nodes)))
    assert "/f04" in caught.value.message
    assert "/f05" not in caught.value.message
    assert "and 15 more" in caught.value.message


def flipped(data: bytes) -> bytes:
    return data[:50_000] + bytes([data[50_000] ^ 0xFF]) + data[50_001:]


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda data: data[:-4096],
        lambda data: data + bytes(4096),
        lambda _: b"",
        lambda _: b"text" * 99,
    ],
    ids=["one byte", "cut", "longer", "empty", "no squashfs"],
)
def test_a_damaged_file_does_not_pass(file: SquashfsFile, damage: Callable[[bytes], bytes]) -> None:
    file.path.write_bytes(damage(file.path.read_bytes()))
    with pytest.raises(VerificationError, match=r"x\.sqsh"):
        verify(file)


def test_another_block_size_than_asked_for_does_not_pass(file: SquashfsFile) -> None:
    converter = dataclasses.replace(file.converter, options={**file.converter.options, "block_size": 4096})
    with pytest.raises(VerificationError, match="blocks of 131072 bytes, not 4096"):
        verify(dataclasses.replace(file, converter=converter))


@pytest.mark.parametrize(
    ("layers", "passes"),
    [
        ([LayerBuilder().symlink("bin", "usr/bin").symlink("usr/bin/sh", "dash").file("usr/bin/dash")], True),
        ([LayerBuilder().symlink("bin/sh", "/usr/../usr/bin/dash").file("usr/bin/dash")], True),
        ([LayerBuilder().symlink("bin/sh", "../../../bin/dash").file("bin/dash")], True),
        ([LayerBuilder().symlink("bin/sh", "dash")], False),
        ([LayerBuilder().symlink("bin/sh", "sh")], False),
        ([LayerBuilder().dir("bin/sh")], False),
        ([LayerBuilder().file("usr/bin/sh")], False),
    ],
)
def test_a_shell_must_be_there_through_links(
    layers: list[LayerBuilder], passes: bool, tmp_path: Path
) -> None:
    file = made(tmp_path, layers)
    if passes:
        verify(file)
        return
    with pytest.raises(VerificationError, match="has no /bin/sh") as caught:
        verify(file)
    assert "shell" in caught.value.hint


def test_known_differences_pass_for_enroot_alone(file: SquashfsFile) -> None:
    changed = with_entry(with_entry(file, b"etc/rc", mtime=1), b"d", mtime=9)
    with pytest.raises(VerificationError, match="in 2 places"):
        verify(changed)
    verify(dataclasses.replace(changed, converter=dataclasses.replace(file.converter, name="enroot")))
