"""Native images opened by every reader that there is: the kernel, squashfuse, unsquashfs, sqfs2tar, ours."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.interface import Converted
from pipeline.convert.native import convert_native
from pipeline.oci.entry import Limits
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.squashfs.inode import Kind
from pipeline.squashfs.layout import Layout, lay_out
from pipeline.squashfs.pack import Pack
from pipeline.squashfs.reader import SquashfsImage
from pipeline.system.mount import mounted
from tests.support.images.layers import LayerBuilder, write_layout
from tests.support.images.snapshot import Seen, expected, from_tar, snapshot

pytestmark = pytest.mark.needs("mksquashfs", "unsquashfs", "root", "/dev/loop-control")

PLATFORM = Platform(os="linux", architecture="amd64")


def convert(folder: Path, layers: list[LayerBuilder], **options: object) -> tuple[Path, Converted]:
    write_layout(folder / "image", layers, config={"Env": ["A=1"], "WorkingDir": "/work"})
    output = folder / "native.sqsh"
    result = convert_native(
        open_layout(folder / "image", platform=PLATFORM),
        ConvertOptions(keep_owners=True, keep_xattrs=True, **options),  # type: ignore[arg-type]
        output=output,
        cache=folder / "cache",
    )
    return output, result


def through_mount(file: Path, folder: Path, kind: Literal["kernel", "fuse"]) -> dict[bytes, Seen]:
    folder.mkdir()
    with mounted(file, folder, kind=kind):
        return snapshot(folder)


def own_contents(file: Path) -> dict[bytes, bytes]:
    with SquashfsImage.open(file) as image:
        return {path: image.read(inode) for path, inode in image.walk() if inode.kind is Kind.FILE}


def corner_layers(block: int) -> list[LayerBuilder]:
    """What is on the edge of something in the format, for blocks of `block` bytes."""
    rng = random.Random(7)
    lower = LayerBuilder().dir("sizes", uid=70_000).dir("names").dir("links").dir("x")
    for size in (0, 1, block - 1, block, block + 1, 2 * block, 5 * block + 17):
        lower.file(f"sizes/noise-{size}", rng.randbytes(size), uid=size % 60_000)
        lower.file(f"sizes/text-{size}", (b"squashfs " * (size // 9 + 1))[:size])
        lower.file(f"sizes/zero-{size}", bytes(size))
    lower.file("sizes/hole-then-end", bytes(7 * block) + b"end")
    lower.file("sizes/hole-between", b"x" * block + bytes(3 * block) + b"y" * block)
    for half in "ab":
        lower.file(f"sizes/half-{half}", rng.randbytes(block // 2))
    for length in (1, 254, 255):
        lower.file(f"names/{'n' * length}", b"%d" % length)
    lower.file(b"names/caf\xe9\xff", b"bytes")
    for count in (255, 256, 257, 1000):
        lower.dir(f"many-{count}")
        for number in range(count):
            lower.file(f"many-{count}/{number:05}", b"%d" % (number % 7))
    lower.file("links/b-first", b"linked" * 100).hardlink("links/a-second", "links/b-first")
    lower.dir("links/deeper").hardlink("links/deeper/third", "links/b-first")
    lower.symlink("links/long", "t" * 1000).hardlink("links/long-too", "links/long").fifo("links/fifo")
    lower.device("links/null", 1, 3).device("links/disk", 259, 70_000, block=True)
    lower.file("x/attr", b"attr", xattrs={"user.a": b"1", "security.capability": b"\1\0\0\2" + bytes(16)})
    lower.dir("x/dir", xattrs={"user.a": b"1"}).file(
        "x/big", b"b" * 3 * block, xattrs={"user.b": b"\0" * 300}
    )
    lower.symlink("x/link", "attr", xattrs={"trusted.t": b"t"}).fifo("x/fifo", xattrs={"trusted.t": b"t"})
    lower.dir("/".join(["deep"] * 100)).file("old", b"o", mtime=0).file("new", b"n", mtime=2**32 - 1)
    lower.file("modes", b"m", mode=0o4751).dir("sticky", mode=0o1777)
    upper = LayerBuilder().whiteout(f"sizes/noise-{block}").file("sizes/text-1", b"replaced")
    upper.file("sizes/same-again", (b"squashfs " * block)[: 5 * block + 17]).whiteout("many-255")
    upper.hardlink("upper-link", "links/b-first").file("upper", rng.randbytes(block * 3 + 1))
    return [lower, upper]


@pytest.mark.parametrize("block", [4096, 131072])
def test_every_reader_sees_the_same_tree(tmp_path: Path, block: int) -> None:
    file, result = convert(tmp_path, corner_layers(block), block_size=block)
    wanted = expected(result.tree, own_contents(file))
    assert through_mount(file, tmp_path / "kernel", "kernel") == wanted
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tmp_path / "un", file], check=True, timeout=120)
    assert snapshot(tmp_path / "un") == wanted


@pytest.mark.needs("squashfuse", "/dev/fuse")
def test_squashfuse_sees_the_same_tree(tmp_path: Path) -> None:
    file, result = convert(tmp_path, corner_layers(4096), block_size=4096)
    wanted = expected(result.tree, own_contents(file))
    seen = through_mount(file, tmp_path / "fuse", "fuse")
    assert {path: (s.kind, s.mode, s.mtime, s.size, s.content) for path, s in seen.items()} == {
        path: (s.kind, s.mode, s.mtime, s.size, s.content) for path, s in wanted.items()
    }


@pytest.mark.needs("sqfs2tar")
def test_sqfs2tar_sees_the_same_tree(tmp_path: Path) -> None:
    file, result = convert(tmp_path, corner_layers(4096), block_size=4096)
    tar = tmp_path / "out.tar"
    with tar.open("wb") as out:
        subprocess.run(["sqfs2tar", "--no-skip", file], check=True, stdout=out, timeout=120)
    seen = from_tar(tar)
    assert set(seen) - {b""} == set(result.tree) - {b""}
    for path, node in result.tree.items():
        if path and node.link_to is None and seen[path][3] != ord("1"):
            assert seen[path][:3] == (node.entry.mode, node.entry.mtime, node.entry.size), path


def test_mksquashfs_of_the_mounted_tree_is_not_smaller_by_much(tmp_path: Path) -> None:
    rng = random.Random(3)
    layer = LayerBuilder()
    words = [rng.randbytes(9).hex().encode() for _ in range(500)]
    for number in range(400):
        layer.file(f"f{number:04}", b" ".join(rng.choices(words, k=rng.randint(1, 9000))))
    file, _ = convert(tmp_path, [layer])
    (tmp_path / "mount").mkdir()
    with mounted(file, tmp_path / "mount", kind="kernel"):
        options = ["-comp", "zstd", "-Xcompression-level", "3", "-quiet", "-no-progress"]
        command = ["mksquashfs", tmp_path / "mount", tmp_path / "mk.sqsh", *options]
        subprocess.run(command, check=True, timeout=120)
    assert file.stat().st_size <= (tmp_path / "mk.sqsh").stat().st_size * 1.01


@pytest.mark.parametrize("listing", [65_532, 65_533])
def test_listings_at_the_border_of_the_basic_inode(tmp_path: Path, listing: int) -> None:
    """A listing's size is stored plus 3 in 16 bits, so the larger one needs the extended inode."""
    names = [f"{number:04}{'n' * 60}" for number in range(903)]
    for _ in range(6):
        layer = LayerBuilder().dir("d").file("one", b"1")
        for name in names:
            layer.hardlink(f"d/{name}", "one")
        step = tmp_path / f"{len(names)}-{sum(map(len, names))}"
        file, _ = convert(step, [layer])
        with SquashfsImage.open(file) as image:
            missing = listing - image.lookup(b"d").listing
        if not missing:
            break
        names = lengthened(names, missing)
    assert missing == 0
    (tmp_path / "m").mkdir()
    with mounted(file, tmp_path / "m", kind="kernel"):
        assert sorted(path.name for path in (tmp_path / "m/d").iterdir()) == names
        assert all((tmp_path / "m/d" / name).stat().st_size == 1 for name in names)


