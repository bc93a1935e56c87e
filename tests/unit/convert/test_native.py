"""The native converter over the table of layer cases, read back with our own reader; caching and damage."""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.interface import Converted
from pipeline.convert.native import convert_native
from pipeline.convert.packing import pack_cache
from pipeline.errors import FormatError, ToolError
from pipeline.oci.entry import EntryKind
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.oci.source import ImageSource
from pipeline.squashfs.expand import checksums
from pipeline.squashfs.inode import Inode, Kind
from pipeline.squashfs.reader import SquashfsImage
from tests.support.images.layer_cases import LAYER_CASES, LayerCase
from tests.support.images.layers import LayerBuilder, write_layout

PLATFORM = Platform(os="linux", architecture="amd64")
OURS = {b"etc", b"etc/rc", b"etc/rc.local", b"etc/environment", b"etc/fstab"}
MARKER = b"the-secret-that-must-not-stay-" * 40


class Counting:
    """A source that remembers which layers were opened."""

    def __init__(self, inner: ImageSource) -> None:
        self._inner = inner
        self.name = inner.name
        self.manifest, self.config = inner.manifest, inner.config
        self.opened: list[int] = []

    def open_layer(self, index: int) -> AbstractContextManager[BinaryIO]:
        self.opened.append(index)
        return self._inner.open_layer(index)


def image(folder: Path, *layers: LayerBuilder, **more: Any) -> Counting:
    write_layout(folder, layers, **more)
    return Counting(open_layout(folder, platform=PLATFORM))


def convert(source: ImageSource, tmp_path: Path, name: str = "out.sqsh", **options: Any) -> Converted:
    return convert_native(source, ConvertOptions(**options), output=tmp_path / name, cache=tmp_path / "cache")


def read(path: Path) -> tuple[dict[bytes, Inode], Mapping[bytes, bytes]]:
    with SquashfsImage.open(path) as file:
        inodes = dict(file.walk())
        return inodes, {path: file.read(node) for path, node in inodes.items() if node.kind is Kind.FILE}


@pytest.mark.parametrize("block_size", [4096, 131072])
@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_layer_cases(tmp_path: Path, case: LayerCase, block_size: int) -> None:
    source = image(tmp_path / "image", *case.layers, compression=case.compressions)
    result = convert(source, tmp_path, block_size=block_size)
    inodes, contents = read(tmp_path / "out.sqsh")
    assert set(inodes) == set(result.tree)
    groups: dict[str, set[int]] = {}
    for path, expected in case.tree.items():
        if path.startswith(b"dev/") or path in OURS:
            continue
        inode = inodes[path]
        assert inode.kind == expected.kind, path
        if expected.kind == EntryKind.FILE:
            assert contents[path] == expected.content, path
        elif expected.kind == EntryKind.SYMLINK:
            assert inode.target == expected.content, path
        elif expected.kind in (EntryKind.CHAR, EntryKind.BLOCK):
            assert (inode.major, inode.minor) == expected.device, path
        if expected.group:
            groups.setdefault(expected.group, set()).add(inode.number)
    assert all(len(numbers) == 1 for numbers in groups.values())
    assert_is_tree(tmp_path / "out.sqsh", result)


def assert_is_tree(path: Path, result: Converted) -> None:
    """Every inode is exactly what the tree says, and so are size and digest of the file."""
    inodes, _ = read(path)
    sums = checksums(path)
    assert list(inodes) == list(result.tree)
    for name, node in result.tree.items():
        inode, entry = inodes[name], node.entry
        found = (inode.kind, inode.mode, inode.uid, inode.gid, inode.mtime, inode.xattrs)
        assert found == (entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime, entry.xattrs), name
        assert (inode.major, inode.minor) == (entry.major, entry.minor), name
        if entry.kind is EntryKind.FILE:
            assert (inode.size, sums[inode.number]) == (entry.size, entry.crc32), name
        if node.link_to is not None:
            assert inode.number == inodes[node.link_to].number, name
    raw = path.read_bytes()
    assert (hashlib.sha256(raw).hexdigest(), len(raw)) == (result.sha256, result.size)
    assert len(raw) % 4096 == 0


