"""cluster.yaml: the few values from which bootstrap script, cluster file and job scripts are rendered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from pipeline.config import yamlfile
from pipeline.errors import ConfigError

# A word that a shell, YAML and slurm.conf all take as it is.
Plain = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/:@%+=,\[\]-]+$")]
Absolute = Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/@+-]+$")]
# 123456789012.dkr.ecr.us-east-1.amazonaws.com, and the dual-stack 123456789012.dkr-ecr.us-east-1.on.aws
_ECR = re.compile(r"[0-9]{12}\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.[a-z0-9.]+")
# What stands in quotes in a shell script.
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
_INSIDE = r"/[^\s,;:'\"$`\\]*"
Mount = Annotated[
    str,
    Field(
        pattern=rf"^{_INSIDE}(:(ro|rw)|:{_INSIDE}(:[a-z]+(\+[a-z]+)*)?)?$",
        examples=["/fsx/data:/data:ro"],
    ),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _slurm_time(value: object) -> object:
    """A time as Slurm writes it, as text; a plain number is minutes."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    forms = r"[0-9]+|[0-9]+:[0-9]{2}(:[0-9]{2})?|[0-9]+-[0-9]{1,2}(:[0-9]{2}(:[0-9]{2})?)?|UNLIMITED"
    if isinstance(text, str) and re.fullmatch(forms, text):
        return text
    raise ValueError("write minutes, MM:SS, HH:MM:SS, DAYS-HH, DAYS-HH:MM, DAYS-HH:MM:SS or UNLIMITED")


