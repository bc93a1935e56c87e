"""Data: folders and tars as they are, the same bytes each time, and what cannot be data."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import os
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pipeline.config.types import ConvertOptions
from pipeline.convert import data
from pipeline.convert.convert import WrittenFile
from pipeline.convert.data import convert_data, is_data
from pipeline.convert.verify import compare
from pipeline.errors import ConfigError, FormatError, ToolError
from pipeline.squashfs.reader import SquashfsImage

OPTIONS = ConvertOptions()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every kind of name that data can have."""
    root = tmp_path / "folder"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a").write_text("small")
    (root / "same").write_text("small")
    (root / "nothing").touch()
    (root / "a-b").write_text("beside a folder of the name a")
    (root / "deep" / "large").write_bytes(os.urandom(400_000) + bytes(300_000))
    (root / "deep" / "block").write_bytes(b"x" * OPTIONS.block_size)
    with (root / "hole").open("wb") as file:
        file.truncate(1_000_000)
    (root / "deep" / "er" / "name\n\xff").write_text("odd")
    os.link(root / "a", root / "deep" / "hard")
    (root / "deep" / "soft").symlink_to("../a")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o700)
    (root / "a").chmod(0o600)
    for number in range(100):
        (root / "deep" / f"{number:03}").write_text(str(number))
    return root


def made(source: Path, output: Path, **more: bool) -> WrittenFile:
    written = convert_data(source, OPTIONS, output=output, **more)
    assert written.size == output.stat().st_size
    compare(written)
    return written


def content(file: Path) -> dict[str, str | bytes]:
    """Each name of a .sqsh with its content, its target, or "folder"."""
    found: dict[str, str | bytes] = {}
    with SquashfsImage.open(file) as image:
        for path, inode in image.walk():
            kind = inode.kind.name
            assert (inode.uid, inode.gid) == (0, 0)
            assert inode.mode & 0o7444 == 0o444
            if kind == "FILE":
                found[os.fsdecode(path)] = image.read(inode, limit=10 << 20)
            else:
                found[os.fsdecode(path)] = os.fsdecode(inode.target) if kind == "SYMLINK" else "folder"
    return found


def on_disk(folder: Path) -> dict[str, str | bytes]:
    found: dict[str, str | bytes] = {"": "folder"}
    for path in folder.rglob("*"):
        kept = str(path.readlink()) if path.is_symlink() else "folder" if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(folder))] = kept
    return found


def test_a_folder_is_there_as_it_is(folder: Path, tmp_path: Path) -> None:
    made(folder, tmp_path / "out")
    assert content(tmp_path / "out") == on_disk(folder)
    with SquashfsImage.open(tmp_path / "out") as image:
        found = dict(image.walk())
    assert found[b"deep/hard"].number == found[b"a"].number
    assert found[b"run.sh"].mode == 0o755
    assert found[b"a"].mtime == int((folder / "a").stat().st_mtime)


def test_other_readers_take_it_for_squashfs(folder: Path, tmp_path: Path) -> None:
    made(folder, tmp_path / "out")
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", tmp_path / "back", tmp_path / "out"], check=True, timeout=60
    )
    assert on_disk(tmp_path / "back") == on_disk(folder)


