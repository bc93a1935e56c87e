"""cluster.yaml: the few values from which bootstrap script, cluster file and job scripts are rendered."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.config import yamlfile
from pipeline.config.ecr_hosts import REGION_PATTERN, EcrHost, parse_host, partition_of
from pipeline.config.fields import SlurmTime
from pipeline.config.schema import REFS, as_file
from pipeline.errors import ConfigError

# A word that a shell, YAML and slurm.conf all take as it is.
Plain = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/:@%+=,\[\]-]+$")]
Absolute = Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/@+-]+$")]
# What stands in quotes in a shell script.
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
_INSIDE = r"/[^\s,;:'\x22$`\\]*"
Mount = Annotated[
    str,
    Field(
        pattern=rf"^{_INSIDE}(:(ro|rw)|:{_INSIDE}(:[a-z]+(\+[a-z]+)*)?)?$",
        examples=["/fsx/data:/data:ro"],
    ),
]
Script = Annotated[str, Field(pattern=r"^(https://|s3://)[^\s'\x22$`\\]+$")]
Policy = Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:iam::[a-z0-9]+:policy/[\w+=,.@/-]+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _about(text: str, **rules: Any) -> Any:
    return Field(description=text, **rules)


class Pinned(_Part):
    """One thing that the node script installs: where from, which version, and the sha256 of the file."""

    version: Plain
    url: Annotated[str, Field(pattern=r"^(https://|s3://|file:///)[^\s'\x22$`\\]+$")]
    sha256: Sha256


class Software(_Part):
    """What the node script installs. All is pinned; what is left out comes with the machine image."""

    enroot: tuple[Pinned, ...] = _about("Packages (.deb or .rpm).", default=())
    pyxis: Pinned | None = _about("Source archive: compiled for the node's own Slurm.", default=None)
    squashfuse: Pinned | None = _about("Source archive; else the distribution's package.", default=None)
    nvidia_container: tuple[Pinned, ...] = _about(
        "Packages of libnvidia-container, for nodes with a GPU.", default=()
    )
    awscli: Pinned | None = _about("The zip archive of AWS CLI 2.", default=None)


class HeadNode(_Part):
    """The head node."""

    instance: Plain = "m5.8xlarge"
    subnet: Plain = _about("A public one, or one that you reach.")
    ssh_key: Plain | None = None
    security_groups: tuple[Plain, ...] = _about("To reach an existing FSx, for example.", default=())
    root_gib: int = _about("Homes lie there, unless they are on shared storage.", default=500, ge=40)
    scripts: tuple[Script, ...] = _about("Run before ours, in this order (Docker, …).", default=())
    policies: tuple[Policy, ...] = _about("ARNs; to publish from here, one that may push to ECR.", default=())


class Gpu(_Part):
    """The queue of GPU nodes."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,24}$")] = "gpu"
    instance: Plain = "p4d.24xlarge"
    subnet: Plain = _about("A private one, with a way to the internet.")
    security_groups: tuple[Plain, ...] = _about("To reach an existing FSx, for example.", default=())
    min: int = _about("Nodes that always run.", default=0, ge=0)
    max: int = Field(default=4, ge=1)
    efa: bool = True
    placement_group: bool = _about("Not used with a reservation, which has its own.", default=True)
    capacity: Literal["ONDEMAND", "SPOT", "CAPACITY_BLOCK"] = "ONDEMAND"
    capacity_reservation: Annotated[str, Field(pattern=r"^cr-[0-9a-f]+$")] | None = None
    reserved: int | None = _about("Instances in that reservation: min and max fit it.", default=None, ge=1)
    exclusive: bool = _about("A job has its nodes for itself.", default=True)
    idle_minutes: int = _about("Before an idle node ends; -1: never.", default=10, ge=-1)
    root_gib: int = Field(default=512, ge=40)
    scripts: tuple[Script, ...] = _about("Run before ours, in this order (Docker, …).", default=())
    policies: tuple[Policy, ...] = _about("ARNs, for what jobs may do.", default=())

    @model_validator(mode="after")
    def _fits_the_reservation(self) -> Gpu:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        if self.capacity == "CAPACITY_BLOCK" and (self.capacity_reservation is None or self.min != self.max):
            raise ValueError("a capacity block needs capacity_reservation, and min as large as max")
        if self.reserved is not None and self.capacity_reservation is None:
            raise ValueError("reserved belongs to capacity_reservation")
        if self.reserved is not None and self.max > self.reserved:
            raise ValueError(f"max {self.max} is more than the {self.reserved} that are reserved")
        return self


