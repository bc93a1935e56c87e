"""Whole images from somebody who means ill, each with how a conversion of it must end.

`refused` is a part of the sentence that goes with exit code 6; without one the image is sound, however odd it
looks, and `holds` says what must be in the file. Every image of `hostile_tars` is one as well.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import zstandard

from tests.support.images.hostile_tars import HOSTILE_TARS, after, member, pax, record
from tests.support.images.layers import LayerBuilder, compressed, image_config, raw_header, write_layout

VICTIM = "/@victim@"  # replaced by a folder beside scratch, which nobody may touch
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileImage:
    """`write(folder, victim)` makes an OCI layout. `holds` are paths with a file's content, or a link's
    target after "-> ", or None for whatever else. `flags` go to `convert`.
    """

    name: str
    write: Callable[[Path, str], object]
    refused: str = ""
    holds: Mapping[bytes, bytes | None] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


def base() -> LayerBuilder:
    """/bin/sh, without which nothing starts."""
    return LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)


def _layers(
    make: Callable[[str], Iterable[LayerBuilder | bytes]], **more: Any
) -> Callable[[Path, str], object]:
    def write(folder: Path, victim: str) -> object:
        return write_layout(folder, [base(), *make(victim)], **more)

    return write


def _one(make: Callable[[str], LayerBuilder | bytes], **more: Any) -> Callable[[Path, str], object]:
    return _layers(lambda victim: [make(victim)], **more)


def _blob(folder: Path, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}


def _stored(
    folder: Path,
    _victim: str = "",
    *,
    change: Callable[[dict[str, Any]], object] | None = None,
    raw: Callable[[bytes], bytes] | None = None,
    config: Callable[[bytes], bytes] | None = None,
    stored: Callable[[bytes], bytes] | None = None,
    media_type: str = _LAYER,
    tar: Callable[[], bytes] = lambda: base().tar(),
    times: int = 1,
) -> None:
    """An image of one layer whose manifest, config or stored layer is not what it should be."""
    plain = tar()
    settings = image_config([plain] * times)
    layer = _blob(folder, stored(plain) if stored else plain, media_type)
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _blob(folder, config(settings) if config else settings, _CONFIG),
        "layers": [layer] * times,
    }
    if change is not None:
        manifest = cast("dict[str, Any]", change(manifest) or manifest)
    text = json.dumps(manifest).encode()
    top = _blob(folder, raw(text) if raw else text, _MANIFEST)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of a manifest: `layers.0.size` and the like."""

    def change(manifest: dict[str, Any]) -> None:
        at: Any = manifest
        *way, last = path.split(".")
        for part in way:
            at = at[int(part)] if part.isdigit() else at[part]
        at[last] = value

    return change


def _in_config(path: str, value: object) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        config = json.loads(raw)
        _set(path, value)(config)
        return json.dumps(config).encode()

    return change


def _manifest(name: str, refused: str, **how: Any) -> HostileImage:
    return HostileImage(name=f"manifest: {name}", write=functools.partial(_stored, **how), refused=refused)


def _zeros(size: int, compression: str) -> bytes:
    """A layer with one file of `size` zero bytes, stored as small as can be."""
    header = raw_header(b"zeros", b"0", size=size)
    piece = bytes(1 << 20)
    if compression == "gzip":
        with_header = gzip.compress(header, mtime=0)
        return (
            with_header
            + gzip.compress(piece, 9, mtime=0) * (size >> 20)
            + gzip.compress(bytes(1024), mtime=0)
        )
    frame = zstandard.ZstdCompressor().compress
    return frame(header) + frame(piece) * (size >> 20) + frame(bytes(1024))


def _repeated(piece: bytes, times: int) -> bytes:
    return piece * times + bytes(1024)


def _bomb(compression: str, size: int) -> Callable[[Path, str], object]:
    def write(folder: Path, _victim: str) -> None:
        # its diff_id cannot be known without unpacking it, and nobody gets as far as comparing it
        _stored(folder, stored=lambda _tar: _zeros(size, compression), media_type=f"{_LAYER}+{compression}")

    return write


def _names(*names: bytes) -> LayerBuilder:
    made = LayerBuilder()
    for name in names:
        made.file(name, name[:20])
    return made


