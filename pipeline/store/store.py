"""The store: a shared folder of releases that never change.

`Store` is what the rest of the program holds. Looking things up needs nothing but read access and the
standard library; what changes the store is imported when it is asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from pipeline.config.names import (
    CHANNELS,
    DEFAULT_CHANNEL,
    DEFAULT_PLATFORM,
    check_image,
    check_platform,
    check_version,
    split_name,
    stem,
    suggest,
)
from pipeline.errors import ConfigError, PublishError, VerificationError
from pipeline.progress import NO_TASK, Task
from pipeline.store import creation, trust
from pipeline.store.index import Head
from pipeline.store.layout import SIGNATURE, Layout
from pipeline.store.reading import current_head, exists, load, read_data, read_record
from pipeline.store.record import Record, Release, release_of
from pipeline.store.sealed import UnreadableError
from pipeline.store.state import ImageState
from pipeline.system import atomic


class ReleaseRow(NamedTuple):
    """One line of `list`: a release as the index has it. `size` in bytes."""

    image: str
    version: str
    platform: str
    state: str
    sha256: str
    size: int
    created: str
    channels: tuple[str, ...]
    kept: bool


class Store:
    """The releases under `root`. Creating the value touches nothing."""

    def __init__(
        self,
        root: Path,
        *,
        group: str | None = None,
        stripe: tuple[int, int] | None = None,
        required: trust.Required | None = None,
    ) -> None:
        """`group` may publish too; `stripe` is (targets, bytes of a piece) for Lustre."""
        self.required = required
        self._group = group
        self._stripe = stripe
        self.layout = Layout(Path(os.path.abspath(root)))  # noqa: PTH100 - symlinks in the path stay as they are

    @property
    def root(self) -> Path:
        return self.layout.root

    def images(self) -> list[str]:
        """Names of the images that were ever published here, sorted."""
        with self._read():
            return [image for image in self.layout.images() if self._has_releases(image)]

    def _has_releases(self, image: str) -> bool:
        try:
            return exists(self.layout.index(image)) or bool(load(self.layout, image).state.releases)
        except UnreadableError:
            return True  # which file cannot be read is said by whatever reads that image

    def state(self, image: str) -> ImageState:
        """All that is true of one image now; an unknown one is empty."""
        with self._read():
            return load(self.layout, check_image(image)).state

    def listed(self, image: str) -> list[ReleaseRow]:
        """The releases of one image, newest first, without reading their records."""
        state = self.state(image)
        named: dict[str, list[str]] = {}
        for channel in state.channels:
            named.setdefault(state.current(channel) or "", []).append(channel)
        lines = []
        for version, one in state.newest_first():
            channels = tuple(named.get(version, ()))
            for platform, held in sorted(one.platforms.items()):
                facts = (one.state(platform), held.sha256, held.size, one.created, channels, one.kept)
                lines.append(ReleaseRow(image, version, platform, *facts))
        return lines

    def releases(self, image: str) -> list[Release]:
        """Every release of one image with its record, newest first."""
        found = (self.release(image, line.version, line.platform) for line in self.listed(image))
        return [release for release in found if release is not None]

    def release(self, image: str, version: str, platform: str = DEFAULT_PLATFORM) -> Release | None:
        """One release, whatever its state; None when that version was never published for that platform."""
        with self._read():
            record = self._record(check_image(image), version, check_platform(platform))
            return None if record is None else self._release(record, self._head(image))

    def resolve(self, name: str, platform: str = DEFAULT_PLATFORM) -> Release:
        """What "image[:version|:channel]" means now, its file looked at.

        Raises ConfigError when there is no such release, PublishError when it is yanked, hidden or pruned,
        and VerificationError when its bytes are damaged or missing or a required signature is.
        """
        release = self.find(name, platform)
        trust.demand(self.layout, release, self.required)
        return release

    def find(self, name: str, platform: str = DEFAULT_PLATFORM) -> Release:
        """As `resolve`, whoever signed it: for those who sign."""
        image, wanted = split_name(name)
        check_platform(platform)
        with self._read():
            return self._resolve(image, wanted, platform)

    def _resolve(self, image: str, wanted: str, platform: str) -> Release:
        head = self._head(image)
        version = head.channels.get(wanted, wanted)
        record = self._record(image, version, platform) or read_data(self.layout, image, version)
        if record is None:
            raise self._unknown(image, wanted, platform)
        release = self._release(record, head)
        if release.state == "damaged":
            raise VerificationError(
                f"{release.name} is damaged: a scrub found other bytes than were published, or wrong content",
                hint="sqshpipe store scrub says which; publish the same content again, or another version",
            )
        if release.state != "published":
            standing = self.state(image).releases.get(version)
            reason = standing.reason if standing else ""
            raise PublishError(
                f"{release.name} is {release.state}" + (f": {reason}" if reason else ""),
                hint=self._others(image),
            )
        self._look_at_bytes(release)
        return release

    def require(self) -> None:
        """Raise PublishError when there is no store at `root`; nothing but `create` makes one."""
        creation.require(self.layout)

    def _read(self) -> AbstractContextManager[None]:
        self.require()
        return atomic.translate_errors(
            f"reading {self.root}", refused="ask the store's owner for the right to read it"
        )

    def _look_at_bytes(self, release: Release) -> None:
        try:
            size = atomic.patiently(lambda: release.path.stat().st_size)
        except FileNotFoundError:
            raise VerificationError(
                f"the file of {release.name} is missing: {release.path}",
                hint="publish the same content again, or restore the file from a backup",
            ) from None
        if size != release.size:
            raise VerificationError(
                f"{release.path} has {size} bytes instead of {release.size}",
                hint="sqshpipe store scrub marks what is damaged; publish the same content again",
            )

    def _head(self, image: str) -> Head:
        return current_head(self.layout, image)

    def _record(self, image: str, version: str, platform: str) -> Record | None:
        from_channel = version in CHANNELS
        return None if from_channel else read_record(self.layout, image, version, platform)

    def _release(self, record: Record, head: Head) -> Release:
        state = head.states.get(record.version, "published")
        if (
            state in ("published", "yanked", "hidden")
            and stem(record.version, record.platform) in head.damaged
        ):
            state = "damaged"
        return release_of(
            record,
            path=self.root / record.file,
            link=self.layout.link(record.image, record.version, record.platform),
            state=state,
        )

    def _unknown(self, image: str, wanted: str, platform: str) -> ConfigError:
        state = load(self.layout, image).state
        if not state.releases:
            return ConfigError(f"no release of {image!r} in {self.root}", hint=suggest(image, self.images()))
        standing = state.releases.get(state.current(wanted) or wanted)
        if standing is not None and standing.platforms:
            return ConfigError(
                f"{image}:{wanted} is not published for {platform}",
                hint="there is: " + ", ".join(sorted(standing.platforms)),
            )
        if wanted in (DEFAULT_CHANNEL, *state.channels, *CHANNELS):
            return ConfigError(f"the channel {image}:{wanted} names no release", hint=self._others(image))
        names = [name for name, one in state.newest_first()[::-1] if one.resolvable()]
        return ConfigError(
            f"there is no release {image}:{wanted} in {self.root}",
            hint=suggest(wanted, [*names, *state.channels]),
        )

    def _others(self, image: str) -> str:
        state = load(self.layout, image).state
        names = [name for name, one in state.newest_first() if one.resolvable()]
        return suggest("", names) if names else "nothing of this image resolves at present"

    def made_from(
        self, source: str, convert_keys: Iterable[str], platform: str, *, synced: bool = False
    ) -> Release | None:
        """A release whose file was converted from the image with that digest under one of those keys: its
        bytes are what converting again would give. It may be another image's. None when none resolves.

        `synced`: also one that `sync` brought, of which another store's writers say so.
        """
        keys = frozenset(convert_keys)
        with self._read():
            found = (self._made_from(image, source, keys, platform, synced) for image in self.images())
            return next(filter(None, found), None)

    def _made_from(
        self, image: str, source: str, keys: frozenset[str], platform: str, synced: bool
    ) -> Release | None:
        from pipeline.store.sharing import is_own

        try:
            for version in load(self.layout, image).state.published_from(source, platform):
                release = self.release(image, version, platform)
                if release is None or release.keys.get("convert") not in keys or not exists(release.path):
                    continue
                own = is_own(self.layout, release, synced=synced)
                if own and trust.is_signed(self.layout, release, self.required):
                    return release
        except UnreadableError:
            return None  # it costs a conversion at most; who reads that image sees the reason
        return None

    def is_attested(self, release: Release) -> bool:
        """Whether attesting `release` came to its end, whatever could be made: the signature's status is
        written last.
        """
        folder = self.layout.attachments(release.image, release.version, release.platform)
        return (folder / SIGNATURE).is_file()

    def staging(self) -> AbstractContextManager[Path]:
        """A name inside blobs/sha256/ to write a .sqsh to, so that publishing it costs no copy."""
        from pipeline.store.publish_steps import staging

        self.prepare()
        return staging(self.layout)

    def make_room(self, size: int) -> None:
        """Raise ToolError when `size` more bytes do not fit, by free space or by quota."""
        from pipeline.store import space

        self.prepare()
        with atomic.translate_errors(f"looking for room in {self.root}"):
            space.make_room(self.layout, size)

    def create(self) -> bool:
        """Make the store, once in its life; False when it is one already, which then stays as it is.

        A folder that is there becomes a store, whatever it holds. Raises PublishError when its file system is
        named in /etc/fstab and is not mounted, ConfigError when `group` is not on this host.
        """
        return creation.create(self.layout, group=self._group, stripe=self._stripe)

    def prepare(self) -> None:
        """Get ready to write: make folders of the store that are missing, check its group.

        Raises PublishError when there is no store.
        """
        from pipeline.store import folders, leases, space

        self.require()
        with atomic.translate_errors(f"preparing {self.root}"):
            space.check_group(self.layout, self._group)
            folders.make(self.layout.blobs)
            with contextlib.suppress(PermissionError):  # doctor reports it; a release does not need it
                leases.prepare(self.layout)

    def publish(
        self,
        record: Record,
        file: Path,
        *,
        channels: Iterable[str] = (DEFAULT_CHANNEL,),
        allow_external: bool = False,
        sha256: str | None = None,
        task: Task = NO_TASK,
    ) -> Release:
        """Make `file` the release that `record` describes, and let `channels` name it when they may.

        `sha256` is what was hashed while `file` was written, if it was; else it is read for that.
        A `file` under `staging`, or another release's, is taken as it lies; any other is copied. The same
        content under the same version is done already. Raises PublishError when the version has other
        content, also after it was pruned.
        """
        from pipeline.store.publish import publish

        check_image(record.image)
        check_version(record.version)
        check_platform(record.platform)
        self.prepare()
        publish(
            self.layout,
            record,
            file,
            moves=tuple(channels) if trust.may_be_named(self.layout, record, self.required) else (),
            allow_external=allow_external,
            sha256=sha256,
            task=task,
        )
        release = self.release(record.image, record.version, record.platform)
        if release is None:
            raise PublishError(
                f"{record.image}:{record.version} was published and cannot be read back", hint="run it again"
            )
        return release

    def attach(self, release: Record, name: str, content: bytes) -> bool:
        """Put a file beside a release whose record names its sha256; False when the record names another.

        What is there already stays. Raises PublishError when the store cannot be written.
        """
        from hashlib import sha256

        from pipeline.store import attachments

        if release.attachments.get(name) != sha256(content).hexdigest():
            return False
        with atomic.translate_errors(f"writing {name} beside {release.image}:{release.version}"):
            attachments.add(self.layout, release, name, content)
        return True

    def promote(self, name: str, channel: str, *, allow_external: bool = False, reason: str = "") -> bool:
        """Let `channel` name "image:version", or what another channel names. False: it does already."""
        from pipeline.store import channels

        self.require()
        image, wanted = split_name(name)
        wanted = trust.signed_version(self.layout, image, wanted, self.required)
        event = channels.promote(
            self.layout, image, wanted, channel, allow_external=allow_external, reason=reason
        )
        return self._changed(image, event)

    def rollback(self, image: str, channel: str, *, reason: str = "") -> str:
        """Move `channel` back to what it named before and still resolves. Returns that version."""
        from pipeline.store import channels

        self.require()
        check_image(image)
        event = channels.rollback(self.layout, image, channel, required=self.required, reason=reason)
        self._changed(image, event)
        return event.change.version

    def mark(self, name: str, kind: str, *, reason: str = "") -> bool:
        """yank, unyank, keep or unkeep "image:version". False: it stands so already."""
        from pipeline.store import channels

        self.require()
        image, version = split_name(name)
        event = channels.mark(self.layout, image, version, kind, required=self.required, reason=reason)
        return self._changed(image, event)

    def _changed(self, image: str, event: object | None) -> bool:
        self.refresh(image)
        return event is not None

    def refresh(self, image: str) -> None:
        """Bring the caches of one image, and manifest.json, up to date."""
        from pipeline.store.caches import refresh, refresh_manifest

        with atomic.translate_errors(f"writing the index of {image}"):
            refresh(self.layout, image)
            refresh_manifest(self.layout)

    def rebuild(self) -> list[str]:
        """Write every cache anew from records and events; gives what could not be read, one sentence each."""
        from pipeline.store.caches import rebuild

        self.require()
        with atomic.translate_errors("rebuilding the caches"):
            return rebuild(self.layout)
