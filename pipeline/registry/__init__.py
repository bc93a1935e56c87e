"""The registry edge: OCI distribution over HTTP."""

from pipeline.registry.client import RegistryClient
from pipeline.registry.errors import Refused, Unreachable
from pipeline.registry.images import image_manifest
from pipeline.registry.session import Patience
from pipeline.registry.source import RegistrySource

__all__ = ["Patience", "Refused", "RegistryClient", "RegistrySource", "Unreachable", "image_manifest"]
