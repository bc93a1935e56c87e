from pathlib import Path

import pytest

from pipeline.errors import FormatError
from pipeline.report.contents import read_contents
from tests.support.images.squashfs import Stitcher

_DPKG = """\
Package: libc6
Status: install ok installed
Version: 2.35
Description: a
 Version: not this one

Package: gone
Status: deinstall ok config-files
Version: 1.0
"""


def test_packages_of_every_manager_are_found(tmp_path: Path) -> None:
    made = (
        Stitcher(tmp_path)
        .file(b"var/lib/dpkg/status", _DPKG.encode())
        .file(b"var/lib/dpkg/status.d/base", b"Package: base-files\nVersion: 12\n")
        .file(b"lib/apk/db/installed", b"P:musl\nV:1.2\n\nP:half\n")
        .file(b"opt/venv/lib/python3.11/site-packages/Torch_X-2.1.0+cu121.dist-info/METADATA")
        .file(b"usr/lib/python3/dist-packages/six-1.16.dist-info/METADATA")
        .file(b"usr/lib/python3.9/site-packages/six-1.15.dist-info/METADATA")
        .file(b"opt/conda/conda-meta/mkl-2024.0-h1_2.json")
        .stitch()
    )
    assert read_contents(made).packages == {
        ("debian", "libc6"): "2.35",
        ("debian", "base-files"): "12",
        ("alpine", "musl"): "1.2",
        ("python", "torch-x"): "2.1.0+cu121",
        ("python", "six"): "1.15, 1.16",
        ("conda", "mkl"): "2024.0",
    }


def test_the_walk_counts_folders_and_each_hard_link_once(tmp_path: Path) -> None:
    made = (
        Stitcher(tmp_path)
        .file(b"a/b/c/d", b"x" * 10)
        .link(b"a/b/e", b"a/b/c/d")
        .file(b"a/b/\xff", b"yy")
        .symlink(b"a/l", b"b")
        .stitch()
    )
    found = read_contents(made, walk=True)
    assert found.folders == {"/a/b": 12}
    assert set(found.files) == {b"a/b/c/d", b"a/b/e", b"a/b/\xff", b"a/l"}


def test_what_is_no_squashfs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    with pytest.raises(FormatError):
        read_contents(tmp_path / "file")
