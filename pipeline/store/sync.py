"""Copy releases to where they are missing: another mounted store, or an object store and back.

Bytes go first, then what is attached to a release, its record last; so a copy that was cut short has no
release that lacks something, and the next run resumes there: inside a file, too. Bytes that releases at the
target have are taken from them. Everything that arrives is hashed and compared with its record.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.names import DEFAULT_CHANNEL, split_name, stem
from pipeline.errors import ConfigError, SqshpipeError, VerificationError
from pipeline.progress import NO_TASK, Task
from pipeline.squashfs.ranges import Piece, pieces
from pipeline.store import attachments, caches, channels, publish, publish_steps, space, trust
from pipeline.store.events import wrong_content
from pipeline.store.fetching import fetch
from pipeline.store.layout import BROUGHT, RANGES, RECORD_SUFFIX, Layout
from pipeline.store.reading import fold_events, kind_of, read_record, read_truth
from pipeline.store.record import Record, parse_record
from pipeline.store.sealed import UnreadableError
from pipeline.store.sharing import Holder, Holders, ranges_of, with_attached
from pipeline.store.state import ImageState, VersionState
from pipeline.store.store import Store
from pipeline.store.sync_source import (
    Bucket,
    BucketSource,
    MountedSource,
    SyncReport,
    SyncSource,
    attachment_prefix,
    published,
    recorded,
)
from pipeline.system import atomic, untrusted
from pipeline.system.log import log
from pipeline.system.temporary import is_orphan, temporary_name

_SHORTEST = 1 << 20  # bytes that are worth a copy inside a bucket


def sync(
    source: Store | Bucket,
    target: Store | Bucket,
    *,
    names: Iterable[str] = (),
    mirror_channels: Iterable[str] = (),
    task: Task = NO_TASK,
) -> SyncReport:
    """Copy what is published at `source` and missing at `target`: all, or those that `names` says.

    `names` are images or image:version. What was pruned at a mounted target is not missing there: it comes
    back only when `names` says that version. `latest` moves at a mounted target as if its releases were
    published there; each of `mirror_channels` will name there what it names at `source`. Raises PublishError
    when there is no store at one of the two, or a version has other content at `target`, VerificationError
    when bytes do not arrive as recorded: both after the others were copied.
    """
    for place in (source, target):
        if isinstance(place, Store):
            place.require()
    report = SyncReport()
    wanted = [_wanted(name) for name in names]
    failed: list[SqshpipeError] = []
    if isinstance(source, Store):
        records = published(source, wanted, report)
        if isinstance(target, Store):
            _to_store(records, MountedSource(source.layout), target, wanted, report, failed, task)
        else:
            _to_bucket(source.layout, records, target, report, failed, task)
    elif isinstance(target, Store):
        found = recorded(source, wanted, report)
        _to_store(found, BucketSource(source), target, wanted, report, failed, task)
    else:
        raise ConfigError(
            "one side of a sync must be a mounted store", hint="copy buckets with the provider's own tool"
        )
    for channel in mirror_channels:
        _mirror(source, target, channel, report)
    for error in failed[1:]:
        log.error(error.headline, hint=error.hint)
    if failed:
        raise failed[0]
    return report


def compare(source: Store | Bucket, target: Store | Bucket, *, names: Iterable[str] = ()) -> SyncReport:
    """What `sync` would copy, in `copied` of the report; nothing is written.

    Raises PublishError when a version has other content at `target`.
    """
    report = SyncReport()
    wanted = [_wanted(name) for name in names]
    if isinstance(source, Store):
        records = published(source, wanted, report)
    else:
        records = recorded(source, wanted, report)
    failed: list[SqshpipeError] = []
    before = _Before(target.layout) if isinstance(target, Store) else None
    for record in records:
        with report.each(failed):
            _compare(record, target, before, wanted, report)
    if failed:
        raise failed[0]
    return report


def _compare(
    record: Record,
    target: Store | Bucket,
    before: _Before | None,
    wanted: list[tuple[str, str | None]],
    report: SyncReport,
) -> None:
    name = f"{record.image}:{record.version}"
    there = _recorded_at(target, record)
    if there is not None:
        publish_steps.refuse_other_content(record, there)
    standing = VersionState()
    if before is not None:
        standing = before.of(record).releases.get(record.version) or standing
    if standing.pruned and (record.image, record.version) not in wanted:
        report.pruned.append(name)
    elif there is None or standing.pruned or record.platform in standing.damaged:
        report.copied.append(name)
    else:
        report.present += 1


def _recorded_at(target: Store | Bucket, record: Record) -> Record | None:
    if isinstance(target, Store):
        return read_record(target.layout, record.image, record.version, record.platform)
    key = _key(record)
    raw = target.get(key)
    return None if raw is None else parse_record(raw, f"{target.name}/{key}")


def _key(record: Record) -> str:
    return f"{record.image}/{stem(record.version, record.platform)}{RECORD_SUFFIX}"


def _wanted(name: str) -> tuple[str, str | None]:
    return split_name(name) if ":" in name else (split_name(name)[0], None)


def _to_store(
    records: Iterable[Record],
    source: SyncSource,
    target: Store,
    wanted: list[tuple[str, str | None]],
    report: SyncReport,
    failed: list[SqshpipeError],
    task: Task,
) -> None:
    before = _Before(target.layout)
    touched: dict[str, None] = {}
    holders = Holders(target.layout)
    target.prepare()
    try:
        for record in records:
            with (
                report.each(failed),
                atomic.translate_errors(f"copying {record.image}:{record.version} to {target.root}"),
            ):
                if _bring(record, source, target.layout, before, wanted, holders, report, task):
                    touched[record.image] = None
                    if trust.may_be_named(target.layout, record, target.required):
                        _advance(target.layout, record)
    finally:
        with atomic.translate_errors(f"writing the caches of {target.root}"):
            for image in touched:
                caches.refresh(target.layout, image)
            if touched:
                caches.refresh_manifest(target.layout)


class _Before:
    """What a mounted target had before, read once an image, and the kind that its name has from then on."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._images: dict[str, tuple[ImageState, str]] = {}

    def of(self, record: Record) -> ImageState:
        """Raises OtherContentError for data under the name of an image, and the other way round."""
        if record.image not in self._images:
            state = read_truth(self._layout, record.image).state
            kind = kind_of(self._layout, state, (stem for stem, *_ in state.stems()))
            self._images[record.image] = state, kind or record.kind
        state, kind = self._images[record.image]
        publish.refuse_other_kind(record, kind)
        return state


