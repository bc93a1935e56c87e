"""images.yaml as pydantic models: the text from outside is checked here. `schema` makes the JSON schema.

Each model has the file's keys and the built-in defaults. Settings that ``defaults`` and an image share live
in `ImageSettings`; what an image leaves out is taken from ``defaults``, key by key, also inside ``convert``,
``scan`` and ``slurm``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.config import names
from pipeline.config.ecr_hosts import REGION_PATTERN
from pipeline.config.fields import (
    ArgumentName,
    BlockSize,
    Channel,
    Duration,
    ImageName,
    PlatformText,
    ReferenceText,
    Size,
    SlurmTime,
)
from pipeline.config.secret_names import looks_secret
from pipeline.config.tag_pattern import Pattern


class Model(BaseModel):
    """Strict: an unknown key is an error, and so is a number in place of a text (4.10 would become 4.1)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EcrModel(Model):
    """An AWS account's registry."""

    account: str = Field(pattern=r"^[0-9]{12}$", description="AWS account, 12 digits in quotes.")
    region: str = Field(pattern=REGION_PATTERN, description="AWS region.", examples=["us-east-1"])
    prefix: str = Field(default="", description="Put before each repository.", examples=["team/training"])
    immutable: bool = Field(default=True, description="Whether a tag stays on its image: it cannot be moved.")
    scanning: Literal["basic", "enhanced", "off"] = Field(
        default="basic", description="How ECR scans pushed images; `enhanced` uses Amazon Inspector."
    )
    kms_key: str | None = Field(
        default=None, min_length=1, description="KMS key for new repositories. Without it: ECR's own AES-256."
    )
    untagged_days: int = Field(
        default=14, ge=1, description="Images without a tag are deleted after this number of days."
    )
    signing_profile: str | None = Field(
        default=None,
        pattern=r"^arn:aws(-[a-z]+)*:signer:[a-z0-9-]+:[0-9]{12}:/signing-profiles/[a-zA-Z0-9_]{2,}$",
        description="ARN of an AWS Signer profile with which ECR signs what is pushed.",
    )


class RegistryModel(Model):
    """Where images are pushed: url or ecr."""

    url: str | None = Field(
        default=None, description="`host[:port][/path]`; with `http://` before it for plain HTTP."
    )
    ecr: EcrModel | None = Field(default=None, description="A registry in AWS.")
    plain_http: bool = Field(
        default=False, description="Use HTTP without TLS. Loopback hosts do not need this."
    )

    @model_validator(mode="after")
    def _one(self) -> RegistryModel:
        if (self.url is None) == (self.ecr is None):
            raise ValueError("give exactly one of url and ecr")
        return self


class StripeModel(Model):
    """Lustre striping of the store's files."""

    count: int = Field(ge=-1, description="Number of storage targets; -1 for all.")
    size: str = Field(default="4M", pattern=r"^[1-9][0-9]*[KMG]$", description="Bytes of one stripe.")


class StoreModel(Model):
    """The shared folder of releases."""

    root: str = Field(min_length=1, description="The folder.", examples=["/fsx/containers"])
    group: str | None = Field(
        default=None, description="Group of the store's files; its members may publish."
    )
    stripe: StripeModel | None = Field(default=None, description="How Lustre distributes each file.")
    grace: Duration = Field(
        default=timedelta(days=30),
        description="How long a release stays after the last channel that named it moved on.",
    )
    delete_after: Duration = Field(
        default=timedelta(days=14),
        description="How long a hidden release keeps its bytes: longer than the longest job.",
    )
    trust_synced: bool = Field(
        default=False, description="Take layers and whole files from releases that sync brought."
    )
    s3: str | None = Field(
        default=None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]*(/.*)?$",
        description="Copy of this store that `store sync` makes: `native` takes layers from there too. "
        "Needs `trust_synced`.",
        examples=["s3://bucket/containers"],
    )
    require_signature: str | None = Field(
        default=None,
        min_length=1,
        description="Public key (PEM file, awskms:KEY-ID): a release that it did not sign does not resolve.",
        examples=["keys/release.pub"],
    )

    @model_validator(mode="after")
    def _trusted(self) -> StoreModel:
        if self.s3 and not self.trust_synced:
            raise ValueError("s3 needs trust_synced: true, which trusts whoever writes to the bucket")
        return self


