"""Names below a folder that somebody else controls never lead outside it, block, or reach a device."""

import os
from pathlib import Path

import pytest

from pipeline.system import untrusted

SECRET = b"host secret"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc" / "name").write_bytes(b"inside")
    return inside


@pytest.mark.parametrize(
    ("link", "target", "content"),
    [
        ("plain", "etc/name", b"inside"),
        ("absolute", "/etc/name", b"inside"),
        ("up", "../../../../etc/name", b"inside"),
        ("twice", "plain", b"inside"),
        ("through", "folder/../etc/name", b"inside"),
    ],
)
def test_symlinks_are_resolved_below_the_root(root: Path, link: str, target: str, content: bytes) -> None:
    (root / "plain").symlink_to("etc/name")
    (root / "folder").symlink_to("/etc")
    if link != "plain":
        (root / link).symlink_to(target)
    with untrusted.folder(root) as opened:
        assert untrusted.read_in_root(opened, f"/{link}", limit=100) == content


@pytest.mark.parametrize("target", ["../secret", "/../secret", "{tmp}/secret", "etc/../../secret"])
def test_nothing_outside_is_read(root: Path, target: str) -> None:
    (root / "link").symlink_to(target.format(tmp=root.parent))
    with untrusted.folder(root) as opened, pytest.raises(FileNotFoundError):
        untrusted.read_in_root(opened, "link", limit=100)


def test_a_loop_of_symlinks_ends(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with untrusted.folder(root) as opened, pytest.raises(OSError, match="Too many levels"):
        untrusted.read_in_root(opened, "a", limit=100)


def test_a_pipe_neither_blocks_nor_is_read(root: Path) -> None:
    os.mkfifo(root / "pipe")
    with untrusted.folder(root) as opened:
        with pytest.raises(untrusted.NotRegularError):
            untrusted.read_in_root(opened, "pipe", limit=100)
        with pytest.raises(untrusted.NotRegularError):
            untrusted.read_regular("pipe", dir_fd=opened, limit=100)


def test_reading_is_bounded(root: Path) -> None:
    with untrusted.folder(root) as opened, pytest.raises(untrusted.NotRegularError, match="larger than 3"):
        untrusted.read_in_root(opened, "etc/name", limit=3)


@pytest.mark.parametrize("planted", ["link", "dangling", "file"])
def test_creation_never_writes_through_a_planted_name(root: Path, planted: str) -> None:
    name = root / "mark"
    if planted == "file":
        name.write_bytes(b"old")
    else:
        name.symlink_to(root.parent / ("secret" if planted == "link" else "new"))
    with pytest.raises(FileExistsError):
        untrusted.create_exclusive(name)
    assert (root.parent / "secret").read_bytes() == SECRET
    assert not (root.parent / "new").exists()


def test_descriptors_are_closed(root: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with untrusted.folder(root) as opened:
        for _ in range(20):
            untrusted.read_in_root(opened, "etc/../etc/name", limit=100)
            with pytest.raises(FileNotFoundError):
                untrusted.read_in_root(opened, "etc/none/x", limit=100)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
