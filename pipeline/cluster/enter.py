"""Become a command inside a mounted image: a mount namespace of its own, and no daemon and no setuid helper.

The new root is a small tmpfs on which each top-level name of the image is bound, so that every task of a node
reads the same mount (one device, one page cache) and folders such as /fsx can be added without an overlay. As
root a mount namespace is enough; others get a user namespace in which they stay who they are.

See namespaces(7), mount_namespaces(7); /etc/rc and /etc/environment are what enroot puts into an image.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from pipeline.errors import ConfigError, SqshpipeError, ToolError
from pipeline.tools import process

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _MOVE, _REC, _SLAVE = 1, 2, 4, 32, 4096, 8192, 16384, 1 << 19
_HOST_FOLDERS = ("dev", "proc", "sys", "tmp")
_HOST_FILES = ("etc/resolv.conf", "etc/hosts", "etc/hostname")
_NO_ENTRYPOINT = 'exec "$@"\n'  # what the image's /etc/rc runs instead of the entrypoint, as pyxis does
_HOST_ONLY = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")
_DRIVER = re.compile(
    r"^\s*(lib(?:cuda|nvidia-[\w-]+|nvcuvid|nvoptix|cudadebugger)\.so\.[\w.]+) \((.*)\) => (\S+)$",
    re.MULTILINE,
)
_DRIVER_FOLDER = "sqshpipe-driver"
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A file or folder of the host that is seen inside."""

    source: str
    target: str
    writable: bool = False

    @classmethod
    def parse(cls, text: str) -> Bind:
        """Take SRC[:DST[:rw|ro]] apart. Raises ConfigError."""
        source, _, rest = text.partition(":")
        target, _, flags = rest.partition(":")
        if (
            not source.startswith("/")
            or (target and not target.startswith("/"))
            or flags not in ("", "ro", "rw")
        ):
            raise ConfigError(f"{text!r} is not a mount", hint="write /host/folder[:/inside[:rw]]")
        return cls(source=source, target=target or source, writable=flags == "rw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entering:
    """What to run where: `image` is a mounted .sqsh, `scratch` an empty folder for the new root."""

    image: str
    scratch: str
    command: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    entrypoint: bool = False
    gpu: bool = True

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Entering:
        table = json.loads(text)
        table["binds"] = tuple(Bind(**each) for each in table["binds"])
        table["env"] = tuple((key, value) for key, value in table["env"])
        table["command"] = tuple(table["command"])
        return cls(**table)


def become(entering: Entering) -> NoReturn:
    """Replace this process by the command inside the image. Raises ToolError or ConfigError before that."""
    image, root = Path(entering.image), Path(entering.scratch)
    here = str(Path.cwd())
    _namespaces()
    _mount("sqshpipe", root, "tmpfs", _NOSUID | _NODEV, "mode=755,size=16m")
    for name in _HOST_FOLDERS:
        _bind(Path("/") / name, root, Bind(source=f"/{name}", target=f"/{name}", writable=True))
    for entry in sorted(image.iterdir()):
        if entry.name not in _HOST_FOLDERS:
            _show(entry, root / entry.name)
    for name in _HOST_FILES:
        if Path(f"/{name}").is_file() and (root / name).is_file() and not (root / name).is_symlink():
            _bind(Path("/") / name, root, Bind(source=f"/{name}", target=f"/{name}"))
    environment = environment_inside(image, entering, os.environ)
    if entering.gpu:
        _driver(root, environment)
    for each in entering.binds:
        _bind(Path(each.source), root, each)
    argv = _argv(entering, image, root)
    # The moved tmpfs becomes the root of this namespace, as switch_root(8) does it.
    os.chdir(root)
    _mount(str(root), Path("/"), "", _MOVE, "")
    os.chroot(".")
    os.chdir("/")
    if any(here == each.target or here.startswith(each.target.rstrip("/") + "/") for each in entering.binds):
        os.chdir(here)
    try:
        os.execvpe(argv[0], argv, environment)  # noqa: S606 - this is what the caller asked for
    except OSError as error:
        raise ToolError(f"cannot run {argv[0]} in the image: {error.strerror}") from error


def environment_inside(image: Path, entering: Entering, outside: Mapping[str, str]) -> dict[str, str]:
    """The job's environment, over it the image's (as with enroot), over it what was asked for by name."""
    inside = {name: value for name, value in outside.items() if name not in _HOST_ONLY}
    try:
        lines = (
            (image / "etc" / "environment").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        )
    except OSError:
        lines = []
    for line in lines:
        name, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            inside[name] = re.sub(r"\$\{(\w+)\}", lambda found: outside.get(found[1], ""), value)
    inside.update(entering.env)
    inside.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    return inside


def inside(root: Path, target: str) -> Path:
    """Where a path of the image lies below `root`, its symlinks followed as if `root` were /."""
    done: list[str] = []
    left = [part for part in target.split("/") if part not in ("", ".")]
    for _ in range(256):
        if not left:
            return root.joinpath(*done)
        part = left.pop(0)
        if part == "..":
            done = done[:-1]
            continue
        path = root.joinpath(*done, part)
        if path.is_symlink():
            link = str(path.readlink())
            done = [] if link.startswith("/") else done
            left = [each for each in link.split("/") if each not in ("", ".")] + left
        else:
            done.append(part)
    raise ConfigError(f"{target} leads through too many symlinks in the image")


def _namespaces() -> None:
    """A mount namespace; and, for anybody but root, a user namespace where the user stays who he is."""
    user, group = os.geteuid(), os.getegid()
    if _LIBC.unshare(_NEWNS if user == 0 else _NEWNS | _NEWUSER) != 0:
        why = os.strerror(ctypes.get_errno())
        raise ToolError(
            f"no namespaces for this user: {why}",
            hint="allow them (sysctl user.max_user_namespaces; on Ubuntu 24.04 also "
            "kernel.apparmor_restrict_unprivileged_userns=0), or use pyxis",
        )
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _mount("none", Path("/"), "", _REC | _SLAVE, "")


def _mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    words = (os.fsencode(source), os.fsencode(target), kind.encode() or None, flags, data.encode() or None)
    if _LIBC.mount(*words) != 0:
        why = os.strerror(ctypes.get_errno())
        raise ToolError(f"cannot mount {source} on {target}: {why}")


def _show(entry: Path, target: Path) -> None:
    """One top-level name of the image in the new root."""
    mode = entry.lstat().st_mode
    if stat.S_ISLNK(mode):
        target.symlink_to(entry.readlink())
        return
    if stat.S_ISDIR(mode):
        target.mkdir()
    elif stat.S_ISREG(mode):
        target.touch()
    else:
        return
    _mount(str(entry), target, "", _BIND | _REC, "")


def _bind(source: Path, root: Path, bind: Bind) -> None:
    target = inside(root, bind.target)
    if not source.exists():
        raise ConfigError(f"cannot mount {source}: it does not exist on this host")
    try:
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    except FileExistsError as error:
        raise ConfigError(f"cannot mount {source} on {bind.target}: that is a file in the image") from error
    except OSError as error:
        raise ConfigError(
            f"cannot mount {source} on {bind.target}: the image has no such place and is read-only",
            hint="mount it on a name of its own directly below /, or add the folder to the image",
        ) from error
    _mount(str(source), target, "", _BIND | _REC, "")
    if not bind.writable:
        # What the host's mount forbids stays forbidden: a user namespace may not take such flags away.
        kept = os.statvfs(target).f_flag & (_NOSUID | _NODEV | 8 | 1024 | 2048)
        kept |= 1 << 21 if os.statvfs(target).f_flag & 4096 else 0
        _mount("none", target, "", _BIND | _REMOUNT | _RDONLY | kept, "")


def _driver(root: Path, environment: dict[str, str]) -> None:
    """The GPU driver's libraries belong to the host's kernel module, not to the image."""
    if not Path("/dev/nvidiactl").exists():
        return
    told = process.run(["ldconfig", "-p"], check=False, timeout=30).stdout
    folder = "/" + _DRIVER_FOLDER
    for name, kind, path in _DRIVER.findall(told):
        if "64" in kind:
            _bind(Path(path), root, Bind(source=path, target=f"{folder}/lib/{name}"))
    smi = Path("/usr/bin/nvidia-smi")
    if smi.exists():
        _bind(smi, root, Bind(source=str(smi), target=f"{folder}/bin/nvidia-smi"))
    for key, more in (("LD_LIBRARY_PATH", f"{folder}/lib"), ("PATH", f"{folder}/bin")):
        environment[key] = ":".join(each for each in (more, environment.get(key, "")) if each)


def _argv(entering: Entering, image: Path, root: Path) -> tuple[str, ...]:
    """The image's /etc/rc goes to its working directory and then runs the command."""
    if not (image / "etc" / "rc").is_file():
        return entering.command or ("/bin/sh",)
    if entering.command and not entering.entrypoint:
        words = root / ".sqshpipe.rc.local"
        words.write_text(_NO_ENTRYPOINT)
        if (root / "etc" / "rc.local").is_file():
            _mount(str(words), root / "etc" / "rc.local", "", _BIND, "")
    return ("/bin/sh", "/etc/rc", *entering.command)


def main() -> int:
    """``python -m pipeline.cluster.enter JSON``, for callers that want a process of its own."""
    try:
        become(Entering.from_json(sys.argv[1]))
    except SqshpipeError as error:
        sys.stderr.write(f"sqshpipe: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
