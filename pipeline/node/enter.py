"""Become a command inside a mounted image: a mount namespace of its own, and no daemon and no setuid helper.

Every task of a node reads the same mount (one device, one page cache), and folders such as /fsx are added
without an overlay: see `new_root`. As root a mount namespace is enough; others get a user namespace in which
they stay who they are. The image's author decides what its names are: each may be a symlink, a pipe, a device
or huge.

See namespaces(7), mount_namespaces(7); /etc/rc and /etc/environment are what enroot puts into an image.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from pipeline.errors import ConfigError, FormatError, SqshpipeError, ToolError
from pipeline.node import new_root
from pipeline.node.new_root import DRIVER_FOLDER, Bind, NewRoot
from pipeline.oci import enroot_files
from pipeline.oci import environment as image_environment
from pipeline.system import process
from pipeline.text import shown

__all__ = ["Bind", "Entering", "become"]

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_HOST_FILES = ("etc/resolv.conf", "etc/hosts", "etc/hostname")
_NO_ENTRYPOINT = b'exec "$@"\n'  # what the image's /etc/rc runs instead of the entrypoint, as pyxis does
_HOST_ONLY = (b"LD_PRELOAD", b"LD_LIBRARY_PATH", b"PYTHONHOME", b"PYTHONPATH")
_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NO_COMMAND = "the image names no command and has no shell"
_LONGEST = 8 << 20  # bytes of a file of the image that is read here: as long as an image's config may be
_DRIVER = re.compile(
    r"^\s*(lib(?:cuda|nvidia-[\w-]+|nvcuvid|nvoptix|cudadebugger)\.so\.[\w.]+) \((.*)\) => (\S+)$",
    re.MULTILINE,
)
_LIBC = ctypes.CDLL(None, use_errno=True)


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
    """Replace this process by the command inside the image.

    Raises ToolError, ConfigError or FormatError before that.
    """
    here = str(Path.cwd())
    _namespaces()
    root = NewRoot(Path(entering.image), Path(entering.scratch))
    root.show_image()
    for name in _HOST_FILES:
        if Path(f"/{name}").is_file() and root.has_file(name):
            root.cover(name, f"/{name}")
    environment = _environment(root, entering, os.environb)
    argv, folder = _argv(entering, root)
    if entering.gpu:
        _driver(root, environment)
    for each in entering.binds:
        root.bind(each)
    root.enter()
    if any(here == each.target or here.startswith(each.target.rstrip("/") + "/") for each in entering.binds):
        with contextlib.suppress(OSError):
            os.chdir(here)
    _execute(argv, folder, environment)


def _execute(argv: tuple[str, ...], folder: str | None, environment: dict[bytes, bytes]) -> NoReturn:
    """Run a command in `folder`, by default where this process is."""
    words = [os.fsencode(word) for word in argv]
    try:
        if folder is not None:
            os.chdir(folder)
            environment[b"PWD"] = os.fsencode(folder)
            environment.pop(b"OLDPWD", None)
    except OSError as error:
        raise ToolError(
            f"cannot go to the working directory {shown(folder)} of the image: {error.strerror}"
        ) from error
    try:
        os.execvpe(words[0], words, environment)  # noqa: S606 - this is what the caller asked for
    except OSError as error:
        raise ToolError(f"cannot run {shown(argv[0])} in the image: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"cannot run {shown(argv[0])} in the image: {error}") from error


def _environment(root: NewRoot, entering: Entering, host: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The job's environment, over it the image's (as with enroot), over it what was asked for by name."""
    inside = {name: value for name, value in host.items() if name not in _HOST_ONLY}
    try:
        inside.update(image_environment.read(root.read("etc/environment", limit=_LONGEST) or b"", host))
    except FormatError as error:
        sys.stderr.write(f"sqshpipe: the image's environment is left out: {error.message}\n")
    inside.update((os.fsencode(name), os.fsencode(value)) for name, value in entering.env)
    inside.setdefault(b"PATH", _PATH)
    return inside


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
        maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        try:
            for name, text in maps.items():
                Path(f"/proc/self/{name}").write_text(text)
        except OSError as error:
            raise ToolError(f"cannot make a user namespace: {error.filename}: {error.strerror}") from error
    new_root.cut_off_mounts()