SlurmTime = Annotated[str, BeforeValidator(_slurm_time)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pinned(_Part):
    """One thing that the bootstrap script installs: where from, which version, and the sha256 of the file."""

    version: Plain
    url: Annotated[str, Field(pattern=r"^(https://|s3://|file:///)[^\s'\"$`\\]+$")]
    sha256: Sha256


class Software(_Part):
    """What goes onto a node; everything is pinned, nothing is looked up."""

    enroot: tuple[Pinned, ...] = ()  # packages (.deb or .rpm), or one source archive
    pyxis: Pinned | None = None  # source archive: it is compiled against the node's own Slurm
    squashfuse: Pinned | None = (
        None  # source archive; without it the distribution's package, where it has one
    )
    nvidia_container: tuple[Pinned, ...] = ()  # packages of libnvidia-container, for nodes with a GPU
    awscli: Pinned | None = None  # the zip archive of AWS CLI 2


class Node(_Part):
    """A kind of instance."""

    instance: Plain
    subnet: Plain
    ssh_key: Plain | None = None


class Gpu(_Part):
    """The queue of GPU nodes."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,24}$")] = "gpu"
    instance: Plain = "p4d.24xlarge"
    subnet: Plain
    min: int = Field(default=0, ge=0)
    max: int = Field(default=4, ge=1)
    gpus: int = Field(default=8, ge=1, le=16)
    efa: bool = True
    placement_group: bool = True
    capacity_reservation: Annotated[str, Field(pattern=r"^cr-[0-9a-f]+$")] | None = None
    idle_minutes: int = Field(default=10, ge=1)


class Lustre(_Part):
    """FSx for Lustre: one that exists, or a new PERSISTENT_2 one."""

    mount: Absolute = "/fsx"
    id: Plain | None = None
    gib: int = Field(default=1200, ge=1200)
    throughput: Literal[125, 250, 500, 1000] = 250  # MB/s per TiB: PERSISTENT_2 does not work without it

    @field_validator("gib")
    @classmethod
    def _whole_servers(cls, gib: int) -> int:
        if gib != 1200 and gib % 2400:
            raise ValueError("FSx for Lustre has 1200 GiB or a multiple of 2400")
        return gib


class OpenZfs(_Part):
    """An FSx for OpenZFS volume that exists, for homes."""

    mount: Absolute = "/home"
    volume: Plain


# Physical cores of usual GPU nodes: the cluster file switches SMT off, so these are what Slurm can give away.
CORES = {
    "p3dn.24xlarge": 48,
    "p4d.24xlarge": 48,
    "p4de.24xlarge": 48,
    "p5.48xlarge": 96,
    "p5e.48xlarge": 96,
    "p5en.48xlarge": 96,
    "p6-b200.48xlarge": 96,
    "g5.12xlarge": 24,
    "g5.24xlarge": 48,
    "g5.48xlarge": 96,
    "g6.12xlarge": 24,
    "g6.24xlarge": 48,
    "g6.48xlarge": 96,
    "g6e.12xlarge": 24,
    "g6e.24xlarge": 48,
    "g6e.48xlarge": 96,
}


class Jobs(_Part):
    """What every job script gets."""

    partition: Plain | None = None
    gpus_per_node: int = Field(default=8, ge=1, le=16)
    cpus_per_task: int | None = Field(
        default=None,
        ge=1,
        description="For each rank; left out: the node's cores by its GPUs, where gpu.instance is known.",
    )
    time: SlurmTime | None = Field(
        default=None, description="As Slurm writes it: `90` (minutes), `00:05:00`, `2-00:00:00`."
    )
    mounts: tuple[Mount, ...] = Field(
        default=(),
        description="`/fsx`, `/fsx/data:/data` or `/fsx/data:/data:ro`; read-only only with `:ro`.",
    )
    container_writable: bool = Field(
        default=False,
        description="srun --container-writable: changes to the image's own files last until the step ends.",
    )
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], OneLine] = {"NCCL_DEBUG": "WARN"}
    port: int = Field(
        default=29500, ge=1024, le=65535, description="Where the ranks meet, on the first node."
    )


class ClusterSettings(_Part):
    """All of cluster.yaml."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,59}$")] = "gpu-cluster"
    region: Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")] = "us-east-1"
    os: Literal["ubuntu2204", "ubuntu2404", "alinux2023"] = "ubuntu2204"
    store: Absolute = "/fsx/containers"
    registries: tuple[Plain, ...] = ()  # HOST/PREFIX whose repositories are images of the store
    ecr_credentials: Literal["substitution", "timer", "none"] = "substitution"
    missing: Literal["refuse", "import"] = "refuse"
    prefix: Absolute = "/opt/sqshpipe"
    local: Absolute = "/opt/dlami/nvme/sqshpipe"  # on the node's own NVMe
    software: Software = Software()
    plugstack: Literal["optional", "required"] = "optional"  # required: without pyxis slurmd does not start
    head: Node | None = None
    gpu: Gpu | None = None
    lustre: Lustre | None = None
    openzfs: OpenZfs | None = None
    pull_policy: Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:iam::[a-z0-9]+:policy/[\w+=,.@/-]+$")] = (
        "arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly"  # or a narrower one of your own
    )
    scripts: Annotated[str, Field(pattern=r"^s3://[a-z0-9.-]+(/[A-Za-z0-9._-]+)*$")] | None = None
    jobs: Jobs = Jobs()

    @field_validator("registries")
    @classmethod
    def _no_scheme(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if any("://" in name for name in names):
            raise ValueError("write HOST/PREFIX without https://")
        return names

    @property
    def ecr_hosts(self) -> tuple[str, ...]:
        """Registries of ECR among the declared ones."""
        hosts = (name.partition("/")[0] for name in self.registries)
        return tuple(dict.fromkeys(host for host in hosts if _ECR.fullmatch(host)))

    @staticmethod
    def region_of(ecr_host: str) -> str:
        """The region in the name of one of `ecr_hosts`."""
        return _ECR.sub(r"\1", ecr_host)


def load(path: Path) -> ClusterSettings:
    """Read cluster.yaml. Raises ConfigError that names the file, the line and the key."""
    document = yamlfile.read(path, missing_hint="give --values FILE")
    try:
        return parse(document.value or {})
    except ValidationError as error:
        problems = [f"{document.where(each['loc'])}: {each['msg']}" for each in error.errors()[:4]]
        raise ConfigError("; ".join(problems), hint="docs/cluster.md lists the keys") from error


def load_jobs(path: Path) -> Jobs:
    """What job scripts need of cluster.yaml, with defaults that fit its nodes. Raises ConfigError."""
    made = load(path)
    instance, jobs = made.gpu.instance if made.gpu else "", made.jobs
    cores = CORES.get(instance)
    if cores is None:
        return jobs
    most = cores // jobs.gpus_per_node
    if (jobs.cpus_per_task or 0) > most:
        raise ConfigError(
            f"{path}, jobs: {jobs.gpus_per_node} tasks of {jobs.cpus_per_task} CPUs do not fit {instance}:"
            f" without SMT it has {cores}, so a job would stay pending",
            hint=f"cpus_per_task: {most}, or leave it out",
        )
    return jobs.model_copy(update={"cpus_per_task": jobs.cpus_per_task or most})


def parse(values: Any) -> ClusterSettings:
    """Check values that were read elsewhere. Raises pydantic's ValidationError."""
    return ClusterSettings.model_validate(values)
