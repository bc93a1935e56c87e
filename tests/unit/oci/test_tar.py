"""The tar reader against other writers, and against bytes that nobody should write."""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
import tarfile
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import FormatError
from pipeline.oci.digest import Digest
from pipeline.oci.entry import DEFAULT_LIMITS, Entry, EntryKind, Limits
from pipeline.oci.layer import decompressed, read_layer
from tests.support.images.hostile_tars import HOSTILE_TARS, after, member, pax
from tests.support.images.layer_cases import LAYER_CASES, LayerCase
from tests.support.images.layers import LayerBuilder, compressed, raw_header


class Drip:
    """A stream that gives a few bytes at a time, never where a block ends."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file = io.BytesIO(data)
        self._step = step

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._step))


def read(data: bytes, *, limits: Limits = DEFAULT_LIMITS, step: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    with read_layer(Drip(data, step), diff_id=Digest.of(data), limits=limits) as layer:
        return [(entry, content.read()) for entry, content in layer]


def only(builder: LayerBuilder) -> Entry:
    [(entry, _)] = read(builder.tar())
    return entry


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("step", [1, 511, 700])
def test_pieces_of_any_size_give_the_same(case: LayerCase, step: int) -> None:
    for builder in case.layers:
        data = builder.tar()
        if len(data) < 100_000 or step > 1:
            assert read(data, step=step) == read(data)


@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "pax", "oldgnu"])
def test_what_gnu_tar_writes(tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True, mode=0o750)
    long = "n" * 90 + "/" + "m" * 90 if form != "v7" else "short/name"
    (source / long).parent.mkdir()
    (source / long).write_bytes(b"long")
    (source / "folder" / "empty").touch(0o4600)
    (source / "folder" / "big").write_bytes(os.urandom(3_000_001))
    (source / "folder" / "hard").hardlink_to(source / "folder" / "big")
    (source / "link").symlink_to("folder/../../else" + "/x" * (20 if form in ("v7", "ustar") else 90))
    tar = tmp_path / "made.tar"
    command = [
        "tar",
        f"--format={form}",
        "--sort=name",
        "--owner=1000",
        "--group=50",
        "-C",
        source,
        "-cf",
        tar,
        ".",
    ]
    subprocess.run(command, check=True)
    found = {entry.path: (entry, content) for entry, content in read(tar.read_bytes())}
    with tarfile.open(tar) as archive:
        for info in archive:
            name = info.name.removeprefix(".").removeprefix("/").encode()
            entry, content = found.pop(name)
            assert (entry.mode, entry.uid, entry.gid, entry.mtime) == (info.mode, 1000, 50, int(info.mtime))
            if info.isreg():
                wanted = archive.extractfile(info)
                assert wanted is not None
                assert content == wanted.read()
                assert (entry.kind, entry.size) == (EntryKind.FILE, info.size)
                assert entry.crc32 == zlib.crc32(content)
            elif info.islnk():
                assert (entry.kind, entry.target) == (EntryKind.HARDLINK, info.linkname[2:].encode())
            elif info.issym():
                assert (entry.kind, entry.target) == (EntryKind.SYMLINK, info.linkname.encode())
            else:
                assert (entry.kind, info.isdir()) == (EntryKind.DIRECTORY, True)
    assert not found


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=oldgnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
    ids=lambda options: options[-1].lstrip("-"),
)
@pytest.mark.parametrize("holes", [0, 1, 3, 40])
def test_sparse_files_of_gnu_tar(tmp_path: Path, options: list[str], holes: int) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for number in range(holes):
            file.seek(65536, 1)
            file.write(b"%d" % number * 5000)
        file.truncate(file.tell() + 100_001)
    tar = tmp_path / "made.tar"
    subprocess.run(["tar", "--sparse", *options, "-C", tmp_path, "-cf", tar, "sparse"], check=True)
    data = tar.read_bytes()
    wanted = path.read_bytes()
    [(entry, content)] = read(data)
    assert (entry.path, entry.size, content == wanted) == (b"sparse", len(wanted), True)
    assert entry.crc32 == zlib.crc32(wanted)
    with read_layer(io.BytesIO(data), diff_id=None) as layer:
        [passed_over] = layer.entries()
    assert passed_over == entry
    with read_layer(io.BytesIO(data), diff_id=None) as layer:
        for _, reader in layer:
            assert reader.stretches is not None
            parts = [
                reader.read(100),
                *(bytes(part) for part in reader.pieces(most=70_000)),
                reader.read(1),
                reader.read(),
            ]
            assert b"".join(parts) == wanted
            assert reader.left == 0


def test_content_is_read_in_every_way() -> None:
    data = random.Random(1).randbytes(300_000)
    tar = LayerBuilder().file("a", data).file("b", b"next").tar()
    with read_layer(Drip(tar, 1000), diff_id=None) as layer:
        members = iter(layer)
        entry, content = next(members)
        buffer = bytearray(5000)
        assert content.read(3) + content.read(0) + content.read(1997) == data[:2000]
        assert content.readinto(buffer) == 5000
        assert bytes(buffer) == data[2000:7000]
        assert b"".join(content.pieces(most=3000)) == data[7000:10_000]
        assert (content.left, entry.crc32) == (290_000, 0)
        assert content.read(1 << 30) == data[10_000:]
        assert content.readinto(buffer) == 0
        assert (content.left, entry.crc32) == (0, zlib.crc32(data))
        _, second = next(members)
        with pytest.raises(ValueError, match="already at the next member"):
            content.read(1)
        assert second.read() == b"next"
        assert list(members) == []


def test_content_that_is_not_read_is_passed_over() -> None:
    tar = LayerBuilder().file("a", b"1" * 5_000_000).file("b", b"2").tar()
    with read_layer(io.BytesIO(tar), diff_id=Digest.of(tar), background=True) as layer:
        first, second = layer.entries()
    assert (first.crc32, second.crc32) == (zlib.crc32(b"1" * 5_000_000), zlib.crc32(b"2"))


def test_xattrs_and_numbers_of_pax() -> None:
    value = bytes(range(256))
    entry = only(
        LayerBuilder().file(
            "a", b"", xattrs={"user.z": value, "security.capability": b"\1\0"}, uid=3_000_000, mtime=-5.5
        )
    )
    assert entry.xattrs == ((b"security.capability", b"\1\0"), (b"user.z", value))
    assert (entry.uid, entry.mtime) == (3_000_000, 0)
    entry = only(after(pax(path=b"new/./path", uid=b"7", gid=b"8", mtime=b"12.9", size=b"3"), data=b"abc"))
    assert (entry.path, entry.uid, entry.gid, entry.mtime, entry.size) == (b"new/path", 7, 8, 12, 3)
    assert only(after(pax(path=b"", comment=b"x", other=b"\0"))).path == b"name"


def test_base_256_numbers_of_gnu() -> None:
    def field(value: int, width: int) -> bytes:
        return (value + (1 << (8 * width)) if value < 0 else value | 1 << (8 * width - 1)).to_bytes(
            width, "big"
        )

    header = raw_header(b"a", b"0", uid=field(1 << 31, 8), mtime=field(1 << 33, 12), magic=b"ustar  \0")
    entry = only(LayerBuilder().raw(header))
    assert (entry.uid, entry.mtime) == (1 << 31, 1 << 33)
    assert only(LayerBuilder().raw(raw_header(b"a", b"0", mtime=field(-1, 12)))).mtime == 0
    for bad in (
        raw_header(b"a", b"0", uid=field(-1, 8)),
        raw_header(b"a", b"0", gid=field(1 << 32, 8)),
        raw_header(b"a", b"0", size_field=field(-1, 12)),
        raw_header(b"a", b"0", size_field=field(1 << 80, 12)),
    ):
        with pytest.raises(FormatError):
            read(LayerBuilder().raw(bad).tar())


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"./a/b", b"a/b"),
        (b"/a/b", b"a/b"),
        (b"//a//b", b"a/b"),
        (b"a/./b/.", b"a/b"),
        (b".", b""),
        (b"./", b""),
        (b"/", b""),
        (b"..a/b..", b"..a/b.."),
        (b".hidden", b".hidden"),
        (b"a/", b"a"),
        (b"a//", b"a"),
    ],
)
def test_names_are_made_relative_and_short(name: bytes, path: bytes) -> None:
    assert only(LayerBuilder().raw(raw_header(name, b"5"))).path == path


def test_a_prefix_belongs_to_posix_headers_alone() -> None:
    assert only(LayerBuilder().raw(raw_header(b"name", b"0", prefix=b"pre/fix"))).path == b"pre/fix/name"
    times = b"00000000000\0" * 2
    assert only(LayerBuilder().raw(raw_header(b"name", b"0", magic=b"ustar  \0", tail=times))).path == b"name"
    assert only(LayerBuilder().raw(raw_header(b"name", b"0", magic=bytes(8), prefix=b"x"))).path == b"name"
    star = b"pre".ljust(131, b"\0") + times + bytes(8) + b"tar\0"
    assert only(LayerBuilder().raw(raw_header(b"name", b"0", tail=star))).path == b"pre/name"


@pytest.mark.parametrize("name", HOSTILE_TARS)
def test_hostile_tars_are_refused_in_a_sentence(name: str) -> None:
    make, words = HOSTILE_TARS[name]
    with pytest.raises(FormatError, match=words):
        read(make())


def test_a_global_header_with_a_comment_is_passed_over() -> None:
    assert only(LayerBuilder().raw(member(pax(comment=b"commit"), b"g")).file("a")).path == b"a"


def test_an_ancient_signed_checksum_is_taken() -> None:
    header = raw_header(b"caf\xe9", b"0", magic=bytes(8))
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 256
    assert only(LayerBuilder().raw(header[:148] + b"%06o\0 " % signed + header[156:])).path == b"caf\xe9"


def test_what_follows_the_end_counts_for_the_digest_only() -> None:
    data = LayerBuilder().file("a").tar() + b"trailing" * 1000
    assert [entry.path for entry, _ in read(data)] == [b"a"]
    with (
        pytest.raises(FormatError, match="its image says"),
        read_layer(io.BytesIO(data[:-1]), diff_id=Digest.of(data)) as layer,
    ):
        layer.entries()


def test_a_tar_without_its_end_is_taken_when_its_digest_is_known() -> None:
    data = LayerBuilder().file("a").tar()[:512]
    assert len(read(data)) == 1
    assert read(b"") == []
    with pytest.raises(FormatError, match="end marker"), read_layer(io.BytesIO(data), diff_id=None) as layer:
        layer.entries()


def test_limits() -> None:
    tar = LayerBuilder().file("a", b"x" * 600).file("b", b"y" * 600).tar()
    assert len(read(tar, limits=Limits(max_entries=2, max_unpacked=1200))) == 2
    with pytest.raises(FormatError, match="more than 1 members"):
        read(tar, limits=Limits(max_entries=1))
    with pytest.raises(FormatError, match="beyond 1199"):
        read(tar, limits=Limits(max_unpacked=1199))


def unpacked(stored: bytes, claimed: str = "gzip", limits: Limits = DEFAULT_LIMITS) -> bytes:
    return decompressed(io.BytesIO(stored), claimed, limits=limits).read()


PLAIN = LayerBuilder().file("a", b"x" * 100_000).tar()


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_members_and_frames_follow_each_other(kind: str) -> None:
    stored = compressed(PLAIN[:5000], kind) + compressed(b"", kind) + compressed(PLAIN[5000:], kind)
    assert unpacked(stored, "none") == PLAIN
    stream = decompressed(io.BytesIO(stored), "none")
    assert (stream.claimed, stream.compression, stream.readable()) == ("none", kind, True)
    buffer = bytearray(10)
    assert stream.readinto(buffer) == 10
    assert bytes(buffer) == PLAIN[:10]


def test_zstd_with_skippable_frames() -> None:
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    assert unpacked(skippable + compressed(PLAIN, "zstd") + skippable) == PLAIN


def test_gzip_with_zero_padding() -> None:
    assert unpacked(compressed(PLAIN, "gzip") + bytes(1000)) == PLAIN


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (compressed(PLAIN, "gzip")[:-5], "cut short"),
        (compressed(PLAIN, "gzip") + b"garbage", "damaged"),
        (compressed(PLAIN, "zstd") + b"garbage", "damaged"),
        (compressed(PLAIN, "gzip")[:20] + b"\xff" * 20 + compressed(PLAIN, "gzip")[40:], "damaged"),
        (compressed(PLAIN, "zstd")[:9] + b"\xff" * 9 + compressed(PLAIN, "zstd")[18:], "damaged"),
        (b"\xfd7zXZ\0" + bytes(100), "stored as xz"),
        (b"BZh91AY&SY", "stored as bzip2"),
    ],
)
def test_damaged_compression_is_noticed(stored: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        unpacked(stored)


def test_a_cut_zstd_layer_is_noticed_by_the_tar() -> None:
    stored = compressed(PLAIN, "zstd")
    with (
        pytest.raises(FormatError),
        read_layer(decompressed(io.BytesIO(stored[:-4]), "zstd"), diff_id=None) as layer,
    ):
        layer.entries()


def test_bombs_are_bounded() -> None:
    bomb = compressed(bytes(20_000_000), "zstd")
    with pytest.raises(FormatError, match="bomb"):
        unpacked(bomb, limits=Limits(ratio_floor=1_000_000, max_ratio=100))
    with pytest.raises(FormatError, match="more than 1000000"):
        unpacked(bomb, limits=Limits(max_unpacked=1_000_000))


def test_an_error_of_the_source_comes_through_the_thread() -> None:
    class Failing:
        def read(self, size: int, /) -> bytes:
            raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError), read_layer(Failing(), diff_id=None, background=True) as layer:
        layer.entries()


def test_leaving_early_ends_the_threads() -> None:
    before = set(threading.enumerate())
    tar = LayerBuilder().file("a", bytes(30 << 20)).tar()
    with read_layer(io.BytesIO(tar), diff_id=Digest.of(tar), background=True) as layer:
        next(iter(layer))
        names = {thread.name for thread in set(threading.enumerate()) - before}
        assert names == {"layer-reader", "layer-hasher_0"}
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("size", [0, 1, 3 << 20, 9 << 20])
def test_other_bytes_than_the_diff_id_says_are_noticed(size: int, background: bool) -> None:
    tar = LayerBuilder().file("a", bytes(size)).tar()
    with read_layer(io.BytesIO(tar), diff_id=Digest.of(tar), background=background) as layer:
        assert len(layer.entries()) == 1
    with (
        pytest.raises(FormatError, match="unpacked bytes are"),
        read_layer(io.BytesIO(tar), diff_id=Digest.of(tar + b"."), background=background) as layer,
    ):
        layer.entries()


SEEDS = [builder.tar() for case in LAYER_CASES for builder in case.layers]
SEEDS = [seed for seed in SEEDS if len(seed) < 20_000] + [
    make() for make, _ in HOSTILE_TARS.values() if len(make()) < 20_000
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=12)), max_size=4),
    st.integers(0, 20_000),
    st.booleans(),
)
def test_random_damage_ends_in_a_format_error_or_well(
    seed: bytes, damages: list[tuple[int, bytes]], cut: int, repair: bool
) -> None:
    data = bytearray(seed)
    for position, value in damages:
        start = position % len(data)
        data[start : start + len(value)] = value
    del data[len(seed) - cut % 1500 :]
    if repair:  # right checksums, so that the damage gets past them
        for start in range(0, len(data) - 511, 512):
            if data[start + 257 : start + 262] == b"ustar":
                data[start + 148 : start + 156] = b" " * 8
                data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    with (
        contextlib.suppress(FormatError),
        read_layer(io.BytesIO(bytes(data)), diff_id=None) as layer,
    ):
        for entry, content in layer:
            if entry.size < 1 << 24:
                assert len(content.read()) == entry.size
            assert b".." not in entry.path.split(b"/")
            assert not entry.path.startswith(b"/")
