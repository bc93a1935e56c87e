"""The store that images.yaml describes, with the signatures that it requires."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.types import StoreSettings
from pipeline.store import trust
from pipeline.store.store import Store


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