def lengthened(names: list[str], count: int) -> list[str]:
    """The same names with `count` more (or fewer) characters in all."""
    step = 1 if count > 0 else -1
    result = list(names)
    for number in range(abs(count)):
        at = number % len(result)
        result[at] = result[at] + "n" if step > 0 else result[at][:-1]
    return result


def test_files_and_positions_over_four_gibibytes(tmp_path: Path) -> None:
    """Holes make the borders cheap: a GNU sparse member of 4 GiB and one byte."""
    huge = (1 << 32) + 1
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, size in (("over", huge), ("exact", 1 << 32), ("under", (1 << 32) - 1)):
        with (tree / name).open("wb") as out:
            out.truncate(size)
            out.seek(size - 3)
            out.write(b"end")
    tar = subprocess.run(
        ["tar", "-C", tree, "-cS", "--sort=name", "."], check=True, capture_output=True, timeout=300
    )
    write_layout(tmp_path / "image", [tar.stdout])
    file = tmp_path / "huge.sqsh"
    convert_native(
        open_layout(tmp_path / "image", platform=PLATFORM),
        ConvertOptions(block_size=1 << 20),
        output=file,
        cache=tmp_path / "cache",
        limits=Limits(max_ratio=1 << 40),
    )
    (tmp_path / "m").mkdir()
    with mounted(file, tmp_path / "m", kind="kernel"):
        for name in ("over", "exact", "under"):
            with (tmp_path / "m" / name).open("rb") as seen:
                size = seen.seek(0, os.SEEK_END)
                assert size == (tree / name).stat().st_size
                seen.seek(size - 5)
                assert seen.read() == b"\0\0end"
            assert (tmp_path / "m" / name).stat().st_blocks < 1 << 12


