"""Drives ``mksquashfs`` of squashfs-tools (github.com/plougher/squashfs-tools).

Versions: 4.4 or later (zstd and ``-mkfs-time``); what needs a newer one says so. 4.7 to 4.7.4 are refused,
since they may corrupt sparse files. A folder is read, never a tar: 4.5.1 to 4.7.5 have a race on the hard
links of a tar.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import FormatError, ToolError
from pipeline.system import process
from pipeline.system.disk import says_full
from pipeline.system.memory import out_of_memory

Version = tuple[int, int, int]

INSTALL_HINT = "install squashfs-tools 4.4 or later (apt install squashfs-tools), or use --converter native"
OLDEST: Version = (4, 4, 0)
TIMED_PSEUDO: Version = (4, 5, 0)  # pseudo definitions that take a time: B C I M S
CORRUPTING: tuple[Version, Version] = ((4, 7, 0), (4, 7, 4))  # sparse files come out damaged

_VERSION = re.compile(r"mksquashfs version (\d+)\.(\d+)(?:\.(\d+))?")
_PROGRESS = re.compile(r"\s(\d+)/(\d+)\s+\d+%")
_MIB = 1 << 20
_LEAST_MEMORY = 256 * _MIB
_MOST_MEMORY = 4096 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Mksquashfs:
    """An installed mksquashfs that is fit for use."""

    path: Path
    version: Version

    @classmethod
    def find(cls) -> Mksquashfs:
        """The mksquashfs in PATH. Raises ToolError when it is missing or its version must not be used."""
        path = process.which("mksquashfs", hint=INSTALL_HINT)
        said = process.run([path, "-version"], check=False, timeout=30)
        version = parse_version(said.stdout + said.stderr)
        refuse_unfit(version)
        return cls(path=path, version=version)

    @property
    def version_text(self) -> str:
        return ".".join(str(part) for part in self.version)

    def pack(
        self,
        folder: Path,
        output: Path,
        *,
        compressor: str = "zstd",
        zstd_level: int,
        block_size: int,
        keep_owners: bool = False,
        keep_xattrs: bool = False,
        pseudo_file: Path | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Write ``output`` from the tree in ``folder``; ``on_progress`` gets the share done, 0 to 1.

        Raises ToolError when mksquashfs does not succeed entirely, a file that it could not read included.
        """
        argv = pack_argv(
            self.path,
            folder,
            output,
            compressor=compressor,
            zstd_level=zstd_level,
            block_size=block_size,
            keep_owners=keep_owners,
            keep_xattrs=keep_xattrs,
            pseudo_file=pseudo_file,
            processors=len(os.sched_getaffinity(0)),
            memory=memory_budget(),
        )

        def listen(line: str) -> None:
            if on_progress is not None and (found := _PROGRESS.search(line)) and int(found[2]):
                on_progress(int(found[1]) / int(found[2]))

        try:
            process.run(argv, env=environment(), on_line=listen)
        except ToolError as error:
            if "out of memory" in str(error).lower():
                raise out_of_memory(MemoryError()) or error from error
            if not says_full(error.message):
                raise
            raise ToolError(
                f"no space left in {output.parent} for {output.name}",
                hint="free some, or choose another place for the .sqsh",
            ) from error


def parse_version(text: str) -> Version:
    """``mksquashfs version 4.5.1 (2022/03/17)`` -> ``(4, 5, 1)``."""
    found = _VERSION.search(text)
    if found is None:
        raise ToolError("mksquashfs does not report its version", hint=INSTALL_HINT)
    return int(found[1]), int(found[2]), int(found[3] or 0)


def refuse_unfit(version: Version) -> None:
    """Raise ToolError for a version that is too old, or known to corrupt data."""
    text = ".".join(str(part) for part in version)
    if version < OLDEST:
        raise ToolError(f"mksquashfs {text} is too old", hint=INSTALL_HINT)
    if CORRUPTING[0] <= version <= CORRUPTING[1]:
        raise ToolError(
            f"mksquashfs {text} may corrupt sparse files",
            hint="install squashfs-tools 4.7.5 or later, or 4.6.1, or use --converter native",
        )


