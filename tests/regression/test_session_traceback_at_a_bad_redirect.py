"""A Location with half an IPv6 address, a port or a host name that is not valid ended in a traceback."""

from __future__ import annotations

import httpx
import pytest

from pipeline.errors import ConfigError, RegistryError
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.session import RetryPolicy
from tests.support.servers.fake_registry import Streamed

NAMES = [
    f"https://{name}/x"
    for name in ("xn--", "xn--a", "b" * 64 + ".example", "xn--" + "a" * 70, "\xad", "a..b")
]


@pytest.mark.parametrize("location", ["http://[", "https://h.example:99999999/x", *NAMES])
def test_it_is_reported_in_a_sentence(location: str) -> None:
    headers = [(b"location", location.encode())]
    transport = Streamed(lambda _request: httpx.Response(307, headers=headers))
    with _client(transport) as client, pytest.raises(RegistryError, match="not a valid address"):
        client.head("a/b", "v1")


@pytest.mark.parametrize("realm", NAMES)
def test_a_token_server_that_is_no_address(realm: str) -> None:
    headers = [(b"www-authenticate", f'Bearer realm="{realm}"'.encode())]
    transport = Streamed(lambda _request: httpx.Response(401, headers=headers))
    with _client(transport) as client, pytest.raises(RegistryError, match="not a valid address"):
        client.head("a/b", "v1")


def _client(transport: Streamed) -> RegistryClient:
    patience = RetryPolicy(attempts=2, sleep=lambda _: None)
    return RegistryClient(
        "registry.example.com", credentials=lambda _: None, transport=transport, patience=patience
    )


@pytest.mark.parametrize(
    "host", ["xn--a.example", "b" * 64 + ".example", "h.example:65536", "h.example:99999"]
)
def test_a_registry_that_can_have_no_address(host: str) -> None:
    with pytest.raises(ConfigError, match="is not"):
        RegistryClient(Reference.parse(f"{host}/a/b").registry, credentials=lambda _: None)


def test_the_last_port_and_the_longest_label() -> None:
    host = "b" * 63 + ".example:65535"
    assert Reference.parse(f"{host}/a/b").registry == host
