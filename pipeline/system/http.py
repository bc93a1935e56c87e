"""How we speak HTTP: one place that decides about TLS, timeouts, proxies and the User-Agent.

TLS is always verified. Plain HTTP is spoken to loopback, and to hosts that the configuration names; nowhere
else, and nothing that a server says (a redirect, a realm) can change that.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import certifi
import httpx

from pipeline import __version__

USER_AGENT = f"sqshpipe/{__version__}"
PLAIN_HTTP_VARIABLE = "SQSHPIPE_PLAIN_HTTP"

# Connecting is quick or hopeless; a registry that commits a large blob may be silent for a minute.
TIMEOUT = httpx.Timeout(connect=10.0, read=60.0, write=60.0, pool=120.0)

_DOCKER_CERTIFICATES = Path("/etc/docker/certs.d")


def host_name(host: str) -> str:
    """The name in ``name:port``, without brackets."""
    return urlsplit(f"//{host}").hostname or host


def is_loopback(host: str) -> bool:
    """Whether ``host`` (with or without a port) is this machine."""
    name = host_name(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def plain_http_allowed(host: str, allowed: Iterable[str] = ()) -> bool:
    """Whether ``host`` may be spoken to without TLS: loopback, ``allowed``, or SQSHPIPE_PLAIN_HTTP.

    The variable holds host names, with or without a port, separated by commas.
    """
    named = {*allowed, *(part.strip() for part in os.environ.get(PLAIN_HTTP_VARIABLE, "").split(","))}
    return is_loopback(host) or host in named or host_name(host) in named


def base_url(host: str, plain_http: bool | None = None) -> str:
    """``https://host``, or ``http://host`` where that is allowed (``plain_http`` overrides)."""
    plain = plain_http_allowed(host) if plain_http is None else plain_http
    return f"{'http' if plain else 'https'}://{host}"


def address(text: str) -> httpx.URL:
    """``text`` as an address with a host that can be read, also an internationalized one.

    Raises ValueError: httpx looks at some parts only when they are asked for.
    """
    try:
        url = httpx.URL(text)
        _ = url.host, url.port
        url.raw_host.decode("ascii").encode("idna")  # as a socket does it, whose UnicodeError httpx passes on
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
    return url


def tls_context(host: str) -> ssl.SSLContext:
    """The system's authorities and certifi's, and those that Docker would trust for ``host``."""
    authorities = sorted((_DOCKER_CERTIFICATES / host).glob("*.crt"))
    if not authorities:
        return _everybodys_context()
    context = _new_context()
    for authority in authorities:
        context.load_verify_locations(authority)
    return context


@cache
def _everybodys_context() -> ssl.SSLContext:
    """One for all hosts: reading hundreds of authorities takes longer than asking a registry."""
    return _new_context()


def _new_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def client(host: str, *, connections: int = 16, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """A client for ``host`` that follows no redirect by itself: the caller decides what goes along.

    ``transport`` is for tests. Proxies of the environment are honoured, except for loopback.
    """
    return httpx.Client(
        verify=tls_context(host) if transport is None else True,
        timeout=TIMEOUT,
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        headers={"User-Agent": USER_AGENT},
        follow_redirects=False,
        trust_env=not is_loopback(host),
        transport=transport,
        event_hooks={"response": [_has_a_location]},
    )


def _has_a_location(response: httpx.Response) -> None:
    """httpx reads each Location, though nothing follows it, and not all that it raises is an httpx error."""
    try:
        address(response.headers.get("location", ""))
    except ValueError as error:
        raise httpx.RemoteProtocolError(
            "a Location that is not a valid address", request=response.request
        ) from error
