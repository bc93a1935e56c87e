"""Where user names and passwords of registries come from. They are read, used and never written.

`KnownCredentials` asks several sources in this order, and the first that has some wins:
``SQSHPIPE_REGISTRY_USER`` and ``SQSHPIPE_REGISTRY_PASSWORD``, for the configured registry alone;
``NGC_API_KEY`` for nvcr.io; boto3's chain for ECR's hosts (`ecr.tokens`); Docker's ``config.json``
(`docker_login`), so that ``docker login`` is enough. When none has some and one says why, that is the error.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from pipeline.authn import Credentials, CredentialsProvider, NoCredentials, RenewableProvider, host_of
from pipeline.aws import ecr_tokens
from pipeline.config.ecr_hosts import parse_host
from pipeline.errors import ConfigError
from pipeline.registry import docker_login

__all__ = [
    "Credentials",
    "CredentialsProvider",
    "KnownCredentials",
    "RenewableProvider",
    "credentials_for",
    "credentials_provider",
]

USER_VARIABLE = "SQSHPIPE_REGISTRY_USER"
PASSWORD_VARIABLE = "SQSHPIPE_REGISTRY_PASSWORD"  # noqa: S105 - the variable's name, not a password
NGC_VARIABLE = "NGC_API_KEY"
NGC_USER = "$oauthtoken"


class KnownCredentials:
    """What this machine knows, for a host or an image's ``host/repository``; a `RenewableProvider`.

    ``configured_host`` is the registry that images.yaml or a flag names; None: the one in SQSHPIPE_REGISTRY.
    Raises NoCredentials where AWS should have given some and no other source has any.
    """

    def __init__(self, configured_host: str | None = None) -> None:
        self._configured_host = configured_host

    def __call__(self, name: str) -> Credentials | None:
        return self._first(name, ecr_tokens.TOKENS)

    def renew(self, name: str) -> Credentials | None:
        """See `RenewableProvider`."""
        return self._first(name, ecr_tokens.TOKENS.renew)

    def place(self, name: str) -> str:
        """See `PlacesProvider`."""
        host = host_of(name)
        if parse_host(host) is not None or self._from_environment(host) is not None:
            return host
        return docker_login.place(name)

    def _first(self, name: str, from_aws: Callable[[str], Credentials | None]) -> Credentials | None:
        host = host_of(name)
        sources: tuple[Callable[[], Credentials | None], ...] = (
            lambda: self._from_environment(host),
            lambda: from_aws(host),
            lambda: docker_login.find(name),
        )
        reason: NoCredentials | None = None
        for source in sources:
            try:
                found = source()
            except NoCredentials as error:
                reason = error
                continue
            if found is not None:
                return found
        if reason is not None:
            raise reason
        return None

    def _from_environment(self, host: str) -> Credentials | None:
        configured = self._configured_host
        if configured is None:
            configured = host_of(os.environ.get("SQSHPIPE_REGISTRY", "").rpartition("://")[2])
        user, password = os.environ.get(USER_VARIABLE, ""), os.environ.get(PASSWORD_VARIABLE, "")
        if configured and host == configured and (user or password):
            if not (user and password):
                missing = PASSWORD_VARIABLE if user else USER_VARIABLE
                raise ConfigError(
                    f"{missing} is not set, but its partner is", hint=f"set both, or neither, for {host}"
                )
            return Credentials(username=user, password=password)
        key = os.environ.get(NGC_VARIABLE, "")
        if key and (host == "nvcr.io" or host.endswith(".nvcr.io")):
            return Credentials(username=NGC_USER, password=key)
        return None


credentials_for = KnownCredentials()
"""What this machine knows for a host, when no configuration says which registry is ours."""


def credentials_provider(configured_host: str | None) -> KnownCredentials:
    """Like `credentials_for`, where ``configured_host`` is the registry that images.yaml or a flag names."""
    return KnownCredentials(configured_host or "")
