"""Misspelt environment variables."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.cli import output, variables


def test_every_variable_that_is_read_is_known() -> None:
    package = Path(variables.__file__).parents[1]
    code = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    found = set(re.findall(r"SQSHPIPE_[A-Z_]+", code))
    assert found - variables.KNOWN == {"SQSHPIPE_UNSET", "SQSHPIPE_NEVER_SET"}  # what enroot expands


@pytest.mark.parametrize(
    "name", ["SQSHPIPE_STOER", "SQSHPIPE_STOR", "SQSHPIPE_REGISTY", "SQSHPIPE_CONIFG", "SQSHPIPE_STORES"]
)
def test_a_misspelt_variable_is_warned_about(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.configure(quiet=False, verbose=False, json_log=False)
    variables.warn_of_misspelt({name: "/fsx", "SQSHPIPE_STORE": "/fsx"})
    reported = capsys.readouterr().err
    assert reported.startswith(f"warning: the variable {name} is not read: did you mean SQSHPIPE_")
    assert reported.count("\n") == 1
    output.configure(quiet=False, verbose=False, json_log=True)
    try:
        variables.warn_of_misspelt({name: ""})
        assert json.loads(capsys.readouterr().err)["level"] == "warning"
        output.configure(quiet=True, verbose=False, json_log=False)
        variables.warn_of_misspelt({name: ""})
        assert capsys.readouterr().err == ""
    finally:
        output.configure(quiet=False, verbose=False, json_log=False)


def test_known_and_own_variables_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    own = ("SQSHPIPE_SLACK_WEBHOOK", "SQSHPIPE_TEST_SLURM", "SQSHPIPE_BUILD_ROLE", "SQSHPIPE_STORE_TOKEN")
    variables.warn_of_misspelt(dict.fromkeys((*own, *variables.KNOWN, "PATH", "STORE"), "x"))
    assert capsys.readouterr().err == ""
