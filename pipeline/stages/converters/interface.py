"""What every converter takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.config import ConvertOptions
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Tree
from pipeline.progress import Meter


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a converter has written: the tree that must be in the file, and the versions that made it."""

    tree: Tree
    versions: Mapping[str, str]


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
        meter: Meter,
    ) -> Converted: ...
