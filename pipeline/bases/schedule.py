"""What runs the refresh on a cluster without Actions: systemd units and a crontab line, as text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """``command`` is run in ``folder`` as ``user``.

    ``environment`` is a file of NAME=value lines, for the registries' passwords and what else a login shell
    would have; it need not exist.
    """

    command: Sequence[str | Path]
    folder: Path
    user: str
    environment: Path = Path("/etc/sqshpipe.env")


def systemd(schedule: Schedule) -> str:
    """A service and its timer, parted by comments that say where each belongs."""
    command = " ".join(_systemd_word(str(word)) for word in schedule.command)
    lines = [
        "# /etc/systemd/system/sqshpipe-refresh.service",
        "[Unit]",
        "Description=Rebuild images whose base has moved",
        "Wants=network-online.target",
        "After=network-online.target remote-fs.target",
        "",
        "[Service]",
        "Type=oneshot",
        f"User={schedule.user}",
        f"WorkingDirectory={_percent(str(schedule.folder))}",
        "# Passwords and settings that only this user may read, such as NGC_API_KEY=…; it may be missing.",
        f"EnvironmentFile=-{_percent(str(schedule.environment))}",
        f"ExecStart={command}",
        "Nice=10",
        "IOSchedulingClass=idle",
        "TimeoutStartSec=12h",
        "",
        "# /etc/systemd/system/sqshpipe-refresh.timer",
        "[Unit]",
        "Description=Look for moved bases four times a day",
        "",
        "[Timer]",
        "OnCalendar=*-*-* 00/6:00:00",
        "# Not every cluster at the same second.",
        "RandomizedDelaySec=30min",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
        "",
        "# systemctl daemon-reload && systemctl enable --now sqshpipe-refresh.timer",
    ]
    return "\n".join(lines) + "\n"


def crontab(schedule: Schedule) -> str:
    """One line for /etc/cron.d/sqshpipe; flock keeps a slow run from being overtaken by the next."""
    command = shlex.join(str(word) for word in schedule.command)
    file = shlex.quote(str(schedule.environment))
    settings = f"set -a; [ ! -r {file} ] || . {file}; set +a"
    run = f"cd {shlex.quote(str(schedule.folder))} && exec flock -n .sqshpipe-refresh.lock {command}"
    line = f"{settings}; {run}"
    # In a crontab a bare % is a newline.
    return f"17 */6 * * * {schedule.user} {line.replace('%', chr(92) + '%')}\n"


def _systemd_word(word: str) -> str:
    """Quoted as systemd.service(5) wants it: its own escapes, no shell."""
    escaped = _percent(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"' if any(character in word for character in " \t\"'\\;") else escaped


def _percent(text: str) -> str:
    return text.replace("%", "%%")
