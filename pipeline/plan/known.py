"""The releases that a plan compares with: the store's, or those of its copy in S3 where it is not mounted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pipeline.attest.required import required_of, store_of
from pipeline.config.types import Config
from pipeline.convert.from_bucket import BucketReleases
from pipeline.errors import PublishError
from pipeline.store.layout import Layout
from pipeline.store.record import Release, release_of
from pipeline.store.store import Store
from pipeline.system.log import log

_LIVE = ("published", "hidden", "yanked")
_HOW = "store: {s3: s3://BUCKET/PREFIX, trust_synced: true} in images.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownReleases:
    """`store` is None where it is not mounted; then `copy` is asked, in which all releases are published.

    `layout` is that of the store, mounted or not; `synced` says whether layers are taken from `copy`.
    """

    layout: Layout
    store: Store | None
    copy: BucketReleases | None
    synced: bool

    def newest(self, image: str, platform: str) -> Release | None:
        """The last release that can still be used."""
        if self.store is None:
            return next(self._copied(image, platform), None)
        for line in self.store.listed(image):
            if line.platform == platform and line.state in _LIVE:
                return self.store.release(image, line.version, platform)
        return None

    def release(self, image: str, version: str, platform: str) -> Release | None:
        """The release of that name, whatever its state."""
        if self.store is not None:
            return self.store.release(image, version, platform)
        return next((one for one in self._copied(image, platform) if one.version == version), None)

    def published(self, image: str) -> list[Release]:
        """The releases that resolve, newest first."""
        if self.store is None:
            return list(self._copied(image))
        return [one for one in self.store.releases(image) if one.state == "published"]

    def _copied(self, image: str, platform: str | None = None) -> Iterator[Release]:
        for record in self.copy.every_record() if self.copy else ():
            if record.image == image and platform in (None, record.platform):
                link = self.layout.link(image, record.version, record.platform)
                yield release_of(record, path=self.layout.root / record.file, link=link, state="published")


@contextlib.contextmanager
def known_releases(config: Config) -> Iterator[KnownReleases]:
    """The releases of the configured store, or of its copy in S3 where the store is not mounted.

    Raises PublishError when there is neither, and what `store_of` raises. What the copy raises comes when it
    is asked.
    """
    settings = config.store
    with copy_in_s3(config, None) as copy:
        configured = store_of(settings, config.path)
        store: Store | None = configured
        try:
            configured.require()
        except PublishError as error:
            if copy is None:
                raise PublishError(
                    error.message,
                    hint=f"{error.hint}; a machine that does not mount it plans with its copy in S3: {_HOW}",
                ) from error
            log.warning("the store is not mounted here: its copy in S3 is used", copy=copy.url)
            store = None
        yield KnownReleases(layout=configured.layout, store=store, copy=copy, synced=settings.trust_synced)


def copy_in_s3(config: Config, store: Store | None) -> AbstractContextManager[BucketReleases | None]:
    """The releases in the copy of the store that images.yaml names; None where it names none.

    Raises as `required_of` does, where `store` is not given.
    """
    settings = config.store
    if settings.s3 is None:
        return contextlib.nullcontext()
    required = required_of(settings, config.path) if store is None else store.required
    return BucketReleases(settings.s3, scratch=config.scratch, required=required)
