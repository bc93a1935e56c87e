"""What has to be read to compare releases of a store: SBOMs where they will do, else the files themselves."""

from __future__ import annotations

from pipeline.errors import FormatError, SqshpipeError
from pipeline.report.compare import Comparison, compare
from pipeline.report.contents import Contents, read_contents
from pipeline.report.sbom import Sbom, comparable
from pipeline.store.layout import Layout
from pipeline.store.record import Release

_REMEMBERED = 4  # two platforms in turn, each with the release before it: a walk of one is some 100 MB


class Comparer:
    """Compares releases, newest first, reads each .sqsh once, and tells in the note what could not be read.

    With `packages` it tells which differ, as the SBOMs of both say; a .sqsh is looked into where they do not,
    and with `files`, which walks all of it.
    """

    def __init__(self, layout: Layout, *, packages: bool, files: bool) -> None:
        self._layout = layout
        self._packages = packages
        self._files = files
        self._known: dict[str, Contents | str] = {}

    def __call__(self, before: Release, after: Release) -> Comparison:
        notes: list[str] = []
        sboms = self._sboms(before, after, notes) if self._packages else None
        old = new = None
        if self._files or (self._packages and sboms is None):
            old, new = (self._contents(release, notes) for release in (before, after))
        note = "; ".join(notes)
        return compare(before, after, old, new, sboms=sboms, packages=self._packages, note=note)

    def _sboms(self, before: Release, after: Release, notes: list[str]) -> tuple[Sbom, Sbom] | None:
        try:
            return comparable(self._layout, before, after)
        except FormatError as error:
            notes.append(error.message)
            return None

    def _contents(self, release: Release, notes: list[str]) -> Contents | None:
        if release.sha256 not in self._known:
            if len(self._known) == _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[release.sha256] = self._read(release)
        known = self._known[release.sha256]
        if isinstance(known, str):
            notes.append(f"{release.name} was not looked into: {known}")
            return None
        return known

    def _read(self, release: Release) -> Contents | str:
        if release.state == "pruned":
            return "it is pruned"
        try:
            return read_contents(release.path, walk=self._files)
        except SqshpipeError as error:
            return error.message
        except OSError as error:
            return f"{release.path}: {error.strerror}"
