"""What the file system of scratch cannot hold was called a full disk, or nothing that helps."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pipeline.convert.tree import open_entries, read_tree
from pipeline.convert.unpack import Preserve, unpack
from pipeline.errors import ToolError
from pipeline.progress import NO_TASK
from pipeline.system.parallel import CancelToken
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder

SHELL = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)


def unpacked(layer: LayerBuilder, tmp_path: Path, *, xattrs: bool = False) -> None:
    source = image(tmp_path / "image", [SHELL, layer])
    tree = read_tree(source, keep_xattrs=xattrs, task=NO_TASK)
    root = tmp_path / "root"
    root.mkdir()

    def opened(number: int, cancel: CancelToken) -> object:
        return open_entries(source, number, cancel=cancel)

    unpack(tree, opened, root, keep=Preserve(xattrs=xattrs), task=NO_TASK, workers=1)  # type: ignore[arg-type]


def test_more_names_of_a_file_than_the_file_system_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ext4 gives 65,000; here the system is made to give one."""

    def refused(*_arguments: object, **_more: object) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr("os.link", refused)
    with pytest.raises(ToolError, match="fewer names than /b needs") as caught:
        unpacked(LayerBuilder().file("a", b"1").hardlink("b", "a"), tmp_path)
    assert "--converter native" in caught.value.hint


@pytest.mark.parametrize("kind", ["file", "folder", "fifo"])
def test_an_attribute_that_the_file_system_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """ext4 has one block for them and says that no space is left: no disk is full."""

    def refused(*_arguments: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.setxattr", refused)
    types = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "fifo": tarfile.FIFOTYPE}
    layer = LayerBuilder().member("a", types[kind], xattrs={"user.big": b"x" * 60_000})
    with pytest.raises(
        ToolError, match=r"does not take the extended attribute user.big of 60000 bytes of /a"
    ):
        unpacked(layer, tmp_path, xattrs=True)
