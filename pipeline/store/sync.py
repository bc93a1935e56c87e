"""Copy releases to where they are missing: another mounted store, or an object store and back.

Bytes go first, then what is attached to a release, its record last; so a copy that was cut short has no
release that lacks something, and the next run goes on from there: inside a file, too. Everything that
arrives is hashed and compared with its record.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.errors import ConfigError, PublishError, VerificationError
from pipeline.progress import SILENT, Meter
from pipeline.store import atomic, attachments, caches, channels, preflight, publisher, publishing
from pipeline.store.attachments import NotOfTheStoreError
from pipeline.store.layout import RECORD_SUFFIX, Layout
from pipeline.store.names import DEFAULT_CHANNEL, is_image, split_name, stem
from pipeline.store.reading import fold_events, read_record, read_truth
from pipeline.store.record import Record, is_claim, parse_record
from pipeline.store.sealed import UnreadableError
from pipeline.store.state import ImageState, Standing
from pipeline.store.store import Store
from pipeline.store.writer import is_orphan, temporary_name
from pipeline.system import untrusted

_PIECE = 4 << 20
_RECORD = re.compile(r"([^/]+)/([^/]+)\.json")


class Bucket(Protocol):
    """What an object store must offer; keys are relative to its prefix. `tools.s3.S3Bucket` is one."""

    name: str

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size) of every object under `prefix`."""

    def get(self, key: str) -> bytes | None: ...
    def put_new(self, key: str, content: bytes) -> bool:
        """Write an object that must not be there; False when it is."""

    def size(self, key: str) -> int | None: ...
    def upload(self, key: str, path: Path, *, sha256: str, meter: Meter) -> None:
        """Bring a file there, going on with what an earlier attempt brought; raises unless its sha256 is
        that.
        """

    def open_from(self, key: str, offset: int) -> BinaryIO:
        """Read an object from that byte on."""


@dataclass(slots=True, kw_only=True)
class Report:
    """Names of the releases copied, those that were there, those that were pruned there and stay so, and the
    bytes that travelled.

    `refused` has one sentence for each release that was not copied, because something of it is not a regular
    file of the source.
    """

    copied: list[str] = field(default_factory=list)
    present: int = 0
    pruned: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    bytes_copied: int = 0
    broken: list[str] = field(default_factory=list)
    """Records and events of the source that cannot be read, one sentence each; they are not copied."""


def sync(
    source: Store | Bucket,
    target: Store | Bucket,
    *,
    names: Iterable[str] = (),
    mirror_channels: Iterable[str] = (),
    meter: Meter = SILENT,
) -> Report:
    """Copy what is published at `source` and missing at `target`: all, or those that `names` says.

    `names` are images or image:version. What was pruned at a mounted target is not missing there: it comes
    back only when `names` says that version. `latest` moves at a mounted target as if its releases were
    published there; each of `mirror_channels` will name there what it names at `source`. Raises PublishError
    when a version has other content at `target`, VerificationError when bytes do not arrive as recorded.
    """
    report = Report()
    wanted = [_wanted(name) for name in names]
    if isinstance(source, Store):
        records = _published(source, wanted, report)
        if isinstance(target, Store):
            _to_store(records, _Mounted(source.layout), target, wanted, report, meter)
        else:
            _to_bucket(source.layout, records, target, report, meter)
    elif isinstance(target, Store):
        _to_store(_recorded(source, wanted, report), _Remote(source), target, wanted, report, meter)
    else:
        raise ConfigError(
            "one side of a sync must be a mounted store", hint="copy buckets with the provider's own tool"
        )
    for channel in mirror_channels:
        _mirror(source, target, channel)
    return report


def _wanted(name: str) -> tuple[str, str | None]:
    return split_name(name) if ":" in name else (split_name(name)[0], None)


def _is_wanted(wanted: list[tuple[str, str | None]], image: str, version: str) -> bool:
    return not wanted or (image, version) in wanted or (image, None) in wanted


def _published(store: Store, wanted: list[tuple[str, str | None]], report: Report) -> Iterator[Record]:
    """Records of what resolves, oldest first."""
    with atomic.told(f"reading the store {store.root}"):
        there = store.root.is_dir()
    if not there:
        raise ConfigError(f"there is no store at {store.root}", hint="name a folder that is one")
    for image in store.layout.images():
        with atomic.told(f"reading {image} in {store.root}"):
            state = _truth(store.layout, image, report)
        for version, standing in reversed(state.newest_first()):
            for platform in sorted(standing.platforms):
                if standing.state(platform) == "published" and _is_wanted(wanted, image, version):
                    with atomic.told(f"reading the record of {image}:{version} in {store.root}"):
                        record = read_record(store.layout, image, version, platform)
                    if record is not None:
                        yield record


