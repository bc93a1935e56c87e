"""Where `sync` reads from: a mounted store or a bucket, and what it may take from there."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.config.names import is_image, stem
from pipeline.errors import SqshpipeError, VerificationError
from pipeline.progress import Task
from pipeline.squashfs.ranges import Piece
from pipeline.store import attachments, sealed
from pipeline.store.layout import Layout
from pipeline.store.publish_steps import OtherContentError
from pipeline.store.reading import read_record, read_truth
from pipeline.store.record import Record, parse_own
from pipeline.store.sealed import UnreadableError
from pipeline.store.state import ImageState
from pipeline.store.store import Store
from pipeline.system import atomic
from pipeline.system.parallel import Crew

_AT_ONCE = 16  # requests for records
_RECORD = re.compile(r"([^/]+)/([^/]+)\.json")


class Bucket(Protocol):
    """What an object store must offer; keys are relative to its prefix. `tools.s3.S3Bucket` is one."""

    name: str

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size) of every object under `prefix`."""

    def get(self, key: str, *, limit: int = sealed.SMALL) -> bytes | None:
        """An object's bytes; None when it does not exist. UnreadableError when it has more than `limit`."""

    def put_new(self, key: str, content: bytes) -> bool:
        """Write a new object; False, and nothing is written, when it exists already."""

    def size(self, key: str) -> int | None: ...
    def upload(
        self,
        key: str,
        path: Path,
        *,
        sha256: str,
        task: Task,
        pieces: Sequence[Piece] = (),
        keys: Sequence[str] = (),
    ) -> Sent:
        """Upload a file; parts that an earlier attempt has uploaded are kept. Raises when its sha256 differs.

        `pieces` say which of its bytes the objects `keys` have; those are copied there and not sent.
        """

    def open_from(self, key: str, offset: int, length: int | None = None) -> BinaryIO:
        """Read an object from byte `offset` on; at most `length` bytes."""

    def read(self, key: str, offset: int, length: int) -> bytes:
        """These bytes of an object, fewer where it ends. VerificationError when it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Bytes that an upload sent, and bytes that were copied inside the object store."""

    sent: int
    reused: int


@dataclass(slots=True, kw_only=True)
class SyncReport:
    """The names of the copied releases, the number that the target had, and the names of those pruned there.

    `bytes_copied` were sent; `bytes_reused` were copied from other releases at the target. `refused` has one
    sentence for each release that was not copied because something of it is not a regular file of the source.
    """

    copied: list[str] = field(default_factory=list)
    present: int = 0
    pruned: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    bytes_copied: int = 0
    bytes_reused: int = 0
    broken: list[str] = field(default_factory=list)
    """Records and events of the source that cannot be read, one sentence each; they are not copied."""

    @contextmanager
    def each(self, failed: list[SqshpipeError]) -> Iterator[None]:
        """What is wrong with one release is reported, or added to `failed`: the others are copied."""
        try:
            yield
        except attachments.NotOfTheStoreError as error:
            self.refused.append(error.message)
        except UnreadableError as error:  # of one image at the target
            self.broken += [error.message] if error.message not in self.broken else []
        except (VerificationError, OtherContentError) as error:
            failed.append(error)


def is_wanted(wanted: list[tuple[str, str | None]], image: str, version: str) -> bool:
    return not wanted or (image, version) in wanted or (image, None) in wanted


def published(store: Store, wanted: list[tuple[str, str | None]], report: SyncReport) -> Iterator[Record]:
    """Records of what resolves, oldest first."""
    store.require()
    for image in store.layout.images():
        with atomic.translate_errors(f"reading {image} in {store.root}"):
            state = _truth(store.layout, image, report)
        for version, standing in reversed(state.newest_first()):
            for platform in sorted(standing.platforms):
                if standing.state(platform) == "published" and is_wanted(wanted, image, version):
                    with atomic.translate_errors(f"reading the record of {image}:{version} in {store.root}"):
                        record = read_record(store.layout, image, version, platform)
                    if record is not None:
                        yield record


