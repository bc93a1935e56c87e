"""What cannot be a version is refused at once, by every verb that takes one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.batch import local
from pipeline.errors import ConfigError
from tests.support.command_line import app


@pytest.mark.parametrize("tag", ["my release", "latest", "stable", "-v1", "a" * 129, "v1\nx"])
@pytest.mark.parametrize(
    "words", [["plan"], ["release", "--all"], ["release", "demo"], ["ci", "check", "demo"]], ids=" ".join
)
def test_no_image_is_tried_under_such_a_version(
    released: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], tag: str
) -> None:
    monkeypatch.setattr(local, "tasks_for", lambda *_: pytest.fail("an image was tried"))
    given = [*words, f"--tag={tag}", "--config", str(released / "images.yaml")]
    ended = CliRunner().invoke(app, given)
    assert isinstance(ended.exception, ConfigError) or ended.exit_code == 2, ended.output