_ODD = (
    b"new\nline", b"tab\tbell\x07", b"\x1b[31mred\x1b[0m", "\u202egnp.exe".encode(), "\u2066x\u2069".encode(),
    b"caf\xe9\xff", b" lead", b"trail ", b"-rf", b"--help", b"$(touch pwned)", b"`touch pwned`", b"a;b|c&d>e",
    b"*?[x]", b"'\"", b"\\", b"%s%n", b"CON", b"~", "\u0065\u0301".encode(), "\u00e9".encode(),
)  # fmt: skip

# What may be in a config without anything of it being run or expanded on the way.
CONFIG = {
    "Env": [
        "QUOTES=it's \"q\"", "LINES=one\ntwo=3\rPATH=/evil", "SUBSHELL=$(touch /tmp/pwned)", "TICKS=`id`",
        "ESCAPE=\x1b]0;x\x07", "BIDI=\u202eabc", "=nameless", "NO-SHELL-NAME=x", "EMPTY=", "SPACE= lead",
    ],
    "Entrypoint": ["/bin/echo", "$(touch pwned)", "`touch pwned`", "a'b\"c", "two\nlines", "${HOME}", "; touch pwned;"],  # noqa: E501
    "Cmd": ["-n", "&&", "touch", "pwned", "\\", "$((1+1))", "!x", "#c"],
    "WorkingDir": "/srv/$(touch pwned)/it's\n`touch pwned`/${HOME}",
    "Volumes": {"/data with space": {}, "/a\nb none /etc/x": {}, "/$(touch pwned)": {}, "/../../..": {}},
    "Labels": {"key\ntouch pwned": "value\n touch pwned\n", "x": "\u2028touch pwned"},
    "User": "0:0; touch pwned",
}  # fmt: skip


def _paths() -> list[HostileImage]:
    deep = b"/".join([b"d" * 250] * 16) + b"/" + b"f" * 79  # 4,095 bytes, the longest that Linux takes
    return [
        HostileImage(
            name="absolute and dotted names",
            write=_one(lambda _: _names(b"/abs/x", b"./dot/x", b"a//b", b"c/./d")),
            holds={b"abs/x": b"/abs/x", b"dot/x": b"./dot/x", b"a/b": b"a//b", b"c/d": b"c/./d"},
        ),
        HostileImage(
            name="names that terminals and shells heed",
            write=_one(lambda _: _names(*_ODD)),
            holds={name: name[:20] for name in _ODD},
        ),
        HostileImage(
            name="a path of 4,095 bytes", write=_one(lambda _: _names(deep)), holds={deep: deep[:20]}
        ),
        HostileImage(
            name="a path of 4,096 bytes", write=_one(lambda _: _names(deep + b"x")), refused="longer than"
        ),
        HostileImage(
            name="a path of 40,000 bytes",
            write=_one(lambda _: _names(b"d/" * 19_999 + b"ff")),
            refused="longer than",
        ),
        HostileImage(
            name="symlinks to outside, and names through them",
            write=_layers(
                lambda victim: [
                    LayerBuilder()
                    .symlink("out", victim)
                    .symlink("up", "../../../../../../../.." + victim)
                    .symlink("self", "/proc/self/root" + victim),
                    LayerBuilder()
                    .file("out/new", b"1")
                    .file("up/kept", b"2")
                    .file("self/x", b"3")
                    .whiteout("out/kept")
                    .opaque("up"),
                ]
            ),
            holds={b"out": None, b"up": None, b"self": None},
        ),
        HostileImage(
            name="a symlink and a file through it in one layer",
            write=_one(lambda victim: LayerBuilder().symlink("l", victim).file("l/kept", b"x").dir("l/sub")),
            holds={b"l": None},
        ),
        HostileImage(
            name="hard link to a symlink that leads outside",
            write=_one(lambda victim: LayerBuilder().symlink("s", victim + "/kept").hardlink("h", "s")),
            holds={b"s": None, b"h": None},
        ),
        HostileImage(
            name="hard link through a symlink that leads outside",
            write=_one(lambda victim: LayerBuilder().symlink("s", victim).hardlink("h", "s/kept")),
            refused="not there",
        ),
        HostileImage(
            name="hard link to a folder",
            write=_one(lambda _: LayerBuilder().dir("d").hardlink("h", "d")),
            refused="is a folder",
        ),
        HostileImage(
            name="hard link to itself",
            write=_one(lambda _: LayerBuilder().hardlink("h", "h")),
            refused="not there",
        ),
        HostileImage(
            name="hard links in a circle",
            write=_one(lambda _: LayerBuilder().hardlink("a", "b").hardlink("b", "a")),
            refused="not there",
        ),
        HostileImage(
            name="hard link to the root",
            write=_one(lambda _: LayerBuilder().hardlink("h", "/")),
            refused="folder|not there|leave",
        ),
        HostileImage(
            name="symlinks in a circle that nobody follows",
            write=_one(lambda _: LayerBuilder().symlink("a", "b").symlink("b", "a").symlink("me", "me")),
            holds={b"a": b"-> b", b"me": b"-> me"},
        ),
        HostileImage(
            name="symlinks in a circle, followed",
            write=_one(lambda _: LayerBuilder().symlink("a", "b").symlink("b", "a").file("a/x", b"1")),
            refused="circle",
        ),
        HostileImage(
            name="/etc leads outside",
            write=_one(lambda victim: LayerBuilder().symlink("etc", victim)),
            holds={b"etc": None},
        ),
        HostileImage(
            name="enroot's files are links and folders",
            write=_one(
                lambda victim: (
                    LayerBuilder()
                    .dir("etc")
                    .symlink("etc/rc", victim + "/kept")
                    .dir("etc/environment")
                    .fifo("etc/fstab")
                )
            ),
            holds={b"etc/rc": None, b"etc/environment": b"", b"etc/fstab": b""},
        ),
        HostileImage(
            name="unknown whiteout",
            write=_one(lambda _: LayerBuilder().file(".wh.")),
            refused="not a valid whiteout",
        ),
        HostileImage(
            name="whiteout of the parent",
            write=_one(lambda _: LayerBuilder().file("d/.wh...")),
            refused="not a valid whiteout",
        ),
        HostileImage(
            name="devices and setuid where they are allowed",
            write=_one(
                lambda _: LayerBuilder().device("disk", 8, 0, block=True).file("su", b"x", mode=0o6755)
            ),
            holds={b"disk": None, b"su": b"x"},
        ),
        HostileImage(
            name="a folder by 1,000 names that have no entries",
            write=_one(lambda _: _names(*(b"%d/a/b/c" % number for number in range(1000)))),
            holds={b"999/a/b/c": b"999/a/b/c"},
        ),
    ]


