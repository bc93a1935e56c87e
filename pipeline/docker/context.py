"""Which Docker Engine the user means: DOCKER_HOST, else the docker context, else the usual socket.

A context is what ``docker context create`` stores beside Docker's config.json: ``contexts/meta/ID/meta.json``
with the engine's address, and ``contexts/tls/ID/docker/`` with its certificates. ID is the sha256 of the
context's name. The docker command picks one in the same order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from docker.errors import TLSParameterError
from docker.tls import TLSConfig
from docker.utils import kwargs_from_env

from pipeline.errors import ConfigError
from pipeline.registry.docker_login import docker_config_path

DEFAULT_HOST = "unix:///var/run/docker.sock"
_DEFAULT = "default"  # the context without files: DEFAULT_HOST


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An engine's address. `variables` are what the docker command needs to reach the same engine."""

    host: str
    tls: TLSConfig | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


def chosen_endpoint() -> Endpoint:
    """The engine that DOCKER_HOST names, else DOCKER_CONTEXT, else ``docker context use``.

    Raises ConfigError for a context that does not exist or cannot be read, and for missing certificates.
    """
    if host := os.environ.get("DOCKER_HOST"):
        variables = {}
        if os.environ.get("DOCKER_TLS_VERIFY"):
            # The command looks for certificates beside its configuration, and a build has another one.
            default = str(docker_config_path().parent)
            variables["DOCKER_CERT_PATH"] = os.environ.get("DOCKER_CERT_PATH") or default
        with _certificates_of(host):
            tls = kwargs_from_env(environment={**os.environ, **variables}).get("tls")
        return Endpoint(host=host, tls=tls or None, variables=variables)
    source = "DOCKER_CONTEXT"
    name = os.environ.get(source)
    if not name:
        source, name = str(docker_config_path()), _current_context()
    if not name or name == _DEFAULT:
        return Endpoint(host=DEFAULT_HOST)
    return _endpoint(name, source)


def _current_context() -> str:
    """The context that ``docker context use`` chose; the default one without a config.json that is read."""
    try:
        config = json.loads(docker_config_path().read_bytes())
    except (OSError, ValueError):
        return _DEFAULT
    name = config.get("currentContext") if isinstance(config, dict) else None
    return name if isinstance(name, str) else _DEFAULT


def _endpoint(name: str, source: str) -> Endpoint:
    identifier = hashlib.sha256(name.encode()).hexdigest()
    contexts = docker_config_path().parent / "contexts"
    meta = contexts / "meta" / identifier / "meta.json"
    hint = "see: docker context ls; DOCKER_CONTEXT=default takes the usual socket"
    try:
        found: dict[str, Any] = json.loads(meta.read_bytes())["Endpoints"]["docker"]
        host = str(found["Host"])
        skip = bool(found.get("SkipTLSVerify"))
    except FileNotFoundError as error:
        raise ConfigError(f"the docker context {name}, from {source}, does not exist", hint=hint) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"the docker context {name} cannot be read: {meta}: {error}", hint=hint) from error
    folder = contexts / "tls" / identifier / "docker"
    if host.startswith("unix://") or not (skip or folder.is_dir()):
        return Endpoint(host=host)
    ca, cert, key = (folder / f"{each}.pem" for each in ("ca", "cert", "key"))
    client = (str(cert), str(key)) if cert.is_file() and key.is_file() else None
    trusted = str(ca) if ca.is_file() and not skip else None
    with _certificates_of(host):
        tls = TLSConfig(client_cert=client, ca_cert=trusted, verify=not skip)
    variables = {"DOCKER_TLS" if skip else "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(folder)}
    return Endpoint(host=host, tls=tls, variables=variables)


@contextlib.contextmanager
def _certificates_of(host: str) -> Iterator[None]:
    try:
        yield
    except TLSParameterError as error:
        raise ConfigError(
            f"the certificates for the Docker Engine at {host} cannot be used: {str(error).splitlines()[0]}",
            hint="DOCKER_CERT_PATH is the folder of ca.pem, cert.pem and key.pem",
        ) from error