def _bring(
    record: Record,
    source: SyncSource,
    layout: Layout,
    before: _Before,
    wanted: list[tuple[str, str | None]],
    holders: Holders,
    report: SyncReport,
    task: Task,
) -> bool:
    """Copy one release; False when it was pruned at the target and stays so."""
    source.check(record)
    state = before.of(record)
    standing = state.releases.get(record.version) or VersionState()
    there = read_record(layout, record.image, record.version, record.platform)
    if there is not None:
        publish_steps.refuse_other_content(record, there)
    else:
        publish.refuse_lost_record(layout, record, state, named=record.version in state.releases)
    if standing.pruned and (record.image, record.version) not in wanted:
        report.pruned.append(f"{record.image}:{record.version}")
        return False
    beside = list(source.attached(record))  # all of them can be read, or nothing is brought
    for name, _ in beside:
        attachments.check_name(record, name)
    if there is None:  # before its record: what is published here has none
        attachments.add(layout, record, BROUGHT, b"{}\n")
        _attach(layout, record, [one for one in beside if one[0] == RANGES])  # the record names its sha256
    else:
        _attach(layout, record, beside)
    damaged = record.platform in standing.damaged
    if damaged:
        if wrong := wrong_content(layout, record.image, record.version, record.platform):
            report.refused.append(f"{record.image}:{record.version} stays damaged at the target: {wrong}")
            return False
        publish.set_aside(layout, record)
    if there is None or damaged or standing.pruned or not publish_steps.bytes_are_there(layout, record):
        _bring_release(layout, record, source, beside, holders, report, task)
    else:
        report.present += 1
    return True


def _advance(layout: Layout, record: Record) -> None:
    channels.advance(layout, record.image, record.version, DEFAULT_CHANNEL)


def _attach(layout: Layout, record: Record, beside: Iterable[tuple[str, bytes]]) -> None:
    for name, content in beside:
        if name != BROUGHT:  # it says what the other store brought
            attachments.add(layout, record, name, content)