def _sizes() -> list[HostileImage]:
    huge = pax(comment=b"c" * 900_000)
    return [
        HostileImage(
            name="PAX headers without end",
            write=_one(lambda _: LayerBuilder().raw(member(pax(path=b"a")) * 3000).file("a")),
            refused="two extended",
        ),
        HostileImage(
            name="a PAX header of 300,000 records",
            write=_one(lambda _: after(pax(a=b"") * 300_000)),
            refused="extended header of",
        ),
        HostileImage(
            name="a megabyte of PAX before each of 50 members",
            write=_one(lambda _: LayerBuilder().raw((member(huge) + raw_header(b"a", b"0")) * 50)),
            holds={b"a": b""},
        ),
        HostileImage(
            name="folders without entries, 500 times 2,000 deep",
            write=_one(lambda _: _names(*(b"%d" % number + b"/d" * 1990 for number in range(500)))),
            refused="leave out more",
        ),
        HostileImage(
            name="600 MB of attributes",
            write=_one(
                lambda _: _repeated(
                    member(record(b"SCHILY.xattr.user.x", b"v" * 1_000_000)) + raw_header(b"a", b"0"), 600
                ),
                compression="zstd",
            ),
            refused="names and attributes",
        ),
        HostileImage(
            name="one attribute of nearly a megabyte",
            write=_one(lambda _: after(record(b"SCHILY.xattr.user.x", b"v" * 1_000_000))),
            holds={b"name": b""},
        ),
        HostileImage(
            name="a sparse file of a petabyte, of which nothing is stored",
            write=_one(lambda _: after(pax(GNU__sparse__size=b"%d" % (1 << 50), GNU__sparse__map=b"0,0"))),
            refused="beyond",
        ),
        HostileImage(
            name="a sparse file of 100 GB within a limit of 1 GB",
            write=_one(lambda _: after(pax(GNU__sparse__size=b"%d" % (100 << 30), GNU__sparse__map=b"0,0"))),
            refused="beyond",
            flags=("--max-unpacked", "1G"),
        ),
        HostileImage(
            name="a sparse file of 900 GB within the limits, of which nothing is stored",
            write=_one(lambda _: after(pax(GNU__sparse__size=b"%d" % (900 << 30), GNU__sparse__map=b"0,0"))),
            refused="bytes of holes for 0 stored",
        ),
        HostileImage(
            name="hard links through a long way of symlinks",
            write=_one(
                lambda _: functools.reduce(
                    lambda layer, n: layer.hardlink(f"h{n}", "s0/f"), range(20_000), _long_way()
                )
            ),
            refused="a longer way",
        ),
        HostileImage(
            name="one layer of 20,000 members 1,000 times",
            write=functools.partial(_stored, tar=_many_members, times=1000),
            refused="members together",
        ),
        HostileImage(
            name="many small layers that are large together",
            write=_layers(lambda _: [LayerBuilder().file(f"f{n}", bytes(600_000)) for n in range(4)]),
            refused="more than 2097152",
            flags=("--max-unpacked", "2M"),
        ),
        HostileImage(
            name="gzip bomb against the limit of size",
            write=_bomb("gzip", 256 << 20),
            refused="more than|beyond",
            flags=("--max-unpacked", "64M"),
        ),
        HostileImage(
            name="zstd bomb against the limit of size",
            write=_bomb("zstd", 256 << 20),
            refused="more than|beyond",
            flags=("--max-unpacked", "64M"),
        ),
        HostileImage(
            name="a sparse file of 5 GB, of which nothing is stored",
            write=_one(lambda _: _hole(b"var/log/lastlog", 5 << 30)),
            holds={b"var/log/lastlog": None},
        ),
        HostileImage(
            name="gzip bomb against the ratio", write=_bomb("gzip", 9 << 29), refused="was stored in"
        ),
        HostileImage(
            name="zstd bomb against the ratio", write=_bomb("zstd", 9 << 29), refused="was stored in"
        ),
    ]