def test_the_same_content_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Whoever owns it, whatever their umask, and also through a tar."""
    first = made(folder, tmp_path / "first")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", folder, copy], check=True, timeout=60)
    for path in copy.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o700 if path.stat().st_mode & 0o100 else 0o640)
    assert made(copy, tmp_path / "second").sha256 == first.sha256
    tar = tmp_path / "plain.tar"
    subprocess.run(["tar", "--sort=name", "-C", folder, "-cf", tar, "."], check=True, timeout=60)
    assert made(tar, tmp_path / "third").sha256 == first.sha256


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_a_tar_is_taken_whatever_it_is_compressed_with(
    pack: Callable[[bytes], bytes], folder: Path, tmp_path: Path
) -> None:
    tar = tmp_path / "data.tar"
    with tarfile.open(tar, "w") as members:
        members.add(folder, ".")
    packed = tmp_path / "packed"
    packed.write_bytes(pack(tar.read_bytes()))
    assert is_data(packed)
    made(packed, tmp_path / "out")
    assert content(tmp_path / "out") == on_disk(folder)


def test_only_folders_and_tars_are_data(folder: Path, tmp_path: Path) -> None:
    made(folder, tmp_path / "out")
    assert is_data(folder)
    assert not is_data(tmp_path / "out")
    assert not is_data(folder / "a")
    (tmp_path / "bz2").write_bytes(bz2.compress(b"x"))
    with pytest.raises(FormatError, match="is neither a"):
        is_data(tmp_path / "bz2")
    with pytest.raises(ConfigError, match="cannot read"):
        is_data(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="cannot read"):
        is_data(tmp_path / "pipe")


def _socket(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "socket"))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (lambda root: os.mkfifo(root / "pipe"), "/pipe is a device, a pipe or a socket"),
    "socket": (_socket, "/socket is a device, a pipe or a socket"),
    "absolute symlink": (lambda root: (root / "out").symlink_to("/etc"), "the symlink /out leads out of it"),
    "relative symlink": (
        lambda root: (root / "deep" / "out").symlink_to("../../blobs/1"),
        "the symlink /deep/out leads out of it, to ../../blobs/1",
    ),
    "whiteout": (lambda root: (root / ".wh.a").touch(), "/.wh.a is the name of a whiteout"),
    "image": (lambda root: (root / "oci-layout").write_text("{}"), "it is a container image, not data"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_what_cannot_be_data_is_refused(case: str, form: str, folder: Path, tmp_path: Path) -> None:
    make, sentence = REFUSED[case]
    make(folder)
    source = folder
    if form == "tar":
        if case == "socket":
            pytest.skip("a tar has no sockets")
        source = tmp_path / "data.tar"
        with tarfile.open(source, "w") as members:
            members.add(folder, ".")
    with pytest.raises(FormatError) as caught:
        convert_data(source, OPTIONS, output=tmp_path / "out")
    assert sentence in caught.value.message
    assert str(source) in caught.value.message
    assert not (tmp_path / "out").exists()


def test_an_image_is_data_when_the_caller_says_so(folder: Path, tmp_path: Path) -> None:
    (folder / "oci-layout").write_text("{}")
    made(folder, tmp_path / "out", images=True)
    assert content(tmp_path / "out") == on_disk(folder)


@pytest.mark.parametrize("size", [10, 500_000], ids=["small", "large"])
@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
def test_a_file_that_changes_meanwhile_is_not_taken(
    size: int, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "folder"
    root.mkdir()
    (root / "file").write_bytes(bytes(size))
    opened = data.untrusted.open_regular

    def changed(name: str, **more: object) -> int:
        descriptor = opened(name, **more)  # type: ignore[arg-type]
        sizes = {"grow": size + 1, "shrink": size - 1, "rewrite": size}
        (root / "file").write_bytes(b"y" * sizes[change])
        return descriptor

    monkeypatch.setattr(data.untrusted, "open_regular", changed)
    with pytest.raises(ToolError, match="changed while it was read"):
        convert_data(root, OPTIONS, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [10, 500_000], ids=["small", "large"])
def test_the_message_names_the_file_that_cannot_be_read(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small files are read ahead of those before them."""
    below = tmp_path / "folder" / "below"
    below.mkdir(parents=True)
    for name in ("a", "b", "closed", "d"):
        (below / name).write_bytes(bytes(size if name == "closed" else 1))
    opened = data.untrusted.open_regular

    def refused(name: str, **more: object) -> int:
        if name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return opened(name, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(data.untrusted, "open_regular", refused)
    with pytest.raises(ToolError, match="folder/below/closed: Permission denied"):
        convert_data(tmp_path / "folder", OPTIONS, output=tmp_path / "out")


def test_what_a_tar_replaces_is_not_in_the_file(tmp_path: Path) -> None:
    """`tar --append` and `--update` leave the old content in the tar."""
    large, whole, alone = os.urandom(OPTIONS.block_size + 1), tmp_path / "whole.tar", tmp_path / "alone.tar"
    members = [
        ("keys/token", b"SECRET-1", True),
        ("linked", b"kept", False),
        ("model", large, True),
        ("gone/inner", b"SECRET-2", True),
        ("other", b"other", False),
        ("keys/token", b"SECRET-3", True),
        ("keys/token", b"new", False),
        ("model", b"small", False),
        ("gone", b"a file now", False),
    ]
    for path, names in ((whole, members), (alone, [one for one in members if not one[2]])):
        with tarfile.open(path, "w") as tar:
            for name, content, _ in names:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                if name == "linked":
                    link = tarfile.TarInfo("link")
                    link.type, link.linkname = tarfile.LNKTYPE, "linked"
                    tar.addfile(link)
    made(whole, tmp_path / "whole.sqsh")
    made(alone, tmp_path / "alone.sqsh")
    stored = (tmp_path / "whole.sqsh").read_bytes()
    assert b"SECRET" not in stored
    assert large[:1000] not in stored
    assert len(stored) == (tmp_path / "alone.sqsh").stat().st_size


def test_a_file_that_a_link_still_names_is_not_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("a", b"old"), ("b", None), ("a", b"new")):
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            if content is None:
                info.type, info.linkname = tarfile.LNKTYPE, "a"
            tar.addfile(info, io.BytesIO(content or b""))
    made(tmp_path / "a.tar", tmp_path / "a.sqsh")
    assert (
        subprocess.run(["unsquashfs", "-cat", tmp_path / "a.sqsh", "b"], capture_output=True).stdout == b"old"
    )


def test_a_cut_tar_is_refused(folder: Path, tmp_path: Path) -> None:
    tar = tmp_path / "data.tar.gz"
    with tarfile.open(tar, "w:gz") as members:
        members.add(folder, ".")
    whole = tar.read_bytes()
    for end in (len(whole) // 2, len(whole) - 4):
        tar.write_bytes(whole[:end])
        with pytest.raises(FormatError) as caught:
            convert_data(tar, OPTIONS, output=tmp_path / "out")
        assert "layer" not in caught.value.message
        assert "image" not in caught.value.hint
        assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_sentence(folder: Path) -> None:
    with pytest.raises(ToolError, match="cannot write /proc/out"):
        convert_data(folder, OPTIONS, output=Path("/proc/out"))


def test_nothing_stays_open_and_no_thread_stays(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "deep" / "er" / "pipe")
    before, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    with pytest.raises(FormatError):
        convert_data(folder, OPTIONS, output=tmp_path / "out")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert threading.active_count() == threads
