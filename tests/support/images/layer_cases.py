"""The table of layer cases: layers as the world makes them, each with the tree that they merge to.

The merge's own tests run it, and so do the tests of every converter, against real tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.oci.entry import EntryKind
from tests.support.images.layers import LayerBuilder, raw_header


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What must be at one path.

    content  of a file; a symlink's target; empty for others
    group    names with one group are one inode; None for a file with one name
    """

    kind: EntryKind
    mode: int
    content: bytes = b""
    group: str | None = None
    device: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCase:
    """`tree` has every path but the root. `compression` is one for each layer."""

    name: str
    layers: tuple[LayerBuilder, ...]
    tree: Mapping[bytes, Expected]
    compression: tuple[str, ...] = ()

    @property
    def compressions(self) -> tuple[str, ...]:
        return self.compression or ("gzip",) * len(self.layers)

    def with_base(self) -> LayerCase:
        """The case on top of a layer with /bin/sh, which every image that shall start needs."""
        base = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
        return LayerCase(
            name=self.name,
            layers=(base, *self.layers),
            tree={b"bin": folder(), b"bin/sh": file(b"#!\n", 0o755), **self.tree},
            compression=("gzip", *self.compressions),
        )


def file(content: bytes = b"", mode: int = 0o644, group: str | None = None) -> Expected:
    return Expected(kind=EntryKind.FILE, mode=mode, content=content, group=group)


def folder(mode: int = 0o755) -> Expected:
    return Expected(kind=EntryKind.DIRECTORY, mode=mode)


def link(target: bytes) -> Expected:
    return Expected(kind=EntryKind.SYMLINK, mode=0o777, content=target)


def layer() -> LayerBuilder:
    return LayerBuilder()


_LONG = "/".join(["a-rather-long-folder-name-that-goes-on"] * 4) + "/" + "f" * 120
_LONG_PARENTS = {
    "/".join(_LONG.split("/")[:depth]).encode(): folder() for depth in range(1, _LONG.count("/") + 1)
}
_BLOCK = bytes(range(256)) * 512  # 128 KiB, one block of the default size
_BADNAME = b"caf\xe9-\xff\xfe"


