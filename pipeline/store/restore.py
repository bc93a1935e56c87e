"""Repairs for a record or an event that cannot be read. Each is done only when a person asks for it.

The damaged file is never deleted: it is moved to a name that begins with ".damaged." beside its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.names import check_platform, check_version, split_name, stem
from pipeline.errors import ConfigError, PublishError, VerificationError
from pipeline.progress import NO_TASK, Task
from pipeline.store import attachments, channels, events, folders, index, publish_steps, sealed
from pipeline.store.events import Change, Event, now, read_event, whoami
from pipeline.store.layout import LINK_SUFFIX, RECORD_SUFFIX, Layout
from pipeline.store.reading import cache_bytes, exists, fold_events, read_record, read_truth, records_in
from pipeline.store.record import Record, is_sha256, parse_own
from pipeline.store.state import ImageState, StoredFile, VersionState
from pipeline.system import atomic, untrusted
from pipeline.text import utc

_SEE = "sqshpipe store rebuild says which files cannot be read"
UNKNOWN = "0" * 64
"""The sha256 of a tombstone whose bytes nobody can name any more."""


def restore(layout: Layout, name: str, platform: str, *, task: Task = NO_TASK) -> Path:
    """Write the record of "image:version" again from its symlink (or SHA256SUMS, or index) and its bytes.

    The bytes are hashed. What the record said beyond name, platform, sha256 and size is lost; the new one
    says external, never scanned. Raises ConfigError when the record is sound, PublishError when nothing
    names the bytes or they are gone, VerificationError when they are damaged.
    """
    image, version = _named(name, platform)
    path = _unreadable(layout, image, version, platform)
    digest = _digest(layout, image, stem(version, platform))
    if not digest or not exists(layout.blob(digest)):
        what = f"its bytes are gone ({digest})" if digest else "no symlink or cache says which bytes it had"
        raise PublishError(
            f"{name} cannot be restored: {what}",
            hint=f"restore {path} from a backup, or: sqshpipe store rebuild --tombstone {name}",
        )
    if (found := _sha256(layout, digest, task)) != digest:
        raise VerificationError(
            f"{name} cannot be restored: the sha256 of {layout.blob(digest)} is {found}",
            hint=f"restore the file from a backup, or: sqshpipe store rebuild --tombstone {name}",
        )
    status = layout.blob(digest).stat()
    listed = _listed(layout, image).get(version, VersionState()).created
    created = utc(status.st_mtime)
    _replace(path, _record(image, version, platform, digest, status.st_size, listed or created, "restored"))
    return path


def bury(layout: Layout, name: str, platform: str) -> Path:
    """Write a record that only keeps the version of "image:version" taken: a tombstone. It does not resolve.

    Raises ConfigError when the record is sound, PublishError when its bytes are there: it can be restored.
    """
    image, version = _named(name, platform)
    path = _unreadable(layout, image, version, platform)
    digest = _digest(layout, image, stem(version, platform))
    if digest and exists(layout.blob(digest)) and _sha256(layout, digest) == digest:
        raise PublishError(
            f"the bytes of {name} are there", hint=f"use sqshpipe store rebuild --restore {name}"
        )

    def decision(state: ImageState) -> Change | None:
        standing = state.releases.get(version, VersionState())
        if standing.pruned or platform in standing.damaged:
            return None
        kind = "damaged" if standing.platforms.keys() - {platform} else "delete"
        return Change(kind=kind, version=version, platform=platform, reason="its record was lost")

    known = read_truth(layout, image).state
    channels.decide(layout, image, decision, wanted=lambda _: (), state=known)
    created = _listed(layout, image).get(version, VersionState()).created or now()
    _replace(path, _record(image, version, platform, digest or UNKNOWN, 0, created, "tombstone"))
    return path


def replace_event(layout: Layout, name: str) -> Path:
    """Put an event without effect in the place of "image:number", which is damaged, or missing before others.

    What it did is lost: channels and marks may have to be set again. Raises ConfigError when the event is
    sound.
    """
    image, colon, digits = name.partition(":")
    if not colon or not re.fullmatch(r"[1-9][0-9]{0,7}", digits):
        raise ConfigError(f"{name!r} is not IMAGE:NUMBER", hint="write the event's number, such as demo:3")
    number, (image, _) = int(digits), split_name(image)
    path = layout.event(image, number)
    try:
        sound = read_event(layout, image, number) is not None
        later = events.last_listed(layout, image) > number
    except sealed.UnreadableError:
        sound, later = False, True
    if sound or not later:
        what = "is sound" if sound else "is not missing: nothing came after it"
        raise ConfigError(f"{path} {what}", hint=_SEE)
    version = _any_version(layout, image)
    change = Change(kind="repaired", version=version, platform="none", reason="an event was lost here")
    event = Event(number=number, change=change, by=whoami(), at=now())
    _replace(path, events.as_bytes(image, event))
    return path


def attach(layout: Layout, record: Record, made: Mapping[str, bytes]) -> None:
    """Put files beside a release that were made again, and name those by an event that its record does not.

    Raises PublishError when the record names other content, or the release has no sound bytes any more.
    """
    name, named = f"{record.image}:{record.version}", dict[str, str]()
    for file, content in made.items():
        digest = hashlib.sha256(content).hexdigest()
        if record.attachments.get(file, digest) != digest:
            raise PublishError(f"{file} of {name} is not what its record names", hint="leave it as it is")
        if file not in record.attachments:
            named[file] = digest
        there = attachments.read(layout, record, file)
        if there is None:
            attachments.add(layout, record, file, content)
        elif there != content:
            _replace(layout.attachments(record.image, record.version, record.platform) / file, content)

    def decision(state: ImageState) -> Change | None:
        standing = state.releases[record.version]
        if standing.state(record.platform) in ("pruned", "damaged"):
            raise PublishError(f"{name} has no sound bytes any more", hint="publish it again first")
        if named.items() <= standing.attached.get(record.platform, {}).items():
            return None
        return Change(
            kind="repaired",
            version=record.version,
            platform=record.platform,
            sha256=record.sha256,
            reason="made again: " + ", ".join(named),
            attachments=named,
        )

    channels.decide(layout, record.image, decision, wanted=lambda _: [record.version])


def _sha256(layout: Layout, digest: str, task: Task = NO_TASK) -> str:
    """sha256 of the file with the name of those bytes; a sentence when it is not a regular file."""
    with atomic.translate_errors(f"reading {layout.blob(digest)}"):
        try:
            return publish_steps.hash_file(layout.blob(digest), task=task)
        except untrusted.NotRegularError:
            return "unknown, since it is not a regular file"


def _named(name: str, platform: str) -> tuple[str, str]:
    check_platform(platform)
    image, version = split_name(name)
    return image, check_version(version)


def _unreadable(layout: Layout, image: str, version: str, platform: str) -> Path:
    """The path of a record that is damaged, or missing though something names the version."""
    path = layout.record(image, version, platform)
    try:
        if read_record(layout, image, version, platform) is not None:
            raise ConfigError(
                f"{path} is sound", hint="sqshpipe store rebuild says which files cannot be read"
            )
    except sealed.UnreadableError as error:
        if "upgrade" in error.hint:
            raise
    known = (
        exists(path) or _digest(layout, image, stem(version, platform)) or version in _listed(layout, image)
    )
    if not known and version not in fold_events(layout, ImageState(image=image)).releases:
        raise ConfigError(f"nothing in {layout.root} names {image}:{version}", hint="check the name")
    return path


def _digest(layout: Layout, image: str, name: str) -> str:
    """sha256 that symlink, SHA256SUMS or index name for the record of that stem; empty when none does."""
    try:
        target = (layout.image(image) / (name + LINK_SUFFIX)).readlink().name.removesuffix(LINK_SUFFIX)
    except OSError:
        target = ""
    if is_sha256(target):
        return target
    sums = cache_bytes(layout.sums(image)).decode(errors="replace").splitlines()
    for line in sums:
        if line[64:] == f"  {name}{LINK_SUFFIX}" and is_sha256(line[:64]):
            return line[:64]
    named = {
        stem(version, platform): held
        for version, one in _listed(layout, image).items()
        for platform, held in one.platforms.items()
    }
    return named.get(name, StoredFile(sha256="", size=0)).sha256


def _listed(layout: Layout, image: str) -> dict[str, VersionState]:
    """What a sound index says of the versions of `image`, whether or not it is up to date."""
    state = index.read_index(cache_bytes(layout.index(image)), image)
    return state.releases if state is not None else {}


def _any_version(layout: Layout, image: str) -> str:
    """A version that has a record. Raises PublishError when it is missing."""
    for name in sorted(records_in(layout.image(image), set())):
        path = layout.image(image) / (name + RECORD_SUFFIX)
        with contextlib.suppress(sealed.UnreadableError, FileNotFoundError):
            if (record := parse_own(sealed.read_bytes(path), path)) is not None:
                return record.version
    raise PublishError(f"no record of {image} can be read", hint="restore one first")


def _record(image: str, version: str, platform: str, sha256: str, size: int, created: str, how: str) -> bytes:
    provenance = {how: {"by": whoami(), "at": now()}}
    return Record(
        image=image,
        version=version,
        platform=platform,
        sha256=sha256,
        size=size,
        provenance=provenance,
        created=created,
    ).as_bytes()


def _replace(path: Path, content: bytes) -> None:
    """Let `path` hold `content`; what lies there is moved aside."""
    with atomic.translate_errors(f"replacing {path}"):
        folders.make(path.parent)
        if exists(path):
            aside = path.with_name(f".damaged.{path.name}.{secrets.token_hex(4)}")
            path.rename(aside)
        if not atomic.create(path, content):
            raise PublishError(f"another process wrote {path}", hint="look at it, and run this again")