def test_a_cached_layer_is_not_opened(tmp_path: Path) -> None:
    base = LayerBuilder().dir("a").file("a/one", b"1" * 5000)
    source = image(tmp_path / "one", base, LayerBuilder().file("a/two", b"2"))
    first = convert(source, tmp_path)
    assert sorted(source.opened) == [0, 1]
    again = image(tmp_path / "two", base, LayerBuilder().file("a/two", b"3"))
    convert(again, tmp_path, "second.sqsh")
    assert again.opened == [1]
    source.opened.clear()
    warm = convert(source, tmp_path, "third.sqsh")
    assert source.opened == []
    assert (warm.sha256, warm.size) == (first.sha256, first.size)


def test_a_layer_under_another_blob_is_compared_once_and_not_packed_again(tmp_path: Path) -> None:
    """The same tar compressed in another way: its pack is there, its blob was never looked at."""
    base = LayerBuilder().dir("a").file("a/one", b"1" * 5000)
    first = convert(image(tmp_path / "one", base), tmp_path)
    packs = {pack.path.name: pack.path.stat().st_ino for pack in pack_cache(tmp_path / "cache").packs()}
    again = image(tmp_path / "two", base, compression="zstd")
    assert convert(again, tmp_path).sha256 == first.sha256
    assert again.opened == [0]
    assert convert(again, tmp_path).sha256 == first.sha256
    assert again.opened == [0]
    assert packs == {
        pack.path.name: pack.path.stat().st_ino for pack in pack_cache(tmp_path / "cache").packs()
    }


def test_bytes_depend_on_neither_cores_nor_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        LayerBuilder().file(f"{n}-{k}", bytes([k]) * (n * 3000 + k)) for n in range(3) for k in range(5)
    ]
    source = image(tmp_path / "image", *layers)
    found = set()
    for workers in (1, 2, 7):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, w=workers: set(range(w)))
        result = convert_native(
            source,
            ConvertOptions(block_size=4096),
            output=tmp_path / "out",
            cache=tmp_path / f"cache-{workers}",
        )
        found.add(result.sha256)
    assert len(found) == 1


