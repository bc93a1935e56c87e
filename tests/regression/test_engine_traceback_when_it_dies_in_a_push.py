"""An engine that was killed while it reported its push ended in a traceback of urllib3."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

from pipeline.docker.engine import Engine
from pipeline.errors import ToolError
from pipeline.oci.reference import Reference

BROKEN = [
    urllib3.exceptions.ProtocolError("Connection broken", None),
    urllib3.exceptions.ReadTimeoutError(None, "", ""),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("broken", BROKEN, ids=["broken", "silent"])
def test_it_is_one_sentence(broken: Exception) -> None:
    def push(*_: object, **_more: object) -> Any:
        yield {"status": "Preparing"}
        raise broken

    engine = Engine(SimpleNamespace(push=push), "unix:///nowhere")  # type: ignore[arg-type]
    with pytest.raises(ToolError, match="pushing"):
        engine.push(Reference.parse("h.example/a:1"), None)
