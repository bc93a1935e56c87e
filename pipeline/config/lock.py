"""images.lock: the digest that the tag of each base named when it was locked; reviewed in pull requests.

The file is YAML, sorted, one line a digest, so that a moved base is a diff of two lines. A base that names a
digest itself needs no entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import yamlfile
from pipeline.errors import ConfigError, SqshpipeError
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.system import atomic
from pipeline.text import utc

BaseKey = tuple[str, str]
_HEADER = "# Written by sqshpipe lock and sqshpipe refresh: which digest each base stands for. Commit it.\n"
_REWRITE = "correct the line, or remove the file and run: sqshpipe lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedBase:
    """The platform's manifest behind a tag, the index around it if there is one, and since when (UTC)."""

    digest: Digest
    index_digest: Digest | None = None
    locked_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """All locked bases, keyed by reference and platform as text."""

    bases: Mapping[BaseKey, LockedBase] = field(default_factory=dict)

    def get(self, reference: Reference, platform: Platform) -> LockedBase | None:
        """The locked digests of ``reference`` on ``platform``; None when it is not locked."""
        return self.bases.get((str(reference), str(platform)))

    def updated(self, reference: Reference, platform: Platform, base: LockedBase) -> Lock:
        """A lock with one more entry. An entry with the same digests keeps its time."""
        old = self.get(reference, platform)
        if old is not None and (old.digest, old.index_digest) == (base.digest, base.index_digest):
            return self
        return Lock(bases={**self.bases, (str(reference), str(platform)): base})

    def with_times_of(self, other: Lock) -> Lock:
        """The same digests; those that ``other`` has too get the time that they have there."""
        same = {
            key: other.bases[key]
            for key, base in self.bases.items()
            if key in other.bases and replace(other.bases[key], locked_at=base.locked_at) == base
        }
        return Lock(bases={**self.bases, **same})

    def only(self, wanted: Iterable[tuple[Reference, Platform]]) -> Lock:
        """A lock without the entries that are no longer used."""
        keys = {(str(reference), str(platform)) for reference, platform in wanted}
        return Lock(bases={key: base for key, base in self.bases.items() if key in keys})


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Base(_Model):
    digest: str
    index_digest: str | None = None
    locked_at: str


class _File(_Model):
    version: Literal[1]
    bases: dict[str, dict[str, _Base]]


def read_lock(path: Path) -> Lock:
    """The lock at ``path``, an empty one when there is no file; ConfigError naming file, line and key."""
    return _lock_of(yamlfile.read(path)) if path.exists() else Lock()


def parse_lock(raw: bytes, path: Path) -> Lock:
    """The lock that ``raw`` says; ``path`` is for errors. ConfigError naming file, line and key."""
    return _lock_of(yamlfile.parse(raw, path))


def _lock_of(source: yamlfile.Document) -> Lock:
    try:
        file = _File.model_validate(source.value)
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        key = tuple(part for part in error["loc"] if part != "[key]")
        raise source.error(key, error["msg"], _REWRITE) from None
    bases: dict[BaseKey, LockedBase] = {}
    for name, platforms in file.bases.items():
        for where, base in platforms.items():
            key = ("bases", name, where)
            reference = _parsed(source, key, Reference.parse, name)
            platform = _parsed(source, key, Platform.parse, where)
            index = base.index_digest
            bases[str(reference), str(platform)] = LockedBase(
                digest=_parsed(source, (*key, "digest"), Digest.parse, base.digest),
                index_digest=_parsed(source, (*key, "index_digest"), Digest.parse, index) if index else None,
                locked_at=_parsed(source, (*key, "locked_at"), _time, base.locked_at),
            )
    return Lock(bases=bases)


def write_lock(path: Path, lock: Lock) -> bool:
    """Write ``lock`` atomically; False when the file is the same already. Raises ConfigError."""
    text = render_lock(lock)
    try:
        if path.exists() and yamlfile.content(path) == text.encode():
            return False
        atomic.replace(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    return True


def render_lock(lock: Lock) -> str:
    """The file's text: sorted, and the same for the same lock."""
    lines = [_HEADER, "version: 1\n", "bases:\n" if lock.bases else "bases: {}\n"]
    last = None
    for (reference, platform), base in sorted(lock.bases.items()):
        if reference != last:
            lines.append(f'  "{reference}":\n')
            last = reference
        lines.append(f"    {platform}:\n      digest: {base.digest}\n")
        if base.index_digest is not None:
            lines.append(f"      index_digest: {base.index_digest}\n")
        lines.append(f"      locked_at: {utc(base.locked_at)}\n")
    return "".join(lines)


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        raise ConfigError(f"{text!r} is not a time such as 2026-01-31T12:00:00Z") from None


def _parsed(source: yamlfile.Document, key: yamlfile.Key, parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except SqshpipeError as error:
        raise source.error(key, error.message, _REWRITE) from None
