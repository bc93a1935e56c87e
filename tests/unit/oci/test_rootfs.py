from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FormatError
from pipeline.oci.config import ImageConfig, parse_config
from pipeline.oci.digest import Digest
from pipeline.oci.enroot_files import fstab, rc
from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.merge import Tree, merge
from pipeline.oci.rootfs import MAX_TIME, created_seconds, enroot_rootfs

FILE, DIRECTORY, SYMLINK, HARDLINK = (
    EntryKind.FILE,
    EntryKind.DIRECTORY,
    EntryKind.SYMLINK,
    EntryKind.HARDLINK,
)


def config(**run: Any) -> ImageConfig:
    value = {
        "os": "linux",
        "architecture": "amd64",
        "created": "2024-01-01T00:00:00.5Z",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    return parse_config(json.dumps(value).encode())


def tree(*entries: Entry) -> Tree:
    return merge([list(entries)])


BASE = (Entry(b"bin", DIRECTORY), Entry(b"bin/sh", FILE), Entry(b"etc", DIRECTORY))


def content(made: Tree, path: bytes) -> bytes:
    found = made[path].content
    assert found is not None
    assert made[path].entry.size == len(found)
    return found


def test_the_four_files_are_there_and_replace_what_was() -> None:
    image = tree(
        *BASE,
        Entry(b"etc/fstab", FILE, size=3),
        Entry(b"other", HARDLINK, target=b"etc/fstab"),
        Entry(b"third", HARDLINK, target=b"etc/fstab"),
        Entry(b"etc/rc", DIRECTORY),
        Entry(b"etc/rc/deep", FILE),
        Entry(b"etc/rc.local", SYMLINK, target=b"/bin/sh"),
    )
    made = enroot_rootfs(image, config(Cmd=["/bin/sh"], Env=["A=b"], Volumes={"/data": {}}))
    assert content(made, b"etc/environment") == b"A=b\n"
    assert content(made, b"etc/fstab").startswith(b"${ENROOT_ROOTFS}/data /data none x-create=dir,bind,rw")
    assert b"exec /bin/sh\n" in content(made, b"etc/rc")
    assert content(made, b"etc/rc.local")
    assert b"etc/rc/deep" not in made
    assert (made[b"other"].link_to, made[b"third"].link_to) == (None, b"other")
    assert made[b"other"].entry is made[b"third"].entry
    assert made[b"data"].entry.kind is DIRECTORY
    assert made[b"data"].entry.mtime == 1704067200
    assert list(made) == sorted(made, key=lambda path: path.split(b"/") if path else [])
    assert b"etc/environment" not in image


def test_modes_owners_times_and_xattrs() -> None:
    xattrs = ((b"user.a", b"1"),)
    image = tree(
        *BASE,
        Entry(b"none", FILE, 0, 5, 6, MAX_TIME + 5, xattrs=xattrs),
        Entry(b"run", FILE, 0o4011),
        Entry(b"folder", DIRECTORY, 0o1000, 5, 6),
        Entry(b"link", SYMLINK, 0o777, 5, 6, target=b"none"),
        Entry(b"pipe", EntryKind.FIFO, 0),
    )
    made = enroot_rootfs(image, config())
    assert [made[path].entry.mode for path in (b"none", b"run", b"folder", b"link", b"pipe")] == [
        0o400,
        0o4511,
        0o1700,
        0o777,
        0o400,
    ]
    assert {(node.entry.uid, node.entry.gid, node.entry.xattrs) for node in made.values()} == {(0, 0, ())}
    assert made[b"none"].entry.mtime == MAX_TIME
    kept = enroot_rootfs(image, config(), keep_owners=True, keep_xattrs=True)
    assert (kept[b"none"].entry.uid, kept[b"none"].entry.gid, kept[b"none"].entry.xattrs) == (5, 6, xattrs)
    assert image[b"none"].entry.mode == 0


def test_nothing_below_dev_is_kept() -> None:
    image = tree(
        *BASE,
        Entry(b"dev", DIRECTORY),
        Entry(b"dev/null", EntryKind.CHAR, major=1, minor=3),
        Entry(b"dev/a", FILE),
        Entry(b"x", HARDLINK, target=b"dev/a"),
        Entry(b"devices", FILE),
    )
    made = enroot_rootfs(image, config(WorkingDir="/dev/shm/w", Volumes={"/dev/v": {}}))
    assert [path for path in made if path.startswith(b"dev")] == [b"dev", b"devices"]
    assert made[b"x"].link_to is None


def test_working_directory_and_volumes_go_through_symlinks_and_stay_in_the_root() -> None:
    image = tree(
        *BASE,
        Entry(b"tmp", DIRECTORY, 0o1777),
        Entry(b"usr", DIRECTORY),
        Entry(b"lib", SYMLINK, target=b"usr/lib"),
        Entry(b"out", SYMLINK, target=b"../../../../../abc"),
        Entry(b"taken", FILE),
    )
    made = enroot_rootfs(
        image,
        config(WorkingDir="/lib/deep/er", Volumes={"/tmp": {}, "/taken": {}, "/taken/x": {}, "/out/v": {}}),
    )
    assert made[b"usr/lib/deep/er"].entry.kind is DIRECTORY
    assert made[b"lib"].entry.kind is SYMLINK
    assert made[b"tmp"].entry.mode == 0o1777
    assert made[b"taken"].entry.kind is FILE
    assert made[b"abc/v"].entry.kind is DIRECTORY
    with pytest.raises(FormatError, match="working directory"):
        enroot_rootfs(image, config(WorkingDir="/taken/x"))
    assert b"etc" in enroot_rootfs(image, config(WorkingDir="../../.."))


def test_etc_may_be_a_symlink_or_missing() -> None:
    made = enroot_rootfs(tree(Entry(b"etc", SYMLINK, target=b"/usr/etc")), config())
    assert made[b"usr/etc/rc"].content
    assert enroot_rootfs(tree(), config())[b"etc/rc"].content
    circle = tree(Entry(b"etc", SYMLINK, target=b"etc"))
    with pytest.raises(FormatError, match="circle"):
        enroot_rootfs(circle, config())


NASTY = [
    "plain",
    "",
    "two words",
    "it's",
    'a "quote"',
    "new\nline; touch PWNED",
    "$(touch PWNED)",
    "`touch PWNED`",
    "${HOME}",
    "back\\slash",
    "; touch PWNED #",
    "&& touch PWNED",
    "*",
    "~",
    "-n",
    "ü\u2028",
    "\r",
    "!history",
]


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_nothing_in_a_config_runs_but_its_command(shell: str, tmp_path: Path) -> None:
    show = tmp_path / "show"
    show.write_text('#!/bin/sh\nprintf "%s\\0" "$PWD" "$@"\n')
    show.chmod(0o755)
    rc_local = tmp_path / "rc.local"
    for word in NASTY:
        folder = tmp_path / "w" / f"x{word.replace('/', '')}"
        made = config(
            Entrypoint=[str(show), word],
            Cmd=NASTY,
            WorkingDir=str(folder),
            Labels={word: word, f"a{word}": "\nid"},
        )
        script = rc(made, Digest.of(b"")).replace("/etc/rc.local", str(rc_local))
        for arguments in ([], NASTY):
            run = subprocess.run(
                [shell, "-s", *arguments],
                input=script.encode(),
                cwd=tmp_path,
                capture_output=True,
                check=True,
                timeout=20,
            )
            expected = [str(folder), word, *(arguments or NASTY)]
            assert run.stdout.decode().split("\0")[:-1] == expected
            assert run.stderr == b""
        assert not list(tmp_path.rglob("PWNED"))


def test_rc_local_is_read_and_a_missing_folder_ends_it(tmp_path: Path) -> None:
    rc_local = tmp_path / "rc.local"
    rc_local.write_text('exec echo from rc.local "$@"\n')
    made = rc(config(WorkingDir=str(tmp_path)), Digest.of(b"")).replace("/etc/rc.local", str(rc_local))
    done = subprocess.run(["/bin/sh", "-s", "x"], input=made.encode(), stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"from rc.local x\n"
    blocked = rc(config(WorkingDir=str(rc_local / "no")), Digest.of(b""))
    assert subprocess.run(["/bin/sh", "-s"], input=blocked.encode(), stderr=subprocess.PIPE).returncode == 1


def test_rc_without_entrypoint_and_command_is_a_shell() -> None:
    text = rc(config(Labels={"org.x": "y"}), Digest.of(b""))
    assert text.startswith(f"# enroot-provenance: {Digest.of(b'')}\n# org.x y\n")
    assert '    exec "$@"\nelse\n    exec /bin/sh\n' in text
    assert rc(config(Entrypoint=[""], Labels={"org.x": "y"}), Digest.of(b"")) == text
    both = rc(config(Entrypoint=["/e"], Cmd=["c"]), Digest.of(b""))
    assert '    exec /e "$@"\nelse\n    exec /e c\n' in both


def test_fstab_is_escaped() -> None:
    options = "none x-create=dir,bind,rw,nosuid,nodev"
    assert fstab(("/a b", "/", "/x/${HOME}", "/n\nl", "c\\d", "/../up")).splitlines() == [
        f"${{ENROOT_ROOTFS}}/a\\040b /a\\040b {options}",
        f"${{ENROOT_ROOTFS}}/c\\134d /c\\134d {options}",
        f"${{ENROOT_ROOTFS}}/up /up {options}",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("yesterday", 0),
        ("0001-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01Z", 1),
        ("2024-01-01T01:00:00.123456789+01:00", 1704067200),
        ("2024-13-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59Z", MAX_TIME),
    ],
)
def test_created(text: str | None, seconds: int) -> None:
    assert created_seconds(text) == seconds


def test_bytes_do_not_depend_on_where_it_ran() -> None:
    image = config(Labels={"b": "1", "a": "2"}, Volumes={"/b": {}, "/a": {}})
    first = enroot_rootfs(tree(*BASE), image)
    second = enroot_rootfs(tree(*BASE), dataclasses.replace(image))
    assert [(p, n.content, n.entry) for p, n in first.items()] == [
        (p, n.content, n.entry) for p, n in second.items()
    ]
