"""A private Slurm on loopback for tests: slurmctld and N slurmd in a folder, gone when the block ends.

Debian's slurm-wlm brings all of it, and any user can run it: authentication and credentials are switched off,
which is only ever right on loopback for the length of a test. Everything has a timeout.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.slurm import client

_START_SECONDS = 30.0
_MARK = "SQSHPIPE_TEST_SLURM"

_CONF = """\
ClusterName=sqshtest
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPort={controller_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmctldDebug=info
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdDebug=info
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmdTimeout=6
SlurmctldTimeout=20
KillWait=2
WaitTime=5
InactiveLimit=0
UnkillableStepTimeout=10
PropagateResourceLimits=NONE
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
{extra}
"""


def missing() -> str:
    """Why a private Slurm cannot run here, or an empty string."""
    for tool in ("slurmctld", "slurmd", "srun", "sbatch"):
        if _which(tool) is None:
            return f"{tool} is not installed (Debian: apt-get install slurm-wlm)"
    return ""


@dataclass(slots=True, kw_only=True)
class Slurm:
    """A running private cluster. `env` holds what a Slurm command needs to find it."""

    folder: Path
    nodes: tuple[str, ...]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.conf)}

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a Slurm command (srun, sbatch, …) against this cluster and give its output as text."""
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))
        }
        done = subprocess.run(
            [str(word) for word in argv],
            env={**clean, **self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd or self.folder,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{argv} exited {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.tail()}"
            )
        return done

    def tail(self, lines: int = 15) -> str:
        """The last lines of each daemon's log, for a failing test."""
        parts = []
        for log in sorted(self.folder.glob("*.log")):
            text = log.read_text(errors="replace").splitlines()[-lines:]
            parts.append(f"--- {log.name}\n" + "\n".join(text))
        return "\n".join(parts)

    def wait_for(self, states: str, *, timeout: float = _START_SECONDS) -> None:
        """Wait until every node is in one of the comma separated `states` as sinfo names them."""
        wanted = set(states.split(","))
        deadline = time.monotonic() + timeout
        seen: set[str] = set()
        while time.monotonic() < deadline:
            done = self.run(["sinfo", "-h", "-N", "-o", "%N %T"], check=False, timeout=20)
            rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
            seen = {row[1] for row in rows}
            if len(rows) == len(self.nodes) and seen <= wanted:
                return
            if any(state.startswith("drain") for state in seen) and not any(
                "drain" in each for each in wanted
            ):
                break
            time.sleep(0.2)
        raise AssertionError(
            f"nodes are {seen or 'silent'}, not {states}, after {timeout:.0f} s\n{self.tail()}"
        )

    def wait_job(self, job: str, *, timeout: float = 60) -> str:
        """Wait until a batch job has ended and give its state (COMPLETED, FAILED, …)."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            shown = self.run(["scontrol", "-o", "show", "job", job], check=False).stdout
            state = next((w.partition("=")[2] for w in shown.split() if w.startswith("JobState=")), "")
            if state and state not in {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}:
                return state
            time.sleep(0.2)
        raise AssertionError(f"job {job} did not end within {timeout:.0f} s\n{self.tail()}")

    def start_node(self, node: str) -> None:
        """Start one node's slurmd (again)."""
        self.daemons[node] = self._spawn(["slurmd", "-D", "-N", node, "-f", str(self.conf)], f"{node}.out")

    def kill_node(self, node: str) -> None:
        """Kill one node as a power cut does: its slurmd and all that runs under it."""
        # The daemon first: one that lives could start a step behind the back of the search for steps.
        _end(self.daemons.pop(node), signal.SIGKILL)
        while steps := [pid for pid in self._own_processes() if self._node_of(pid) == node]:
            for pid in [*steps, *(child for step in steps for child in _descendants(step))]:
                _kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _node_of(self, pid: int) -> str:
        """The node that a step daemon belongs to: its spool folder is among its open files or its log is."""
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(fd.readlink())
                    for node in self.nodes:
                        if target in (f"{self.folder}/slurmd-{node}.log", f"{self.folder}/{node}.out"):
                            return node
        return ""

    def start(self) -> None:
        self.daemons["slurmctld"] = self._spawn(
            ["slurmctld", "-D", "-i", "-f", str(self.conf)], "slurmctld.out"
        )
        for node in self.nodes:
            self.start_node(node)
        self.wait_for("idle")

    def stop(self) -> None:
        """Cancel all jobs, end the daemons, then whatever of theirs is left."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.run(
                ["scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}"], check=False, timeout=10
            )
            self.run(["scancel", f"--user={getpass.getuser()}"], check=False, timeout=10)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                if not self.run(["squeue", "-h", "-o", "%i"], check=False, timeout=10).stdout.strip():
                    break
                time.sleep(0.2)
        for name in sorted(self.daemons, key=lambda each: each == "slurmctld"):
            _end(self.daemons[name], signal.SIGTERM)
        left = self._own_processes()
        for pid in [*left, *(child for each in left for child in _descendants(each))]:
            _kill(pid, signal.SIGKILL)

    def _spawn(self, argv: Sequence[str], out: str) -> subprocess.Popen[bytes]:
        tool = _which(argv[0])
        assert tool is not None, missing()
        with (self.folder / out).open("ab") as log:
            return subprocess.Popen(
                [tool, *argv[1:]],
                env={**os.environ, **self.env, _MARK: str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _own_processes(self) -> list[int]:
        """Daemons and step daemons of this cluster: only they carry our mark in their environment."""
        mark = f"{_MARK}={self.folder}".encode()
        return [
            int(p.name)
            for p in Path("/proc").iterdir()
            if p.name.isdigit() and mark in _environ(p).split(b"\0")
        ]


@contextlib.contextmanager
def private_slurm(
    folder: Path, *, nodes: int = 2, cpus: int = 8, gpus: int = 0, extra: str = "", plugstack: str = ""
) -> Iterator[Slurm]:
    """Run a private Slurm under `folder`: `nodes` nodes, each with made-up `cpus` cores and `gpus` GPUs.

    `extra` is appended to slurm.conf (Prolog=…), `plugstack` becomes the plugstack.conf.
    """
    assert not missing(), missing()
    folder.mkdir(parents=True, exist_ok=True)
    names = tuple(f"n{number}" for number in range(1, nodes + 1))
    ports = _free_ports(nodes + 1)
    (folder / "state").mkdir(exist_ok=True)
    for name in names:
        (folder / f"spool-{name}").mkdir(exist_ok=True)
    (folder / "plugstack.conf").write_text(plugstack)
    gres = f" Gres=gpu:{gpus}" if gpus else ""
    if gpus:
        for number in range(gpus):  # Slurm counts device files, and believes any file
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")
        extra += "\nGresTypes=gpu"
    lines = [
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
        f"Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=1024 State=UNKNOWN{gres}"
        for name, port in zip(names, ports[1:], strict=True)
    ]
    conf = _CONF.format(
        user=getpass.getuser(),
        folder=folder,
        controller_port=ports[0],
        nodes="\n".join(lines),
        extra=f"PlugStackConfig={folder}/plugstack.conf\n{extra}",
    )
    cluster = Slurm(folder=folder, nodes=names)
    cluster.conf.write_text(conf)
    # Other users of a test need to read the configuration, and slurmd insists on a spool folder of its own.
    folder.chmod(0o755)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for word in tasks.read_text().split():
                found += [int(word), *_descendants(int(word))]
    return found


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _end(daemon: subprocess.Popen[bytes], number: int) -> None:
    if daemon.poll() is None:
        daemon.send_signal(number)
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait(timeout=10)


def digests_in_use() -> set[str]:
    """The digests that comments of pending, running and ending jobs name."""
    return {digest for job in client.jobs() for digest in job.digests}
