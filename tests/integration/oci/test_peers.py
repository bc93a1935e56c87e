"""Other people's tools on our layers, and our reader on their images."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from pipeline.oci.archive import open_archive
from pipeline.oci.entry import EntryKind
from pipeline.oci.layer import decompressed, read_layer
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.oci.source import ImageSource
from tests.support.images.layer_cases import LAYER_CASES, LayerCase
from tests.support.images.layers import LayerBuilder, write_layout

AMD64 = Platform.parse("linux/amd64")
_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFCHR: EntryKind.CHAR,
    stat.S_IFBLK: EntryKind.BLOCK,
    stat.S_IFIFO: EntryKind.FIFO,
}
# A moved file: we find what the layer itself hides, umoci has deleted it by then and gives up.
_LENIENT = "hard link to a file that the same layer hides"
# umoci unpacks the folders in which AUFS keeps its hard links, which docker and containerd leave out.
_AUFS = "bookkeeping of AUFS"


@pytest.mark.needs("umoci", "root")
@pytest.mark.parametrize(
    "case", [case for case in LAYER_CASES if case.name not in (_LENIENT, _AUFS)], ids=lambda case: case.name
)
def test_umoci_unpacks_the_expected_tree(case: LayerCase, tmp_path: Path) -> None:
    # umoci knows no zstd, which matters nothing for what layers mean.
    write_layout(tmp_path / "layout", case.layers, compression="gzip")
    command = ["umoci", "unpack", "--image", tmp_path / "layout:latest", tmp_path / "bundle"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    root = os.fsencode(tmp_path / "bundle" / "rootfs")
    found = {}
    inodes: dict[int, list[bytes]] = {}
    for folder, folders, files in os.walk(root):
        for path in (os.path.join(folder, name) for name in folders + files):  # noqa: PTH118 - names are bytes
            status = os.lstat(path)
            kind = _KINDS[stat.S_IFMT(status.st_mode)]
            inside = path[len(root) + 1 :]
            found[inside] = (kind, stat.S_IMODE(status.st_mode), _content(path, kind))
            if kind is EntryKind.FILE and status.st_nlink > 1:
                inodes.setdefault(status.st_ino, []).append(inside)
    assert found == {path: (want.kind, want.mode, want.content) for path, want in case.tree.items()}
    groups: dict[str, list[bytes]] = {}
    for path, want in case.tree.items():
        if want.group:
            groups.setdefault(want.group, []).append(path)
    assert sorted(map(sorted, inodes.values())) == sorted(map(sorted, groups.values()))


def _content(path: bytes, kind: EntryKind) -> bytes:
    if kind is EntryKind.SYMLINK:
        return os.readlink(path)  # noqa: PTH115 - names are bytes
    if kind is EntryKind.FILE:
        with open(path, "rb") as file:  # noqa: PTH123 - names are bytes
            return file.read()
    return b""


LAYERS = [LayerBuilder().file("a", b"1" * 5000), LayerBuilder().file("b", b"2").whiteout("c")]


FILES = {b"a": b"1" * 5000, b"b": b"2", b".wh.c": b""}
SKOPEO = ["skopeo", "--insecure-policy", "copy", "-q"]


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize(
    ("options", "compression"),
    [(["--dest-compress"], "gzip"), (["--dest-compress", "--dest-compress-format=zstd"], "zstd")],
)
def test_layouts_that_skopeo_writes_are_read(tmp_path: Path, options: list[str], compression: str) -> None:
    write_layout(tmp_path / "layout", LAYERS, compression="none")
    command = [*SKOPEO, *options, f"oci:{tmp_path}/layout:latest", f"oci:{tmp_path}/copy:v1"]
    subprocess.run(command, check=True, timeout=120)
    copied = open_layout(tmp_path / "copy", "v1", platform=AMD64)
    assert [layer.compression for layer in copied.manifest().layers] == [compression] * 2
    assert _files(copied) == FILES


@pytest.mark.needs("skopeo")
def test_docker_archives_that_skopeo_writes_are_read(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", LAYERS)
    archive = tmp_path / "archive.tar"
    target = f"docker-archive:{archive}:demo/x:v1"
    subprocess.run([*SKOPEO, f"oci:{tmp_path}/layout:latest", target], check=True, timeout=120)
    for reference in (None, "v1", "demo/x:v1"):
        assert _files(open_archive(archive, reference, platform=AMD64)) == FILES


def _files(source: ImageSource) -> dict[bytes, bytes]:
    found = {}
    for index, descriptor in enumerate(source.manifest().layers):
        with source.open_layer(index) as blob:
            stream = decompressed(blob, descriptor.compression)
            with read_layer(stream, diff_id=source.config().diff_ids[index]) as layer:
                found.update({entry.path: content.read() for entry, content in layer})
    return found