def _sparse(prefix: bytes, kind: bytes) -> bytes:
    """A file of 1 MiB + 3 with 4 KiB at 64 KiB, the rest a hole, as GNU tar stores it in format 1.0."""
    stored = b"2\n65536\n4096\n1048579\n0\n".ljust(512, b"\0") + b"s" * 4096
    records = b"".join(
        _record(key, value)
        for key, value in (
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", prefix),
            (b"GNU.sparse.realsize", b"1048579"),
        )
    )
    return (
        raw_header(b"x", b"x", size=len(records))
        + records.ljust(-(-len(records) // 512) * 512, b"\0")
        + raw_header(b"GNUSparseFile.1/" + prefix, kind, size=len(stored))
        + stored
    )


def _record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def _forty() -> LayerCase:
    layers = [layer().dir("d").file("d/same", b"0").file("d/0", b"0")]
    for number in range(1, 40):
        above = layer().file("d/same", b"%d" % number).file(f"d/{number}", b"%d" % number)
        layers.append(above.whiteout(f"d/{number - 1}") if number % 2 else above)
    kept = [number for number in range(40) if not (number % 2 == 0 and number < 39)]
    tree = {f"d/{number}".encode(): file(b"%d" % number) for number in kept}
    return LayerCase(
        name="40 layers", layers=tuple(layers), tree={b"d": folder(), b"d/same": file(b"39"), **tree}
    )


_TWICE = layer().dir("d").file("d/a", b"a").hardlink("d/b", "d/a").whiteout("d/old")

LAYER_CASES: tuple[LayerCase, ...] = (
    LayerCase(
        name="whiteout",
        layers=(
            layer().dir("d").file("d/a", b"1").file("d/b", b"2").file("top", b"3"),
            layer().dir("d").whiteout("d/a").whiteout("top"),
        ),
        tree={b"d": folder(), b"d/b": file(b"2")},
    ),
    LayerCase(
        name="whiteout of a folder",
        layers=(layer().dir("d").dir("d/e").file("d/e/f", b"1").file("x"), layer().whiteout("d")),
        tree={b"x": file()},
    ),
    LayerCase(
        name="whiteout of what is not there",
        layers=(layer().file("a", b"1"), layer().dir("d").whiteout("b").whiteout("d/c")),
        tree={b"a": file(b"1"), b"d": folder()},
    ),
    LayerCase(
        name="whiteout in the lowest layer",
        layers=(layer().file("a", b"1").whiteout("a"),),
        tree={b"a": file(b"1")},
    ),
    LayerCase(
        name="opaque folder",
        layers=(
            layer().dir("d").file("d/a", b"1").dir("d/e").file("d/e/f", b"2"),
            layer().dir("d", mode=0o700).opaque("d").file("d/b", b"3"),
        ),
        tree={b"d": folder(0o700), b"d/b": file(b"3")},
    ),
    LayerCase(
        name="opaque folder, marker last",
        layers=(
            layer().dir("d").file("d/a", b"1").dir("d/e").file("d/e/f", b"2"),
            layer().dir("d").file("d/b", b"3").dir("d/e").file("d/e/g", b"4").opaque("d"),
        ),
        tree={b"d": folder(), b"d/b": file(b"3"), b"d/e": folder(), b"d/e/g": file(b"4")},
    ),
    LayerCase(
        name="opaque root",
        layers=(layer().file("a", b"1").dir("d").file("d/x", b"1"), layer().file("b", b"2").opaque(".")),
        tree={b"b": file(b"2")},
    ),
    LayerCase(
        name="whiteout and file of one name in one layer",
        layers=(
            layer().file("foo", b"old").dir("bar").file("bar/old", b"1"),
            layer().file("foo", b"new").whiteout("foo").whiteout("bar").dir("bar").file("bar/new", b"2"),
        ),
        tree={b"foo": file(b"new"), b"bar": folder(), b"bar/new": file(b"2")},
    ),
    LayerCase(
        name="whiteout after a folder of its name",
        layers=(
            layer().dir("bar").file("bar/old", b"1"),
            layer().dir("bar", mode=0o711).file("bar/new", b"2").whiteout("bar"),
        ),
        tree={b"bar": folder(0o711), b"bar/new": file(b"2")},
    ),
    LayerCase(
        name="file again after its whiteout one layer up",
        layers=(layer().file("a", b"1"), layer().whiteout("a"), layer().file("a", b"3")),
        tree={b"a": file(b"3")},
    ),
    LayerCase(
        name="hard link within a layer",
        layers=(layer().file("a", b"1", mode=0o640).hardlink("b", "a").dir("d").hardlink("d/c", "a"),),
        tree={
            b"a": file(b"1", 0o640, "g"),
            b"b": file(b"1", 0o640, "g"),
            b"d": folder(),
            b"d/c": file(b"1", 0o640, "g"),
        },
    ),
    LayerCase(
        name="hard link to a file of a lower layer",
        layers=(layer().file("a", b"1", mode=0o600), layer().hardlink("b", "a", mode=0o600)),
        tree={b"a": file(b"1", 0o600, "g"), b"b": file(b"1", 0o600, "g")},
    ),
    LayerCase(
        name="hard link to a file that the same layer hides",
        layers=(layer().file("a", b"1"), layer().whiteout("a").hardlink("b", "a")),
        tree={b"b": file(b"1")},
    ),
    LayerCase(
        name="hard link whose first name an upper layer hides",
        layers=(layer().file("a", b"1").hardlink("b", "a").hardlink("c", "a"), layer().whiteout("a")),
        tree={b"b": file(b"1", group="g"), b"c": file(b"1", group="g")},
    ),
    LayerCase(
        name="hard link whose target is replaced later",
        layers=(layer().file("a", b"1").hardlink("b", "a").file("a", b"2"), layer().file("x")),
        tree={b"a": file(b"2"), b"b": file(b"1"), b"x": file()},
    ),
    LayerCase(
        name="hard link whose target an upper layer replaces",
        layers=(layer().file("a", b"1").hardlink("b", "a"), layer().file("a", b"22", mode=0o600)),
        tree={b"a": file(b"22", 0o600), b"b": file(b"1")},
    ),
    LayerCase(
        name="hard link whose folder has no entry",
        layers=(layer().file("a", b"1"), layer().hardlink("new/folder/b", "a")),
        tree={
            b"a": file(b"1", group="g"),
            b"new": folder(),
            b"new/folder": folder(),
            b"new/folder/b": file(b"1", group="g"),
        },
    ),
    LayerCase(
        name="hard link to a hard link",
        layers=(layer().file("a", b"1").hardlink("b", "a"), layer().hardlink("c", "b").whiteout("b")),
        tree={b"a": file(b"1", group="g"), b"c": file(b"1", group="g")},
    ),
    LayerCase(
        name="hard link with absolute and dotted names",
        layers=(layer().file("./d/a", b"1").hardlink("/d/b", "./d/a").hardlink("./c", "/d/b"),),
        tree={
            b"c": file(b"1", group="g"),
            b"d": folder(),
            b"d/a": file(b"1", group="g"),
            b"d/b": file(b"1", group="g"),
        },
    ),
    LayerCase(
        name="folder replaced by file and back",
        layers=(
            layer().dir("d").file("d/a", b"1").dir("e").file("e/a", b"1"),
            layer().file("d", b"now a file").file("e", b"now a file"),
            layer().dir("e").file("e/b", b"2"),
        ),
        tree={b"d": file(b"now a file"), b"e": folder(), b"e/b": file(b"2")},
    ),
    LayerCase(
        name="folder replaced by symlink and back",
        layers=(
            layer().dir("d").file("d/a", b"1").dir("e").file("e/a", b"1"),
            layer().symlink("d", "e").symlink("e", "nowhere"),
            layer().dir("e").file("e/b", b"2"),
        ),
        tree={b"d": link(b"e"), b"e": folder(), b"e/b": file(b"2")},
    ),
    LayerCase(
        name="folder again changes its mode only",
        layers=(layer().dir("d").file("d/a", b"1"), layer().dir("d", mode=0o1777)),
        tree={b"d": folder(0o1777), b"d/a": file(b"1")},
    ),
    LayerCase(
        name="duplicate entries",
        layers=(
            layer()
            .file("a", b"1")
            .file("a", b"22", mode=0o600)
            .dir("b")
            .file("b/x", b"1")
            .file("b", b"3")
            .file("c", b"4")
            .symlink("c", "a")
            .symlink("d", "a")
            .dir("d")
            .file("d/y", b"5"),
        ),
        tree={
            b"a": file(b"22", 0o600),
            b"b": file(b"3"),
            b"c": link(b"a"),
            b"d": folder(),
            b"d/y": file(b"5"),
        },
    ),
    LayerCase(
        name="path of more than 100 bytes",
        layers=(
            layer().file(_LONG, b"1").symlink("long", "x" * 300),
            LayerBuilder(tar_format="gnu").file("x"),
        ),
        tree={**_LONG_PARENTS, _LONG.encode(): file(b"1"), b"long": link(b"x" * 300), b"x": file()},
    ),
    LayerCase(
        name="path of more than 100 bytes in GNU's way",
        layers=(LayerBuilder(tar_format="gnu").file(_LONG, b"1").symlink("long", "x" * 300),),
        tree={**_LONG_PARENTS, _LONG.encode(): file(b"1"), b"long": link(b"x" * 300)},
    ),
    LayerCase(
        name="name that is not UTF-8",
        layers=(
            layer().file(_BADNAME, b"1").symlink(b"l", _BADNAME),
            LayerBuilder(tar_format="gnu").file(_BADNAME + b"2", b"2"),
        ),
        tree={_BADNAME: file(b"1"), _BADNAME + b"2": file(b"2"), b"l": link(_BADNAME)},
    ),
    LayerCase(
        name="names with newline, space, quote and backslash",
        layers=(layer().file("a\nb", b"1").file(" ", b"2").file("q'\"$(x)`", b"3").file("\\n\\", b"4"),),
        tree={b"a\nb": file(b"1"), b" ": file(b"2"), b"q'\"$(x)`": file(b"3"), b"\\n\\": file(b"4")},
    ),
    LayerCase(
        name="sparse and empty files",
        layers=(
            layer()
            .file("empty")
            .file("zeros", bytes(300_000))
            .raw(_sparse(b"sparse", b"0"))
            .file("after", b"1"),
        ),
        tree={
            b"empty": file(),
            b"zeros": file(bytes(300_000)),
            b"sparse": file(bytes(65536) + b"s" * 4096 + bytes(1048579 - 69632)),
            b"after": file(b"1"),
        },
    ),
    LayerCase(
        name="file of exactly one block",
        layers=(
            layer()
            .file("block", _BLOCK)
            .file("more", _BLOCK + b"x")
            .file("less", _BLOCK[:-1])
            .file("two", _BLOCK * 2),
        ),
        tree={
            b"block": file(_BLOCK),
            b"more": file(_BLOCK + b"x"),
            b"less": file(_BLOCK[:-1]),
            b"two": file(_BLOCK * 2),
        },
    ),
    LayerCase(
        name="mode 000",
        layers=(layer().file("a", b"1", mode=0).dir("d", mode=0).file("d/b", b"2", mode=0o111),),
        tree={b"a": file(b"1", 0), b"d": folder(0), b"d/b": file(b"2", 0o111)},
    ),
    LayerCase(
        name="setuid, setgid, sticky",
        layers=(
            layer().file("su", b"1", mode=0o4755).file("sg", b"2", mode=0o2755).dir("tmp", mode=0o1777),
            layer().dir("sgd", mode=0o2775),
        ),
        tree={
            b"su": file(b"1", 0o4755),
            b"sg": file(b"2", 0o2755),
            b"tmp": folder(0o1777),
            b"sgd": folder(0o2775),
        },
    ),
    LayerCase(
        name="fifo and devices",
        layers=(
            layer().fifo("pipe", mode=0o600).dir("n").device("n/null", 1, 3, mode=0o666),
            layer().device("n/disk", 8, 1, block=True, mode=0o660),
        ),
        tree={
            b"pipe": Expected(kind=EntryKind.FIFO, mode=0o600),
            b"n": folder(),
            b"n/null": Expected(kind=EntryKind.CHAR, mode=0o666, device=(1, 3)),
            b"n/disk": Expected(kind=EntryKind.BLOCK, mode=0o660, device=(8, 1)),
        },
    ),
    LayerCase(
        name="same layer twice",
        layers=(_TWICE, _TWICE),
        tree={b"d": folder(), b"d/a": file(b"a", group="g"), b"d/b": file(b"a", group="g")},
    ),
    LayerCase(
        name="zstd over gzip over plain",
        layers=(layer().file("a", b"1"), layer().file("b", b"2"), layer().file("a", b"3")),
        tree={b"a": file(b"3"), b"b": file(b"2")},
        compression=("none", "gzip", "zstd"),
    ),
    LayerCase(
        name="no entries for parents",
        layers=(layer().file("a/b/c", b"1"),),
        tree={b"a": folder(), b"a/b": folder(), b"a/b/c": file(b"1")},
    ),
    LayerCase(
        name="file under a symlinked folder of a lower layer",
        layers=(
            layer().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").file("usr/lib/old", b"1"),
            layer().file("lib/new", b"2").whiteout("lib/old"),
        ),
        tree={b"lib": link(b"usr/lib"), b"usr": folder(), b"usr/lib": folder(), b"usr/lib/new": file(b"2")},
    ),
    LayerCase(
        name="folder entry over a symlink of a lower layer",
        layers=(
            layer().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").file("usr/lib/old", b"1"),
            layer().dir("lib").whiteout("lib/old").file("lib/new", b"2"),
        ),
        tree={
            b"lib": folder(),
            b"lib/new": file(b"2"),
            b"usr": folder(),
            b"usr/lib": folder(),
            b"usr/lib/old": file(b"1"),
        },
    ),
    LayerCase(
        name="file under symlinks that point out of the root",
        layers=(
            layer().symlink("up", "../../../../tmp").symlink("abs", "/etc"),
            layer().file("up/a", b"1").file("abs/b", b"2"),
        ),
        tree={
            b"up": link(b"../../../../tmp"),
            b"abs": link(b"/etc"),
            b"tmp": folder(),
            b"tmp/a": file(b"1"),
            b"etc": folder(),
            b"etc/b": file(b"2"),
        },
    ),
    LayerCase(
        name="bookkeeping of AUFS",
        layers=(
            layer().dir("d").file("d/x", b"x").file("aufs", b"1"),
            layer()
            .file(".wh..wh.aufs", mode=0o400)
            .dir(".wh..wh.orph", mode=0o700)
            .dir(".wh..wh.plnk", mode=0o700)
            .file(".wh..wh.plnk/77.1", b"shared", mode=0o640)
            .hardlink("a", ".wh..wh.plnk/77.1")
            .hardlink("d/b", ".wh..wh.plnk/77.1"),
        ),
        tree={
            b"a": file(b"shared", 0o640, group="g"),
            b"aufs": file(b"1"),
            b"d": folder(),
            b"d/b": file(b"shared", 0o640, group="g"),
            b"d/x": file(b"x"),
        },
    ),
    LayerCase(
        name="empty layer", layers=(layer(), layer().file("a", b"1"), layer()), tree={b"a": file(b"1")}
    ),
    _forty(),
)