def test_data_beyond_four_gibibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole data area behind a hole of 4 GiB, so that blocks and fragments lie at positions over 2^32."""

    def far_out(packs: Sequence[Pack], contents: Iterable[int], *, start: int, block_size: int) -> Layout:
        return lay_out(packs, contents, start=start + (1 << 32), block_size=block_size)

    monkeypatch.setattr("pipeline.squashfs.stitch.lay_out", far_out)
    file, result = convert(tmp_path, corner_layers(4096), block_size=4096)
    assert file.stat().st_blocks * 512 < 1 << 30
    wanted = expected(result.tree, own_contents(file))
    assert through_mount(file, tmp_path / "kernel", "kernel") == wanted
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tmp_path / "un", file], check=True, timeout=120)
    assert snapshot(tmp_path / "un") == wanted


@pytest.mark.parametrize("compressor", ["gzip", "lz4"])
def test_the_kernel_reads_other_compressors(tmp_path: Path, compressor: str) -> None:
    file, result = convert(tmp_path, corner_layers(4096), block_size=4096, compressor=compressor)
    wanted = expected(result.tree, own_contents(file))
    assert through_mount(file, tmp_path / "kernel", "kernel") == wanted


def test_as_many_owners_as_squashfs_has(tmp_path: Path) -> None:
    layer = LayerBuilder()
    for owner in range(65_535):  # root among them, so that all of the table is used
        layer.file(f"{owner:05}", uid=owner, gid=65_534 - owner)
    file, _ = convert(tmp_path, [layer])
    (tmp_path / "m").mkdir()
    with mounted(file, tmp_path / "m", kind="kernel"):
        for owner in (0, 1, 255, 256, 2047, 2048, 40_000, 65_533, 65_534):
            status = (tmp_path / "m" / f"{owner:05}").stat()
            assert (status.st_uid, status.st_gid) == (owner, 65_534 - owner)


@pytest.mark.slow
def test_a_folder_of_a_hundred_thousand_names(tmp_path: Path) -> None:
    layer = LayerBuilder().dir("big")
    names = [
        hashlib.sha1(b"%d" % number).hexdigest()[: 3 + number % 37] + f"-{number}"
        for number in range(100_000)
    ]
    for name in names:
        layer.file(f"big/{name}", name.encode())
    file, _ = convert(tmp_path, [layer])
    (tmp_path / "m").mkdir()
    with mounted(file, tmp_path / "m", kind="kernel"):
        assert sorted(path.name for path in (tmp_path / "m/big").iterdir()) == sorted(names)
        for name in random.Random(1).sample(names, 3000):
            assert (tmp_path / "m/big" / name).read_bytes() == name.encode()