def _truth(layout: Layout, image: str, report: Report) -> ImageState:
    """What records and events of `image` say. What cannot be read is reported; other images are copied."""
    try:
        loaded = read_truth(layout, image)
    except UnreadableError as error:
        report.broken.append(error.message)
        return ImageState(image=image)
    report.broken += loaded.broken
    return loaded.state


def _recorded(bucket: Bucket, wanted: list[tuple[str, str | None]], report: Report) -> Iterator[Record]:
    found = []
    for key, _ in bucket.keys(""):
        match = _RECORD.fullmatch(key)
        if match is None or not is_image(match[1]):
            continue
        raw = bucket.get(key) or b""
        try:
            record = None if is_claim(raw) else parse_record(raw, Path(f"{bucket.name}/{key}"))
        except UnreadableError as error:
            report.broken.append(error.message)
            continue
        if record is None or not _is_wanted(wanted, record.image, record.version):
            continue
        if (record.image, stem(record.version, record.platform)) != (match[1], match[2]):
            raise PublishError(f"{bucket.name}/{key} is the record of {record.image}:{record.version}")
        found.append(record)
    yield from sorted(found, key=lambda record: record.created)


class _From(Protocol):
    """Where a mounted store copies from."""

    def check(self, record: Record) -> None:
        """Raise NotOfTheStoreError when record or bytes are not regular files of the store."""

    def open_from(self, record: Record, offset: int) -> BinaryIO: ...
    def attached(self, record: Record) -> Iterator[tuple[str, bytes]]:
        """(name, bytes) of what is attached to a release."""


@dataclass(frozen=True, slots=True)
class _Mounted:
    layout: Layout

    def check(self, record: Record) -> None:
        paths = (
            self.layout.record(record.image, record.version, record.platform),
            self.layout.blob(record.sha256),
        )
        for path in paths:
            opened = attachments.open_file(self.layout, path)
            if opened is not None:
                os.close(opened)

    def open_from(self, record: Record, offset: int) -> BinaryIO:
        path = self.layout.blob(record.sha256)
        opened = attachments.open_file(self.layout, path)
        if opened is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        file = os.fdopen(opened, "rb", buffering=0)
        file.seek(offset)
        return file

    def attached(self, record: Record) -> Iterator[tuple[str, bytes]]:
        for name in attachments.names(self.layout, record):
            content = attachments.read(self.layout, record, name)
            if content is not None:
                yield name, content


@dataclass(frozen=True, slots=True)
class _Remote:
    bucket: Bucket

    def check(self, record: Record) -> None:
        """A bucket has nothing but objects."""

    def open_from(self, record: Record, offset: int) -> BinaryIO:
        return self.bucket.open_from(record.file, offset)

    def attached(self, record: Record) -> Iterator[tuple[str, bytes]]:
        prefix = _attachments(record)
        for key, _ in self.bucket.keys(prefix):
            content = self.bucket.get(key)
            if content is not None and "/" not in key.removeprefix(prefix):
                yield key.removeprefix(prefix), content


def _attachments(record: Record) -> str:
    return f"{record.image}/.meta/{stem(record.version, record.platform)}/"


def _to_store(
    records: Iterable[Record],
    source: _From,
    target: Store,
    wanted: list[tuple[str, str | None]],
    report: Report,
    meter: Meter,
) -> None:
    before: dict[str, ImageState] = {}
    touched: dict[str, None] = {}
    target.prepare()
    try:
        for record in records:
            with atomic.told(f"copying {record.image}:{record.version} to {target.root}"):
                try:
                    if _bring(record, source, target.layout, before, wanted, report, meter):
                        touched[record.image] = None
                except NotOfTheStoreError as error:
                    report.refused.append(error.message)
    finally:
        with atomic.told(f"writing the caches of {target.root}"):
            for image in touched:
                caches.refresh(target.layout, image)
            if touched:
                caches.refresh_manifest(target.layout)


def _bring(
    record: Record,
    source: _From,
    layout: Layout,
    before: dict[str, ImageState],
    wanted: list[tuple[str, str | None]],
    report: Report,
    meter: Meter,
) -> bool:
    """Copy one release; False when it was pruned at the target and stays so."""
    source.check(record)
    if record.image not in before:
        before[record.image] = read_truth(layout, record.image).state
    standing = before[record.image].releases.get(record.version) or Standing()
    there = read_record(layout, record.image, record.version, record.platform)
    if there is not None:
        publishing.refuse_other_content(record, there)
    else:
        named = record.version in before[record.image].releases
        publisher.refuse_lost_record(layout, record, before[record.image], named=named)
    if standing.pruned and (record.image, record.version) not in wanted:
        report.pruned.append(f"{record.image}:{record.version}")
        return False
    _bring_attachments(layout, record, source)
    damaged = record.platform in standing.damaged
    if damaged:
        publisher.set_aside(layout, record)
    if there is None or damaged or standing.pruned or not publishing.bytes_are_there(layout, record):
        _bring_release(layout, record, source, report, meter)
    else:
        report.present += 1
    _advance(layout, record)
    return True


