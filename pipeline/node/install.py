"""Puts the pyxis importer on a node: one program and its settings, owned by root, outside the store."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError, ToolError
from pipeline.node import pyxis_importer
from pipeline.store import creation
from pipeline.store.layout import Layout
from pipeline.system import process, untrusted
from pipeline.system.log import log

PROGRAM = "pyxis-importer"
STATE_MODE = 0o1777  # of the folders in it: every job's user leaves marks there, and removes only its own

_NEEDS = "the importer needs /usr/bin/python3, 3.8 or later"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImporterSettings:
    """What the importer does on this node; each field is documented in pyxis_importer.Settings."""

    store: Path
    registries: tuple[str, ...] = ()
    missing: str = "refuse"
    enroot: str = "enroot"
    state: Path = Path("/var/lib/sqshpipe")
    local: Path | None = None
    trusted_uids: tuple[int, ...] = (0,)
    verify: bool = False
    prefetch_mib: int = 1024
    mounts: str = "kernel"
    kernel_mounts: int = 32
    cluster: str = ""
    leases: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.store, self.state, self.local, self.leases):
            if path is not None and (not path.is_absolute() or not str(path).isprintable()):
                raise ConfigError(f"{str(path)!r} is not an absolute path on one line")
        if not 0 <= self.prefetch_mib < 1 << 30:
            raise ConfigError(f"prefetch_mib: {self.prefetch_mib} is not a size in MiB; 0 turns prefetch off")
        if self.missing not in ("refuse", "import"):
            raise ConfigError(f"missing: {self.missing!r} is neither refuse nor import")
        if self.mounts not in ("kernel", "fuse"):
            raise ConfigError(f"mounts: {self.mounts!r} is neither kernel nor fuse")
        if not 0 <= self.kernel_mounts < 1 << 10:
            raise ConfigError(f"kernel_mounts: {self.kernel_mounts} is not a number of mounts of a node")

    def as_json(self) -> str:
        values = {
            "schema": pyxis_importer.SCHEMA,
            "store": str(self.store),
            "leases": str(self.leases or self.store / "leases"),
            "registries": list(self.registries),
            "missing": self.missing,
            "enroot": self.enroot,
            "state": str(self.state),
            "local": str(self.local or ""),
            "trusted_uids": list(self.trusted_uids),
            "verify": self.verify,
            "prefetch_mib": self.prefetch_mib,
            "mounts": self.mounts,
            "kernel_mounts": self.kernel_mounts,
            "cluster": self.cluster,
        }
        return json.dumps(values, indent=2) + "\n"


def install(settings: ImporterSettings, prefix: Path) -> Path:
    """Write PREFIX/bin/pyxis-importer and pyxis-importer.json, make the state folder, and try a release.

    Can be repeated: files are swapped by rename, so that a step that starts meanwhile sees the old or the new
    one. Raises ConfigError for a prefix inside the store, ToolError when the program does not run.
    """
    prefix = prefix.absolute()
    if prefix.resolve().is_relative_to(settings.store.resolve()):
        raise ConfigError(
            f"the importer cannot be installed into the store ({prefix})",
            hint="it runs as every user: put it on each node's own disk, for example --prefix /opt/sqshpipe",
        )
    folder = prefix / "bin"
    program = folder / PROGRAM
    try:
        _own_mode(settings.state, 0o755)  # nobody else makes or renames what lies in it
        _own_mode(settings.state / "verified", STATE_MODE)
        _own_mode(settings.state / "imported", STATE_MODE)
        _own_mode(settings.state / "prefetch", STATE_MODE)
        with untrusted.folder_to_write(folder, make=0o755):
            pass
        untrusted.replace_file(folder / f"{PROGRAM}.json", settings.as_json().encode(), mode=0o644)
        untrusted.replace_file(program, importer_source(), mode=0o755)
    except OSError as error:
        raise ToolError(f"cannot install the importer: {error}", hint="run it as root on the node") from error
    if os.geteuid() != 0:
        log.warning("the importer is not owned by root: whoever owns it can change what every user runs")
    process.run([program, "release"], env={}, timeout=30, hint=_NEEDS)
    _look_at_leases(settings)
    return program


def _look_at_leases(settings: ImporterSettings) -> None:
    """Leases need a folder in which everyone may write; without them prune knows comments of jobs only."""
    leases = settings.leases or settings.store / "leases"
    try:
        if not creation.is_store(Layout(settings.store)):
            command = creation.create_command(settings.store)
            log.warning(
                f"no store is there: is it mounted? If it is new: {command}", store=str(settings.store)
            )
            return
        if not leases.is_dir():
            _own_mode(leases, STATE_MODE)
        missing = leases.stat().st_mode & STATE_MODE != STATE_MODE
    except OSError:
        missing = True
    if missing:
        log.warning("jobs cannot leave leases: make this folder with mode 1777", folder=str(leases))


def importer_source() -> bytes:
    """The program as it is installed: one file of Python source."""
    return Path(pyxis_importer.__file__).read_bytes()


def plugstack_line(
    program: Path,
    spank: str = "spank_pyxis.so",
    options: Sequence[str] = (),
    *,
    word: Literal["optional", "required"] = "optional",
) -> str:
    """The line of plugstack.conf that makes pyxis use the importer and start straight from the file.

    After `required` a step whose image is refused fails, and slurmd does not start when pyxis does not load.
    After `optional` slurmd starts, and such a step runs without a container.
    """
    return " ".join([word, spank, "use_squashfuse=1", f"importer={program}", *options])


def _own_mode(path: Path, mode: int) -> None:
    """Make a folder; one that this user owns gets the mode. Another user's symlink or folder is refused."""
    with untrusted.folder_to_write(path, make=0o755) as opened:
        owner = os.fstat(opened).st_uid
        if owner not in (0, os.geteuid()):
            raise PermissionError(
                errno.EPERM, f"it belongs to user {owner}, who could change what lies in it", str(path)
            )
        if owner == os.geteuid():
            os.fchmod(opened, mode)
