"""Our reader against files that mksquashfs made, entry by entry."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from pipeline.squashfs.expand import read_all
from pipeline.squashfs.inode import Kind
from pipeline.squashfs.reader import SquashfsImage

pytestmark = pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="mksquashfs is not installed")

BLOCK = 4096


def make_tree(root: Path) -> None:
    root.mkdir()
    for size in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7):
        (root / f"file-{size}").write_bytes(os.urandom(size // 2) + b"x" * (size - size // 2))
    with (root / "sparse").open("wb") as file:
        file.seek(10 * BLOCK)
        file.write(b"end")
    folder = root / "folder"
    folder.mkdir(mode=0o1777)
    for number in range(700):
        (folder / f"{number:03}{'n' * (number % 200)}").write_bytes(b"%d" % number)
    (root / "link").symlink_to("folder/000")
    (root / "same").hardlink_to(root / "file-1")
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"caf\xe9")).write_bytes(b"not utf-8")
    (root / "file-0").chmod(0o4755)
    os.utime(root / "file-1", (1, 12345))


@pytest.mark.parametrize("compressor", ["gzip", "zstd", "lz4", "xz"])
@pytest.mark.parametrize("options", [[], ["-noI", "-noF", "-always-use-fragments"], ["-no-fragments"]])
def test_reads_what_mksquashfs_made(tmp_path: Path, compressor: str, options: list[str]) -> None:
    if compressor == "lz4":
        pytest.importorskip("lz4")
    tree = tmp_path / "tree"
    make_tree(tree)
    file = tmp_path / "made.sqsh"
    command = [
        "mksquashfs",
        tree,
        file,
        "-comp",
        compressor,
        "-b",
        str(BLOCK),
        "-no-progress",
        "-quiet",
        *options,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    sums: dict[int, int] = {}
    with SquashfsImage.open(file) as image:
        walked = dict(image.walk())
        read_all(image, sums.__setitem__, workers=2)
        assert image.lookup(b"folder/000").size == 1
        expected = {b""} | {
            os.fsencode(Path(base, name).relative_to(tree))
            for base, folders, files in os.walk(tree)
            for name in folders + files
        }
        assert set(walked) == expected
        for path, inode in walked.items():
            on_disk = tree / os.fsdecode(path)
            status = on_disk.lstat()
            assert inode.mode == status.st_mode & 0o7777, path
            assert inode.mtime == int(status.st_mtime), path
            if inode.kind is Kind.FILE:
                content = on_disk.read_bytes()
                assert image.read(inode) == content, path
                assert sums[inode.number] == zlib.crc32(content), path
                assert inode.nlink == status.st_nlink, path
            elif inode.kind is Kind.SYMLINK:
                assert inode.target == os.fsencode(on_disk.readlink()), path
        assert walked[b"same"].number == walked[b"file-1"].number
        assert [path for path in walked if b"/" not in path and path] == sorted(
            path for path in walked if b"/" not in path and path
        )