def _hole(name: bytes, size: int) -> LayerBuilder:
    """A layer with a sparse file that is one hole."""
    return after(pax(GNU__sparse__size=b"%d" % size, GNU__sparse__map=b"0,0"), name=name)


def _long_way() -> LayerBuilder:
    """s0 leads to d, in forty steps of as many names as a target holds."""
    layer, way = LayerBuilder().dir("d").file("d/f"), "d/" + "../d/" * 815
    for number in range(39):
        layer.symlink(f"s{number}", f"{way}../s{number + 1}")
    return layer.symlink("s39", "d")


def _many_members() -> bytes:
    return base().tar()[:-1024] + b"".join(raw_header(b"f%d" % n, b"0") for n in range(20_000)) + bytes(1024)


def _layer_bytes() -> list[HostileImage]:
    def stored(name: str, refused: str, change: Callable[[bytes], bytes], kind: str = "gzip") -> HostileImage:
        how: dict[str, Any] = {
            "stored": change,
            "media_type": f"{_LAYER}+{kind}" if kind != "none" else _LAYER,
        }
        return HostileImage(name=f"layer: {name}", write=functools.partial(_stored, **how), refused=refused)

    def packed(kind: str) -> Callable[[bytes], bytes]:
        return lambda tar: compressed(tar, kind)

    return [
        stored("cut gzip", "damaged or cut|middle|its image says", lambda tar: compressed(tar, "gzip")[:-20]),
        stored(
            "cut zstd",
            "damaged or cut|middle|its image says",
            lambda tar: compressed(tar, "zstd")[:-9],
            "zstd",
        ),
        stored("garbage after gzip", "damaged or cut", lambda tar: compressed(tar, "gzip") + b"garbage" * 99),
        stored(
            "garbage after zstd",
            "damaged or cut",
            lambda tar: compressed(tar, "zstd") + b"garbage" * 99,
            "zstd",
        ),
        stored(
            "one more member of gzip",
            "its image says",
            lambda tar: compressed(tar, "gzip") + compressed(b"x" * 512, "gzip"),
        ),
        stored(
            "a tar after the tar",
            "its image says",
            lambda tar: compressed(tar + base().file("evil").tar(), "gzip"),
        ),
        stored(
            "a flipped bit", "damaged|its image says|checksum", lambda tar: _flipped(compressed(tar, "gzip"))
        ),
        stored("bzip2 under gzip's name", "bzip2", lambda _tar: b"BZh91AY&SY" + bytes(90)),
        stored("xz under gzip's name", "xz", lambda _tar: b"\xfd7zXZ\x00" + bytes(90)),
        stored("a gzip header of a megabyte", "damaged", lambda tar: _long_header(compressed(tar, "gzip"))),
        stored("zstd that wants 2 GB of memory", "damaged|memory", _wide_window, "zstd"),
        stored("empty", "its image says|end marker", lambda _tar: b""),
        stored("a page of HTML", "checksum|its image says", lambda _tar: b"<html>" * 1000, "none"),
        HostileImage(
            name="layer: zstd under gzip's name",
            write=functools.partial(_stored, stored=packed("zstd"), media_type=f"{_LAYER}+gzip"),
            holds={b"bin/sh": b"#!\n"},
        ),
        HostileImage(
            name="layer: plain under zstd's name",
            write=functools.partial(_stored, stored=packed("none"), media_type=f"{_LAYER}+zstd"),
            holds={b"bin/sh": b"#!\n"},
        ),
    ]


