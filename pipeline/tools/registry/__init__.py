"""The registry edge: OCI distribution over HTTP."""

from pipeline.tools.registry.client import RegistryClient
from pipeline.tools.registry.errors import Refused, Unreachable
from pipeline.tools.registry.images import image_manifest
from pipeline.tools.registry.session import Patience
from pipeline.tools.registry.source import RegistrySource

__all__ = ["Patience", "Refused", "RegistryClient", "RegistrySource", "Unreachable", "image_manifest"]
