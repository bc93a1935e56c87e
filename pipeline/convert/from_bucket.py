"""Releases in the store's copy in S3 as sources of layers, for a machine that does not mount the store.

Records, the layers beside a release, and those ranges of its .sqsh that a conversion needs are downloaded
into a scratch folder. Nothing is written to the bucket, so no lease can be held there: a release that is
deleted while it is read is left out, like one that is damaged.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PublishError, SqshpipeError, VerificationError
from pipeline.squashfs.stored import Held, SourceFailed
from pipeline.squashfs.writing import write_at
from pipeline.store import attachments, trust
from pipeline.store.layout import LAYERS, Layout
from pipeline.store.record import Record
from pipeline.store.sharing import layers_of
from pipeline.store.sync_source import Bucket, SyncReport, attachment_prefix, recorded
from pipeline.system.log import log
from pipeline.system.parallel import Crew
from pipeline.system.scratch import SpaceRequirement, require_space, scratch_folder

if TYPE_CHECKING:
    from typing_extensions import Self

_CHUNK = 1 << 16  # bytes: ranges are rounded to it
_GAP = 4  # chunks that are downloaded too, since one more request takes as long
_REQUEST = 128  # chunks of one request at most
_AT_ONCE = 8  # requests


def open_s3(url: str) -> Bucket:
    """The bucket with boto3's configuration. Raises ConfigError, NoAwsCredentials."""
    from pipeline.aws.s3 import S3Bucket  # loads boto3

    return S3Bucket(url)


class BucketReleases:
    """The releases in the bucket at `url`; it is listed once, when its records are first needed.

    For several threads at once. A bucket that fails is not asked again. Where signatures are `required`, only
    signed releases are used. Downloads go to a folder in `scratch`. A context manager: what was downloaded is
    removed when it ends, and nothing is asked for any more.
    """

    def __init__(
        self,
        url: str,
        *,
        scratch: Path,
        required: trust.Required | None = None,
        open_bucket: Callable[[str], Bucket] = open_s3,
    ) -> None:
        self.url = url
        self.bucket: Bucket | None = None
        self._scratch = scratch
        self._required = required
        self._open_bucket = open_bucket
        self._records: list[Record] | None = None
        self._opened = contextlib.ExitStack()
        self._layout: Layout | None = None
        self._brought: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.bucket, self._records = None, []
            self._opened.close()

    def records(self) -> Sequence[Record]:
        """All releases there that may have layers, newest first; none when the bucket cannot be read."""
        try:
            return [record for record in self.every_record() if record.packs and not record.external]
        except SqshpipeError as error:
            self.leave_out(error)
            return ()

    def every_record(self) -> Sequence[Record]:
        """All releases there, newest first. Raises SqshpipeError when the bucket cannot be read."""
        with self._lock:
            if self._records is None:
                report = SyncReport()
                self.bucket = self._open_bucket(self.url)
                self._records = list(recorded(self.bucket, [], report))[::-1]
                for sentence in report.broken:
                    log.debug("a record is not used", why=sentence)
            return self._records

    def is_believed(self, record: Record) -> bool:
        """Whether what a record says of layers is believed, by who trusts the writers of the bucket."""
        if not trust.all_of(self._required):
            return True
        layout = self._with_attached(record)
        return layout is not None and trust.is_signed(layout, record, self._required)

    def open(self, record: Record, opened: contextlib.ExitStack) -> tuple[Held, bytes] | None:  # noqa: ARG002
        """A release with its layers; None when it cannot be used. Raises OSError."""
        if not self.is_believed(record):
            return None
        layout = self._with_attached(record)
        layers = None if layout is None else layers_of(layout, record, synced=True)
        if layout is None or layers is None or not self._has_all(record):
            return None
        file = _Download(self, record, layout.root)
        name = f"{record.image}:{record.version} in {self.url}"
        return Held(name=name, path=Path(record.file), descriptor=file.descriptor, bring=file.bring), layers

    def leave_out(self, error: SqshpipeError) -> None:
        """Do not ask this bucket again."""
        log.warning("a bucket is left out as a source of layers", bucket=self.url, why=str(error))
        self.bucket, self._records = None, []

    def _has_all(self, record: Record) -> bool:
        try:
            return self.bucket is not None and self.bucket.size(record.file) == record.size
        except SqshpipeError as error:
            self.leave_out(error)
            return False

    def _with_attached(self, record: Record) -> Layout | None:
        """A folder with the layers and the signatures beside a release; None when they cannot be read."""
        prefix = attachment_prefix(record)
        try:
            with self._lock:
                if self.bucket is None:
                    return None
                if self._layout is None:
                    self._layout = Layout(self._opened.enter_context(scratch_folder(self._scratch)))
                if prefix not in self._brought:
                    self._bring_attached(self.bucket, self._layout, record, prefix)
                    self._brought.add(prefix)
                return self._layout
        except (PublishError, OSError) as error:  # of this release
            log.info("a release cannot be a source of layers", release=prefix, why=str(error))
        except SqshpipeError as error:
            self.leave_out(error)
        return None

    def _bring_attached(self, bucket: Bucket, layout: Layout, record: Record, prefix: str) -> None:
        from pipeline.store.signatures import ENVELOPE_SUFFIX, SUFFIX

        for key, size in bucket.keys(prefix):
            name = key.removeprefix(prefix)
            wanted = name == LAYERS or name.endswith((SUFFIX, ENVELOPE_SUFFIX))
            if wanted and "/" not in name and size <= attachments.LIMIT:
                attachments.add(layout, record, name, bucket.get(key, limit=attachments.LIMIT) or b"")


