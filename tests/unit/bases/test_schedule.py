"""What a timer runs has its settings, also where the file that holds them is not there."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

import pytest

from pipeline.bases.schedule import Schedule, crontab, systemd


@pytest.mark.needs("flock")
@pytest.mark.parametrize("there", [True, False], ids=["with the file", "without it"])
def test_the_line_for_cron_reads_the_file_of_settings(tmp_path: Path, *, there: bool) -> None:
    folder, file = tmp_path / "it's 100% mine", tmp_path / "its settings"
    folder.mkdir()
    if there:
        file.write_text("NGC_API_KEY=made-up\n")
    schedule = Schedule(
        command=["sh", "-c", 'echo "$PWD ${NGC_API_KEY:-none}"'],
        folder=folder,
        user=getpass.getuser(),
        environment=file,
    )
    line = crontab(schedule).replace("\\%", "%").split(" ", 6)
    assert line[5] == getpass.getuser()
    done = subprocess.run(
        ["sh", "-c", line[6]], capture_output=True, text=True, timeout=30, env={"PATH": "/usr/bin:/bin"}
    )
    assert (done.stdout, done.stderr) == (f"{folder} {'made-up' if there else 'none'}\n", "")


def test_the_unit_reads_it_too_and_does_without() -> None:
    units = systemd(Schedule(command=["true"], folder=Path("/srv/images"), user="images"))
    assert "EnvironmentFile=-/etc/sqshpipe.env\n" in units