class LimitsModel(Model):
    """Limits of every image: a conversion that exceeds one ends with exit code 6."""

    unpacked: Size = Field(
        default=1 << 40, description="Bytes of all files of an image, and of one unpacked layer."
    )
    ratio: int = Field(
        default=250,
        ge=1,
        description="Unpacked bytes for each stored byte; checked above 4G (64G for holes of sparse files).",
    )
    entries: int = Field(default=8_000_000, ge=1, description="Number of tar entries in all layers together.")
    devices: Literal["keep", "refuse"] = Field(
        default="keep", description="Device nodes outside `/dev`. Those inside it are always left out."
    )
    setuid: Literal["keep", "refuse"] = Field(
        default="keep", description="Files with setuid or setgid. Containers ignore these bits."
    )


class ConvertModel(Model):
    """How the .sqsh is made."""

    converter: Literal["auto", "enroot", "mksquashfs", "native"] = Field(
        default="auto", description="`auto` uses enroot where it is installed, else `native`."
    )
    compressor: Literal["zstd", "gzip", "lz4"] = Field(
        default="zstd",
        description="`gzip` for kernels without zstd, `lz4` for the fastest reads.",
    )
    zstd_level: int = Field(default=3, ge=1, le=22, description="From 1 (fast) to 22 (small).")
    block_size: BlockSize = Field(default=131072, description="A power of two from 4K to 1M.")
    keep_owners: bool = Field(
        default=False, description="Keep uid and gid; otherwise all files belong to root."
    )
    keep_xattrs: bool = Field(default=False, description="Keep extended attributes.")
    early: bool = Field(
        default=True,
        description="`native` packs layers during build and scan. The result is the same.",
    )


class VexModel(Model):
    """OpenVEX statements, which excuse findings as waivers do."""

    files: list[str] = Field(default=[], description="OpenVEX files, relative to the folder of images.yaml.")
    attached: bool = Field(
        default=False,
        description="Also statements in the registry: whoever can push there can excuse findings.",
    )
    max_age: Duration = Field(default=timedelta(days=90), description="How long a statement counts.")


class ScanModel(Model):
    """When a scan blocks a release."""

    scanner: Literal["auto", "none", "ecr", "trivy"] = Field(
        default="auto", description="`auto` is ECR's scan in ECR, else trivy; `none` publishes as unscanned."
    )
    fail_on: Literal["low", "medium", "high", "critical", "never"] = Field(
        default="high", description="The lowest severity that blocks."
    )
    new_since_base: bool = Field(default=False, description="Ignore findings that the base already has.")
    fixable_only: bool = Field(default=False, description="Ignore findings for which there is no update.")
    waivers: str | None = Field(
        default=None, description="A file of waivers, from the folder of images.yaml."
    )
    vex: VexModel = VexModel()
    ignore_packages: list[str] = Field(
        default=[],
        description="Packages whose findings never block, as shell patterns.",
        examples=[["linux-*"]],
    )
    published: Literal["report", "yank"] = Field(
        default="report", description="When a rescan rejects a published image: report it, or also yank it."
    )
    max_age: Duration = Field(
        default=timedelta(days=1), description="A scan result that is older is not accepted."
    )
    timeout: Duration = Field(
        default=timedelta(minutes=30), description="How long to wait for a scan result."
    )


class SecretModel(Model):
    """A BuildKit secret: from an environment variable or a file."""

    env: str | None = Field(
        default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Environment variable with the secret."
    )
    file: str | None = Field(
        default=None, description="File with the secret; relative to the folder of images.yaml."
    )

    @model_validator(mode="after")
    def _one(self) -> SecretModel:
        if (self.env is None) == (self.file is None):
            raise ValueError("give exactly one of env and file")
        return self


class TrackModel(Model):
    """Which tags of the base are newer versions of it."""

    pattern: str = Field(min_length=1, description="The form of these tags.", examples=["YY.MM-py3"])
    policy: Literal["newest", "notify"] = Field(
        default="notify", description="`newest` changes to the newest tag, `notify` only reports it."
    )

    @field_validator("pattern")
    @classmethod
    def _orders(cls, pattern: str) -> str:
        Pattern.parse(pattern)
        return pattern


class SlurmModel(Model):
    """Resources of an image's job with ``--executor slurm``."""

    partition: str | None = Field(default=None, description="Slurm partition; else the default one.")
    account: str | None = Field(default=None, description="Slurm account that is charged.")
    time: SlurmTime = Field(
        default=timedelta(hours=2), description="Time limit of the job; Slurm's own forms are also valid."
    )
    cpus: int = Field(default=4, ge=1, description="CPUs of the job.")
    memory: str | None = Field(
        default=None, pattern=r"^[1-9][0-9]*[KMGT]?$", description="Memory of the job.", examples=["32G"]
    )
    constraint: str | None = Field(default=None, description="Features that the node must have.")


