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
    required = None
    if settings.require_signature is not None:
        from pipeline.attest.signing import open_keys  # loads boto3

        required = trust.Required(keys=open_keys(settings.require_signature), source=source)
    return Store(settings.root, group=settings.group, stripe=settings.stripe, required=required)
