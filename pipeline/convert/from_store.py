"""Releases of the store as sources of layers, for a machine that has no packs of its own.

A release is read in place, under a lease, and nothing of it is ever changed. What its record says is believed
as far as a publisher of this store vouches for it: which blobs have which diff_ids, and where the content of
layers lies.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import FormatError, PublishError
from pipeline.squashfs.cache import Compared, Pair
from pipeline.squashfs.layers import LayerIndex, read_layer
from pipeline.squashfs.stored import Held, SourceFailed, StoredPack
from pipeline.store import attachments, leases, trust
from pipeline.store.layout import LAYERS
from pipeline.store.record import Record, mapping, rows
from pipeline.store.sharing import Holders, is_vouched, layers_of
from pipeline.store.store import Store
from pipeline.system.log import log
from pipeline.text import shown

if TYPE_CHECKING:
    from typing_extensions import Self

_LEASE = 24 * 3600.0  # seconds that a conversion may take
_MOST_SOURCES = 8  # of one layer
_DIGEST = re.compile(r"[a-z0-9]+:[0-9a-f]{64,128}")
_Name = tuple[str, str, str]


class Releases(Protocol):
    """Where releases are: in a store, or in its copy in S3."""

    def records(self) -> Sequence[Record]:
        """Those that have layers, newest first; read once, when asked."""

    def is_believed(self, record: Record) -> bool:
        """Whether what a record says of layers is believed: also signed, where the store requires that."""

    def open(self, record: Record, opened: contextlib.ExitStack) -> tuple[Held, bytes] | None:
        """A release with its layers, until `opened` ends; None when it cannot be used.

        Raises PublishError, OSError.
        """


class StoredLayers:
    """The layers that releases of `store` have. A context manager: leases and files are held until it ends.

    `synced` says whether releases that `sync` brought from other stores are used too. All in `copy`, which is
    asked for what the store does not have, are such; whoever opened `copy` closes it afterwards.
    """

    def __init__(self, store: Store | None, *, synced: bool = False, copy: Releases | None = None) -> None:
        self._places: list[Releases] = [] if store is None else [_Mounted(store, synced=synced)]
        if copy is not None and synced:
            self._places.append(copy)
        self._opened = contextlib.ExitStack()
        self._held: dict[tuple[int, _Name], tuple[Held, bytes] | None] = {}
        self._pairs: list[dict[Pair, list[tuple[Record, Compared]]] | None] = [None for _ in self._places]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._opened.close()

    def open(
        self, key: str, keys: Sequence[str], *, xattrs: bool, scratch: Path, every: bool = False
    ) -> StoredPack | None:
        """The pack `key` as far as the release has it that has most of `keys`, or as far as `every` one has.

        None when none has anything of it. With `xattrs` only releases count that have extended attributes.
        """
        while True:
            found: list[tuple[Held, LayerIndex]] = []
            for opened, record in self._naming(key, keys, xattrs=xattrs):
                section = self._section(opened, record, key)
                if section is not None and (section[1].header["keeps_xattrs"] or not xattrs):
                    found.append(section)
                if len(found) == (_MOST_SOURCES if every else 1):
                    break
            if not found:
                return None
            try:
                return StoredPack(key, found, scratch)
            except SourceFailed as error:
                self.leave_out(error)

    def has(self, key: str) -> bool:
        """Whether a release has something of the pack `key`; no release is opened."""
        return any(
            key in record.packs and LAYERS in record.attachments and place.is_believed(record)
            for place in self._places
            for record in place.records()
        )

    def compared(self, pair: Pair) -> Compared | None:
        """What a publisher of this store found who read this blob and compared both digests."""
        for number, place in enumerate(self._places):
            for record, found in self._compared(number).get(pair, ()):
                if place.is_believed(record):
                    return found
        return None

    def _compared(self, number: int) -> dict[Pair, list[tuple[Record, Compared]]]:
        pairs = self._pairs[number]
        if pairs is None:
            pairs = self._pairs[number] = {}
            for record in self._places[number].records():
                for pair, found in compared_in(record):
                    pairs.setdefault(pair, []).append((record, found))
        return pairs

    def leave_out(self, error: SourceFailed) -> None:
        """Do not use that release again; its files stay as they are."""
        log.warning(
            "a release is left out as a source of layers", release=error.held.name, why=error.headline
        )
        for name, opened in self._held.items():
            if opened is not None and opened[0] is error.held:
                self._held[name] = None

    def other_codec(self, diff_ids: Sequence[str], versions: Mapping[str, str]) -> str:
        """The sentence about a release that has such layers, packed by another codec version; or empty."""
        wanted = set(diff_ids)
        for record in (record for place in self._places for record in place.records()):
            other = packed_otherwise(record, versions)
            if other and any(pair.diff_id in wanted for pair, _ in compared_in(record)):
                return other
        return ""

    def newest_other_codec(self, image: str, versions: Mapping[str, str]) -> str:
        """The same sentence about the newest release of an image, whatever its layers are; or empty."""
        records = (record for place in self._places for record in place.records())
        newest = next((record for record in records if record.image == image), None)
        return "" if newest is None else packed_otherwise(newest, versions)

    def _naming(
        self, key: str, keys: Sequence[str], *, xattrs: bool
    ) -> Iterator[tuple[tuple[Held, bytes], Record]]:
        """Releases that have the pack `key`, those first that have most of `keys`, each file once.

        With `xattrs` only those whose records say that they keep them, since each one named is opened.
        """
        wanted, seen = set(keys), set[str]()
        for number, place in enumerate(self._places):
            naming = [
                record
                for record in place.records()
                if key in record.packs and (not xattrs or _keeps_xattrs(record))
            ]
            for record in sorted(naming, key=lambda record: -len(wanted.intersection(record.packs))):
                opened = None if record.sha256 in seen else self._hold(number, record)
                if opened is not None:
                    seen.add(record.sha256)
                    yield opened, record

    def _section(
        self, opened: tuple[Held, bytes], record: Record, key: str
    ) -> tuple[Held, LayerIndex] | None:
        try:
            found = read_layer(opened[1], key, size=record.size)
        except FormatError as error:
            self.leave_out(SourceFailed(opened[0], error.message))
            return None
        return None if found is None else (opened[0], found)

    def _hold(self, number: int, record: Record) -> tuple[Held, bytes] | None:
        name = (number, (record.image, record.version, record.platform))
        if name not in self._held:
            try:
                self._held[name] = self._places[number].open(record, self._opened)
            except (PublishError, OSError) as error:
                log.info("a release cannot be a source of layers", release=record.version, why=str(error))
                self._held[name] = None
        return self._held[name]


class _Mounted:
    """The releases of a store whose file system is mounted."""

    def __init__(self, store: Store, *, synced: bool) -> None:
        self._layout = store.layout
        self._required = store.required
        self._synced = synced
        self._holders = Holders(store.layout, events=not trust.all_of(store.required))

    def records(self) -> Sequence[Record]:
        return self._holders.records()

    def is_believed(self, record: Record) -> bool:
        vouched = is_vouched(self._layout, record, synced=self._synced)
        return vouched and trust.is_signed(self._layout, record, self._required)

    def open(self, record: Record, opened: contextlib.ExitStack) -> tuple[Held, bytes] | None:
        """A release with its layers, under a lease."""
        layers = layers_of(self._layout, record, synced=self._synced)
        if layers is None or not self.is_believed(record):
            return None
        lease = leases.take(self._layout, record, seconds=_LEASE)
        opened.callback(_drop, lease)
        path = self._layout.blob(record.sha256)
        descriptor = attachments.open_file(self._layout, path)
        if descriptor is None:
            return None
        opened.callback(os.close, descriptor)
        if os.fstat(descriptor).st_size != record.size:
            return None
        return Held(name=f"{record.image}:{record.version}", path=path, descriptor=descriptor), layers


def _drop(lease: Path) -> None:
    with contextlib.suppress(PublishError, OSError):  # it ends by itself
        leases.drop(lease)


def packed_otherwise(record: Record, versions: Mapping[str, str]) -> str:
    """The sentence about a release whose layers another version of the codec packed; or empty."""
    made = mapping((record.converter or {}).get("versions"))
    other = [f"{name} {made[name]}; here {one}" for name, one in versions.items() if name in made]
    if not other or all(made.get(name) == one for name, one in versions.items()):
        return ""
    return shown(f"{record.image}:{record.version} has it, packed with {', '.join(other)}")


def _keeps_xattrs(record: Record) -> bool:
    return mapping((record.converter or {}).get("options")).get("keep_xattrs") is True


def compared_in(record: Record) -> list[tuple[Pair, Compared]]:
    """The blobs that a record says were read and compared with their diff_ids."""
    found = []
    for row in rows(record.provenance.get("layers")):
        digest, diff_id = str(row.get("digest")), str(row.get("diff_id"))
        size, unpacked, holes = (_count(row.get(name)) for name in ("size", "unpacked", "holes"))
        if _DIGEST.fullmatch(digest) and _DIGEST.fullmatch(diff_id) and min(size, unpacked, holes) >= 0:
            pair = Pair(blob=digest, size=size, diff_id=diff_id)
            found.append((pair, Compared(unpacked=unpacked, holes=holes)))
    return found


def _count(value: object) -> int:
    """The value as a number of bytes, -1 when it is not one."""
    return value if type(value) is int and 0 <= value < 1 << 62 else -1