@pytest.mark.parametrize("size", [1200, 4096, 40_000])
def test_what_upper_layers_hide_is_not_in_the_file(tmp_path: Path, size: int) -> None:
    secret = (MARKER * (size // len(MARKER) + 1))[:size]
    lower = LayerBuilder().file("kept", b"kept" * 300).file("secret", secret).file("other", b"other" * 2000)
    source = image(tmp_path / "image", lower, LayerBuilder().whiteout("secret"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.squashfs.compressors.BlockJob.run", store_plainly)
        convert(source, tmp_path, block_size=4096)
    data = (tmp_path / "out.sqsh").read_bytes()
    assert MARKER[:30] not in data
    _, contents = read(tmp_path / "out.sqsh")
    assert contents[b"kept"] == b"kept" * 300
    assert contents[b"other"] == b"other" * 2000
    packs = b"".join(pack.path.read_bytes() for pack in pack_cache(tmp_path / "cache").packs())
    assert MARKER[:30] in packs  # else this test looks for nothing


def store_plainly(job: Any, _compress: object) -> None:
    job.words = [len(block) | 1 << 24 if block else 0 for block in job.blocks]
    job.parts = [block for block in job.blocks if block]
    job.length = sum(map(len, job.parts))
    job.sums = [zlib.crc32(block) if block else 0 for block in job.blocks]
    job._done.release()


@pytest.mark.parametrize("where", ["data", "index", "footer", "cut", "empty"])
def test_a_damaged_pack_is_made_again(tmp_path: Path, where: str) -> None:
    source = image(tmp_path / "image", LayerBuilder().file("a", bytes(range(256)) * 64).file("b", b"b" * 900))
    first = convert(source, tmp_path, block_size=4096)
    [pack] = pack_cache(tmp_path / "cache").packs()
    data = bytearray(pack.path.read_bytes())
    at = {"data": 100, "index": -120, "footer": -5}.get(where)
    if at is not None:
        data[at] ^= 4
    pack.path.write_bytes({"cut": data[:-1], "empty": b""}.get(where, data))
    source.opened.clear()
    again = convert(source, tmp_path, block_size=4096)
    assert source.opened == [0]
    assert again.sha256 == first.sha256


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    good = LayerBuilder().file("a", b"a" * 100_000)
    write_layout(tmp_path / "image", [good])
    blob = max(
        (tmp_path / "image/blobs/sha256").iterdir(), key=lambda path: path.read_bytes()[:2] == b"\x1f\x8b"
    )
    blob.write_bytes(blob.read_bytes()[:-20])
    source = open_layout(tmp_path / "image", platform=PLATFORM)
    with pytest.raises(FormatError):
        convert(source, tmp_path)
    assert not (tmp_path / "out.sqsh").exists()
    assert pack_cache(tmp_path / "cache").packs() == []


def test_one_content_is_stored_once(tmp_path: Path) -> None:
    noise = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(3000))
    lower = LayerBuilder().file("one", noise).file("two", noise).file("small", noise[:3000])
    upper = LayerBuilder().file("three", noise).file("little", noise[:3000])
    source = image(tmp_path / "image", lower, upper)
    convert(source, tmp_path, block_size=4096)
    inodes, contents = read(tmp_path / "out.sqsh")
    assert inodes[b"one"].start == inodes[b"two"].start == inodes[b"three"].start
    assert inodes[b"small"].offset == inodes[b"little"].offset
    assert inodes[b"small"].fragment == inodes[b"little"].fragment
    assert contents[b"three"] == noise
    assert (tmp_path / "out.sqsh").stat().st_size < len(noise) * 1.2


def test_owners_and_xattrs_are_kept_on_request(tmp_path: Path) -> None:
    xattrs = {"user.note": b"\x00\xff" * 9, "security.capability": b"\1\0\0\2" * 5}
    layer = LayerBuilder().file("owned", b"x", uid=70000, gid=4, xattrs=xattrs).dir("d", uid=3, xattrs=xattrs)
    result = convert(image(tmp_path / "image", layer), tmp_path, keep_owners=True, keep_xattrs=True)
    inodes, _ = read(tmp_path / "out.sqsh")
    assert (inodes[b"owned"].uid, inodes[b"owned"].gid, inodes[b"d"].uid) == (70000, 4, 3)
    assert dict(inodes[b"d"].xattrs) == {key.encode(): value for key, value in xattrs.items()}
    assert_is_tree(tmp_path / "out.sqsh", result)


def test_the_same_layer_twice(tmp_path: Path) -> None:
    layer = LayerBuilder().file("a", b"a" * 9000).file("b", b"b")
    source = image(tmp_path / "image", layer, LayerBuilder().whiteout("a"), layer)
    result = convert(source, tmp_path, block_size=4096)
    assert_is_tree(tmp_path / "out.sqsh", result)
    assert sorted(source.opened) == [0, 1]


def test_packs_in_use_survive_a_trim(tmp_path: Path) -> None:
    convert(image(tmp_path / "image", LayerBuilder().file("a", b"a")), tmp_path)
    cache = pack_cache(tmp_path / "cache")
    [listed] = cache.packs()
    with contextlib.closing(cache.open(listed.path.stem)) as pack:  # type: ignore[type-var]
        assert pack is not None
        assert cache.packs()[0].in_use
        assert cache.trim(now=listed.used, max_size=0) == []
    assert [pack.path for pack in cache.trim(now=listed.used, max_size=0)] == [listed.path]
    assert cache.packs() == []


def test_a_cache_that_is_no_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ToolError, match="cache"):
        convert(image(tmp_path / "image", LayerBuilder().file("a", b"a")), tmp_path)
    assert not (tmp_path / "out.sqsh").exists()
