"""Which squashfs server ranks would get on this node, which pyxis and enroot it has, and what that means.

The figures are measured: 8 ranks of one node that each read 2,500 files of an image, warm, on two cores.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import ToolError
from pipeline.system import process, untrusted

KERNEL_SECONDS = 0.41
SECONDS = {"old": 4.30, "single-threaded": 1.70, "multi-threaded": 1.08}
FASTER = (0, 6)
"""squashfuse from this version on; 0.1.105 is what Debian and Ubuntu have."""
_TIMEOUT = 20.0
_PLUGIN = "spank_pyxis.so"
_LINE = re.compile(r"\s*(?:required|optional)\s+(\S*spank_pyxis\.so)(?:\s|$)")
_INCLUDE = re.compile(r"\s*include\s+(\S+)")
_PYXIS = re.compile(rb"version v(\d+)\.(\d+)\.(\d+)")
_BEFORE_0_17 = re.compile(rb"(?<![\d.])(0)\.(\d+)\.(\d+)\0")  # apart from the text `version v%s`
_NAMES_OF_A_JOB = ((0, 16), (0, 18))  # from, to: container_scope=job is the default there
_FOLDERS = (
    "/opt/slurm/lib/slurm",
    "/usr/local/lib/slurm",
    f"/usr/lib/{os.uname().machine}-linux-gnu/slurm-wlm",
    f"/usr/lib/{os.uname().machine}-linux-gnu/slurm",
    "/usr/lib64/slurm",
    "/usr/lib/slurm",
)
_ETC = ("/opt/slurm/etc", "/etc/slurm")
_PLUGIN_SIZE = 32 << 20
_TEXT_SIZE = 1 << 20
_PATH, _NAME = (0, 22), (0, 24)  # pyxis that starts a path, a name straight from the file
_DIGEST = (4,)  # enroot that imports by digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What answers the ranks' reads of a mounted .sqsh; `seconds` as the module says."""

    name: str
    well: bool
    seconds: float

    @property
    def sentence(self) -> str:
        if self.seconds <= KERNEL_SECONDS:
            return self.name
        return (
            f"{self.name}: 8 ranks that read 2,500 files each take about {self.seconds:.1f} s,"
            f" on a kernel mount {KERNEL_SECONDS} s"
        )


def pyxis_server() -> Server | None:
    """What enroot starts for pyxis: the first `squashfuse` in PATH. None when it is missing."""
    return _squashfuse()


def run_server() -> Server | None:
    """What `run` and `node mount` use: the kernel as root, else squashfuse. None when there is neither."""
    if os.geteuid() == 0:
        return Server(name="kernel mount", well=True, seconds=KERNEL_SECONDS)
    return _squashfuse()


def pyxis_version(root: Path = Path("/")) -> tuple[int, ...] | None:
    """The version of the plugin that plugstack.conf loads, or that lies where Slurm's plugins do.

    None when there is no plugin or it does not say its version. `root` is where the node's files lie.
    """
    for path in _plugins(root):
        try:
            content = untrusted.read_regular(path.resolve(), limit=_PLUGIN_SIZE)
        except OSError:
            continue
        found = _PYXIS.search(content)
        if found is None and b"pyxis: version v%s" in content:
            found = _BEFORE_0_17.search(content)
        return tuple(map(int, found.groups())) if found else None
    return None


def names_are_of_a_job(root: Path = Path("/")) -> bool:
    """Whether pyxis here gives a container's name to one job only, and removes the container at its end."""
    scopes = [
        word.partition("=")[2]
        for etc in _etc(root)
        for file in _stack_files(root, _stack(root, etc))
        for line in _text(file).splitlines()
        if _LINE.match(line)
        for word in line.split("#")[0].split()
        if word.startswith("container_scope=")
    ]
    if scopes:
        return scopes[0] == "job"
    first, end = _NAMES_OF_A_JOB
    return first <= (pyxis_version(root) or end) < end


def enroot_version() -> tuple[int, ...] | None:
    """None when enroot is not installed or does not answer."""
    return _version(_output("enroot", "version"))


def way_to_start(version: tuple[int, ...]) -> Literal["pyxis", "path", "run"]:
    """How a job script starts an image with this pyxis, without unpacking it: see cluster.jobs.Runtime."""
    return "pyxis" if version >= _NAME else "path" if version >= _PATH else "run"