def _long_header(data: bytes) -> bytes:
    """The same gzip member with a file's name of a megabyte."""
    return data[:3] + bytes([data[3] | 8]) + data[4:10] + b"n" * (1 << 20) + b"\0" + data[10:]


def _wide_window(tar: bytes) -> bytes:
    """One frame of zstd (RFC 8878) with a window of 2 GiB and a plain block."""
    return b"\x28\xb5\x2f\xfd" + b"\x00\xa8" + (len(tar) << 3 | 1).to_bytes(3, "little") + tar


def _flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 0x10
    return bytes(changed)


def _manifests() -> list[HostileImage]:
    nested = b'{"schemaVersion":2,"annotations":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"
    other = {
        "md5": "0" * 32,
        "sha1": "0" * 40,
        "sha384": "0" * 96,
        "sha256+b64": "x" * 44,
        "blake3": "0" * 64,
    }
    return [
        _manifest(
            "100 MB",
            "more than",
            raw=lambda text: text[:-1] + b',"annotations":{"a":"' + b"x" * (100 << 20) + b'"}}',
        ),
        _manifest("10,000 layers", "more than the", change=lambda m: {**m, "layers": m["layers"] * 10_000}),
        _manifest(
            "duplicate keys", "twice", raw=lambda text: text.replace(b'"layers"', b'"layers":[],"layers"', 1)
        ),
        _manifest("keys in another case", "is meant", raw=lambda text: text[:-1] + b',"Layers":[]}'),
        _manifest("50,000 deep", "nested", raw=lambda _text: nested),
        _manifest("an image and an index", "both", change=_set("manifests", [])),
        _manifest("neither", "neither", raw=lambda _text: b'{"schemaVersion":2}'),
        _manifest("schema 1", "schema 1", raw=lambda _text: b'{"schemaVersion":1,"fsLayers":[]}'),
        _manifest("not JSON", "not JSON", raw=lambda text: text[:-1]),
        _manifest("UTF-16", "not JSON", raw=lambda text: text.decode().encode("utf-16")),
        _manifest("a list", "not a JSON object", raw=lambda text: b"[" + text + b"]"),
        _manifest(
            "a number of 5,000 digits", "64 bits", raw=lambda t: t[:-1] + b',"x":' + b"9" * 5000 + b"}"
        ),
        _manifest("Infinity", "Infinity", raw=lambda text: text[:-1] + b',"x":Infinity}'),
        _manifest("half a surrogate pair", "surrogate", raw=lambda text: text[:-1] + b',"x":"\\ud800"}'),
        *(
            _manifest(f"a digest of {name}", "digest", change=_set("layers.0.digest", f"{name}:{value}"))
            for name, value in other.items()
        ),
        _manifest(
            "a digest that is a path", "digest", change=_set("layers.0.digest", "sha256:../../../etc/passwd")
        ),
        _manifest("a digest in capitals", "digest", change=_set("layers.0.digest", "sha256:" + "A" * 64)),
        _manifest("a negative size", "not a size", change=_set("layers.0.size", -1)),
        _manifest("a size of 1e30", "64 bits|not a size", change=_set("layers.0.size", 10**30)),
        _manifest("a size that is a text", "not a size", change=_set("layers.0.size", "1")),
        _manifest("a size too small", "longer than", change=_set("layers.0.size", 100)),
        _manifest("a size too large", "ends after", change=_set("layers.0.size", 1 << 20)),
        _manifest("a config of 1 TB", "more than", change=_set("config.size", 1 << 40)),
        _manifest(
            "a layer that is a config", "not an image layer", change=_set("layers.0.mediaType", _CONFIG)
        ),
        _manifest(
            "an encrypted layer",
            "not an image layer",
            change=_set("layers.0.mediaType", _LAYER + "+gzip+encrypted"),
        ),
        _manifest("a media type of 1 MB", "calls itself", change=_set("mediaType", "x" * (1 << 20))),
        _manifest("no layers", "is not a list", change=_set("layers", None)),
        _manifest("layers that are texts", "not a descriptor", change=_set("layers", ["x"])),
        _manifest(
            "more diff_ids than layers",
            "layers",
            config=_in_config("rootfs.diff_ids", ["sha256:" + "0" * 64] * 3),
        ),
        _manifest("a diff_id of md5", "digest", config=_in_config("rootfs.diff_ids", ["md5:" + "0" * 32])),
        _manifest("an artifact's config", "not the config", config=lambda _raw: b"{}"),
        _manifest("a config that is a list", "not a JSON object", config=lambda raw: b"[" + raw + b"]"),
        _manifest("NUL in the environment", "NUL", config=_in_config("config", {"Env": ["A=\0"]})),
        _manifest(
            "a command that is an object", "not a list", config=_in_config("config", {"Cmd": {"a": 1}})
        ),
        HostileImage(name="an index of itself", write=_index_of_indexes, refused="nested|digest"),
        HostileImage(name="index.json of 100 MB", write=_large_index, refused="more than"),
    ]


