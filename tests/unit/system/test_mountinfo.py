from __future__ import annotations

from pathlib import Path

from pipeline.system.mountinfo import mount_of


def test_the_mount_of_a_path(tmp_path: Path) -> None:
    below = tmp_path / "a b" / "c"
    below.mkdir(parents=True)
    escaped = str(tmp_path / "a b").replace(" ", "\\040")
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        f"2 1 0:5 / {escaped} rw - lustre fsx:/x rw\n"
        f"3 1 0:6 / {tmp_path}/a rw - nfs4 server:/x rw\n"
    )
    assert mount_of(below, mountinfo=mountinfo).type == "lustre"
    assert mount_of(below / "not" / "there", mountinfo=mountinfo).point == tmp_path / "a b"
    assert mount_of(tmp_path, mountinfo=mountinfo).type == "ext4"
    assert mount_of(tmp_path, mountinfo=tmp_path / "none").type == "unknown"


def test_filesystem_is_that_of_the_innermost_mount() -> None:
    assert mount_of(Path("/proc/self")).type == "proc"
    assert mount_of(Path("/")).type not in ("proc", "unknown")