def pyxis_sentence(version: tuple[int, ...]) -> tuple[bool, str]:
    """Whether this pyxis does all that the importer needs, and what it does or an upgrade brings."""
    name = "pyxis " + ".".join(map(str, version))
    if version >= _NAME:
        return True, f"{name} starts names and paths straight from the file"
    if version >= _PATH:
        return False, (
            f"{name} starts a path straight from the file but unpacks what is given by name: an upgrade to"
            " 0.24 starts names straight from the file as well"
        )
    return False, (
        f"{name} unpacks the image at each start, so job scripts use `sqshpipe run` instead: an upgrade to"
        " 0.24 mounts the file, and the first rank runs within 1 s, not after 7 to 40 s"
    )


def enroot_sentence(version: tuple[int, ...]) -> tuple[bool, str]:
    """As `pyxis_sentence`, for enroot."""
    name = "enroot " + ".".join(map(str, version))
    if version >= _DIGEST:
        return True, f"{name} imports by digest"
    return False, f"{name} imports by tag, which can move: an upgrade to 4 imports by digest"


def _squashfuse() -> Server | None:
    try:
        path = process.which("squashfuse", hint="")
    except ToolError:
        return None
    said = _output(str(path), "--version")
    version = _version(said)
    threads = "multi-threaded" if path.resolve().name.startswith("squashfuse_ll") else "single-threaded"
    new = version is not None and version >= FASTER
    name = f"squashfuse {'.'.join(map(str, version)) if version else 'of unknown version'}, {threads}"
    return Server(name=name, well=new, seconds=SECONDS[threads if new else "old"])


def _output(*argv: str) -> str:
    """What a program says of its version; empty when it is not there or does not end."""
    try:
        done = process.run(argv, check=False, timeout=_TIMEOUT)
    except ToolError:
        return ""
    return done.stdout + done.stderr


def _version(text: str) -> tuple[int, ...] | None:
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(map(int, found[0].split("."))) if found else None


def _plugins(root: Path) -> Iterator[Path]:
    """Where the plugin can be, as the bootstrap script looks: first what plugstack.conf names."""
    folders = list(_FOLDERS)
    for etc in _etc(root):
        settings = _text(root / (etc / "slurm.conf").relative_to("/"))
        folders[:0] = _setting(settings, "PluginDir").split(":") if _setting(settings, "PluginDir") else []
        for file in _stack_files(root, _stack(root, etc)):
            for line in _text(file).splitlines():
                named = _LINE.match(line)
                if named and named[1].startswith("/"):
                    yield root / named[1].lstrip("/")
    for folder in folders:
        path = root / folder.lstrip("/") / _PLUGIN
        if path.is_file():
            yield path


def _stack(root: Path, etc: Path) -> Path:
    settings = _text(root / (etc / "slurm.conf").relative_to("/"))
    return Path(_setting(settings, "PlugStackConfig") or etc / "plugstack.conf")


def _etc(root: Path) -> list[Path]:
    """Folders of Slurm's settings: the one that SLURM_CONF names, else those of the usual installations."""
    named = os.environ.get("SLURM_CONF", "")
    pcs = [Path("/") / each.relative_to(root) for each in root.glob("etc/aws/pcs/scheduler/slurm-*")]
    return [Path(named).parent] if named.startswith("/") else [*map(Path, _ETC), *sorted(pcs)]


def _stack_files(root: Path, stack: Path) -> Iterator[Path]:
    file = root / str(stack).lstrip("/")
    yield file
    for line in _text(file).splitlines():
        included = _INCLUDE.match(line)
        if included:
            pattern = os.path.join(stack.parent, included[1]).lstrip("/")  # noqa: PTH118 - it is a pattern
            yield from sorted(root.glob(pattern))


def _setting(text: str, key: str) -> str:
    found = re.findall(rf"^\s*{key}\s*=\s*([^#\s]+)", text, re.IGNORECASE | re.MULTILINE)
    return str(found[-1]) if found else ""


def _text(path: Path) -> str:
    try:
        return untrusted.read_regular(path.resolve(), limit=_TEXT_SIZE).decode("utf-8", "replace")
    except OSError:
        return ""
