"""How a command ends when the machine is against it."""

from __future__ import annotations

import errno
import tempfile

import pytest

from pipeline.cli import app


def _ends_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(app, "command_line", lambda _: fail)
    return app._run()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_file_that_the_system_refuses_is_named_and_is_no_defect(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ends_with(monkeypatch, OSError(number, "Because of this", "/fsx/containers")) == 3
    reported = capsys.readouterr().err.splitlines()
    assert reported[0] == "sqshpipe: /fsx/containers: Because of this"
    assert len(reported) == 2
    assert "defect" not in reported[1]


def test_what_nobody_foresaw_is_called_a_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ends_with(monkeypatch, OSError(errno.EBADF, "Bad file descriptor")) == 1
    assert _ends_with(monkeypatch, ValueError("odd")) == 1
    assert capsys.readouterr().err.count("this is a defect of sqshpipe") == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_defect_where_no_file_is_named(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ends_with(monkeypatch, OSError(number, "Because of this")) == 3
    reported = capsys.readouterr().err
    assert reported.startswith("sqshpipe: a disk is full: Because of this\n")
    assert "TMPDIR" in reported
    assert "defect" not in reported


def test_no_folder_for_temporary_files_is_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/full"])
    with pytest.raises(OSError, match="temporary directory") as caught:
        tempfile.gettempdir()
    assert _ends_with(monkeypatch, caught.value) == 3
    assert "is the disk full?" in capsys.readouterr().err