def _advance(layout: Layout, record: Record) -> None:
    channels.advance(layout, record.image, record.version, DEFAULT_CHANNEL)


def _bring_attachments(layout: Layout, record: Record, source: _From) -> None:
    for name, content in list(source.attached(record)):  # all of them can be read, or nothing is brought
        attachments.add(layout, record, name, content)


def _bring_release(layout: Layout, record: Record, source: _From, report: Report, meter: Meter) -> None:
    if publishing.bytes_are_there(layout, record):
        publisher.commit_present(layout, record)
    else:
        preflight.make_room(layout, record.size)
        with _partial(layout, record) as staged:
            digest = _fetch(staged, record, source, report, meter)
            if digest != record.sha256:
                staged.unlink()  # what is wrong is not gone on from
                raise VerificationError(
                    f"{record.image}:{record.version} arrived with sha256 {digest}, not {record.sha256}",
                    hint="run sqshpipe scrub at the source, then sync again",
                )
            publisher.commit_staged(layout, record, staged)
    report.copied.append(f"{record.image}:{record.version}")


@contextmanager
def _partial(layout: Layout, record: Record) -> Iterator[Path]:
    """A staging name for these bytes, with what a killed copy of them left; an error leaves it for the
    next run.
    """
    ending = f".{record.sha256}.sync"
    path = layout.blobs / temporary_name(ending)
    for left in layout.blobs.glob(f".tmp.*{ending}"):
        if is_orphan(left) and _is_own(left):
            try:
                left.rename(path)
                break
            except FileNotFoundError:
                continue  # another sync took it
    yield path
    path.unlink(missing_ok=True)


def _is_own(path: Path) -> bool:
    """Whether a file is this user's: in a store that several publish to, another one may have planted it."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _fetch(staged: Path, record: Record, source: _From, report: Report, meter: Meter) -> str:
    """Complete `staged` from where it ends, and give the sha256 of the whole."""
    digest = hashlib.sha256()
    opened = untrusted.open_regular(staged, flags=os.O_RDWR | os.O_CREAT | os.O_APPEND)
    with os.fdopen(opened, "ab+", buffering=0) as file:
        file.seek(0)
        while piece := file.read(_PIECE):
            digest.update(piece)
        have = file.tell()
        if have > record.size:
            file.truncate(0)
            digest, have = hashlib.sha256(), 0
        meter.total(record.size)
        meter.advance(have)
        with source.open_from(record, have) as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
                report.bytes_copied += len(piece)
                meter.advance(len(piece))
    return digest.hexdigest()


def _to_bucket(
    layout: Layout, records: Iterable[Record], bucket: Bucket, report: Report, meter: Meter
) -> None:
    for record in records:
        try:
            _upload(layout, record, bucket, report, meter)
        except NotOfTheStoreError as error:  # noqa: PERF203 - the others are copied
            report.refused.append(error.message)


def _upload(layout: Layout, record: Record, bucket: Bucket, report: Report, meter: Meter) -> None:
    source = _Mounted(layout)
    source.check(record)
    key = f"{record.image}/{stem(record.version, record.platform)}{RECORD_SUFFIX}"
    there = bucket.get(key)
    if there is not None:
        publishing.refuse_other_content(record, parse_record(there, Path(f"{bucket.name}/{key}")))
    present = set(dict(bucket.keys(_attachments(record))))
    for name, content in list(source.attached(record)):  # all of them can be read, or nothing is brought
        if _attachments(record) + name not in present:
            bucket.put_new(_attachments(record) + name, content)
    if there is not None and bucket.size(record.file) == record.size:
        report.present += 1
        return
    if bucket.size(record.file) != record.size:
        bucket.upload(record.file, layout.blob(record.sha256), sha256=record.sha256, meter=meter)
        report.bytes_copied += record.size
    if there is None and not bucket.put_new(key, record.as_bytes()):
        publishing.refuse_other_content(
            record, parse_record(bucket.get(key) or b"", Path(f"{bucket.name}/{key}"))
        )
    report.copied.append(f"{record.image}:{record.version}")


def _mirror(source: Store | Bucket, target: Store | Bucket, channel: str) -> None:
    if not isinstance(source, Store) or not isinstance(target, Store):
        raise ConfigError("channels travel between mounted stores only", hint="promote at the target")
    for image in source.images():
        version = fold_events(source.layout, ImageState(image=image)).current(channel)
        if version is not None and target.release(image, version) is not None:
            target.promote(f"{image}:{version}", channel, allow_external=True, reason=f"as at {source.root}")


Opener = Callable[[str], Bucket]


def parse_place(text: str, open_bucket: Opener) -> Store | Bucket:
    """A folder, or s3://bucket/prefix opened by `open_bucket`."""
    return open_bucket(text) if text.startswith("s3://") else Store(Path(text))
