"""An image unpacked once on a node, for pyxis before 0.22, which starts no file: it unpacks at each step.

enroot keeps it as a container under a name that pyxis finds (`--container-name`), so that later steps and
jobs start it without unpacking. It is made under another name and renamed when it is complete: a container of
that name is whole, also after a power cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.node import software
from pipeline.node.image_file import ImageFile
from pipeline.system import process, untrusted
from pipeline.system.temporary import is_orphan, is_temporary, temporary_name

_TIMEOUT = 3600.0
_LOCK = ".sqshpipe-unpack.lock"
_HINT = "is enroot in PATH on this node, and can this user write to its ENROOT_DATA_PATH?"
_NOT_THE_JOBS = tuple(
    f"ENROOT_{each}_PATH" for each in ("LIBRARY", "SYSCONF", "RUNTIME", "CACHE", "DATA", "TEMP")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """A container: `name` for pyxis's --container-name, the folder with its files, and the seconds that
    unpacking took, 0 where it was there. `others`: how many such containers of this user lie beside it.
    """

    name: str
    folder: Path
    seconds: float
    others: int


def container_name(sha256: str) -> str:
    """What --container-name says for the file with this sha256."""
    return f"sqshpipe-{sha256[:16]}"


def unpack(image: ImageFile) -> Unpacked:
    """Make the container of an image unless this user has it; of those who ask at once, one unpacks.

    Raises ToolError when enroot is missing or fails.
    """
    name = container_name(image.sha256)
    job = f"{os.environ.get('SLURM_JOB_ID', '0')}_" if software.names_are_of_a_job() else ""
    data = _data_folder()
    folder = data / f"pyxis_{job}{name}"
    seconds = 0.0
    try:
        if not folder.is_dir():
            with _alone(data):
                if not folder.is_dir():
                    seconds = _create(image.path, folder)
        others = len(list(data.glob("pyxis_*sqshpipe-*"))) - 1
    except OSError as error:
        raise ToolError(f"cannot unpack {image.path} into {folder}: {error.strerror}", hint=_HINT) from error
    return Unpacked(name=name, folder=folder, seconds=seconds, others=others)


def _data_folder() -> Path:
    """Where enroot keeps containers of this user.

    Every enroot computes it from files and the environment, and none has a command that prints it; this error
    has the path in it.
    """
    name = temporary_name()
    done = _enroot("remove", "--force", name, timeout=60, check=False)
    found = re.search(rf"(/[^\n]*)/{re.escape(name)}\s*$", done.stderr + done.stdout, re.MULTILINE)
    if found is None:
        said = (done.stderr + done.stdout).strip().splitlines() or ["it said nothing"]
        raise ToolError(f"enroot does not say where its containers lie: {said[-1]}", hint=_HINT)
    return Path(found[1])


@contextlib.contextmanager
def _alone(data: Path) -> Iterator[None]:
    descriptor = os.open(data / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create(file: Path, folder: Path) -> float:
    """Unpack beside `folder`, then give it its name; seconds that it took."""
    began = time.monotonic()
    for left in folder.parent.iterdir():
        if is_temporary(left.name) and is_orphan(left):
            _remove(left.name)
    making = temporary_name()
    try:
        _enroot("create", "--name", making, file)
        with untrusted.folder(folder.parent) as opened:
            os.rename(making, folder.name, src_dir_fd=opened, dst_dir_fd=opened)
            os.fsync(opened)
    except BaseException:
        _remove(making)
        if not folder.is_dir():  # another node, where they share the folder, was quicker
            raise
    return time.monotonic() - began


def _remove(name: str) -> None:
    with contextlib.suppress(ToolError):
        _enroot("remove", "--force", name, check=False)


def _enroot(*words: str | Path, timeout: float = _TIMEOUT, check: bool = True) -> process.Completed:
    """Run enroot as pyxis does, which passes the job's environment on without these variables."""
    env = {name: value for name, value in os.environ.items() if name not in _NOT_THE_JOBS}
    return process.run(["enroot", *words], env=env, timeout=timeout, check=check, hint=_HINT)
