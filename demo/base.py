"""A base image out of what this machine has: a shell, Python with its standard library, and what they load.

It stands in for the gigabytes of an NGC base: small, made in seconds, and no registry has to be asked for it.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import DockerException

from demo.engine import pull_if_missing
from pipeline.docker.engine import Engine
from pipeline.errors import ToolError
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.registry.credentials import Credentials
from pipeline.system import process

FOREIGN_BASE = "python:3.12-slim"

# What no rank needs of the standard library.
_LEFT_OUT = frozenset(
    {"__pycache__", "dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data"}
    | {"site-packages", "test", "tests", "tkinter", "turtledemo", "unittest"}
)
_EXTENSIONS = re.compile(
    r"_?(bisect|bz2|contextvars|csv|ctypes|datetime|decimal|hashlib|heapq|json|math|mmap|opcode|pickle"
    r"|posixsubprocess|queue|random|select|socket|statistics|struct|typing|zlib|zoneinfo)\."
)
_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x")
_ASK = "import json, sys, sysconfig; print(json.dumps([sys.executable, sysconfig.get_paths()['stdlib']]))"
_COMMANDS = ("sh", "ls", "cat", "mkdir")  # enroot's /etc/rc makes the working directory
_FOLDERS = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp")
_ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/os-release": 'PRETTY_NAME="the base image of sqshpipe\'s demo"\nID=demo\n',
}


@dataclass(frozen=True, slots=True)
class _Python:
    program: Path
    library: Path


def write_rootfs(tar_path: Path) -> None:
    """Write the root file system of the base as a tar; about 25 MB in about a second.

    Raises ToolError where a program that goes in is missing.
    """
    python = _find_python()
    commands = {
        f"bin/{name}": process.which(name, hint="every system has it").resolve() for name in _COMMANDS
    }
    programs = [*commands.values(), python.program]
    extensions = [
        path for path in (python.library / "lib-dynload").glob("*.so") if _EXTENSIONS.match(path.name)
    ]
    with tarfile.open(tar_path, "w") as tar:
        seen: set[str] = set()
        for folder in _FOLDERS:
            _add_parents(tar, seen, f"{folder}/x")
        for name, text in _ETC.items():
            _add_bytes(tar, name, text.encode())
        for path in sorted(
            {*programs, *_libraries([*programs, *extensions]), *extensions, *_modules(python.library)}
        ):
            _add_file(tar, seen, path)
        for name, target in (*commands.items(), ("usr/bin/python3", python.program)):
            if str(target).lstrip("/") != name:
                _add_link(tar, seen, name, str(target))


def push_base(engine: Engine, reference: Reference, credentials: Credentials | None) -> Digest:
    """Make the base image, push it as `reference`, and leave no copy in the engine: builds have to pull it.

    Only a Linux machine has the files of a Linux image; elsewhere the base is `FOREIGN_BASE`, which the
    engine pulls. Raises ToolError when the engine refuses, RegistryError when the registry does.
    """
    if sys.platform == "linux":
        _import(engine, reference)
    else:
        _copy(engine, reference)
    digest = engine.push(reference, credentials)
    engine.untag(reference)
    return digest


def _import(engine: Engine, reference: Reference) -> None:
    changes = ["CMD python3", "ENV PATH=/usr/local/bin:/usr/bin:/bin PYTORCH_VERSION=0 LANG=C.UTF-8"]
    with tempfile.TemporaryDirectory(prefix="sqshpipe-base-", dir="/var/tmp") as folder:
        tar = Path(folder) / "rootfs.tar"
        write_rootfs(tar)
        client = docker.APIClient(base_url=engine.host, version="auto")
        try:
            client.import_image(src=str(tar), repository=reference.name, tag=reference.tag, changes=changes)
        except DockerException as error:
            raise ToolError(f"the Docker Engine cannot import {reference}: {error}") from error
        finally:
            client.close()


def _copy(engine: Engine, reference: Reference) -> None:
    client = docker.APIClient(base_url=engine.host, version="auto")
    try:
        pull_if_missing(client, FOREIGN_BASE, hint="the demo needs a network where it is not run on Linux")
        client.tag(FOREIGN_BASE, reference.name, tag=reference.tag)
    except DockerException as error:
        raise ToolError(f"the Docker Engine cannot tag {FOREIGN_BASE}: {error}") from error
    finally:
        client.close()


def _find_python() -> _Python:
    """Debian's own Python where it is, since its paths are short; else the one that runs this."""
    program = shutil.which("python3", path="/usr/bin") or sys.executable
    found, library = json.loads(process.run([program, "-I", "-c", _ASK]).stdout)
    return _Python(Path(found).resolve(), Path(library))


def _modules(library: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(library):
        folders[:] = [
            name for name in folders if name not in _LEFT_OUT and not name.startswith(("config-", "lib-"))
        ]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """What the loader says that these programs load, itself included; a static program loads nothing."""
    ldd = process.which("ldd", hint="it comes with libc-bin")
    answer = process.run([ldd, *programs], check=False)
    if "not found" in answer.stdout:
        raise ToolError("a library is missing on this machine:", details=answer.stdout.splitlines())
    return {Path(match) for match in _LIBRARY.findall(answer.stdout)}


def _add_file(tar: tarfile.TarFile, seen: set[str], path: Path) -> None:
    """Copy a file, through links, to the same path; /usr is not merged here, so its parents are folders."""
    name = str(path).lstrip("/")
    _add_parents(tar, seen, name)
    member = tarfile.TarInfo(name)
    member.size = path.stat().st_size
    member.mode = 0o755 if os.access(path, os.X_OK) else 0o644
    with path.open("rb") as file:
        tar.addfile(member, file)


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _add_link(tar: tarfile.TarFile, seen: set[str], name: str, target: str) -> None:
    _add_parents(tar, seen, name)
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    tar.addfile(member)


def _add_parents(tar: tarfile.TarFile, seen: set[str], name: str) -> None:
    for parent in reversed(Path(name).parents):
        text = str(parent)
        if text != "." and text not in seen:
            seen.add(text)
            member = tarfile.TarInfo(text)
            member.type, member.mode = tarfile.DIRTYPE, 0o1777 if text.endswith("tmp") else 0o755
            tar.addfile(member)
