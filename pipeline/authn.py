"""What a registry is shown: a user with a password, or a token. Where they come from is `credentials`.

A *name* below is a registry's host, with its port, or an image's ``host/repository``.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pipeline.config.ecr_hosts import parse_host
from pipeline.errors import RegistryError


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user and a password, or docker's identity token. Neither is shown by ``repr``.

    ``expires_at`` is in seconds of ``time.time()``; None when it is not known.
    """

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)
    expires_at: float | None = None

    def basic(self) -> str:
        """The value of an ``Authorization`` header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")

    def stale(self, *, margin: float = 300.0) -> bool:
        """Whether the credentials expire within ``margin`` seconds."""
        return self.expires_at is not None and time.time() > self.expires_at - margin


class NoCredentials(RegistryError):
    """A source that should have credentials has none, and the message says why."""


CredentialsProvider = Callable[[str], "Credentials | None"]
"""Maps a registry's host name (with port) to the credentials for it; None means anonymous access."""


@runtime_checkable
class RenewableProvider(Protocol):
    """A provider that can get new credentials when a registry says that the present ones have expired."""

    def __call__(self, name: str) -> Credentials | None: ...

    def renew(self, name: str) -> Credentials | None:
        """Forget the credentials that were given for ``name`` and get new ones."""


@runtime_checkable
class PlacesProvider(Protocol):
    """A provider that may have other credentials for a part of a registry than for the whole."""

    def __call__(self, name: str) -> Credentials | None: ...

    def place(self, name: str) -> str:
        """The host, or the longer beginning of the image's name, whose credentials count for ``name``."""


def place_of(provider: CredentialsProvider, name: str) -> str:
    """What to ask ``provider`` for about the image ``name``: its host, or a longer beginning of it."""
    return provider.place(name) if isinstance(provider, PlacesProvider) else host_of(name)


def host_of(name: str) -> str:
    """The registry's host, with its port, of a name."""
    return name.partition("/")[0]


def login_hint(host: str) -> str:
    """What to do for credentials at ``host``."""
    if host == "nvcr.io" or host.endswith(".nvcr.io"):
        return "set NGC_API_KEY to a key from ngc.nvidia.com (Setup, Generate API Key)"
    if parse_host(host) is not None:
        return "check the AWS credentials: aws sts get-caller-identity"
    return f"docker login {host}, or set SQSHPIPE_REGISTRY_USER and SQSHPIPE_REGISTRY_PASSWORD"
