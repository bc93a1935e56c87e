"""A pack stood in for a blob that nobody had compared: an image whose manifest names a clean blob, and whose
config names another image's layer, was converted to what that other layer holds, and no scanner had seen it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.convert.enroot import _checked, _Handed
from pipeline.convert.interface import Converted
from pipeline.convert.native import convert_native
from pipeline.convert.packing import pack_cache
from pipeline.convert.sources import open_registry
from pipeline.convert.unpack import Preserve
from pipeline.convert.verify import described
from pipeline.errors import FormatError, SqshpipeError
from pipeline.oci.archive import open_archive
from pipeline.oci.entry import Limits
from pipeline.oci.layout import open_layout
from pipeline.oci.reference import Reference
from pipeline.oci.source import ImageSource
from pipeline.progress import NO_TASK
from pipeline.squashfs.cache import PackCache
from tests.support.images.images import LINUX
from tests.support.images.layers import LayerBuilder, compressed
from tests.support.servers.fake_registry import HOST, FakeRegistry

SHELL = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
CLEAN = LayerBuilder().file("opt/a", b"clean" * 500)
SECRET = LayerBuilder().file("opt/a", b"secret" * 500)
KINDS = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}
Writer = Callable[[Path, "list[tuple[bytes, str, str]]"], ImageSource]


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


def image_files(layers: list[tuple[bytes, str, str]]) -> tuple[bytes, bytes, dict[str, bytes]]:
    """Manifest, config and blobs. Each layer: its bytes as stored, how, and the diff_id that is stated."""
    config = json.dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, _, diff_id in layers]},
        }
    ).encode()
    kind = "application/vnd.oci.image.layer.v1.tar"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(config),
                "size": len(config),
            },
            "layers": [
                {"mediaType": kind + KINDS[how], "digest": sha256(blob), "size": len(blob)}
                for blob, how, _ in layers
            ],
        }
    ).encode()
    return manifest, config, {sha256(blob): blob for blob, _, _ in layers}


def layout_files(layers: list[tuple[bytes, str, str]]) -> dict[str, bytes]:
    manifest, config, blobs = image_files(layers)
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": sha256(manifest),
        "size": len(manifest),
    }
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    found = {sha256(manifest): manifest, sha256(config): config, **blobs}
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": index,
        **{f"blobs/{digest.replace(':', '/')}": data for digest, data in found.items()},
    }


def as_layout(folder: Path, layers: list[tuple[bytes, str, str]]) -> ImageSource:
    for name, data in layout_files(layers).items():
        path = folder / "layout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return open_layout(folder / "layout", platform=LINUX)


def as_daemon_saves(folder: Path, layers: list[tuple[bytes, str, str]]) -> ImageSource:
    """What an engine of today writes, which is also what docker-daemon: reads."""
    (folder / "saved.tar").write_bytes(tar_of(layout_files(layers)))
    return open_archive(folder / "saved.tar", platform=LINUX)


def as_classic_archive(folder: Path, layers: list[tuple[bytes, str, str]]) -> ImageSource:
    _, config, _ = image_files(layers)
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    listed = [{"Config": "config.json", "RepoTags": ["a:b"], "Layers": names}]
    files = {
        "config.json": config,
        **dict(zip(names, (blob for blob, _, _ in layers), strict=True)),
        "manifest.json": json.dumps(listed).encode(),
    }
    (folder / "classic.tar").write_bytes(tar_of(files))
    return open_archive(folder / "classic.tar", platform=LINUX)


def as_registry(
    folder: Path, layers: list[tuple[bytes, str, str]], *, serving: Mapping[str, bytes] | None = None
) -> ImageSource:
    manifest, config, blobs = image_files(layers)
    registry = FakeRegistry()
    registry.blobs.update({sha256(config): config, **blobs, **(serving or {})})
    registry.manifests[sha256(manifest)] = (manifest, "application/vnd.oci.image.manifest.v1+json")
    reference = Reference.parse(f"{HOST}/team/x@{sha256(manifest)}")
    return open_registry(reference, LINUX, lambda _host: registry.client())


WRITERS: dict[str, Writer] = {
    "layout": as_layout,
    "docker-daemon": as_daemon_saves,
    "docker-archive": as_classic_archive,
    "registry": as_registry,
}


def honest(layer: LayerBuilder, how: str) -> tuple[bytes, str, str]:
    return compressed(layer.tar(), how), how, sha256(layer.tar())


def native(source: ImageSource, folder: Path) -> object:
    done = convert_native(source, ConvertOptions(), output=folder / "x.sqsh", cache=folder / "cache")
    return done.sha256


def mksquashfs(source: ImageSource, folder: Path) -> object:
    options = ConvertOptions(converter="mksquashfs")
    return convert(
        source, options, output=folder / "x.sqsh", scratch=folder / "scratch", cache=folder / "cache"
    ).sha256


def enroot(source: ImageSource, folder: Path) -> object:
    """All that is looked at before enroot is run, which is handed what has passed."""
    (folder / "cache" / "enroot").mkdir(parents=True, exist_ok=True)
    tree = _checked(_Handed(source, folder / "cache" / "enroot"), Limits(), NO_TASK)  # type: ignore[arg-type]
    return [(path, node.entry.crc32) for path, node in tree.items()]


def verified(source: ImageSource, folder: Path) -> object:
    """What `verify` compares a file with; any .sqsh will do."""
    made = folder / "made.sqsh"
    if not made.exists():
        good = as_layout(folder / "good", [honest(SHELL, "gzip")])
        convert_native(good, ConvertOptions(), output=made, cache=folder / "other")
    keep = Preserve()
    file = described(made, source, keep=keep, by_enroot=False, cache=folder / "cache")
    return [(path, node.entry.crc32) for path, node in file.tree.items()]


CONVERTERS = {"native": native, "mksquashfs": mksquashfs, "enroot": enroot, "verify": verified}
READS = [
    (converter, kind)
    for converter in CONVERTERS
    for kind in WRITERS
    if converter != "enroot" or kind == "registry"
]


def answer(
    work: Callable[[ImageSource, Path], object], source: Callable[[], ImageSource], folder: Path
) -> object:
    """What came out, or the exit code with which it was refused."""
    folder.mkdir(exist_ok=True)
    try:
        return work(source(), folder)
    except SqshpipeError as error:
        return error.exit_code


def gzip_with_more(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0) + b"more bytes behind it"


CASES: dict[str, tuple[bytes, str, str]] = {
    "another layer's diff_id": (CLEAN.tar("gzip"), "gzip", sha256(SECRET.tar())),
    "the same, zstd": (CLEAN.tar("zstd"), "zstd", sha256(SECRET.tar())),
    "the same, plain": (CLEAN.tar(), "none", sha256(SECRET.tar())),
    "compressed in another way": (SECRET.tar("zstd"), "zstd", sha256(SECRET.tar())),
    "bytes behind gzip": (gzip_with_more(SECRET.tar()), "gzip", sha256(SECRET.tar())),
    "zeros behind gzip": (SECRET.tar("gzip") + bytes(512), "gzip", sha256(SECRET.tar())),
    "gzip cut short": (SECRET.tar("gzip")[:-4], "gzip", sha256(SECRET.tar())),
    "two members of gzip": (
        gzip.compress(SECRET.tar()[:700]) + gzip.compress(SECRET.tar()[700:]),
        "gzip",
        sha256(SECRET.tar()),
    ),
    "an empty blob": (b"", "gzip", sha256(SECRET.tar())),
    "no layer at all": (b"<html>", "gzip", sha256(SECRET.tar())),
}
GOOD = ("compressed in another way", "two members of gzip", "zeros behind gzip")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("converter", "kind"), READS)
def test_warm_and_cold_give_one_answer(tmp_path: Path, converter: str, kind: str, case: str) -> None:
    """Warm: every cache holds the layer under its own blob, from an image that is as it should be."""
    work, write = CONVERTERS[converter], WRITERS[kind]
    for name in ("image", "other"):
        (tmp_path / name).mkdir()
    attack = [honest(SHELL, "gzip"), CASES[case]]

    def attacked() -> ImageSource:
        return write(tmp_path / "image", attack)

    cold = answer(work, attacked, tmp_path / "cold")
    good = answer(
        work,
        lambda: write(tmp_path / "other", [honest(SHELL, "gzip"), honest(SECRET, "gzip")]),
        tmp_path / "warm",
    )
    assert not isinstance(good, int)
    warm = answer(work, attacked, tmp_path / "warm")
    assert warm == cold
    assert cold == (good if case in GOOD else 6)
    assert answer(work, attacked, tmp_path / "warm") == cold, "the second time too"


def test_a_layer_twice_under_two_blobs_is_compared_twice(tmp_path: Path) -> None:
    """One pack for both: the one that is packed says nothing about the other."""
    liar = (CLEAN.tar("gzip"), "gzip", sha256(SECRET.tar()))
    for number, order in enumerate(([honest(SECRET, "gzip"), liar], [liar, honest(SECRET, "gzip")])):
        source = as_layout(tmp_path / str(number), [honest(SHELL, "gzip"), *order])
        with pytest.raises(FormatError):
            convert_native(source, ConvertOptions(), output=tmp_path / "x.sqsh", cache=tmp_path / "cache")


def noted(cache: PackCache) -> list[Path]:
    return sorted(cache.folder.glob("*.pair"))


@pytest.mark.parametrize("damage", ["cut", "other", "empty", "flipped", "folder", "link", "fifo"])
def test_a_damaged_note_is_not_believed(tmp_path: Path, damage: str) -> None:
    good = as_layout(tmp_path / "good", [honest(SHELL, "gzip"), honest(SECRET, "gzip")])
    cache = tmp_path / "cache"
    first = convert_native(good, ConvertOptions(), output=tmp_path / "x.sqsh", cache=cache)
    paths = noted(pack_cache(cache))
    assert len(paths) == 2
    data = [path.read_bytes() for path in paths]
    for number, path in enumerate(paths):
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage == "link":
            (tmp_path / f"same-{number}").write_bytes(data[number])
            path.symlink_to(tmp_path / f"same-{number}")
        elif damage == "fifo":
            os.mkfifo(path)
        else:
            text = {
                "cut": data[number][:-20],
                "other": data[1 - number],
                "empty": b"",
                "flipped": data[number].replace(b" 0 ", b" 1 "),
            }[damage]
            assert text != data[number]
            path.write_bytes(text)
    opened = []
    real = good.open_layer
    good.open_layer = lambda index: opened.append(index) or real(index)  # type: ignore[method-assign,func-returns-value]
    again = convert_native(good, ConvertOptions(), output=tmp_path / "x.sqsh", cache=cache)
    assert sorted(opened) == [0, 1]
    assert again.sha256 == first.sha256


def test_notes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.squashfs.cache._MOST_PAIRS", 4)
    cache = tmp_path / "cache"
    for number in range(7):
        layer = LayerBuilder().file("opt/a", b"%d" % number)
        source = as_layout(tmp_path / str(number), [honest(SHELL, "gzip"), honest(layer, "gzip")])
        convert_native(source, ConvertOptions(), output=tmp_path / "x.sqsh", cache=cache)
    assert 2 <= len(noted(pack_cache(cache))) <= 6


def twins(how: str) -> tuple[bytes, bytes]:
    """Two blobs of one length that unpack to the same tar."""
    tar = SECRET.tar()
    if how == "gzip":
        return gzip.compress(tar, mtime=0), gzip.compress(tar, mtime=1)
    skipped = [b"\x50\x2a\x4d\x18" + len(word).to_bytes(4, "little") + word for word in (b"one", b"two")]
    return compressed(tar, "zstd") + skipped[0], compressed(tar, "zstd") + skipped[1]


@pytest.mark.parametrize("how", ["gzip", "zstd"])
@pytest.mark.parametrize(("converter", "kind"), [read for read in READS if read[1] in ("layout", "registry")])
def test_another_blob_with_the_right_content_is_refused(
    tmp_path: Path, converter: str, how: str, kind: str
) -> None:
    """Its diff_id is right, its own digest is not: these are not the bytes that were scanned."""
    named, served = twins(how)
    layers = [honest(SHELL, "gzip"), (named, how, sha256(SECRET.tar()))]
    if kind == "registry":
        source: ImageSource = as_registry(tmp_path, layers, serving={sha256(named): served})
    else:
        source = as_layout(tmp_path, layers)
        (tmp_path / "layout" / "blobs" / sha256(named).replace(":", "/")).write_bytes(served)
    assert answer(CONVERTERS[converter], lambda: source, tmp_path / "out") == (4 if kind == "registry" else 6)


def test_limits_hold_for_layers_that_have_packs_too(tmp_path: Path) -> None:
    """A layer that would be refused when it is read is refused when its pack is there."""
    zeros = LayerBuilder().file("opt/zeros", bytes(3_000_000))
    hidden = LayerBuilder().whiteout("opt/zeros")
    layers = [honest(SHELL, "gzip"), honest(zeros, "gzip"), honest(hidden, "gzip")]
    source = as_layout(tmp_path / "image", layers)
    for limits in (Limits(max_unpacked=2_000_000), Limits(max_ratio=100, ratio_floor=1_000_000)):
        answers = []
        for cache in ("cold", "warm"):
            if cache == "warm":
                convert_native(source, ConvertOptions(), output=tmp_path / "x.sqsh", cache=tmp_path / cache)
            with pytest.raises(FormatError) as caught:
                convert_native(
                    source,
                    ConvertOptions(),
                    output=tmp_path / "x.sqsh",
                    cache=tmp_path / cache,
                    limits=limits,
                )
            answers.append(caught.value.exit_code)
        assert answers == [6, 6]


def test_a_pack_under_the_name_of_another_layer_is_made_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    one = as_layout(tmp_path / "one", [honest(SHELL, "gzip"), honest(CLEAN, "gzip")])
    two = as_layout(tmp_path / "two", [honest(SHELL, "gzip"), honest(SECRET, "gzip")])
    wanted: list[Converted] = []
    named: list[set[Path]] = []
    for source in (one, two):
        wanted.append(convert_native(source, ConvertOptions(), output=tmp_path / "x.sqsh", cache=cache))
        named.append({pack.path for pack in pack_cache(cache).packs()})
    [of_two] = named[1] - named[0]
    another = next(iter(named[0]))
    of_two.write_bytes(another.read_bytes())
    again = convert_native(two, ConvertOptions(), output=tmp_path / "x.sqsh", cache=cache)
    assert again.sha256 == wanted[1].sha256
