"""Where user names and passwords of registries come from. They are read, used and never written.

In this order: ``SQSHPIPE_REGISTRY_USER`` and ``SQSHPIPE_REGISTRY_PASSWORD`` for the configured registry
alone;
``NGC_API_KEY`` for nvcr.io; boto3's chain for ECR host names; Docker's ``config.json`` (``credHelpers``,
``credsStore``,
``auths``), so that ``docker login`` is enough.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import structlog

from pipeline.errors import ConfigError, ToolError
from pipeline.tools import process

log = structlog.get_logger()

USER_VARIABLE = "SQSHPIPE_REGISTRY_USER"
PASSWORD_VARIABLE = "SQSHPIPE_REGISTRY_PASSWORD"  # noqa: S105 - the variable's name, not a password
NGC_VARIABLE = "NGC_API_KEY"
NGC_USER = "$oauthtoken"

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_IDENTITY_TOKEN_USER = "<token>"  # noqa: S105 - docker's marker in a helper's answer
_HELPER_TIMEOUT = 60.0


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
        """Whether they end within ``margin`` seconds."""
        return self.expires_at is not None and time.time() > self.expires_at - margin


CredentialsProvider = Callable[[str], "Credentials | None"]
"""From a registry's host name (with port) to what to show it; None: nothing, be anonymous."""


@runtime_checkable
class RenewableProvider(Protocol):
    """A provider that can get fresh ones when a registry says that those it gave have expired."""

    def __call__(self, host: str) -> Credentials | None: ...

    def renew(self, host: str) -> Credentials | None:
        """Forget what was given for ``host`` and ask again."""


class KnownCredentials:
    """What this machine knows, for each host; a `RenewableProvider`.

    ``configured_host`` is the registry that images.yaml or a flag names; None: the one in SQSHPIPE_REGISTRY.
    """

    def __init__(self, configured_host: str | None = None) -> None:
        self._configured_host = configured_host

    def __call__(self, host: str) -> Credentials | None:
        return self._lookup(host, renew=False)

    def renew(self, host: str) -> Credentials | None:
        return self._lookup(host, renew=True)

    def _lookup(self, host: str, *, renew: bool) -> Credentials | None:
        configured = self._configured_host
        if configured is None:
            configured = _bare_host(os.environ.get("SQSHPIPE_REGISTRY", ""))
        found = _from_environment(host, configured)
        if found is None and ".ecr" in host:
            from pipeline.tools.ecr.tokens import TOKENS

            found = TOKENS.renew(host) if renew else TOKENS(host)
        return found if found is not None else _from_docker_config(host)


credentials_for = KnownCredentials()
"""What this machine knows for a host, when no configuration says which registry is ours."""


def credentials_provider(configured_host: str | None) -> KnownCredentials:
    """Like `credentials_for`, where ``configured_host`` is the registry that images.yaml or a flag names."""
    return KnownCredentials(configured_host or "")


def _from_environment(host: str, configured_host: str) -> Credentials | None:
    user, password = os.environ.get(USER_VARIABLE, ""), os.environ.get(PASSWORD_VARIABLE, "")
    if configured_host and host == configured_host and (user or password):
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


def docker_config_path() -> Path:
    """Docker's own configuration file, whether it is there or not."""
    folder = os.environ.get("DOCKER_CONFIG", "")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def _from_docker_config(host: str) -> Credentials | None:
    path = docker_config_path()
    try:
        raw = path.read_bytes()
        if not raw.strip():
            return None  # docker takes an empty file for none
        config = json.loads(raw)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("cannot read docker's configuration", path=str(path), reason=error.strerror)
        return None
    except ValueError:
        # the text of the JSON error could quote the file, and the file holds passwords
        raise ConfigError(
            f"{path} is not JSON", hint="mend it, or set DOCKER_CONFIG to another folder"
        ) from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} is not a JSON object", hint="mend it, or set DOCKER_CONFIG")
    names = _names_of(host)
    helpers = config.get("credHelpers")
    by_host = helpers if isinstance(helpers, dict) else {}
    helper = next((by_host[name] for name in names if name in by_host), None) or config.get("credsStore")
    found = _from_helper(str(helper), host) if helper else None
    auths = config.get("auths")
    if found is None and isinstance(auths, dict):
        found = _from_auths(auths, names, path)
    return found


def _names_of(host: str) -> tuple[str, ...]:
    return (_DOCKER_HUB_KEY, *_DOCKER_HUB) if host in _DOCKER_HUB else (host,)


def _bare_host(key: str) -> str:
    """``host`` in ``https://host/v1/`` and the other forms that logins have left behind."""
    return key.split("://", 1)[-1].split("/", 1)[0]


def _from_auths(auths: Mapping[str, Any], names: tuple[str, ...], path: Path) -> Credentials | None:
    for key, entry in auths.items():
        if not (key in names or _bare_host(key) in names) or not isinstance(entry, dict):
            continue
        token = str(entry.get("identitytoken", ""))
        user, password = str(entry.get("username", "")), str(entry.get("password", ""))
        if entry.get("auth"):
            try:
                decoded = base64.b64decode(str(entry["auth"]), validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                raise ConfigError(
                    f"{path}: the entry {key!r} is not base64", hint=f"docker login {_bare_host(key)}"
                ) from None
            user, _, password = decoded.partition(":")
        if token or (user and password):
            return Credentials(username=user, password=password.rstrip("\0"), identity_token=token)
    return None


def _from_helper(helper: str, host: str) -> Credentials | None:
    """Ask ``docker-credential-HELPER get``; None when it knows nothing of ``host``.

    Raises ToolError when the helper is missing or broken: without it the registry would be asked anonymously,
    and the refusal would point at the wrong place.
    """
    program = f"docker-credential-{helper}"
    path = process.which(
        program, hint=f"{docker_config_path()} names it for {host}: install it, or remove the entry"
    )
    server = _DOCKER_HUB_KEY if host in _DOCKER_HUB else host
    result = process.run([path, "get"], stdin=server.encode(), check=False, timeout=_HELPER_TIMEOUT)
    if result.returncode != 0:
        said = f"{result.stdout} {result.stderr}".lower()
        if "not found" in said:
            return None
        message = f"{program} failed for {host} with exit code {result.returncode}"
        raise ToolError(message, hint=f"try: {program} get")
    try:
        answer = json.loads(result.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise ToolError(
            f"{program} gave an answer for {host} that is not a credential", hint=f"try: {program} get"
        ) from None
    if user == _IDENTITY_TOKEN_USER:
        return Credentials(username="", password="", identity_token=secret)
    return Credentials(username=user, password=secret)
