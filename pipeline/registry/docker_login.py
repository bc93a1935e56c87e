"""What ``docker login``, ``podman login`` and credential helpers left behind: Docker's ``config.json``.

``auths`` is read as containers-auth.json(5) says: a key is a registry or a part of one, and the longest key
that an image's name begins with counts.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.authn import Credentials, host_of
from pipeline.errors import ConfigError, ToolError
from pipeline.system import process
from pipeline.system.log import log

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_IDENTITY_TOKEN_USER = "<token>"  # noqa: S105 - docker's marker in a helper's answer
_HELPER_TIMEOUT = 60.0


def docker_config_path() -> Path:
    """Docker's own configuration file, whether it is there or not."""
    folder = os.environ.get("DOCKER_CONFIG", "")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def place(name: str) -> str:
    """The longest beginning of ``name`` that the file has its own credentials for; else the host."""
    config = _read()
    host = host_of(name)
    if _helper_for(config, host):
        return host
    return next((each for each in _beginnings(name) if _entry(config, each) is not None), host)


def find(name: str) -> Credentials | None:
    """The credentials of ``name``; None when the file has none.

    The helper of a registry comes first, then the entry of a part of the registry, then the helper for all
    registries, then the registry's entry. Raises ConfigError for a damaged file, ToolError for a helper that
    is missing or broken.
    """
    config, host = _read(), host_of(name)
    own = _helper_for(config, host)
    if own:
        found = _from_helper(own, host)
        return found if found is not None else _decoded(config, host)
    for each in _beginnings(name):
        if each != host and _entry(config, each) is not None:
            return _decoded(config, each)
    store = config.get("credsStore")
    found = _from_helper(str(store), host) if store else None
    return found if found is not None else _decoded(config, host)


def _read() -> Mapping[str, Any]:
    path = docker_config_path()
    try:
        raw = path.read_bytes()
        config = json.loads(raw) if raw.strip() else {}  # docker takes an empty file for none
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("cannot read docker's configuration", path=str(path), reason=error.strerror)
        return {}
    except (ValueError, RecursionError):
        # the text of the JSON error could quote the file, and the file holds passwords
        raise ConfigError(
            f"{path} is not JSON", hint="repair it, or set DOCKER_CONFIG to another folder"
        ) from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} is not a JSON object", hint="repair it, or set DOCKER_CONFIG")
    return config


def _table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def _helper_for(config: Mapping[str, Any], host: str) -> str:
    helpers = _table(config, "credHelpers")
    return next((str(helpers[each]) for each in _spellings(host) if helpers.get(each)), "")


def _beginnings(name: str) -> Iterator[str]:
    """``host/a/b``, ``host/a``, ``host``: the longest first, always whole parts."""
    while name:
        yield name
        name = name.rpartition("/")[0]


def _spellings(name: str) -> tuple[str, ...]:
    """How a key may write ``name``; Docker Hub has several hosts, and one address that docker writes."""
    host, slash, path = name.partition("/")
    if host not in _DOCKER_HUB:
        return (name,)
    hosts = tuple(f"{each}{slash}{path}" for each in _DOCKER_HUB)
    return hosts if path else (_DOCKER_HUB_KEY, *hosts)


def _written_name(key: str) -> str:
    """The name that a key stands for: old logins wrote ``https://HOST/v1/`` for a host."""
    scheme, address, rest = key.rpartition("://")
    name = rest.rstrip("/")
    host, _, path = name.partition("/")
    return host if (address and scheme) or path in ("v1", "v2") else name


def _entry(config: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]] | None:
    """Key and entry of exactly ``name``: as it is written before other ways of writing it."""
    auths, spellings = _table(config, "auths"), _spellings(name)
    keys = [key for key in spellings if key in auths]
    keys += [key for key in auths if key not in spellings and _written_name(key) in spellings]
    for key in keys:
        entry = auths[key]
        if isinstance(entry, dict) and any(entry.get(part) for part in ("auth", "identitytoken", "username")):
            return key, entry
    return None


def _decoded(config: Mapping[str, Any], name: str) -> Credentials | None:
    found = _entry(config, name)
    if found is None:
        return None
    key, entry = found
    token = str(entry.get("identitytoken", ""))
    user, password = str(entry.get("username", "")), str(entry.get("password", ""))
    if entry.get("auth"):
        try:
            decoded = base64.b64decode(str(entry["auth"]), validate=True).decode()
        except (binascii.Error, ValueError):
            raise ConfigError(
                f"{docker_config_path()}: the entry {key!r} is not base64",
                hint=f"docker login {host_of(name)}",
            ) from None
        user, _, password = decoded.partition(":")
    if not token and not (user and password):
        return None
    return Credentials(username=user, password=password.rstrip("\0"), identity_token=token)


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
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ToolError(
            f"{program} gave an answer for {host} that is not a credential", hint=f"try: {program} get"
        ) from None
    if user == _IDENTITY_TOKEN_USER:
        return Credentials(username="", password="", identity_token=secret)
    return Credentials(username=user, password=secret)
