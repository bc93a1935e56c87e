"""A failed start whose sentence cannot be written: the exit code is that of the failure all the same."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ToolError
from pipeline.node import enter


@pytest.mark.parametrize(("error", "code"), [(ToolError("no mount"), 3), (RuntimeError("odd"), 1)], ids=repr)
def test_a_stderr_on_a_full_disk(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: object) -> None:
        raise error

    entering: Any = None
    full = Path("/dev/full").open("w", encoding="utf-8", buffering=1)  # noqa: SIM115 - closing it fails too
    monkeypatch.setattr(enter, "become", failing)
    monkeypatch.setattr(sys, "stderr", full)
    found = enter.attempt(entering)
    with contextlib.suppress(OSError):
        full.close()
    assert found == code
