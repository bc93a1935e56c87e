"""Timers for the regular work on a cluster that has no CI: systemd units or crontab lines, as text.

Refresh the bases, prune old releases, scrub the bytes, rescan what is published, write the report, and where
Prometheus collects files, facts about the store.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_UNITS = "/etc/systemd/system"
_CRON = "/etc/cron.d/sqshpipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What the timers run, where, and as whom.

    `program` is the argv of sqshpipe itself, without a verb. `config` is images.yaml; the jobs run in its
    folder, and `page`, the HTML report, is relative to it. Where `store` and `registry` are not given,
    images.yaml names them. `environment` is a file of NAME=value lines, for example with the passwords of
    registries; it may be missing. `metrics` is the file for Prometheus; None: there is no such job. All paths
    but `page` are absolute.
    """

    program: Sequence[str | Path]
    config: Path
    user: str
    store: Path | None = None
    registry: str = ""
    page: Path = Path("report.html")
    environment: Path = Path("/etc/sqshpipe.env")
    metrics: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder in which every job runs."""
        return self.config.parent

    @property
    def jobs(self) -> Sequence[_Timer]:
        return [job for job in _JOBS if job.name != "metrics" or self.metrics is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timer:
    """One regular job. `calendar` is for systemd (OnCalendar=), `cron` the five fields of a crontab.

    `confined` jobs read and write the store and nothing else. A job that builds images is not confined: it
    needs Docker, set-user-ID helpers and namespaces.
    """

    name: str
    verb: tuple[str, ...]
    purpose: str
    calendar: str
    cron: str
    limit: str
    registry: bool = False
    confined: bool = True


# No two start at the same minute. Prune runs before scrub, so that scrub does not read what is then deleted.
_JOBS = (
    _Timer(
        name="refresh",
        verb=("refresh", "--rebuild"),
        purpose="Follow the bases, and release the images that they affect",
        calendar="*-*-* 00/6:17:00",
        cron="17 */6 * * *",
        limit="12h",
        registry=True,
        confined=False,
    ),
    _Timer(
        name="prune",
        verb=("store", "prune"),
        purpose="Hide and delete old releases that nobody uses",
        calendar="*-*-* 02:41:00",
        cron="41 2 * * *",
        limit="2h",
    ),
    _Timer(
        name="scrub",
        verb=("store", "scrub"),
        purpose="Read every release back and compare checksums",
        calendar="Sun *-*-* 03:23:00",
        cron="23 3 * * 0",
        limit="20h",
    ),
    _Timer(
        name="rescan",
        verb=("store", "rescan"),
        purpose="Scan published releases for new vulnerabilities",
        calendar="*-*-* 05:07:00",
        cron="7 5 * * *",
        limit="4h",
        registry=True,
    ),
    _Timer(
        name="report",
        verb=("report",),
        purpose="Write the HTML page about the store",
        calendar="*-*-* 06:29:00",
        cron="29 6 * * *",
        limit="1h",
    ),
    _Timer(
        name="metrics",
        verb=("store", "metrics"),
        purpose="Write facts about the store for Prometheus",
        calendar="*-*-* *:04/15:00",
        cron="4-59/15 * * * *",
        limit="10min",
    ),
)

# systemd.exec(5). The jobs use the network (registries, slurmctld, munge's socket) and their own scratch.
_CONFINEMENT = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "CapabilityBoundingSet=",
    "LockPersonality=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "# The only folder outside of ReadWritePaths that stays: caches of sqshpipe and of the scanner.",
    "CacheDirectory=sqshpipe",
    "Environment=XDG_CACHE_HOME=%C/sqshpipe",
)


def systemd(schedule: Schedule) -> str:
    """A service and a timer for each job. A comment before each unit names its file."""
    units = "\n".join("\n".join(_service(job, schedule)) + "\n" for job in schedule.jobs)
    timers = " ".join(f"sqshpipe-{job.name}.timer" for job in schedule.jobs)
    return f"{units}\n# systemctl daemon-reload && systemctl enable --now {timers}\n"


def crontab(schedule: Schedule) -> str:
    """The content of /etc/cron.d/sqshpipe: a line for each job; what still runs is not started again."""
    head = [f"# {_CRON}: its lines name the user, so it is not a crontab of a user.", "SHELL=/bin/sh"]
    lines = [line for job in schedule.jobs for line in (f"# {job.purpose}", _cron_line(job, schedule))]
    return "\n".join([*head, *lines]) + "\n"


def _service(job: _Timer, schedule: Schedule) -> Iterator[str]:
    unit = f"{_UNITS}/sqshpipe-{job.name}"
    yield from (f"# {unit}.service", "[Unit]", f"Description={job.purpose}")
    yield from ("Wants=network-online.target", "After=network-online.target remote-fs.target")
    folders = [schedule.folder, *([schedule.store] if schedule.store else [])]
    places = " ".join(_systemd_quoted(str(folder)) for folder in folders)
    yield from (f"RequiresMountsFor={places}", "", "[Service]", "Type=oneshot", f"User={schedule.user}")
    yield f"WorkingDirectory={_percent(str(schedule.folder))}"
    yield "# Passwords and settings that only this user may read, such as NGC_API_KEY=…; it may be missing."
    yield f"EnvironmentFile=-{_percent(str(schedule.environment))}"
    yield "ExecStart=" + " ".join(_systemd_quoted(word).replace("$", "$$") for word in _argv(job, schedule))
    yield from ("Nice=10", "IOSchedulingClass=idle", f"TimeoutStartSec={job.limit}", "UMask=0022")
    if job.confined:
        yield from (*_CONFINEMENT, f"ReadWritePaths={places}")
        if job.name == "metrics" and schedule.metrics is not None:
            yield f"ReadWritePaths={_systemd_quoted(str(schedule.metrics.parent))}"
    else:
        yield "# It builds images: Docker, enroot's set-user-ID helpers and namespaces must work."
        yield "ProtectSystem=full"
    yield from ("", f"# {unit}.timer", "[Unit]", f"Description={job.purpose}", "", "[Timer]")
    yield from (f"OnCalendar={job.calendar}", "# Not every cluster at the same second.")
    yield from ("RandomizedDelaySec=10min", "Persistent=true", "", "[Install]", "WantedBy=timers.target")


def _cron_line(job: _Timer, schedule: Schedule) -> str:
    file = shlex.quote(str(schedule.environment))
    settings = f"set -a; [ ! -r {file} ] || . {file}; set +a"
    lock = f"flock -n .sqshpipe-{job.name}.lock"
    run = f"cd {shlex.quote(str(schedule.folder))} && exec {lock} {shlex.join(_argv(job, schedule))}"
    # In a crontab a bare % is a newline.
    line = f"{settings}; {run}".replace("%", "\\%")
    return f"{job.cron} {schedule.user} {line}"


def _argv(job: _Timer, schedule: Schedule) -> list[str]:
    words = [*(str(word) for word in schedule.program), *job.verb, "--config", str(schedule.config)]
    if job.name == "report":
        words += ["-o", str(schedule.page)]
    if job.name == "metrics":
        words += ["-o", str(schedule.metrics)]
    if schedule.store is not None:
        words += ["--store", str(schedule.store)]
    if job.registry and schedule.registry:
        words += ["--registry", schedule.registry]
    return words


def _systemd_quoted(text: str) -> str:
    """Quoted as systemd.service(5) asks for; a command line also needs $ doubled."""
    escaped = _percent(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if any(character in text for character in " \t\"'\\;") else escaped


def _percent(text: str) -> str:
    return text.replace("%", "%%")
