"""images.yaml as validated values: what to build, from what, into which registry and store.

``load`` is the one way in. Text from outside passes through pydantic models (`document`) and comes out as
the frozen dataclasses of `types`, with defaults and overrides applied.
"""

from __future__ import annotations

from pipeline.config.reading import load
from pipeline.config.types import (
    Config,
    ConverterName,
    ConvertOptions,
    EcrSettings,
    ImageSpec,
    Notify,
    RegistrySettings,
    ScanPolicy,
    SecretSource,
    Severity,
    SlurmSettings,
    StoreSettings,
    Track,
)

__all__ = [
    "Config",
    "ConvertOptions",
    "ConverterName",
    "EcrSettings",
    "ImageSpec",
    "Notify",
    "RegistrySettings",
    "ScanPolicy",
    "SecretSource",
    "Severity",
    "SlurmSettings",
    "StoreSettings",
    "Track",
    "load",
]
