"""A uid that the system has no name for, as in a container: rendering a schedule needs none."""

from __future__ import annotations

import os
import pwd

import pytest
from typer.testing import CliRunner

from tests.support.command_line import app


@pytest.mark.parametrize("kind", ["cron", "systemd"])
def test_a_uid_without_a_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(app, ["schedule", kind, "--store", "/fsx/containers"])
    assert done.exit_code == 0, done.output
    assert str(os.getuid()) in done.output
