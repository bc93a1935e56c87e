"""How a command ends when the machine is against it."""

from __future__ import annotations

import errno

import pytest

from pipeline.cli import app


def _ends_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    return app._run()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_file_that_the_system_refuses_is_named_and_is_no_defect(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ends_with(monkeypatch, OSError(number, "Because of this", "/fsx/containers")) == 3
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "sqshpipe: /fsx/containers: Because of this"
    assert len(told) == 2
    assert "defect" not in told[1]


def test_what_nobody_foresaw_is_called_a_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ends_with(monkeypatch, OSError(errno.EBADF, "Bad file descriptor")) == 1
    assert _ends_with(monkeypatch, ValueError("odd")) == 1
    assert capsys.readouterr().err.count("this is a defect of sqshpipe") == 2
