"""Reads what a start needs of a .sqsh into the page cache, as the release's start-up profile says.

A kernel mount reads its file through the page cache as squashfuse does (a loop device has no direct I/O), so
this serves both. The importer has the code, since it must stand alone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ToolError
from pipeline.node import pyxis_importer, shared_mount
from pipeline.node.image_file import ImageFile
from pipeline.system import untrusted
from pipeline.system.log import log

if TYPE_CHECKING:  # each rank of `run` loads this module
    from pipeline.node.prewarm_on_node import Warmed
    from pipeline.squashfs.startup import Range

MOST = 1 << 30
"""Bytes that are read ahead at most, and no more than a tenth of the free memory."""


def ranges(image: ImageFile) -> list[Range]:
    """What to read ahead of a release; empty without a profile, and with a warning when it is not sound."""
    if image.startup is None or not (image.startup / "startup-1.json").exists():
        return []
    try:
        size = image.path.stat().st_size
        newest = pyxis_importer.newest_profile(str(image.startup))
        limit = pyxis_importer.prefetch_limit(MOST)
        return pyxis_importer.startup_ranges(newest, image.sha256, size, limit)
    except (pyxis_importer.Refused, OSError) as error:
        log.warning("a start-up profile is ignored", why=str(error))
        return []


def now(image: ImageFile) -> Warmed:
    """Read ahead and wait for it. Raises ToolError when there is no sound profile or no such file."""
    from pipeline.node.prewarm_on_node import Warmed

    began = time.monotonic()
    wanted = ranges(image)
    if not wanted:
        raise ToolError(
            f"{image.path} has no start-up profile that can be used",
            hint="record one: sqshpipe node profile IMAGE:VERSION -- CMD",
        )
    try:
        size = pyxis_importer.read_ahead(str(image.path), wanted, seconds=3600.0)
    except (pyxis_importer.Refused, OSError) as error:
        raise ToolError(f"cannot read {image.path}: {error}") from error
    seconds = time.monotonic() - began
    return Warmed(host=os.uname().nodename, path=image.path, size=size, seconds=seconds, there=False)


def begin(image: ImageFile, holder: str) -> None:
    """Read ahead in a process of its own, once for a file on this node, until `end` with the same holder."""
    wanted = ranges(image)
    if wanted:
        with contextlib.suppress(OSError):  # without it the start is slower, and that is all
            path, folder = str(image.path), _folder()
            with untrusted.folder_to_write(folder, make=0o700):
                pass
            pyxis_importer.in_background(
                str(folder), image.sha256, holder, lambda: pyxis_importer.read_ahead(path, wanted)
            )


def end(holder: str) -> None:
    """End what this holder has begun."""
    pyxis_importer.end_prefetch(str(_folder()), holder)


@contextlib.contextmanager
def running(image: ImageFile) -> Iterator[None]:
    """Read ahead while the block begins; nothing of it is left when the block ends."""
    if image.startup is None:
        yield
        return
    holder = f"run-{os.getpid()}"
    begin(image, holder)
    try:
        yield
    finally:
        end(holder)


def _folder() -> Path:
    return shared_mount.node_folder() / "prefetch"
