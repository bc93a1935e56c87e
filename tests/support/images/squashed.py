"""A real .sqsh in enroot's form that can be started: the demo's base system, squashed with mksquashfs."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from demo.base import write_rootfs

RC = """\
mkdir -p "/work" 2> /dev/null
cd "/work" && unset OLDPWD || exit 1
if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi
if [ $# -gt 0 ]; then
    exec sh -c 'echo entrypoint "$@"' sh "$@"
else
    exec sh -c 'echo entrypoint command'
fi
"""
ENVIRONMENT = "GREETING=from the image\nPATH=/usr/local/bin:/usr/bin:/bin\nFROM_HOST=${HOST_WORD}\n"


def missing() -> str:
    """Why no .sqsh can be made here, or an empty string."""
    return (
        "" if shutil.which("mksquashfs") else "mksquashfs is not installed (apt-get install squashfs-tools)"
    )


def squash(
    folder: Path,
    name: str = "image.sqsh",
    *,
    word: str = "hello",
    megabytes: int = 0,
    files: Iterable[Path] = (),
) -> Path:
    """Make FOLDER/name, with /word and, when asked, /data of so many megabytes that do not compress.

    `files` are files of this machine, which the image has at the same paths.
    """
    tree = folder / f"{name}.tree"
    tar = folder / f"{name}.tar"
    write_rootfs(tar)
    with tarfile.open(tar) as members:
        members.extractall(tree)
    for each in ("etc", "work", "dev", "proc", "sys", "tmp"):
        (tree / each).mkdir(exist_ok=True)
    (tree / "word").write_text(word + "\n")
    (tree / "etc" / "rc").write_text(RC)
    (tree / "etc" / "rc").chmod(0o755)
    (tree / "etc" / "rc.local").write_text("# nothing to do\n")
    (tree / "etc" / "environment").write_text(ENVIRONMENT)
    (tree / "etc" / "fstab").write_text("")
    for file in files:
        inside = tree / file.relative_to("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, inside)
    if megabytes:
        with Path("/dev/urandom").open("rb") as random, (tree / "data").open("wb") as data:
            for _ in range(megabytes):
                data.write(random.read(1 << 20))
    made = folder / name
    subprocess.run(
        ["mksquashfs", tree, made, "-noappend", "-all-root", "-comp", "zstd", "-Xcompression-level", "1"],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )
    made.chmod(0o444)
    shutil.rmtree(tree)
    tar.unlink()
    return made
