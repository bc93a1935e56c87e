"""The quick ways through a tar give what the careful ones give."""

from __future__ import annotations

import contextlib
import io
import random
import tarfile

import pytest

from pipeline.errors import FormatError
from pipeline.oci import tar
from pipeline.oci.digest import Digest
from pipeline.oci.entry import Entry
from pipeline.oci.layer import read_layer
from pipeline.oci.tar_header import BLOCK, access, long_number, parse_header, plain_file

NAMES = ["a", "./a", "b/./c", ".hidden/x", "..x", "...", "n" * 99, "n" * 100, "p/" * 70 + "q"]
LONG = ["m" * 101, "m" * 255]


def archive(form: int) -> bytes:
    """Files of many names and sizes, every other one small."""
    rng = random.Random(form)
    made = io.BytesIO()
    names = NAMES if form == tarfile.USTAR_FORMAT else NAMES + LONG
    with tarfile.open(fileobj=made, mode="w", format=form) as out:
        for number, name in enumerate(names * 3):
            info = tarfile.TarInfo(f"{number}/{name}")
            info.size, info.uid = rng.choice((0, 1, 511, 512, 20_000)), number
            info.mode, info.mtime = rng.randrange(0o10000), rng.choice((0, 1_700_000_000, 8**11 - 1))
            out.addfile(info, io.BytesIO(rng.randbytes(info.size)))
    return made.getvalue()


def entries(data: bytes) -> list[tuple[Entry, bytes]]:
    with read_layer(io.BytesIO(data), diff_id=Digest.of(data)) as layer:
        return [(entry, bytes(content.view(entry.size))) for entry, content in layer]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_plain_files_are_read_as_all_members_are(form: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive(form)
    quick = entries(data)
    monkeypatch.setattr(tar, "plain_file", lambda _block: None)
    assert quick == entries(data)
    assert len({entry.path for entry, _ in quick}) >= 3 * len(NAMES)


def test_a_header_that_is_plain_is_parsed_alike() -> None:
    """Headers with bytes changed at random, their checksum corrected, never get another meaning."""
    rng = random.Random(3)
    blocks = [archive(form)[:BLOCK] for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)]
    plain = 0
    for _ in range(4000):
        block = bytearray(rng.choice(blocks))
        for _ in range(rng.choice((1, 2, 4))):
            block[rng.randrange(BLOCK)] = rng.choice((0, 32, 47, 48, 55, 57, 0x80, 0xFF, rng.randrange(256)))
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        quick: object = FormatError
        with contextlib.suppress(FormatError):
            quick = plain_file(bytes(block))
        if quick is None or quick is FormatError:
            continue
        header = parse_header(bytes(block))
        assert quick == (header.name, header.access, long_number(header.size), long_number(header.mtime))
        assert header.kind == b"0"
        with contextlib.suppress(FormatError):
            access(header.access)
        plain += 1
    assert plain > 1000


def test_a_view_stays_when_the_reader_continues() -> None:
    content = random.Random(1).randbytes(300_000)
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as out:
        for number in range(12):
            info = tarfile.TarInfo(f"{number}")
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    data, views = made.getvalue(), []
    with read_layer(io.BytesIO(data), diff_id=Digest.of(data)) as layer:
        for entry, inside in layer:
            views += [inside.view(100_000), inside.view(0), inside.view(5), inside.view(1 << 20)]
            assert inside.left == 0
            assert entry.crc32
    assert all(b"".join(views[at : at + 4]) == content for at in range(0, len(views), 4))
    assert any(isinstance(view, memoryview) for view in views)
