"""Files read back from the disk: every byte once, whatever the file system can do."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import random
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.squashfs.reread import Block, reread

MIB = 1 << 20


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk, and one on tmpfs, which has no page cache to pass by on older kernels."""
    if request.param == "disk":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def written(folder: Path, size: int) -> Path:
    path = folder / "file"
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def blocks_of(content: bytes, seed: int) -> list[Block]:
    """Blocks of every length with gaps between them, none on a page's edge on purpose."""
    chance, at, found = random.Random(seed), 0, list[Block]()
    while at < len(content):
        at += chance.choice([0, 0, 1, 4095, 70_000])
        length = min(chance.choice([1, 511, 4096, 130_000, MIB]), len(content) - at)
        if length > 0:
            found.append((at, length, zlib.crc32(content[at : at + length])))
        at += max(length, 0)
    return found


@pytest.mark.parametrize(
    "size", [0, 1, 4095, 4096, 4097, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 12_345]
)
def test_every_byte_is_hashed_once_and_no_block_is_wrong(folder: Path, size: int) -> None:
    content = written(folder, size).read_bytes()
    with (folder / "file").open("rb") as file:
        hasher = hashlib.sha256()
        assert reread(file.fileno(), size, blocks_of(content, size), hasher=hasher) == []
    assert hasher.digest() == hashlib.sha256(content).digest()


def test_each_wrong_block_is_named(folder: Path) -> None:
    content = written(folder, 9 * MIB + 77).read_bytes()
    blocks = blocks_of(content, 3)
    wrong = blocks[:: max(1, len(blocks) // 5)]
    given = [
        (at, length, crc ^ 1) if (at, length, crc) in wrong else (at, length, crc)
        for at, length, crc in blocks
    ]
    with (folder / "file").open("rb") as file:
        found = reread(file.fileno(), len(content), given)
    assert [block[:2] for block in found] == [block[:2] for block in wrong]


def test_a_part_of_a_file_is_read_to_its_end_and_no_further(folder: Path) -> None:
    content = written(folder, 5 * MIB).read_bytes()
    hasher, end = hashlib.sha256(), 4 * MIB + 100
    with (folder / "file").open("rb") as file:
        reread(file.fileno(), end, [], hasher=hasher)
    assert hasher.digest() == hashlib.sha256(content[:end]).digest()


@pytest.mark.parametrize("size", [5 * MIB, 5 * MIB - 1, 5 * MIB + 4095, 4 * MIB + 7, 3])
def test_a_file_that_is_shorter_than_it_should_be_is_an_error(
    folder: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only where it ends on a page's edge: XFS calls a direct read inside a page an invalid argument."""
    path, real = written(folder, size), os.preadv

    def strict(descriptor: int, buffers: list[memoryview], at: int) -> int:
        if at % mmap.PAGESIZE and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(descriptor, buffers, at)

    monkeypatch.setattr(os, "preadv", strict)
    with path.open("rb") as file, pytest.raises(OSError, match=f"the file ends at {size}, before"):
        reread(file.fileno(), 6 * MIB, [])


def test_direct_reads_that_are_refused_later_come_from_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may take the first one alone, which was the only one tried."""
    content = written(tmp_path, 9 * MIB + 5).read_bytes()
    real, hasher, refused = os.preadv, hashlib.sha256(), list[int]()

    def refuse(descriptor: int, buffers: list[memoryview], at: int) -> int:
        if at and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(at)
            raise OSError(22, "Invalid argument")
        return real(descriptor, buffers, at)

    monkeypatch.setattr(os, "preadv", refuse)
    with (tmp_path / "file").open("rb") as file:
        assert reread(file.fileno(), len(content), blocks_of(content, 1), hasher=hasher) == []
    assert hasher.digest() == hashlib.sha256(content).digest()
    assert refused


def test_a_file_whose_name_is_gone_is_read(folder: Path) -> None:
    content = written(folder, MIB + 1).read_bytes()
    hasher = hashlib.sha256()
    with (folder / "file").open("rb") as file:
        (folder / "file").unlink()
        reread(file.fileno(), len(content), [], hasher=hasher)
    assert hasher.digest() == hashlib.sha256(content).digest()


def test_without_direct_reads_the_page_cache_is_dropped_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, 5 * MIB + 5)
    real, dropped = os.open, list[int]()

    def refuse(name: str, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("pipeline.system.disk.drop_cache", dropped.append)
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        reread(file.fileno(), 5 * MIB + 5, [], hasher=hasher)
        assert dropped == [file.fileno()]
    assert hasher.digest() == hashlib.sha256(path.read_bytes()).digest()


def test_a_direct_read_leaves_the_page_cache_as_it_is(tmp_path: Path) -> None:
    """What a conversion has just written is what it reads next."""
    path = written(tmp_path, 8 * MIB)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        before = resident(path)
        reread(file.fileno(), 8 * MIB, [])
    assert resident(path) >= before > 0


def resident(path: Path) -> int:
    """The pages of a file that a read finds in the page cache."""
    found, page = 0, bytearray(mmap.PAGESIZE)
    with path.open("rb") as file:
        for at in range(0, path.stat().st_size, mmap.PAGESIZE):
            with contextlib.suppress(BlockingIOError):
                found += os.preadv(file.fileno(), [page], at, os.RWF_NOWAIT) > 0
    return found