def _bring_release(
    layout: Layout,
    record: Record,
    source: SyncSource,
    beside: Sequence[tuple[str, bytes]],
    holders: Holders,
    report: SyncReport,
    task: Task,
) -> None:
    """The bytes, then what lies beside them: where bytes do not arrive, no SBOM of a stranger stays here."""
    if publish_steps.bytes_are_there(layout, record):
        _attach(layout, record, beside)
        publish.commit_present(layout, record)
    else:
        source.check_size(record)
        space.make_room(layout, record.size)
        with _partial(layout, record) as staged:
            digest, reused = _fetch(staged, record, source, layout, holders.of(record), report, task)
            if reused and digest != record.sha256:
                log.warning("bytes of other releases are not right, all is read", release=record.version)
                staged.unlink()
                digest, _ = _fetch(staged, record, source, layout, (), report, task)
            if digest != record.sha256:
                staged.unlink()  # the next run must not resume with what is wrong
                raise VerificationError(
                    f"{record.image}:{record.version} arrived with sha256 {digest}, not {record.sha256}",
                    hint="run sqshpipe store scrub at the source, then sync again",
                )
            _attach(layout, record, beside)
            publish.commit_staged(layout, record, staged)
    holders.add(record)
    report.copied.append(f"{record.image}:{record.version}")


def _fetch(
    staged: Path,
    record: Record,
    source: SyncSource,
    layout: Layout,
    holders: Sequence[Holder],
    report: SyncReport,
    task: Task,
) -> tuple[str, int]:
    file = untrusted.open_regular(staged, flags=os.O_RDWR | os.O_CREAT)
    try:
        return fetch(file, record, source, layout, holders, report, task)
    finally:
        os.close(file)


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


def _to_bucket(
    layout: Layout,
    records: Iterable[Record],
    bucket: Bucket,
    report: SyncReport,
    failed: list[SqshpipeError],
    task: Task,
) -> None:
    holders = Holders(layout)
    for record in records:
        with report.each(failed):
            _upload(layout, record, bucket, holders, report, task)


def _upload(
    layout: Layout, record: Record, bucket: Bucket, holders: Holders, report: SyncReport, task: Task
) -> None:
    source = MountedSource(layout)
    source.check(record)
    there = _recorded_at(bucket, record)
    if there is not None:
        publish_steps.refuse_other_content(record, there)
    present = set(dict(bucket.keys(attachment_prefix(record))))
    for name, content in list(source.attached(record)):  # all of them can be read, or nothing is brought
        if attachment_prefix(record) + name not in present:
            bucket.put_new(attachment_prefix(record) + name, content)
    if there is not None and bucket.size(record.file) == record.size:
        report.present += 1
        return
    if bucket.size(record.file) != record.size:
        shared, keys = _in_bucket(layout, record, bucket, holders)
        file = layout.blob(record.sha256)
        done = bucket.upload(record.file, file, sha256=record.sha256, task=task, pieces=shared, keys=keys)
        report.bytes_copied += done.sent
        report.bytes_reused += done.reused
    if there is None and not bucket.put_new(_key(record), record.as_bytes()):
        publish_steps.refuse_other_content(record, _recorded_at(bucket, record) or record)
    report.copied.append(f"{record.image}:{record.version}")


def _in_bucket(
    layout: Layout, record: Record, bucket: Bucket, holders: Holders
) -> tuple[Sequence[Piece], Sequence[str]]:
    """What objects of the bucket have of a release: those that are releases here too, by the ranges here."""
    wanted = ranges_of(layout, with_attached(layout, record))
    if wanted is None:
        return (), ()
    there = [one for one in holders.of(record) if bucket.size(one.record.file) == one.record.size]
    found = pieces(wanted, [one.ranges for one in there], shortest=_SHORTEST)
    return found, [one.record.file for one in there]


def _mirror(source: Store | Bucket, target: Store | Bucket, channel: str, report: SyncReport) -> None:
    if not isinstance(source, Store) or not isinstance(target, Store):
        raise ConfigError("channels travel between mounted stores only", hint="promote at the target")
    for image in source.images():
        try:
            version = fold_events(source.layout, ImageState(image=image)).current(channel)
            if version is not None and target.release(image, version) is not None:
                name = f"{image}:{version}"
                target.promote(name, channel, allow_external=True, reason=f"as at {source.root}")
        except UnreadableError as error:  # noqa: PERF203 - the channels of other images are set
            report.broken += [error.message] if error.message not in report.broken else []
        except SqshpipeError as error:
            report.refused.append(f"{channel} of {image} stays as it is: {error.message}")