class Lustre(_Part):
    """FSx for Lustre, for data and checkpoints: one that exists, or a new one, which is kept."""

    mount: Absolute = "/lustre"
    id: Plain | None = _about("Of one that exists.", default=None)
    gib: int = Field(default=1200, ge=1200)
    throughput: Literal[125, 250, 500, 1000] = _about("MB/s per TiB.", default=250)

    @field_validator("gib")
    @classmethod
    def _whole_servers(cls, gib: int) -> int:
        if gib != 1200 and gib % 2400:
            raise ValueError("FSx for Lustre has 1200 GiB or a multiple of 2400")
        return gib


class OpenZfs(_Part):
    """An FSx for OpenZFS volume that exists, for images and code."""

    mount: Absolute = "/fsx"
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
        default=None, description="As Slurm writes it, `90` (minutes), `00:05:00`, `2-00:00:00`, or `2h`."
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
    """All of cluster.yaml. `${NAME}` in a value is from the environment, `${NAME:-word}` with a default."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,59}$")] = "gpu-cluster"
    region: Annotated[str, Field(pattern=REGION_PATTERN)] = "us-east-1"
    os: Literal["ubuntu2204", "ubuntu2404", "alinux2023"] = "ubuntu2204"
    store: Absolute = _about("Where images are published: on shared storage.", default="/fsx/containers")
    registries: tuple[Plain, ...] = _about(
        "HOST/PREFIX whose repositories are images of the store.", default=()
    )
    ecr_credentials: Literal["substitution", "timer", "none"] = _about(
        "How enroot gets a token: a command that it runs itself, or a file that is renewed every 6 hours.",
        default="substitution",
    )
    missing: Literal["refuse", "import"] = _about("For a name that is not published.", default="refuse")
    require_signature: str | None = _about(
        "PEM text of public keys: what they did not sign does not resolve on a node.", default=None
    )
    prefix: Absolute = _about("Where sqshpipe's parts lie on a node.", default="/opt/sqshpipe")
    tool: Absolute = _about(
        "Where `sqshpipe node install --tool` put sqshpipe, on shared storage; nodes get a link to it.",
        default="/fsx/sqshpipe",
    )
    local: Absolute = _about("On the node's own NVMe disk.", default="/opt/dlami/nvme/sqshpipe")
    software: Software = Software()
    existing: Literal["use", "leave"] = _about(
        "The enroot and pyxis that a node has: `use` configures them for the store, `leave` changes no file"
        " of theirs or of Slurm's. What software pins replaces them.",
        default="use",
    )
    mounts: Literal["kernel", "fuse"] = _about(
        "`kernel`: Slurm's Prolog mounts the images of a job by the kernel, on nodes with Linux 6.2 or later."
        " docs/security.md says what that means.",
        default="fuse",
    )
    plugstack: Literal["optional", "required"] = _about(
        "`required`: slurmd does not start when pyxis does not load.", default="optional"
    )
    head: HeadNode | None = None
    gpu: Gpu | None = None
    lustre: Lustre | None = None
    openzfs: OpenZfs | None = None
    pull_policy: Policy | None = _about(
        "For every node; left out: AWS's own that may only pull from ECR.", default=None
    )
    scripts: Annotated[str, Field(pattern=r"^s3://[a-z0-9.-]+(/[A-Za-z0-9._-]+)*$")] | None = _about(
        "The folder in S3 where bootstrap.sh lies.", default=None
    )
    jobs: Jobs = Jobs()
    extra: dict[str, Any] = _about(
        "Merged into the cluster file, so that all that ParallelCluster knows can be written.", default={}
    )

    @field_validator("registries")
    @classmethod
    def _no_scheme(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if any("://" in name for name in names):
            raise ValueError("write HOST/PREFIX without https://")
        return names

    @model_validator(mode="after")
    def _nothing_replaces_what_is_left(self) -> ClusterSettings:
        if self.existing == "leave" and self.software != Software():
            raise ValueError("existing: leave installs nothing: take the pins out of software, or write use")
        if self.existing == "leave" and self.mounts == "kernel":
            raise ValueError("existing: leave changes no file of Slurm: write existing: use, or mounts: fuse")
        return self

    @property
    def aws_policies(self) -> str:
        """How the ARN of a policy that AWS itself wrote begins, in the partition of the region."""
        return f"arn:{partition_of(self.region).name}:iam::aws:policy"

    @property
    def ecr_hosts(self) -> tuple[EcrHost, ...]:
        """Registries of ECR among the declared ones; ``str()`` of one is its host name."""
        hosts = (parse_host(name.partition("/")[0]) for name in self.registries)
        return tuple(dict.fromkeys(host for host in hosts if host is not None))


def load(path: Path) -> ClusterSettings:
    """Read cluster.yaml. Raises ConfigError that names the file, the line and the key."""
    return _checked(_read(path), lambda value: value)


def _read(path: Path) -> yamlfile.Document:
    return yamlfile.read(path, missing_hint="sqshpipe cluster init writes one; --values names another")


def _checked(document: yamlfile.Document, part: Callable[[Any], Any]) -> ClusterSettings:
    try:
        return parse(_from_environment(document, part(document.value or {}), ()))
    except ValidationError as error:
        problems = [f"{document.where(each['loc'])}: {each['msg']}" for each in error.errors()[:4]]
        raise ConfigError(
            "; ".join(problems),
            hint="docs/reference/cluster.md lists the keys",
        ) from error


def _from_environment(document: yamlfile.Document, value: Any, key: yamlfile.Key) -> Any:
    """The value with each ${NAME} and ${NAME:-word} in it filled from the environment; $${ is a plain ${."""
    if isinstance(value, dict):
        return {name: _from_environment(document, each, (*key, name)) for name, each in value.items()}
    if isinstance(value, list):
        return [_from_environment(document, each, (*key, place)) for place, each in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match[str]) -> str:
        name, default = found["name"], found["default"]
        if name is None:
            return "${"
        filled = os.environ.get(name) or default
        if filled is None:
            raise document.error(key, f"{name} is not set", hint=f"export {name}, or write the value there")
        return filled

    return re.sub(r"\$\$\{|\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}", fill, value)


def _part_for_jobs(values: Any) -> Any:
    """Jobs, and the kind of nodes: who submits a job need not have the variables of who made the cluster."""
    if not isinstance(values, dict) or not isinstance(values.get("gpu"), dict):
        return values if not isinstance(values, dict) else {"jobs": values.get("jobs") or {}}
    instance = {"instance": values["gpu"]["instance"]} if "instance" in values["gpu"] else {}
    return {"jobs": values.get("jobs") or {}, "gpu": {"subnet": "any", **instance}}


def load_jobs(path: Path) -> Jobs:
    """What job scripts need of cluster.yaml, with defaults that fit its nodes. Raises ConfigError."""
    made = _checked(_read(path), _part_for_jobs)
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


def load_pyxis(path: Path) -> tuple[int, ...] | None:
    """The version of pyxis that cluster.yaml pins. Raises ConfigError for a file that cannot be read."""
    pinned: Any = _read(path).value
    for key in ("software", "pyxis", "version"):
        pinned = pinned.get(key) if isinstance(pinned, dict) else None
    numbers = re.match(r"v?(\d+(?:\.\d+)+)", str(pinned))
    return tuple(map(int, numbers[1].split("."))) if numbers else None


def parse(values: Any) -> ClusterSettings:
    """Check values that were read elsewhere. Raises pydantic's ValidationError."""
    return ClusterSettings.model_validate(values)


def json_schema() -> dict[str, Any]:
    """The JSON schema of cluster.yaml, for editors: where a value is wanted, ${NAME} may stand."""
    schema: dict[str, Any] = _or_variable(ClusterSettings.model_json_schema(ref_template=REFS))
    return as_file("cluster", schema)


def _or_variable(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_or_variable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("string", "integer", "number", "boolean"):
        kept = {key: schema[key] for key in ("title", "description", "default", "examples") if key in schema}
        value = {key: each for key, each in schema.items() if key not in kept}
        return {**kept, "anyOf": [value, {"type": "string", "pattern": r"\$\{"}]}
    return {key: each if key == "default" else _or_variable(each) for key, each in schema.items()}