class ImageSettings(Model):
    """Keys of ``defaults``, which each image can also set for itself."""

    platform: PlatformText = Field(
        default="linux/amd64", description="Platform of the image.", examples=["linux/arm64"]
    )
    convert: ConvertModel = ConvertModel()
    scan: ScanModel = ScanModel()
    slurm: SlurmModel = SlurmModel()
    channels: list[Channel] = Field(
        default=[names.DEFAULT_CHANNEL],
        description="Channels that name a new release at once. Others are moved by `promote`.",
    )
    keep: int = Field(default=5, ge=1, description="Number of releases that `store prune` always keeps.")
    max_age: Duration | None = Field(
        default=None, description="Rebuild after this time even if no input has changed."
    )
    track: TrackModel | None = None
    test_on: list[Annotated[str, Field(pattern=r"^-\S+$")]] | None = Field(
        default=None,
        description="Options of srun for the node that runs `test`. Without them: this host.",
        examples=[["--partition=gpu", "--gpus=1"]],
    )


class ImageModel(ImageSettings):
    """One image; without a Dockerfile the base is mirrored unchanged."""

    base: ReferenceText = Field(
        description="The image to build on, or to mirror.", examples=["nvcr.io/nvidia/pytorch:24.01-py3"]
    )
    dockerfile: str | None = Field(
        default=None, description="Path of the Dockerfile, relative to the folder of images.yaml."
    )
    context: str | None = Field(
        default=None, description="Folder that is sent to the builder. Without it: the Dockerfile's folder."
    )
    build_args: dict[ArgumentName, str] = Field(
        default={}, description="Values of the Dockerfile's `ARG` instructions, by name."
    )
    secrets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")], SecretModel] = Field(
        default={}, description="Secrets of the build by id, for `RUN --mount=type=secret`."
    )
    target: str | None = Field(
        default=None, description="Stage of the Dockerfile to build. Without it: the last one."
    )
    compression: Literal["zstd"] | None = Field(
        default=None,
        description="Compression of the layers that are built; the base's stay as they are. `zstd` needs a "
        "Docker Engine with the containerd image store. Without it: as the engine does, gzip.",
    )
    test: list[str] = Field(
        default=[],
        description="Shell commands that must succeed in the finished .sqsh before it is published.",
        examples=[["python -c 'import torch; assert torch.cuda.is_available()'"]],
    )

    @field_validator("build_args")
    @classmethod
    def _no_secrets(cls, arguments: dict[str, str]) -> dict[str, str]:
        for name in arguments:
            if looks_secret(name):
                raise ValueError(
                    f"{name} looks like a secret, and build arguments end in the image's history; "
                    "use secrets: and RUN --mount=type=secret"
                )
        return arguments

    @model_validator(mode="after")
    def _mirror_builds_nothing(self) -> ImageModel:
        if self.dockerfile is None:
            building = ("context", "build_args", "secrets", "target", "compression")
            given = [key for key in building if key in self.model_fields_set]
            if given:
                raise ValueError(f"{given[0]} needs a dockerfile: without one the base is mirrored unchanged")
        return self


class NotifyModel(Model):
    """Where notifications go: exactly one of sns, webhook_env and command."""

    sns: str | None = Field(default=None, pattern=r"^arn:", description="ARN of an SNS topic.")
    webhook_env: str | None = Field(
        default=None, description="Environment variable with the URL of a webhook."
    )
    command: list[str] | None = Field(
        default=None, min_length=1, description="Program with arguments; it reads the event as JSON on stdin."
    )
    on: list[Literal["published", "blocked", "failed", "base-moved"]] = Field(
        default=["published", "blocked", "failed", "base-moved"],
        min_length=1,
        description="Events to send.",
    )

    @model_validator(mode="after")
    def _one(self) -> NotifyModel:
        if sum(value is not None for value in (self.sns, self.webhook_env, self.command)) != 1:
            raise ValueError("give exactly one of sns, webhook_env and command")
        return self


class ImagesFile(Model):
    """images.yaml of sqshpipe."""

    version: Literal[1] = Field(description="Version of this format: 1.")
    registry: RegistryModel | None = None
    store: StoreModel | None = None
    cache: str | None = Field(
        default=None, description="Folder for layer packs and blobs that later runs reuse."
    )
    scratch: str | None = Field(default=None, description="Folder on a local disk for temporary files.")
    limits: LimitsModel = LimitsModel()
    notify: list[NotifyModel] = Field(default=[], description="Where notifications go.")
    defaults: ImageSettings = ImageSettings()
    images: dict[ImageName, ImageModel] = Field(min_length=1, description="Images by name.")
