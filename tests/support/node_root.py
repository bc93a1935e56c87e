"""A node for the bootstrap script: this host's own root behind an overlay, in namespaces of its own.

SQSHPIPE_TEST_NODE_ROOT may name the root of another system, which is the node then: Ubuntu 22.04 or 24.04 by
debootstrap (variant minbase, components main and universe) with slurmd, slurmctld, slurm-client, unzip, curl,
libslurm-dev, gcc, libc6-dev, make, squashfs-tools, squashfuse and python3.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.cluster import settings

SYSTEM = Path(os.environ.get("SQSHPIPE_TEST_NODE_ROOT", "/"))
ROOT = """
set -eu
mount -t tmpfs none {place}
mkdir {place}/upper {place}/work {place}/root
mount -t overlay overlay -o lowerdir={system},upperdir={place}/upper,workdir={place}/work {place}/root
for each in sys dev; do mount --rbind /$each {place}/root/$each; done
mount -t proc proc {place}/root/proc
mount -t tmpfs none {place}/root/run
mount -t tmpfs none {place}/root/tmp
mkdir -p {place}/root/given {place}/root/opt/slurm/etc {place}/root/fsx
mount --bind {given} {place}/root/given
cd {place}/root
if [ {system} = / ]; then # Debian's root with the name of Ubuntu
    rm -f etc/os-release && printf 'ID=ubuntu\\nVERSION_ID="24.04"\\n' > etc/os-release
fi
rm -rf usr/bin/enroot etc/enroot etc/slurm usr/local/bin/squashfuse
echo ClusterName=x > opt/slurm/etc/slurm.conf
: > commands
mkdir -p old && pivot_root . old && umount -l old # in a mere chroot no user namespace can be made
exec env -i PATH=/given/tools:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -s
"""


def archive(folder: Path, name: str, **files: str) -> settings.Pinned:
    """A source archive with one folder, as projects publish them."""
    path = folder / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz") as made:
        for each, text in files.items():
            member = tarfile.TarInfo(f"{name}/{each}")
            member.size, member.mode = len(text), 0o755
            made.addfile(member, io.BytesIO(text.encode()))
    return pinned(path, name.partition("-")[2])


def pinned(path: Path, version: str) -> settings.Pinned:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return settings.Pinned(version=version, url=f"file:///given/{path.name}", sha256=sha256)


class Node:
    """A shell in a root of its own; `commands`: what package manager and systemd were asked since then."""

    def __init__(self, shell: subprocess.Popen[str]) -> None:
        self._shell = shell

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"({command}) < /dev/null 2>&1; code=$?; echo; echo END $code\n")
        self._shell.stdin.flush()
        said: list[str] = []
        for line in self._shell.stdout:
            if line.startswith("END "):
                return int(line[4:]), "".join(said)
            said.append(line)
        raise AssertionError("the shell has ended: " + "".join(said))

    def commands(self) -> list[str]:
        return self.run("cat /commands; : > /commands")[1].split("\n")


@contextlib.contextmanager
def node_root(given: Path, place: Path) -> Iterator[Node]:
    """A node whose /given is `given`; what it starts ends with the block."""
    place.mkdir()
    script = ROOT.format(place=place, given=given, system=SYSTEM)
    with subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as shell:
        yield Node(shell)
