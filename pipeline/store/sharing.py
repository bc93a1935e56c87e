"""Which releases of a store have bytes of another one: by the packs that records name, and their ranges.

All of it is a hint about where bytes may be found. Whoever puts a file together from it compares the sha256
of the whole before the file gets its name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pipeline.errors import FormatError, PublishError
from pipeline.squashfs.layers import MOST_BYTES as LAYERS_BYTES
from pipeline.squashfs.ranges import MOST_BYTES, PackRanges
from pipeline.store import attachments, trust
from pipeline.store.layout import BROUGHT, LAYERS, RANGES, Layout
from pipeline.store.reading import exists, load, read_record
from pipeline.store.record import Record
from pipeline.store.sealed import UnreadableError
from pipeline.store.state import VersionState
from pipeline.system.log import log

_MOST_HOLDERS = 8  # files that one file is put together from


def ranges_of(layout: Layout, record: Record) -> PackRanges | None:
    """The ranges beside a release; None unless they are there, whole, and those that its record names."""
    digest = record.attachments.get(RANGES)
    if digest is None:
        return None
    try:
        stored = attachments.read(layout, record, RANGES, limit=MOST_BYTES)
        if stored is None or hashlib.sha256(stored).hexdigest() != digest:
            return None
        found = PackRanges.decode(stored)
    except (FormatError, PublishError, OSError) as error:
        log.debug("ranges are not used", release=f"{record.image}:{record.version}", why=str(error))
        return None
    return found if found.size == record.size else None


_Attached = TypeVar("_Attached", bound=Record)


def with_attached(layout: Layout, record: _Attached, required: trust.Required | None = None) -> _Attached:
    """The record with what events say was attached later (`store rebuild --layers`).

    Where signatures are required it stays as it is: no event is signed.
    """
    if not record.packs or {RANGES, LAYERS} <= record.attachments.keys() or trust.all_of(required):
        return record
    try:
        standing = load(layout, record.image).state.releases.get(record.version)
    except (UnreadableError, OSError):
        return record
    return record if standing is None else _attached(record, standing)


def _attached(record: _Attached, standing: VersionState) -> _Attached:
    later = standing.attached.get(record.platform)
    return replace(record, attachments={**later, **record.attachments}) if later else record


def layers_of(layout: Layout, record: Record, *, synced: bool = False) -> bytes | None:
    """The `layers` beside a release; None unless they are there, as its record names them, and vouched for.

    Those of a release that `sync` brought are if `synced` says so.
    """
    digest = record.attachments.get(LAYERS)
    if digest is None or not is_vouched(layout, record, synced=synced):
        return None
    try:
        stored = attachments.read(layout, record, LAYERS, limit=LAYERS_BYTES)
    except (PublishError, OSError) as error:
        log.debug("layers are not used", release=f"{record.image}:{record.version}", why=str(error))
        return None
    return stored if stored is not None and hashlib.sha256(stored).hexdigest() == digest else None


def is_vouched(layout: Layout, record: Record, *, synced: bool = False) -> bool:
    """Whether what a record says of layers is believed: made of packs by a publisher of this store."""
    return bool(record.packs) and is_own(layout, record, synced=synced)


def is_own(layout: Layout, record: Record, *, synced: bool = False) -> bool:
    """Whether a publisher of this store says what its record says: it is not external, nor was it brought.

    With `synced` those that `sync` brought count too.
    """
    if record.external:
        return False
    try:
        return synced or attachments.read(layout, record, BROUGHT, limit=MOST_BYTES) is None
    except (PublishError, OSError):
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A release whose bytes are in the store, with its ranges."""

    record: Record
    ranges: PackRanges


@dataclass(slots=True)
class Holders:
    """The releases of one store by the packs of which they are. Its records are read once, when asked.

    What was attached later counts as named by the record, unless `events` is false.
    """

    layout: Layout
    events: bool = True
    _by_key: dict[str, dict[str, Record]] = field(default_factory=dict)  # then by sha256 of the file
    _records: list[Record] = field(default_factory=list)
    _read: bool = False

    def of(self, record: Record) -> list[Holder]:
        """At most eight other releases that share the most packs with `record`.

        Their files exist with the size that their records say. What cannot be read is left out.
        """
        if not record.packs:
            return []
        self._read_all()
        common: dict[str, int] = {}
        by_digest: dict[str, Record] = {}
        for key in record.packs:
            for digest, other in self._by_key.get(key, {}).items():
                common[digest] = common.get(digest, 0) + 1
                by_digest[digest] = other
        common.pop(record.sha256, None)
        newest = sorted(by_digest, key=lambda digest: by_digest[digest].created, reverse=True)
        found: list[Holder] = []
        for digest in sorted((one for one in newest if one in common), key=lambda one: -common[one]):
            holder = self._holder(by_digest[digest])
            if holder is not None:
                found.append(holder)
            if len(found) == _MOST_HOLDERS:
                break
        return found

    def records(self) -> list[Record]:
        """All releases that are of packs and whose bytes the store should have, newest first."""
        self._read_all()
        return self._records

    def add(self, record: Record) -> None:
        """Take in a release that has just been published."""
        if record.packs:
            self._records.insert(0, record)
        for key in record.packs:
            self._by_key.setdefault(key, {})[record.sha256] = record

    def _holder(self, record: Record) -> Holder | None:
        blob = self.layout.blob(record.sha256)
        try:
            if not exists(blob) or blob.stat().st_size != record.size:
                return None
        except OSError:
            return None
        ranges = ranges_of(self.layout, record)
        return None if ranges is None else Holder(record=record, ranges=ranges)

    def _read_all(self) -> None:
        if self._read:
            return
        self._read = True
        try:
            images = self.layout.images()
        except OSError as error:
            log.debug("a store is not looked at for bytes", store=str(self.layout.root), why=str(error))
            return
        for image in images:
            self._read_image(image)
        self._records.sort(key=lambda record: record.created, reverse=True)

    def _read_image(self, image: str) -> None:
        try:
            for version, standing in load(self.layout, image).state.releases.items():
                for platform in standing.platforms:
                    if not standing.pruned and platform not in standing.damaged:
                        record = read_record(self.layout, image, version, platform)
                        if record is not None:
                            self.add(_attached(record, standing) if self.events else record)
        except (UnreadableError, OSError) as error:
            log.debug("an image is not looked at for bytes", image=image, why=str(error))