class _Download:
    """One .sqsh in a bucket, in a nameless file that has those parts of it that were asked for.

    The file is closed with the last reference: after a signal, threads may still write to it for a moment.
    """

    def __init__(self, releases: BucketReleases, record: Record, folder: Path) -> None:
        self._releases = releases
        self._record = record
        self._folder = folder
        self._lock = threading.Lock()
        self._there = bytearray(-(-record.size // _CHUNK))
        with tempfile.TemporaryFile(dir=folder) as file:
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)

    def bring(self, held: Held, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch these (position, length), several requests at once. Raises SourceFailed."""
        with self._lock:
            requests = self._requests(ranges)
            if not requests:
                return
            size = sum(length for _, length in requests)
            need = SpaceRequirement(folder=self._folder, size=size, purpose="ranges of releases")
            log.info("downloading parts of a release", release=held.name, requests=len(requests), bytes=size)
            try:
                require_space([need])
                with Crew(_AT_ONCE, name="ranges") as crew:
                    for future in [crew.submit(self._get, *request) for request in requests]:
                        future.result()
            except OSError as error:
                raise SourceFailed(held, error.strerror or str(error)) from error
            except VerificationError as error:
                raise SourceFailed(held, error.headline) from error
            except SqshpipeError as error:  # not of this object
                self._releases.leave_out(error)
                raise SourceFailed(held, error.headline) from error

    def _requests(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The (position, length) to ask for: what is not there of `ranges`, what is near as one."""
        wanted: set[int] = set()
        for position, length in ranges:
            first, last = position // _CHUNK, -(-(position + length) // _CHUNK)
            if self._there.find(0, first, last) >= 0:
                wanted.update(chunk for chunk in range(first, last) if not self._there[chunk])
        runs: list[list[int]] = []  # first chunk, and the one after the last
        for chunk in sorted(wanted):
            begin, end = runs[-1] if runs else (0, -_REQUEST)
            near = chunk <= end + _GAP and self._there.find(1, end, chunk) < 0
            if near and chunk < begin + _REQUEST:
                runs[-1][1] = chunk + 1
            else:
                runs.append([chunk, chunk + 1])
        size = self._record.size
        return [(begin * _CHUNK, min(end * _CHUNK, size) - begin * _CHUNK) for begin, end in runs]

    def _get(self, position: int, length: int) -> None:
        bucket = self._releases.bucket
        if bucket is None:
            raise OSError("its bucket is left out")
        data = bucket.read(self._record.file, position, length)
        if len(data) != length:
            raise OSError(f"it has {len(data)} of the {length} bytes at {position}")
        write_at(self.descriptor, [data], position)
        self._there[position // _CHUNK : -(-(position + length) // _CHUNK)] = b"\1" * -(-length // _CHUNK)