def _index_of_indexes(folder: Path, _victim: str) -> None:
    index = "application/vnd.oci.image.index.v1+json"
    platform = {"os": "linux", "architecture": "amd64"}
    below = _blob(folder, b'{"schemaVersion":2,"manifests":[]}', index, platform=platform)
    for _ in range(9):
        below = _blob(
            folder, json.dumps({"schemaVersion": 2, "manifests": [below]}).encode(), index, platform=platform
        )
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [below]}))


def _large_index(folder: Path, _victim: str) -> None:
    _stored(folder)
    text = (folder / "index.json").read_bytes()
    (folder / "index.json").write_bytes(text[:-1] + b" " * (100 << 20) + b"}")


def _configs() -> list[HostileImage]:
    return [
        HostileImage(
            name="config: quotes, lines, $(…), backticks, ${VAR}",
            write=_one(lambda _: LayerBuilder().dir("srv"), config=CONFIG),
            holds={b"etc/rc": None, b"etc/environment": None, b"etc/fstab": None},
        ),
        HostileImage(
            name="config: a working directory through a link to outside",
            write=_one(
                lambda victim: LayerBuilder().symlink("w", victim), config={"WorkingDir": "/w/made/here"}
            ),
            holds={b"w": None},
        ),
        HostileImage(
            name="config: a working directory of 40,000 bytes",
            write=_one(lambda _: LayerBuilder(), config={"WorkingDir": "/d" * 20_000}),
            refused="working directory",
        ),
        HostileImage(
            name="config: a working directory with a name of 300 bytes",
            write=_one(lambda _: LayerBuilder(), config={"WorkingDir": "/" + "d" * 300}),
            refused="working directory .* longer than",
        ),
        HostileImage(
            name="config: volumes that no file system takes",
            write=_one(
                lambda _: LayerBuilder(), config={"Volumes": {"/" + "v" * 300: {}, "/v" * 20_000: {}}}
            ),
            refused="volume",
        ),
        HostileImage(
            name="config: 100,000 volumes",
            write=_one(lambda _: LayerBuilder(), config={"Volumes": {f"/v/{n}": {} for n in range(100_000)}}),
            refused="volumes of the image",
        ),
        HostileImage(
            name="config: 1,000 volumes, each 2,000 folders deep",
            write=_one(
                lambda _: LayerBuilder(), config={"Volumes": {f"/{n}" + "/v" * 2000: {} for n in range(1000)}}
            ),
            refused="volumes of the image",
        ),
        HostileImage(
            name="config: 200,000 variables",
            write=_one(lambda _: LayerBuilder(), config={"Env": [f"V{n}=x" for n in range(200_000)]}),
            holds={b"etc/environment": None},
        ),
    ]


def _tars() -> list[HostileImage]:
    def write(make: Callable[[], bytes], folder: Path, _victim: str) -> None:
        write_layout(folder, [base(), make()])

    return [
        HostileImage(name=f"tar: {name}", write=functools.partial(write, make), refused=words)
        for name, (make, words) in HOSTILE_TARS.items()
    ]


HOSTILE_IMAGES = (*_paths(), *_sizes(), *_layer_bytes(), *_manifests(), *_configs(), *_tars())
