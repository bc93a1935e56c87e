"""An image whose files show whose they are, and a node on which root mounts it for jobs."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.node import shim
from pipeline.node.pyxis_importer import Settings
from pipeline.node.user_mount import User
from pipeline.store.record import Release
from pipeline.store.store import Store
from tests.support.images import small_root
from tests.support.store.releases import new_store, record_for

USER = User(uid=61_500, gid=61_501)
ALIKE = ("cat", "rm", "mkdir", "chmod", "stat", "setpriv", "dpkg", "dpkg-deb", "dpkg-split", "tar", "sleep")
_ENTER = """\
set -eu
mount -t tmpfs none "$1"
mknod -m 666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
mkdir -m 1777 "$1/own"
shift
exec setpriv --reuid="$1" --regid="$2" --clear-groups --inh-caps=-all "$3" "$4" "$5" "$6" "${@:7}"
"""


def write(tree: Path) -> None:
    """Files and folders of every kind of mode, and a package to install."""
    for name in ALIKE:
        small_root.add_program(tree, Path(shutil.which(name) or name), f"bin/{name}")
    for name in ("root", "data", "opt", "run", "var/lib/dpkg/updates", "var/lib/dpkg/info", "var/log"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in ("status", "available"):
        (tree / "var/lib/dpkg" / name).touch()
    for name, mode in (("secret", 0o600), ("closed", 0o000), ("sealed", 0o400), ("open", 0o644)):
        (tree / name).write_text(f"{name}\n")
        (tree / name).chmod(mode)
    for name in ("old", "gone"):
        (tree / "data" / name).write_text(f"{name}\n")
    (tree / "root" / "inside").write_text("inside\n")
    (tree / "root").chmod(0o700)
    package = tree.parent / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "opt").mkdir()
    (package / "opt" / "installed").write_text("by dpkg\n")
    (package / "DEBIAN" / "control").write_text(
        "Package: small\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n"
    )
    argv = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(package), str(tree / "small.deb")]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobNode:
    """A store, a node folder, and the shim; users of the machine can reach all of it."""

    folder: Path
    store: Store

    @property
    def node(self) -> Path:
        return self.folder / "node"

    @property
    def settings(self) -> Settings:
        return Settings({"store": str(self.store.root), "state": str(self.folder / "state")})

    def publish(
        self, version: str, content: bytes, *, checks: tuple[str, ...] = ("tree",), external: bool = False
    ) -> Release:
        """A release as the path makes them, or with less behind it."""
        record = record_for(content, version, external=external)
        source = self.folder / f"{version}.source"
        source.write_bytes(content)
        record = dataclasses.replace(record, checks=checks)
        return self.store.publish(record, source, allow_external=True)

    def as_user(
        self, *argv: str | Path, path: Sequence[str] = (), env: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Run as an ordinary user who may use FUSE, in mount namespaces of its own; the shim is in PATH."""
        own_path = (str(self.folder / "sbin"), str(self.folder / "late"))
        folders = [*path, *own_path, "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        own = self.folder / "mnt"
        own.mkdir(exist_ok=True)
        words = ["unshare", "-m", "bash", "-c", _ENTER, "bash", str(own), str(USER.uid), str(USER.gid)]
        words += ["env", "-i", f"PATH={':'.join(folders)}", f"HOME={own}/own"]
        words += [*(f"{name}={value}" for name, value in env.items()), *map(str, argv)]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    def take_squashfuse_away(self) -> None:
        """From now on the squashfuse that comes after the shim in PATH serves nobody."""
        program = self.folder / "late" / "squashfuse"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\necho 'the real squashfuse was started' >&2\nexit 7\n")
        program.chmod(0o755)

    def mounts(self) -> list[str]:
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [line.split()[1] for line in lines if str(self.node) in line]


@contextmanager
def job_node() -> Iterator[JobNode]:
    """Everything is unmounted and removed when the block ends. SQSHPIPE_NODE_DIR is set meanwhile."""
    before = os.environ.get("SQSHPIPE_NODE_DIR")
    with tempfile.TemporaryDirectory(prefix="sqshpipe-node-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["SQSHPIPE_NODE_DIR"] = str(folder / "node")
        made = JobNode(folder=folder, store=new_store(folder / "store"))
        shim.install(folder)
        try:
            yield made
        finally:
            for each in reversed(made.mounts()):
                subprocess.run(["umount", "-l", each], check=False, timeout=30)
            os.environ.pop("SQSHPIPE_NODE_DIR")
            if before is not None:
                os.environ["SQSHPIPE_NODE_DIR"] = before
