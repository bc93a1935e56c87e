"""The store that images.yaml describes and its copy in S3, with the signatures that it requires."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.types import StoreSettings
from pipeline.store import trust
from pipeline.store.store import Store

if TYPE_CHECKING:
    from pipeline.convert.from_store import StoredLayers


def store_of(settings: StoreSettings, source: Path) -> Store:
    """The store with the group, striping and required signatures that images.yaml, `source`, gives it.

    Raises ConfigError for a key that cannot be read, ToolError when AWS KMS does not give it.
    """
    required = required_of(settings, source)
    return Store(settings.root, group=settings.group, stripe=settings.stripe, required=required)


def required_of(settings: StoreSettings, source: Path) -> trust.Required | None:
    """The signatures that images.yaml, `source`, requires; raises as `store_of` does."""
    if settings.require_signature is None:
        return None
    from pipeline.attest.signing import open_keys  # loads boto3

    return trust.Required(keys=open_keys(settings.require_signature), source=source)


def stored_layers(
    store: Store | None, settings: StoreSettings, *, source: Path, scratch: Path
) -> StoredLayers:
    """The layers that releases of `store` have, and those of its copy in S3 where images.yaml names one.

    Downloads go to a folder in `scratch`. Raises as `store_of` does.
    """
    from pipeline.convert.from_store import StoredLayers

    copy = None
    if settings.s3 is not None:
        from pipeline.convert.from_bucket import BucketReleases

        required = required_of(settings, source) if store is None else store.required
        copy = BucketReleases(settings.s3, scratch=scratch, required=required)
    return StoredLayers(store, synced=settings.trust_synced, copy=copy)
