"""Tars that must be refused: what each is, how it is made, and a part of the sentence that refuses it."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.images.layers import LayerBuilder, raw_header


def pax(**records: bytes) -> bytes:
    """The body of an extended header."""
    return b"".join(record(key.replace("__", ".").encode(), value) for key, value in records.items())


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def member(body: bytes, kind: bytes = b"x") -> bytes:
    return raw_header(b"header", kind, size=len(body)) + body + bytes(-len(body) % 512)


def after(body: bytes, *, name: bytes = b"name", kind: bytes = b"0", data: bytes = b"") -> LayerBuilder:
    """A member behind an extended header."""
    extended = LayerBuilder().raw(member(body))
    return extended.raw(raw_header(name, kind, size=len(data)) + data + bytes(-len(data) % 512))


def sparse(name: bytes, **records: bytes) -> LayerBuilder:
    stored = records.pop("data", b"")
    return after(
        b"".join(record(b"GNU.sparse." + key.encode(), value) for key, value in records.items()),
        name=name,
        data=stored,
    )


V1 = {"major": b"1", "minor": b"0"}
HOSTILE_TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "dot dot": (lambda: LayerBuilder().file("../etc/passwd").tar(), "leave the root"),
    "dot dot inside": (lambda: LayerBuilder().file("a/../../b").tar(), "leave the root"),
    "dot dot at the end": (lambda: LayerBuilder().dir("a/..").tar(), "leave the root"),
    "dot dot in an absolute name": (
        lambda: LayerBuilder().raw(raw_header(b"/..", b"5")).tar(),
        "leave the root",
    ),
    "hard link out": (lambda: LayerBuilder().hardlink("a", "../../etc/shadow").tar(), "leave the root"),
    "pax path out": (lambda: after(pax(path=b"x/../..")).tar(), "leave the root"),
    "gnu path out": (lambda: LayerBuilder().raw(member(b"../x\0", b"L")).file("a").tar(), "leave the root"),
    "no name": (lambda: LayerBuilder().raw(raw_header(b"", b"0")).tar(), "cannot be"),
    "no folder name": (lambda: LayerBuilder().raw(raw_header(b"", b"5")).tar(), "cannot be"),
    "no link name": (lambda: LayerBuilder().raw(raw_header(b"a", b"1")).tar(), "cannot be"),
    "no symlink target": (lambda: LayerBuilder().raw(raw_header(b"a", b"2")).tar(), "target that cannot be"),
    "NUL in a pax path": (lambda: after(pax(path=b"a\0b")).tar(), "NUL"),
    "NUL in an xattr's name": (lambda: after(record(b"SCHILY.xattr.a\0", b"")).tar(), "cannot be"),
    "root is a file": (lambda: LayerBuilder().raw(raw_header(b"./.", b"0")).tar(), "makes the root"),
    "root is a symlink": (
        lambda: LayerBuilder().raw(raw_header(b"/", b"2", linkname=b"x")).tar(),
        "makes the root",
    ),
    "file with a folder's name": (
        lambda: LayerBuilder().raw(raw_header(b"a/", b"0", size=3) + b"abc".ljust(512, b"\0")).tar(),
        "folder by its name",
    ),
    "long component": (lambda: LayerBuilder().file("n" * 256).tar(), "longer than"),
    "long path": (lambda: LayerBuilder().file("n/" * 3000 + "x").tar(), "longer than"),
    "long target": (lambda: LayerBuilder().symlink("a", "t" * 5000).tar(), "cannot be"),
    "unknown type": (lambda: LayerBuilder().raw(raw_header(b"a", b"V")).tar(), "no engine"),
    "two pax headers": (lambda: member(pax(path=b"a")) + after(pax(path=b"b")).tar(), "two extended"),
    "two long names": (
        lambda: LayerBuilder().raw(member(b"a\0", b"L") * 2).file("a").tar(),
        "two long names",
    ),
    "pax against gnu": (
        lambda: LayerBuilder().raw(member(b"a\0", b"L")).raw(member(pax(path=b"b"))).file("c").tar(),
        "two names",
    ),
    "global path": (
        lambda: LayerBuilder().raw(member(pax(path=b"x"), b"g")).file("a").tar(),
        "all members at once",
    ),
    "extended header last": (lambda: LayerBuilder().raw(member(pax(path=b"a"))).tar(), "without its member"),
    "extended header of gigabytes": (
        lambda: raw_header(b"x", b"x", size=1 << 31) + bytes(1024),
        "extended header of",
    ),
    "record without length": (lambda: after(b"path=x\n").tar(), "without its length"),
    "record with a wrong length": (lambda: after(b"99 path=x\n").tar(), "length is wrong"),
    "record with a short length": (lambda: after(b"5 path=x\n").tar(), "length is wrong"),
    "record of length 0": (lambda: after(b"0 path=x\n").tar(), "length is wrong"),
    "record without newline": (lambda: after(b"9 path=xy").tar(), "length is wrong"),
    "record without key": (lambda: after(b"5 =x\n").tar(), "length is wrong"),
    "record with a huge length": (lambda: after(b"9" * 5000 + b" path=x\n").tar(), "without its length"),
    "pax size that is no number": (lambda: after(pax(size=b"1_0")).tar(), "gives size"),
    "pax size below zero": (lambda: after(pax(size=b"-1")).tar(), "gives size"),
    "pax size of 30 digits": (lambda: after(pax(size=b"9" * 30)).tar(), "gives size"),
    "pax owner below zero": (lambda: after(pax(uid=b"-1")).tar(), "gives uid"),
    "pax owner too large": (lambda: after(pax(uid=b"4294967296")).tar(), "owner"),
    "pax time that is no number": (lambda: after(pax(mtime=b"1e9")).tar(), "mtime"),
    "size beyond the end": (lambda: after(pax(size=b"999999")).tar(), "ends in the middle"),
    "size beyond all": (lambda: after(pax(size=b"9223372036854775807")).tar(), "beyond"),
    "number with an underscore": (
        lambda: LayerBuilder().raw(raw_header(b"a", b"0", mode=b"00_644\0")).tar(),
        "number",
    ),
    "number with a sign": (
        lambda: LayerBuilder().raw(raw_header(b"a", b"0", uid=b"-000001\0")).tar(),
        "number",
    ),
    "number with an 8": (
        lambda: LayerBuilder().raw(raw_header(b"a", b"0", size_field=b"00000000008\0")).tar(),
        "octal",
    ),
    "device beyond Linux": (
        lambda: LayerBuilder().raw(raw_header(b"a", b"3", devmajor=b"7777777\0")).tar(),
        "beyond Linux",
    ),
    "strange version": (
        lambda: LayerBuilder().raw(raw_header(b"a", b"0", magic=b"ustar\x0099", prefix=b"p")).tar(),
        "nobody knows",
    ),
    "wrong checksum": (lambda: b"x" + LayerBuilder().file("a").tar()[1:], "checksum"),
    "not a tar": (lambda: b"<html>" * 1000, "checksum"),
    "half an end": (
        lambda: LayerBuilder().file("a").tar()[:1024] + LayerBuilder().file("b").tar(),
        "half of its end",
    ),
    "cut in a header": (lambda: LayerBuilder().file("a").tar()[:300], "middle"),
    "cut in content": (lambda: LayerBuilder().file("a", b"x" * 1000).tar()[:1300], "middle"),
    "sparse without size": (lambda: sparse(b"a", map=b"0,1", data=b"x").tar(), "no size"),
    "sparse with overlap": (lambda: sparse(b"a", size=b"9", map=b"0,2,1,1", data=b"xyz").tar(), "overlap"),
    "sparse beyond its size": (
        lambda: sparse(b"a", size=b"9", map=b"8,2", data=b"xy").tar(),
        "beyond its size",
    ),
    "sparse with too much": (lambda: sparse(b"a", size=b"9", map=b"0,1", data=b"xy").tar(), "bytes stored"),
    "sparse with too little": (lambda: sparse(b"a", size=b"9", map=b"0,3", data=b"xy").tar(), "bytes stored"),
    "sparse with an odd map": (
        lambda: sparse(b"a", size=b"9", map=b"0,1,2", data=b"x").tar(),
        "another number",
    ),
    "sparse with a lying count": (
        lambda: sparse(b"a", size=b"9", numblocks=b"2", map=b"0,1", data=b"x").tar(),
        "another number",
    ),
    "sparse with letters": (lambda: sparse(b"a", size=b"9", map=b"0,x", data=b"x").tar(), "sparse map"),
    "sparse lengths before offsets": (
        lambda: sparse(b"a", size=b"9", numbytes=b"1", data=b"x").tar(),
        "pair",
    ),
    "sparse map without end": (
        lambda: sparse(b"a", **V1, realsize=b"9", data=b"9" * 512).tar(),
        "no list of numbers",
    ),
    "sparse map that is endless": (
        lambda: sparse(b"a", **V1, realsize=b"9", data=b"99999999\n0\n".ljust(512, b"\0")).tar(),
        "too long",
    ),
    "sparse map longer than its member": (
        lambda: sparse(b"a", **V1, realsize=b"9", data=b"1\n").tar(),
        "map|middle",
    ),
    "sparse and a folder": (lambda: sparse(b"a/", size=b"9", map=b"0,0").tar(), "folder"),
    "sparse of exabytes": (lambda: sparse(b"a", size=b"9223372036854775807", map=b"0,0").tar(), "beyond"),
    "old sparse in posix": (lambda: LayerBuilder().raw(raw_header(b"a", b"S")).tar(), "GNU"),
}
