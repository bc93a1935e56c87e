"""Puts sqshpipe itself on a node or a shared folder: PREFIX/bin/sqshpipe and all that it imports.

It is copied from this installation, so nothing is downloaded. The node needs a Python of the same minor
version, since some of the packages are compiled for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from pipeline import __version__
from pipeline.errors import ConfigError, ToolError
from pipeline.system import process, self_command, untrusted
from pipeline.system.mountinfo import mount_of
from pipeline.system.temporary import FOREIGN_WRITER_AGE_SECONDS, temporary_name

COMMAND = Path("/opt/sqshpipe/bin/sqshpipe")
"""Where the documents put it on nodes."""
_FOLDER = re.compile(r"sqshpipe-[\w.+-]+-\d+\.\d+-[0-9a-f]{8}")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_SCRIPT = """\
#!/bin/sh
# Written by `sqshpipe node install`: sqshpipe {version} with all that it imports, for Python {python}.
lib=$(dirname "$(readlink -f "$0")")/../lib/{folder}
for python in {interpreter} python{python} /usr/bin/python3 python3; do
    if "$python" -ISc 'import sys; sys.exit(sys.version_info[:2] != ({comma}))' 2>/dev/null; then
        exec "$python" -I -c 'import sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv[0] = "sqshpipe"
{main}' "$lib" "$@"
    fi
done
echo "sqshpipe: no Python {python} is on $(uname -n), and $0 was made for it" >&2
exit 3
"""
_FIRST = """\
tool=$1 own=$2
shift 2
if [ -x "$tool" ]; then shift "$own"; set -- "$tool" "$@"; fi
exec "$@"
"""


def install(prefix: Path, *, store: Path | None = None) -> Path:
    """Make PREFIX/bin/sqshpipe and what it needs below PREFIX/lib; give the path of the command.

    `store` is the folder that it must not lie in, since users execute it. Can be repeated: a folder that is
    there is used again, the command is swapped by rename, and what runs keeps the folder that it began with;
    folders of earlier installations that nothing uses are removed. Raises ConfigError for a prefix in the
    store, ToolError when files cannot be written or the command does not run.
    """
    prefix = prefix.absolute()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = prefix / "bin" / "sqshpipe"
    if store is not None and prefix.resolve().is_relative_to(store.resolve()):
        raise ConfigError(
            f"sqshpipe cannot be installed into the store ({prefix})",
            hint="nothing that users execute lies there: name a folder beside it",
        )
    try:
        files = dict(_files())
        folder = f"sqshpipe-{__version__}-{python}-{_state_of(files)}"
        with (
            untrusted.folder_to_write(prefix / "lib", make=0o755),
            untrusted.folder_to_write(prefix / "bin", make=0o755),
        ):
            pass
        if not (prefix / "lib" / folder).is_dir():
            _copy(files, prefix / "lib" / folder)
        _note_replacement(command, prefix / "lib")
        script = _SCRIPT.format(
            version=__version__,
            python=python,
            comma=python.replace(".", ", "),
            folder=folder,
            main=self_command.MAIN,
            interpreter=shlex.quote(os.path.realpath(sys.executable)),
        )
        untrusted.replace_file(command, script.encode(), mode=0o755)
    except OSError as error:
        raise ToolError(f"cannot install sqshpipe in {prefix}: {error}", hint="run it as root") from error
    process.run([command, "--help"], env={"PATH": os.defpath}, timeout=60)
    _remove_unused(
        prefix / "lib", folder
    )  # after that call: who read the old command has its folder open now
    return command


def place() -> Path:
    """Where the command lies on nodes: that of the installation that runs here, else the documents' place."""
    lib = Path(__file__).resolve().parents[2]
    command = lib.parents[1] / "bin" / "sqshpipe"
    return command if _FOLDER.fullmatch(lib.name) and command.is_file() else COMMAND


def _note_replacement(command: Path, lib: Path) -> None:
    """Give the folder that the command names until now the time of this installation."""
    with contextlib.suppress(OSError):
        named = _FOLDER.search(untrusted.read_regular(command, limit=1 << 16).decode("utf-8", "replace"))
        if named is not None:
            os.utime(lib / named[0], follow_symlinks=False)


def _remove_unused(lib: Path, current: str) -> None:
    """Remove folders of earlier installations; on shared storage, where others' processes are not seen, only
    those that were replaced long ago.
    """
    running = b"\0".join(_command_lines())
    oldest = time.time() - (FOREIGN_WRITER_AGE_SECONDS if mount_of(lib).is_shared else 0)
    for folder in lib.iterdir():
        if not _FOLDER.fullmatch(folder.name) or folder.name == current or folder.name.encode() in running:
            continue
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and status.st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)


def _command_lines() -> Iterator[bytes]:
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield each.read_bytes()


def on_node(words: Sequence[str], command: Path = COMMAND) -> list[str]:
    """The argv of a verb for another machine: `command` where it is there, else this program by its path."""
    own = self_command.verb(*words)
    return ["/bin/sh", "-c", _FIRST, "sh", str(command), str(len(own) - len(words)), *own]


def _files() -> Iterator[tuple[str, Path]]:
    """(path below the folder, file) of this package and of every distribution that it requires."""
    package = Path(__file__).resolve().parents[1]
    for file in package.rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            yield f"{package.name}/{file.relative_to(package)}", file
    for found in _required():
        for path in found.files or ():
            if path.parts[0] not in ("..", "/"):
                file = Path(str(found.locate_file(path)))
                if file.is_file():
                    yield str(path), file


def _required() -> list[Distribution]:
    """The installed distributions that sqshpipe needs, those of their own included, without sqshpipe."""
    try:
        wanted = [(distribution("sqshpipe"), "")]
    except PackageNotFoundError:
        raise ToolError(
            "sqshpipe is not installed here as a package, so what it needs is not known",
            hint="install it with pip, and run the command of that environment",
        ) from None
    seen = {("sqshpipe", "")}
    found: dict[str, Distribution] = {}
    while wanted:
        one, extra = wanted.pop()
        for text in one.requires or ():
            requirement, _, marker = text.partition(";")
            named = _REQUIREMENT.match(requirement.strip())
            of_extra = _EXTRA.search(marker)
            if named is None or (of_extra and of_extra[1] != extra):
                continue
            for each in ("", *(part.strip() for part in (named[2] or "").split(",") if part.strip())):
                name = named[1].lower().replace("_", "-")
                if (name, each) in seen:
                    continue
                seen.add((name, each))
                try:  # one whose marker is for another Python or system is not installed
                    found[name] = distribution(name)
                except PackageNotFoundError:
                    continue
                wanted.append((found[name], each))
    return list(found.values())


def _state_of(files: dict[str, Path]) -> str:
    """Eight hex digits that differ when any of the files does, by size and time of change."""
    state = hashlib.sha256()
    for name, file in sorted(files.items()):
        status = file.stat()
        state.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return state.hexdigest()[:8]


def _copy(files: dict[str, Path], folder: Path) -> None:
    """Copy the files to `folder`, which gets its name when it is complete."""
    making = folder.with_name(temporary_name())
    try:
        for name, file in files.items():
            target = making / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)  # with its time, which the compiled file beside it names
            target.chmod(0o755 if os.access(file, os.X_OK) else 0o644)
        for path in (making, *(path for path in making.rglob("*") if path.is_dir())):
            path.chmod(0o755)
        try:
            making.rename(folder)
        except OSError:
            if not folder.is_dir():  # another install of the same files was quicker
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
