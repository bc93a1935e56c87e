"""A Location with half an IPv6 address, or a port that is none ended in a traceback."""

from __future__ import annotations

import httpx
import pytest

from pipeline.errors import RegistryError
from pipeline.registry.client import RegistryClient
from tests.support.fake_registry import Streamed


@pytest.mark.parametrize("location", ["http://[", "https://h.example:99999999/x"])
def test_it_is_told_in_a_sentence(location: str) -> None:
    transport = Streamed(lambda _request: httpx.Response(307, headers={"Location": location}))
    with (
        RegistryClient("registry.example.com", credentials=lambda _: None, transport=transport) as client,
        pytest.raises(RegistryError, match=r"no address|address that is none"),
    ):
        client.head("a/b", "v1")