def pack_argv(
    program: Path,
    folder: Path,
    output: Path,
    *,
    compressor: str = "zstd",
    zstd_level: int,
    block_size: int,
    keep_owners: bool,
    keep_xattrs: bool,
    pseudo_file: Path | None,
    processors: int,
    memory: int,
) -> list[str]:
    """The command line, each option with its reason. ``memory`` and ``block_size`` are bytes."""
    argv: list[str] = [str(program), str(folder), str(output)]
    argv += compression_options(compressor, zstd_level=zstd_level, block_size=block_size)
    argv += ["-noappend"]  # a file that is there is replaced; the default adds to it
    argv += ["-exit-on-error"]  # else a file that cannot be read becomes an empty one and the exit code is 0
    argv += [
        "-mkfs-time",
        "0",
    ]  # the same bytes whenever it runs; never -all-time, which makes every .pyc stale
    argv += ["-no-recovery"]  # nothing is appended to, and the recovery file would land in $HOME
    argv += ["-xattrs" if keep_xattrs else "-no-xattrs"]  # scratch's own (SELinux labels) are not the image's
    argv += ["-processors", str(processors)]  # those that this process may use, not all that the host has
    argv += ["-mem", f"{memory // _MIB}M"]  # its default, a quarter of the host, is more than a job may have
    argv += ["-progress"]  # also where stdout is not a terminal: the lines are read here
    if not keep_owners:
        argv += ["-all-root"]  # inside a container job there is one user, shown as root
    if pseudo_file is not None:
        argv += ["-pf", str(pseudo_file)]  # devices and owners, which only root could make in a folder
    return argv


def compression_options(compressor: str, *, zstd_level: int, block_size: int) -> list[str]:
    """What decides the size of the file and the speed of reading it, for mksquashfs and for enroot."""
    level = ["-Xcompression-level", str(zstd_level)] if compressor == "zstd" else []
    return ["-comp", compressor, *level, "-b", str(block_size)]


def environment() -> dict[str, str]:
    """Ours without SOURCE_DATE_EPOCH, which changes file times and is refused beside ``-mkfs-time``."""
    kept = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    return {**kept, "LC_ALL": "C"}


def pseudo_definition(path: bytes, code: str, *numbers: int | str) -> bytes:
    """One line of a ``-pf`` file: ``"/path" CODE NUMBERS...``. FormatError for a path it cannot hold."""
    if b"\n" in path:
        raise FormatError(
            f"mksquashfs cannot define {path!r}, which has a newline in its name",
            hint="use --converter native",
        )
    quoted = path.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    words = " ".join(str(number) for number in numbers)
    return b'"/' + quoted + b'" ' + code.encode() + b" " + words.encode() + b"\n"


def pseudo_link(path: bytes, target: bytes) -> bytes:
    """A hard link to another pseudo definition."""
    line = pseudo_definition(path, "L")
    return line[:-1] + pseudo_definition(target, "", "").split(b'" ')[0] + b'"\n'


def memory_budget(*, root: Path = Path("/")) -> int:
    """Bytes that mksquashfs may take: a quarter of what this process could get, within bounds."""
    limits = [*_cgroup_limits(root), *_available(root)]
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY:
        limits.append(addresses)
    return max(_LEAST_MEMORY, min([_MOST_MEMORY, *(limit // 4 for limit in limits)]))


def _available(root: Path) -> Sequence[int]:
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(kib) * 1024 for kib in re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)]


def _cgroup_limits(root: Path) -> list[int]:
    """The memory limits of the cgroups (version 1 or 2) that this process is in, parents included."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.lstrip("/")
        places = [place for place in (folder, *folder.parents) if place.is_relative_to(top)]
        limits += [limit for place in places if (limit := _limit(place / name)) is not None]
    return limits


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None