def _truth(layout: Layout, image: str, report: SyncReport) -> ImageState:
    """What records and events of `image` say. What cannot be read is reported; other images are copied."""
    try:
        loaded = read_truth(layout, image)
    except UnreadableError as error:
        report.broken.append(error.message)
        return ImageState(image=image)
    report.broken += loaded.broken
    return loaded.state


def recorded(bucket: Bucket, wanted: list[tuple[str, str | None]], report: SyncReport) -> Iterator[Record]:
    """The records of a bucket, oldest first; what is no record, or another one's, is reported as broken."""
    found = []
    matches = []
    for key, size in bucket.keys(""):
        match = _RECORD.fullmatch(key)
        if match is None or not is_image(match[1]):
            continue
        if size > sealed.SMALL:
            report.broken.append(f"{bucket.name}/{key} is larger than a record can be")
        else:
            matches.append(match)
    with Crew(_AT_ONCE, name="records") as crew:
        answers = [crew.submit(bucket.get, match[0]) for match in matches]
        for match, answer in zip(matches, answers, strict=True):
            try:
                record = parse_own(answer.result() or b"", f"{bucket.name}/{match[0]}")
            except UnreadableError as error:  # noqa: PERF203 - the other records are read
                report.broken.append(error.message)
            else:
                if record is not None and is_wanted(wanted, record.image, record.version):
                    found.append(record)
    yield from sorted(found, key=lambda record: record.created)


class SyncSource(Protocol):
    """Where a mounted store copies from."""

    def check(self, record: Record) -> None:
        """Raise NotOfTheStoreError when the record or the .sqsh file is not a regular file of the store."""

    def check_size(self, record: Record) -> None:
        """Raise VerificationError when the .sqsh file cannot have all bytes that the record says."""

    @property
    def shortest(self) -> int:
        """The shortest range, in bytes, that is looked for elsewhere; shorter ones come from this source."""

    def open_from(self, record: Record, offset: int, length: int | None = None) -> BinaryIO:
        """Open the .sqsh file of a release at `offset`. A caller that gives `length` reads no more."""

    def attached(self, record: Record) -> Iterator[tuple[str, bytes]]:
        """Each file that is attached to a release, as (name, content)."""


@dataclass(frozen=True, slots=True)
class MountedSource:
    layout: Layout
    shortest: int = 1 << 16

    def check(self, record: Record) -> None:
        paths = (
            self.layout.record(record.image, record.version, record.platform),
            self.layout.blob(record.sha256),
        )
        for path in paths:
            opened = attachments.open_file(self.layout, path)
            if opened is not None:
                os.close(opened)

    def check_size(self, record: Record) -> None:
        """The sha256 shows it."""

    def open_from(self, record: Record, offset: int, length: int | None = None) -> BinaryIO:  # noqa: ARG002
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
class BucketSource:
    bucket: Bucket
    shortest: int = 1 << 20

    def check(self, record: Record) -> None:
        """A bucket has nothing but objects."""

    def check_size(self, record: Record) -> None:
        size = self.bucket.size(record.file)
        if size is not None and size < record.size:
            raise VerificationError(
                f"{self.bucket.name}/{record.file} has {size} bytes, and the record of {record.image}:"
                f"{record.version} says {record.size}",
                hint="sync from another copy",
            )

    def open_from(self, record: Record, offset: int, length: int | None = None) -> BinaryIO:
        return self.bucket.open_from(record.file, offset, length)

    def attached(self, record: Record) -> Iterator[tuple[str, bytes]]:
        prefix = attachment_prefix(record)
        for key, _ in self.bucket.keys(prefix):
            name = key.removeprefix(prefix)
            if not name or "/" in name:  # an object that stands for a folder, or in a deeper one
                continue
            content = self.bucket.get(key, limit=attachments.LIMIT)
            if content is not None:
                yield name, content


def attachment_prefix(record: Record) -> str:
    return f"{record.image}/.meta/{stem(record.version, record.platform)}/"