def _driver(root: NewRoot, environment: dict[bytes, bytes]) -> None:
    """The GPU driver's libraries belong to the host's kernel module, not to the image."""
    if not Path("/dev/nvidiactl").exists():
        return
    listed = process.run(["ldconfig", "-p"], check=False, timeout=30).stdout
    folder = "/" + DRIVER_FOLDER
    for name, kind, path in _DRIVER.findall(listed):
        if "64" in kind:
            root.bind(Bind(source=path, target=f"{folder}/lib/{name}"))
    smi = Path("/usr/bin/nvidia-smi")
    if smi.exists():
        root.bind(Bind(source=str(smi), target=f"{folder}/bin/nvidia-smi"))
    for key, more in ((b"LD_LIBRARY_PATH", f"{folder}/lib"), (b"PATH", f"{folder}/bin")):
        environment[key] = b":".join(each for each in (more.encode(), environment.get(key, b"")) if each)


def _argv(entering: Entering, root: NewRoot) -> tuple[tuple[str, ...], str | None]:
    """The words to run and the folder to run them in.

    The image's /etc/rc goes to its working directory and then runs the command. It needs a shell, so for an
    image without one we do what it says.
    """
    rc = root.read("etc/rc", limit=_LONGEST)
    shell = root.has_file("bin/sh")
    if rc is None:
        if not entering.command and not shell:
            raise ConfigError(_NO_COMMAND, hint="give the command to run after --")
        return entering.command or ("/bin/sh",), None
    if not shell:
        return _without_shell(entering, rc, "it has no /bin/sh")
    if not root.has_file("etc/rc"):
        return _without_shell(entering, rc, "its /etc/rc leads to a folder of the host")
    if entering.command and not entering.entrypoint:
        try:
            root.cover("etc/rc.local", _NO_ENTRYPOINT)
        except OSError:
            return _without_shell(entering, rc, "its /etc/rc.local is not a regular file")
    return ("/bin/sh", "/etc/rc", *entering.command), None


def _without_shell(entering: Entering, rc: bytes, why: str) -> tuple[tuple[str, ...], str]:
    start = enroot_files.parse_rc(rc.decode("utf-8", "surrogateescape"))
    if start is None:
        raise FormatError(
            f"the image cannot be started: {why}, and its /etc/rc is another than sqshpipe or enroot write",
            hint="convert the image again, or add what is missing to it",
        )
    if not entering.command:
        if start.command == ("/bin/sh",):  # what stands for no command
            raise ConfigError(_NO_COMMAND, hint="give the command to run after --")
        return tuple(map(_of_image, start.command)), _of_image(start.working_dir)
    entrypoint = map(_of_image, start.entrypoint) if entering.entrypoint else ()
    return (*entrypoint, *entering.command), _of_image(start.working_dir)


def _of_image(text: str) -> str:
    """Text of the image, which is UTF-8, as this process writes file names, whatever its locale is."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def main() -> int:
    """``python -m pipeline.node.enter JSON``, for callers that want a process of its own."""
    return attempt(Entering.from_json(sys.argv[1]))


def attempt(entering: Entering) -> int:
    """`become`, or one sentence on stderr and the exit code that goes with it."""
    try:
        become(entering)
    except SqshpipeError as error:
        _say(str(error))
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - a command that ends without a sentence helps nobody
        _say(f"cannot enter the image: unexpected {error!r}")
        return 1


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # a stderr that is full changes no exit code
        sys.stderr.write(f"sqshpipe: {sentence}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
