"""What changed between two releases: in their records, and in the packages that their SBOMs or files list."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import FormatError, SqshpipeError
from pipeline.report.contents import Contents, Package, read_contents
from pipeline.report.sbom import Sbom, comparable
from pipeline.report.text import growth
from pipeline.store.layout import Layout
from pipeline.store.record import Record, Release, mapping, rows
from pipeline.text import human_bytes, short, shown

_NONE = "none"
_DOCKERFILE_LINES, _DIFF_LINES, _DIFF_COLUMNS = 2000, 300, 200
_CACHED = 4  # two platforms in turn, each with the release before it: a walk of one is some 100 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseChange:
    """One difference as text: `what` is its name; `before` and `after` are "none" where there is no value."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChanges:
    """How many files are new, gone or different (size or time), and the folders whose size changed most."""

    added: int
    removed: int
    changed: int
    folders: tuple[ReleaseChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The differences from `before` to `after`, both "image:version".

    `packages` is None where they were not read; `packages_from` says what lists them: "SBOM" or "image".
    `dockerfile` holds the lines of a unified diff; it is empty where a record does not have the text.
    """

    before: str
    after: str
    facts: tuple[ReleaseChange, ...]
    packages: tuple[ReleaseChange, ...] | None
    files: FileChanges | None
    packages_from: str = ""
    layers: tuple[ReleaseChange, ...] = ()
    dockerfile: tuple[str, ...] = ()
    shared_layers: str = ""
    """How many layers, from the base up, are the same, and their bytes; empty where that is unknown."""
    note: str = ""

    @property
    def nothing(self) -> bool:
        """True when neither records nor contents differ."""
        return not (self.facts or self.packages or self.files or self.layers or self.dockerfile)

    def as_json(self) -> dict[str, Any]:
        def listed(changes: tuple[ReleaseChange, ...]) -> list[dict[str, str]]:
            return [{"what": one.what, "before": one.before, "after": one.after} for one in changes]

        files = self.files
        return {
            "before": self.before,
            "after": self.after,
            "changes": listed(self.facts),
            "dockerfile": list(self.dockerfile),
            "layers": listed(self.layers),
            "packages": None if self.packages is None else listed(self.packages),
            "packages_from": self.packages_from or None,
            "files": None
            if files is None
            else {
                "added": files.added,
                "removed": files.removed,
                "changed": files.changed,
                "folders": listed(files.folders),
            },
            "note": self.note,
        }


class Comparer:
    """Compares releases; call it newest first, so that each .sqsh is read once.

    With `packages` it lists those that differ, from both SBOMs, or from the .sqsh where an SBOM is missing.
    With `files` it walks the .sqsh too. The comparison's note says what could not be read.
    """

    def __init__(self, layout: Layout, *, packages: bool, files: bool) -> None:
        self._layout = layout
        self._packages = packages
        self._files = files
        self._cache: dict[str, Contents | str] = {}

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
        if release.sha256 not in self._cache:
            if len(self._cache) == _CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[release.sha256] = self._read(release)
        found = self._cache[release.sha256]
        if isinstance(found, str):
            notes.append(f"{release.name} was not read: {found}")
            return None
        return found

    def _read(self, release: Release) -> Contents | str:
        if release.state == "pruned":
            return "it is pruned"
        try:
            return read_contents(release.path, walk=self._files)
        except SqshpipeError as error:
            return error.message
        except OSError as error:
            return f"{release.path}: {error.strerror}"


def compare(
    before: Record,
    after: Record,
    old: Contents | None,
    new: Contents | None,
    *,
    sboms: tuple[Sbom, Sbom] | None = None,
    packages: bool = True,
    note: str = "",
) -> Comparison:
    """Compare two records, and the contents `old` and `new` where they could be read; `note` says why not.

    Packages are those of `sboms` where they are given: an SBOM also lists what no package manager of the
    image knows, such as Go modules and jars.
    """
    layers, shared = _layers(before, after)
    same_bytes = before.sha256 == after.sha256
    changed, source = None, ""
    if packages and sboms is not None:
        changed, source = tuple(_packages(sboms[0].packages, sboms[1].packages)), "SBOM"
    elif packages and old and new:
        changed, source = tuple(_packages(old.packages, new.packages)), "image"
    return Comparison(
        before=f"{before.image}:{before.version}",
        after=f"{after.image}:{after.version}",
        facts=tuple(_facts(before, after)),
        packages=changed,
        packages_from=source,
        files=_files(old, new) if old and new else None,
        layers=layers,
        dockerfile=() if same_bytes else tuple(_dockerfile(before, after)),
        shared_layers=shared,
        note=note,
    )


def _layers(before: Record, after: Record) -> tuple[tuple[ReleaseChange, ...], str]:
    """The layers above the common ones, side by side from the base up, and a sentence about the rest."""
    old, new = (rows(record.provenance.get("layers")) for record in (before, after))
    if not old or not new:
        return (), ""
    common = 0
    while common < min(len(old), len(new)) and old[common].get("digest") == new[common].get("digest"):
        common += 1
    changes = tuple(
        ReleaseChange(what=f"layer {number + 1}", before=_layer(old, number), after=_layer(new, number))
        for number in range(common, max(len(old), len(new)))
    )
    stored = sum(_stored(layer) for layer in new[:common])
    return changes, f"{common} of {len(new)} layers are the same, {human_bytes(stored)} compressed"


def _layer(layers: Sequence[Mapping[str, Any]], number: int) -> str:
    if number >= len(layers):
        return _NONE
    return f"{human_bytes(_stored(layers[number]))}, {short(layers[number].get('digest', _NONE))}"


def _stored(layer: Mapping[str, Any]) -> int:
    found = layer.get("size")
    return found if isinstance(found, int) and 0 <= found < 1 << 63 else 0


def _facts(before: Record, after: Record) -> Iterator[ReleaseChange]:
    same_bytes = before.sha256 == after.sha256
    if not same_bytes:
        grown = f"{human_bytes(after.size)}, {growth(before.size, after.size)}"
        yield ReleaseChange(what="size", before=human_bytes(before.size), after=grown)
    old, new = mapping(before.base), mapping(after.base)
    yield from _one("base", old.get("reference"), new.get("reference"))
    yield from _one("base digest", short(old.get("digest", _NONE)), short(new.get("digest", _NONE)))
    if not same_bytes:
        yield from _inputs(before, after)
    yield from _one("platform", before.platform, after.platform)
    yield from _one("converter", _converter(before), _converter(after))
    yield from _one("scan", scan_text(before), scan_text(after))
    for key, word in (("revision", "commit"), ("sqshpipe", "sqshpipe")):
        yield from _one(word, before.provenance.get(key), after.provenance.get(key))


def _inputs(before: Record, after: Record) -> Iterator[ReleaseChange]:
    old, new = mapping(before.provenance.get("inputs")), mapping(after.provenance.get("inputs"))
    recorded = all(map(_dockerfile_text, (before, after)))
    for key in ("target", "period") if recorded else ("dockerfile", "target", "period"):
        yield from _one(key, *(short(side.get(key) or _NONE) for side in (old, new)))
    for key, word in (("args", "build argument"), ("context", "file")):
        yield from _keyed(word, mapping(old.get(key)), mapping(new.get(key)))


def _dockerfile(before: Record, after: Record) -> Iterator[str]:
    """A unified diff, each line escaped and cut; nothing where a record does not have the text."""
    old, new = (_dockerfile_text(record).splitlines()[:_DOCKERFILE_LINES] for record in (before, after))
    if not old or not new:
        return
    lines = list(difflib.unified_diff(old, new, n=2, lineterm=""))[2:]
    yield from (shown(line, longest=_DIFF_COLUMNS) for line in lines[:_DIFF_LINES])
    if len(lines) > _DIFF_LINES:
        yield f"… {len(lines) - _DIFF_LINES} more lines"


def _dockerfile_text(record: Record) -> str:
    text = mapping(record.provenance.get("inputs")).get("dockerfile_text")
    return text if isinstance(text, str) else ""


def _keyed(word: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[ReleaseChange]:
    for name in sorted({*old, *new}):
        yield from _one(f"{word} {name}", old.get(name), new.get(name))


def _one(what: str, before: object, after: object) -> Iterator[ReleaseChange]:
    if before != after:
        yield ReleaseChange(
            what=shown(what),
            before=_NONE if before is None else shown(before),
            after=_NONE if after is None else shown(after),
        )


def _converter(record: Record) -> str:
    made = mapping(record.converter)
    options = ", ".join(f"{key} {value}" for key, value in sorted(mapping(made.get("options")).items()))
    return shown(f"{made.get('name', _NONE)}" + (f" ({options})" if options else ""))


def scan_text(record: Record) -> str:
    """What the record says about the scan: its status, and findings by severity."""
    counts = mapping(record.scan.get("findings"))
    findings = ", ".join(f"{number} {severity}" for severity, number in counts.items())
    return shown(str(record.scan.get("status", "unknown")) + (f": {findings}" if findings else ""))


def _packages(old: Mapping[Package, str], new: Mapping[Package, str]) -> Iterator[ReleaseChange]:
    for source, name in sorted({*old, *new}):
        yield from _one(f"{name} ({source})", old.get((source, name)), new.get((source, name)))


def _files(old: Contents, new: Contents) -> FileChanges | None:
    added, removed = new.files.keys() - old.files.keys(), old.files.keys() - new.files.keys()
    changed = sum(old.files[path] != new.files[path] for path in old.files.keys() & new.files.keys())
    steps = {
        folder: new.folders.get(folder, 0) - old.folders.get(folder, 0)
        for folder in {*old.folders, *new.folders}
    }
    most = sorted((item for item in steps.items() if item[1]), key=lambda item: (-abs(item[1]), item[0]))[:10]
    folders = tuple(_folder(name, old.folders.get(name, 0), new.folders.get(name, 0)) for name, _ in most)
    if not (added or removed or changed):
        return None
    return FileChanges(added=len(added), removed=len(removed), changed=changed, folders=folders)


def _folder(name: str, before: int, after: int) -> ReleaseChange:
    grown = f"{human_bytes(after)}, {growth(before, after)}"
    return ReleaseChange(what=shown(name), before=human_bytes(before), after=grown)
