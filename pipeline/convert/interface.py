"""What every converter takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.config.types import ConvertOptions
from pipeline.oci.entry import Limits
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Tree
from pipeline.progress import Task
from pipeline.squashfs.cache import Compared, Pair
from pipeline.squashfs.proof import ReadBack
from pipeline.squashfs.ranges import PackRanges


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a converter has written: the tree that must be in the file, and the versions that made it.

    A converter that knows sha256 (hex) and size gives them, and has seen to it that the file is on disk.
    ``packed`` are the stored bytes of layers for which there was no pack before; ``ranges`` says what of the
    file is out of layer packs, where it was made of them, ``layers`` what lies where, as it is attached to a
    release, and ``read`` what was then read back from the disk. ``compared`` has the layers whose blobs were
    compared with their diff_ids.
    """

    tree: Tree
    versions: Mapping[str, str]
    sha256: str | None = None
    size: int = 0
    packed: int = 0
    ranges: PackRanges | None = None
    layers: bytes | None = None
    compared: tuple[tuple[Pair, Compared], ...] = ()
    read: ReadBack | None = None


class Converter(Protocol):
    """Writes ``output`` from ``source``. ``scratch`` is an empty folder that the caller removes."""

    def __call__(
        self,
        source: ImageSource,
        options: ConvertOptions,
        *,
        output: Path,
        scratch: Path,
        cache: Path,
        limits: Limits,
        task: Task,
    ) -> Converted: ...
