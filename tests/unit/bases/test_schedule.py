"""Timers and crontab lines: settings, locks, odd names of files, and what systemd's own parser accepts."""

from __future__ import annotations

import getpass
import re
import subprocess
from pathlib import Path

import pytest

from pipeline.bases.schedule import Schedule, crontab, systemd

JOBS = ("refresh", "prune", "scrub", "rescan", "report", "metrics")


def _schedule(**changed: object) -> Schedule:
    values = {
        "program": ["/usr/bin/true"],
        "config": Path("/srv/images/images.yaml"),
        "user": "root",
        "store": Path("/fsx/containers"),
        "registry": "registry.example.com/team",
        "metrics": Path("/var/lib/prometheus/node-exporter/sqshpipe-store.prom"),
    }
    return Schedule(**{**values, **changed})  # type: ignore[arg-type]


def _units(text: str) -> dict[str, str]:
    """Each unit by the name of its file."""
    parts = re.split(r"^# /etc/systemd/system/(\S+)\n", text, flags=re.MULTILINE)
    assert parts[0] == ""
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _lines(text: str) -> dict[str, list[str]]:
    """The fields of each line of the crontab, by the name of its job: five times, the user, the command."""
    lines = [line for line in text.splitlines() if not line.startswith("#") and "=/bin/sh" not in line]
    return dict(zip(JOBS, (line.replace("\\%", "%").split(" ", 6) for line in lines), strict=True))


@pytest.mark.needs("flock")
@pytest.mark.parametrize("there", [True, False], ids=["with the file", "without it"])
def test_every_line_for_cron_reads_the_file_of_settings(tmp_path: Path, *, there: bool) -> None:
    folder, file = tmp_path / "it's 100% mine", tmp_path / "its settings"
    folder.mkdir()
    if there:
        file.write_text("NGC_API_KEY=made-up\n")
    program = ["sh", "-c", 'echo "$PWD ${NGC_API_KEY:-none} $*"', "sqshpipe"]
    config = folder / "images.yaml"
    lines = _lines(crontab(_schedule(program=program, config=config, environment=file)))
    for job, line in lines.items():
        assert line[5] == "root"
        done = subprocess.run(
            ["sh", "-c", line[6]], capture_output=True, text=True, timeout=30, env={"PATH": "/usr/bin:/bin"}
        )
        assert done.stderr == ""
        assert done.stdout.startswith(f"{folder} {'made-up' if there else 'none'} "), done.stdout
        assert job in done.stdout
        assert f"--config {config}" in done.stdout


@pytest.mark.needs("flock")
def test_a_job_that_still_runs_is_not_started_again(tmp_path: Path) -> None:
    config = tmp_path / "images.yaml"
    line = _lines(crontab(_schedule(program=["echo", "started"], config=config)))["scrub"][6]
    holder = subprocess.Popen(
        ["flock", tmp_path / ".sqshpipe-scrub.lock", "-c", "echo held; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    second = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30)
    holder.communicate("\n", timeout=30)
    assert (second.returncode, second.stdout) == (1, "")
    first = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30)
    assert first.stdout.startswith("started store scrub")


def test_no_two_jobs_start_at_the_same_time() -> None:
    starts = [tuple(line[:2]) for line in _lines(crontab(_schedule())).values()]
    assert len({minute for minute, _ in starts}) == len(JOBS)


def test_the_units_read_the_file_too_and_do_without() -> None:
    units = _units(systemd(_schedule()))
    assert set(units) == {f"sqshpipe-{job}.{kind}" for job in JOBS for kind in ("service", "timer")}
    for name, unit in units.items():
        assert name.endswith(".timer") or "EnvironmentFile=-/etc/sqshpipe.env\n" in unit


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("folder", ["images", 'it\'s "100%" $HOME; mine'])
def test_systemd_accepts_every_unit(tmp_path: Path, folder: str) -> None:
    config = tmp_path / folder / "images.yaml"
    config.parent.mkdir()
    units = _units(systemd(_schedule(config=config, user=getpass.getuser())))
    for name, unit in units.items():
        (tmp_path / name).write_text(unit)
    # It reads no unit of this machine, and nothing is loaded.
    argv = ["systemd-analyze", "verify", "--recursive-errors=no", *(tmp_path / name for name in units)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("systemd-analyze")
def test_what_only_reads_and_writes_the_store_is_confined(tmp_path: Path) -> None:
    """systemd's own figure, from 0 (confined) to 10; a unit without any settings has 9.6."""
    for name, unit in _units(systemd(_schedule())).items():
        (tmp_path / name).write_text(unit)
    for job in JOBS[1:]:
        argv = [
            "systemd-analyze",
            "security",
            "--offline=yes",
            "--threshold=45",
            tmp_path / f"sqshpipe-{job}.service",
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr


def test_facts_are_written_only_where_somebody_collects_them() -> None:
    without = _schedule(metrics=None)
    assert "sqshpipe-metrics.service" not in _units(systemd(without))
    assert "store metrics" not in crontab(without)
    unit = _units(systemd(_schedule()))["sqshpipe-metrics.service"]
    assert "store metrics" in unit
    assert "-o /var/lib/prometheus/node-exporter/sqshpipe-store.prom" in unit
    assert "ReadWritePaths=/var/lib/prometheus/node-exporter\n" in unit
