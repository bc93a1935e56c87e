"""What is fuzzed: a stranger's bytes go in, a value that holds what it promises comes out, or FormatError.

Anything else that is raised is a defect. The bounds are small, so that time and memory of one input are too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import zstandard

from pipeline.errors import ConfigError, FormatError
from pipeline.oci.config import parse_config
from pipeline.oci.digest import Digest
from pipeline.oci.entry import EntryKind, Limits
from pipeline.oci.layer import decompressed, read_layer
from pipeline.oci.manifest import Index, parse_manifest
from pipeline.oci.merge import merge
from pipeline.oci.platform import Platform
from pipeline.oci.rootfs import enroot_rootfs
from pipeline.oci.tree import Tree
from pipeline.squashfs.layers import LayerIndex
from pipeline.squashfs.layers import read_layer as read_section
from pipeline.squashfs.ranges import PackRanges, pieces
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.stored import Held, NotHeld, SourceFailed, StoredPack
from pipeline.squashfs.superblock import Compressor
from pipeline.squashfs.tails import TailReader

LIMITS = Limits(max_unpacked=1 << 22, max_entries=5000, max_metadata=1 << 20, ratio_floor=1 << 16)
CORPUS = Path(__file__).parents[1] / "corpus"
_CONFIG = parse_config(b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}')
_MOST_ENTRIES = 2000
_MOST_BYTES = 1 << 20


def tar(data: bytes) -> None:
    """A layer as it is stored, merged over itself, made into a root."""
    try:
        plain = decompressed(io.BytesIO(data), "none", limits=LIMITS)
        with read_layer(plain, diff_id=None, limits=LIMITS) as layer:
            entries = []
            for entry, content in layer:
                size = sum(len(piece) for piece in content.pieces()) if entry.kind is EntryKind.FILE else 0
                assert size == entry.size
                entries.append(entry)
        tree = merge([entries, entries])
        _check(tree)
        _check(enroot_rootfs(tree, _CONFIG))
    except FormatError as error:
        assert error.message


def _check(tree: Tree) -> None:
    for path, node in tree.items():
        assert len(path) <= 2 * LIMITS.max_path, "a link can make a path longer, not without bound"
        assert b"\0" not in path
        if path:
            parts = path.split(b"/")
            assert b".." not in parts
            assert b"." not in parts
            assert b"" not in parts
            assert tree[path.rpartition(b"/")[0]].entry.kind is EntryKind.DIRECTORY
        assert node.entry.kind is not EntryKind.HARDLINK
        assert 0 <= node.entry.mode <= 0o7777


def manifest(data: bytes) -> None:
    """A manifest, an index and a config."""
    try:
        found = parse_manifest(data, None)
        assert found.digest == Digest.of(data)
        if isinstance(found, Index):
            found.select(Platform(os="linux", architecture="amd64"))
        else:
            assert all(layer.size >= 0 for layer in found.layers)
    except (FormatError, ConfigError) as error:
        assert error.message
    try:
        config = parse_config(data)
        tree = enroot_rootfs(merge([]), config)
        _check(tree)
        content = tree[b"etc/environment"].content
        assert content is not None
        assert len(content.split(b"\n")) <= len(config.env) + 1, "a variable stays on its line"
    except FormatError as error:
        assert error.message


def squashfs(data: bytes) -> None:
    """A .sqsh: its tables, every name, the bytes of files, links followed."""
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, data)
        with SquashfsImage.open(Path(f"/proc/self/fd/{descriptor}")) as image:
            left = _MOST_BYTES
            for number, (path, inode) in enumerate(image.walk()):
                assert b"\0" not in path
                if number > _MOST_ENTRIES:
                    break
                if inode.kind == EntryKind.FILE.value and inode.size <= left:
                    for piece in image.open_file(inode):
                        left -= len(piece)
            image.resolve(b"etc/../bin/sh")
    except FormatError as error:
        assert error.message
    except FileNotFoundError:
        pass  # what resolve says of a name that is not there
    finally:
        os.close(descriptor)


def ranges(data: bytes) -> None:
    """The ranges beside a release, alone and against themselves."""
    try:
        found = PackRanges.decode(data)
    except FormatError as error:
        assert error.message
        return
    assert PackRanges.decode(found.encode()) == found
    end = 0
    for piece in pieces(found, [found]):
        assert piece.target == end, "every byte once, in order"
        assert piece.length > 0
        assert 0 <= piece.source <= found.size - piece.length
        end += piece.length
    assert end == found.size


def layers(data: bytes) -> None:
    """The layers beside a release: the head, and each section with its columns, which are compressed."""
    size = 1 << 16
    try:
        at = int.from_bytes(data[8:16], "little") + 16
        plain = data[at:]
        section = zstandard.ZstdCompressor().compress(plain)
        head = json.loads(data[16:at])
        head["layers"] = [[name, len(section)] for name, _ in head["layers"][:1]]
        text = json.dumps(head).encode()
        stored = data[:8] + len(text).to_bytes(8, "little") + text + section
        key = head["layers"][0][0]
    except (ValueError, TypeError, LookupError, RecursionError, AttributeError):
        stored, key = data, ""
    try:
        found = read_section(stored, key, size=size)
    except FormatError as error:
        assert error.message
        return
    if found is not None:
        _check_layer(found, size)


def _check_layer(found: LayerIndex, size: int) -> None:
    """All that a conversion reads by it lies where it can; nothing is there of what is not shown."""
    assert LayerIndex.decode(found.encode()).encode() == found.encode()
    end = 0
    for position, length, _ in found.pieces():
        assert position >= end
        end = position + length
    assert end <= found.data_size
    descriptor = os.memfd_create("release")
    try:
        os.ftruncate(descriptor, size)
        pack = StoredPack("a" * 64, [(Held(name="x", path=Path("x"), descriptor=descriptor), found)], Path())
        tails = TailReader([pack], Compressor.ZSTD)
        for number, shown in enumerate(found.shown):
            if not shown:
                assert not found.checksums[number]
                assert number not in found.targets
                assert number not in found.xattrs
                assert number not in found.devices
            elif 0 < found.sizes[number] < found.header["block_size"]:
                assert found.kinds[number] == EntryKind.FILE
                with contextlib.suppress(SourceFailed):
                    tails.read(0, number)
        for position, length, _ in found.pieces():
            with contextlib.suppress(NotHeld):
                assert all(0 <= at <= size - part for _, at, part in pack.where(position, length))
    finally:
        os.close(descriptor)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "tar": tar,
    "manifest": manifest,
    "squashfs": squashfs,
    "ranges": ranges,
    "layers": layers,
}


def seeds(name: str) -> list[bytes]:
    """The corpus of a target, by file name."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
