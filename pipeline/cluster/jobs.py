"""Job scripts: one image, resolved once, started so that all ranks of a node share it.

The container option stands on srun and never in #SBATCH: pyxis would run the batch script itself inside the
image, where there is neither srun nor scontrol.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pipeline.cluster.render import render
from pipeline.cluster.settings import Jobs
from pipeline.errors import ConfigError
from pipeline.node.shared_mount import ROOT_NODE_FOLDER
from pipeline.node.tool import COMMAND
from pipeline.node.unpacked import container_name
from pipeline.slurm.client import comment_for
from pipeline.store.record import Release

Launcher = Literal["pytorch", "torchrun", "mpi", "mpirun"]
Runtime = Literal["pyxis", "path", "run", "unpack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The release that the job will use, whatever its channel names later."""

    image: str
    version: str
    sha256: str
    path: Path

    @classmethod
    def of(cls, release: Release) -> Resolved:
        return cls(image=release.image, version=release.version, sha256=release.sha256, path=release.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A release of data that the job's tasks see in the folder `inside`."""

    release: Resolved
    inside: str

    @property
    def folder(self) -> str:
        """The folder where the Prolog mounts the image for the job's user, as shell text."""
        return f"{ROOT_NODE_FOLDER}/{self.release.sha256}/users/$(id -u).$(id -g)/root"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What to start.

    `runtime` is pyxis by name, pyxis by path, `sqshpipe run` where there is no pyxis or an old one, or pyxis
    with a container that is unpacked once on each node.
    """

    name: str
    image: Resolved
    command: tuple[str, ...]
    data: tuple[Data, ...] = ()
    launcher: Launcher = "pytorch"
    runtime: Runtime = "pyxis"
    nodes: int = 1
    gpus: bool = True
    jobs: Jobs = field(default_factory=Jobs)
    extra: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    output: str = "%x-%j.out"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.name):
            raise ConfigError(f"{self.name!r} cannot be a job's name", hint="letters, digits, . _ and -")
        if not self.command:
            raise ConfigError("no command to run in the image", hint="put it after --")
        if self.nodes < 1:
            raise ConfigError(f"a job cannot have {self.nodes} nodes")
        if self.launcher == "mpirun" and len(self.hosts) != self.nodes:
            raise ConfigError(
                f"mpirun without Slurm needs a host for each of {self.nodes} nodes, not {len(self.hosts)}",
                hint="give --host once a node",
            )
        if self.jobs.container_writable and "--container-writable" not in _pyxis(self):
            raise ConfigError(
                f"container_writable does not go with --runtime {self.runtime}: the image is read-only there",
                hint="write to a mount, or use --runtime pyxis or path",
            )
        if not all(each.isprintable() and each.startswith("-") for each in self.extra):
            raise ConfigError("an extra sbatch option begins with -", hint="for example --sbatch=--qos=high")


def script(spec: JobSpec) -> str:
    """The job script, ready for sbatch (or for a shell, with the launcher mpirun)."""
    ranks = spec.jobs.gpus_per_node
    per_node = 1 if spec.launcher == "torchrun" else ranks
    cpus = (spec.jobs.cpus_per_task or 0) * ranks // per_node  # torchrun's one task has all ranks of the node
    name = "mpirun.sh" if spec.launcher == "mpirun" else "job.sbatch"
    return render(
        name,
        spec=spec,
        jobs=spec.jobs,
        image=spec.image,
        comment=comment_for(spec.image.sha256, *(each.release.sha256 for each in spec.data)),
        tasks_per_node=per_node,
        cpus_per_task=cpus,
        time=_time(spec.jobs.time) if spec.jobs.time else "",
        gpus=spec.gpus,
        pyxis=" ".join([shlex.join(_pyxis(spec)), *_data_mounts(spec), ""]) if _pyxis(spec) else "",
        run=shlex.join(_run(spec)) + " " if _run(spec) else "",
        tool_folder=COMMAND.parent if spec.runtime in ("run", "unpack") else "",
        command=shlex.join(_command(spec)),
    )


def _time(time: timedelta) -> str:
    """DAYS-HH:MM:SS, as Slurm writes it."""
    minutes, seconds = divmod(time.seconds, 60)
    return f"{time.days}-{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def _pyxis(spec: JobSpec) -> list[str]:
    """Options of srun with which pyxis starts the image."""
    if spec.runtime == "run" or spec.launcher == "mpirun":
        return []
    image, jobs = spec.image, spec.jobs
    if spec.runtime == "unpack":  # never writable: the steps and jobs of a node use one container
        options = [f"--container-name={container_name(image.sha256)}", "--container-readonly"]
    else:
        named = f"{image.image}:{image.version}" if spec.runtime == "pyxis" else str(image.path)
        options = [f"--container-image={named}"]
    if jobs.mounts and not spec.data:
        options.append(f"--container-mounts={','.join(map(_mount, jobs.mounts))}")
    if jobs.container_writable and spec.runtime != "unpack":
        options.append("--container-writable")
    if jobs.env:  # the image's environment would win otherwise
        options.append(f"--container-env={','.join(sorted(jobs.env))}")
    return options


def _data_mounts(spec: JobSpec) -> list[str]:
    """The option with all mounts where data is among them, for a shell: $data1 is set before."""
    if not spec.data:
        return []
    mounts = [f"$data{number}:{each.inside}:ro" for number, each in enumerate(spec.data, 1)]
    return [f'--container-mounts="{",".join([*mounts, *map(_mount, spec.jobs.mounts)])}"']


def _run(spec: JobSpec) -> list[str]:
    """Our own start of the image, where there is no pyxis."""
    if spec.runtime != "run" and spec.launcher != "mpirun":
        return []
    binds = [f"--mount={_own_mount(each)}" for each in spec.jobs.mounts]
    data = [f"--data={each.release.path}={each.inside}" for each in spec.data]
    env = [f"--env={name}" for name in sorted(spec.jobs.env)]
    return ["sqshpipe", "run", *data, *binds, *env, str(spec.image.path), "--"]


def _mount(text: str) -> str:
    """SRC:DST or SRC:DST:FLAGS of a mount in which DST may be left out."""
    source, _, rest = text.partition(":")
    if rest.startswith("/"):
        return text
    return f"{source}:{source}" + (f":{rest}" if rest else "")


def _own_mount(text: str) -> str:
    """The same for `sqshpipe run`, where a mount without a flag is read-only."""
    source, inside, *flags = _mount(text).split(":")
    if flags not in ([], ["ro"], ["rw"]):
        raise ConfigError(f"without pyxis a mount is ro or rw, not {flags[0]}: {text}")
    return ":".join([source, inside, *(flags or ["rw"])])


def _command(spec: JobSpec) -> tuple[str, ...]:
    """The command; torchrun takes a script, so an interpreter or torchrun in front of it goes."""
    if spec.launcher == "torchrun" and Path(spec.command[0]).name in ("python", "python3", "torchrun"):
        return spec.command[1:]
    return spec.command
