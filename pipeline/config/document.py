"""images.yaml as pydantic models: the text from outside is checked here, and the JSON schema comes from here.

Each model has the file's keys and the built-in defaults. Settings that ``defaults`` and an image share live
in `ImageSettings`; what an image leaves out is taken from ``defaults``, key by key, also inside ``convert``,
``scan`` and ``slurm``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from pipeline.config import names
from pipeline.config.ecr_hosts import REGION_PATTERN
from pipeline.config.fields import BlockSize, Duration, Size, SlurmTime
from pipeline.config.secret_names import looks_secret
from pipeline.config.tag_pattern import Pattern
from pipeline.errors import SqshpipeError
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference


def _checked(check: Callable[[str], object]) -> AfterValidator:
    """A validator that says what one of our own parsers says, and keeps the text."""

    def validate(text: str) -> str:
        try:
            check(text)
        except SqshpipeError as error:
            raise ValueError(str(error)) from None
        return text

    return AfterValidator(validate)


ReferenceText = Annotated[str, _checked(Reference.parse)]
PlatformText = Annotated[str, _checked(Platform.parse)]
ImageName = Annotated[str, _checked(names.check_image)]
Channel = Annotated[str, _checked(names.check_channel)]
ArgumentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Model(BaseModel):
    """Strict: an unknown key is an error, and a number is no text (4.10 would become 4.1)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EcrModel(Model):
    """An AWS account's registry."""

    account: str = Field(pattern=r"^[0-9]{12}$", description="AWS account, 12 digits in quotes.")
    region: str = Field(pattern=REGION_PATTERN, examples=["us-east-1"])
    prefix: str = Field(default="", description="Put before each repository.", examples=["team/training"])
    immutable: bool = Field(default=True, description="Whether a tag, once put, stays on its image.")
    scanning: Literal["basic", "enhanced", "off"] = Field(
        default="basic", description="Which scan ECR makes of what is pushed; enhanced is Amazon Inspector's."
    )
    kms_key: str | None = Field(
        default=None, min_length=1, description="KMS key for new repositories; AES-256 of ECR if left out."
    )
    untagged_days: int = Field(
        default=14, ge=1, description="After how many days images without any tag are deleted."
    )
    signing_profile: str | None = Field(
        default=None,
        pattern=r"^arn:aws(-[a-z]+)*:signer:[a-z0-9-]+:[0-9]{12}:/signing-profiles/[a-zA-Z0-9_]{2,}$",
        description="ARN of an AWS Signer profile with which ECR signs what is pushed.",
    )


class RegistryModel(Model):
    """Where images are pushed: url or ecr."""

    url: str | None = Field(default=None, description="host[:port][/path], or with http:// for plain HTTP.")
    ecr: EcrModel | None = None
    plain_http: bool = Field(default=False, description="Speak HTTP; loopback hosts need no such word.")

    @model_validator(mode="after")
    def _one(self) -> RegistryModel:
        if (self.url is None) == (self.ecr is None):
            raise ValueError("give exactly one of url and ecr")
        return self


class StripeModel(Model):
    """Lustre striping of the store's files."""

    count: int = Field(ge=-1, description="On how many targets; -1: on all.")
    size: str = Field(default="4M", pattern=r"^[1-9][0-9]*[KMG]$", description="Bytes of a piece.")


class StoreModel(Model):
    """The shared folder of releases."""

    root: str = Field(min_length=1, examples=["/fsx/containers"])
    group: str | None = Field(default=None, description="Group that the store's files get.")
    stripe: StripeModel | None = Field(default=None, description="How Lustre spreads each file.")
    grace: Duration = Field(
        default=timedelta(days=30), description="How long a release stays after its last channel has left it."
    )
    delete_after: Duration = Field(
        default=timedelta(days=14), description="How long bytes outlive hiding: longer than the longest job."
    )
    require_signature: str | None = Field(
        default=None,
        min_length=1,
        description="Public key (PEM file, awskms:KEY-ID): a release that it did not sign does not resolve.",
        examples=["keys/release.pub"],
    )


class LimitsModel(Model):
    """What no image may exceed, whoever made it: beyond it a conversion ends with exit code 6."""

    unpacked: Size = Field(default=1 << 40, description="Bytes of an image's files, and of a layer unpacked.")
    ratio: int = Field(
        default=250,
        ge=1,
        description="Bytes unpacked for one byte stored, looked at beyond 4G (holes of sparse files: 64G).",
    )
    entries: int = Field(default=8_000_000, ge=1, description="Members of all layers together.")
    devices: Literal["keep", "refuse"] = Field(
        default="keep", description="What to do with device nodes outside /dev, which is left out anyway."
    )
    setuid: Literal["keep", "refuse"] = Field(
        default="keep", description="What to do with setuid and setgid files; no container heeds those bits."
    )


class ConvertModel(Model):
    """How the .sqsh is made."""

    converter: Literal["auto", "enroot", "mksquashfs", "native"] = "auto"
    compressor: Literal["zstd", "gzip", "lz4"] = Field(
        default="zstd",
        description="`gzip` for kernels without zstd, `lz4` for the quickest reads.",
    )
    zstd_level: int = Field(default=3, ge=1, le=22)
    block_size: BlockSize = Field(default=131072, description="A power of two from 4K to 1M.")
    keep_owners: bool = Field(
        default=False, description="Keep uid and gid; otherwise all files belong to root."
    )
    keep_xattrs: bool = False
    early: bool = Field(
        default=True,
        description="Let `native` pack layers beside build and scan; the file stays the same.",
    )


class VexModel(Model):
    """OpenVEX statements that count beside waivers."""

    files: list[str] = Field(default=[], description="OpenVEX files, from the folder of images.yaml.")
    attached: bool = Field(
        default=False,
        description="Also those that refer to the image in its registry; who can push can excuse findings.",
    )
    max_age: Duration = Field(default=timedelta(days=90), description="How long a statement counts.")


class ScanModel(Model):
    """When a scan blocks a release."""

    scanner: Literal["auto", "none", "ecr", "trivy"] = "auto"
    fail_on: Literal["low", "medium", "high", "critical", "never"] = Field(
        default="high", description="The lowest severity that blocks."
    )
    new_since_base: bool = Field(default=False, description="Count only what the base did not bring.")
    fixable_only: bool = Field(default=False, description="Count only what an update would fix.")
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
        default="report", description="What to do when a published image has become unacceptable."
    )
    max_age: Duration = Field(default=timedelta(days=1), description="How old a verdict may be.")
    timeout: Duration = Field(default=timedelta(minutes=30), description="How long to wait for a result.")


class SecretModel(Model):
    """A BuildKit secret: from an environment variable or a file."""

    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    file: str | None = None

    @model_validator(mode="after")
    def _one(self) -> SecretModel:
        if (self.env is None) == (self.file is None):
            raise ValueError("give exactly one of env and file")
        return self


class TrackModel(Model):
    """Which newer tags of the base count."""

    pattern: str = Field(min_length=1, examples=["YY.MM-py3"])
    policy: Literal["newest", "notify"] = "notify"

    @field_validator("pattern")
    @classmethod
    def _orders(cls, pattern: str) -> str:
        Pattern.parse(pattern)
        return pattern


class SlurmModel(Model):
    """What one image's job asks for with ``--executor slurm``."""

    partition: str | None = None
    account: str | None = None
    time: SlurmTime = Field(
        default=timedelta(hours=2), description="The job's time limit: as here, or as Slurm writes it."
    )
    cpus: int = Field(default=4, ge=1)
    memory: str | None = Field(default=None, pattern=r"^[1-9][0-9]*[KMGT]?$", examples=["32G"])
    constraint: str | None = None


class ImageSettings(Model):
    """What ``defaults`` and an image share."""

    platform: PlatformText = "linux/amd64"
    convert: ConvertModel = ConvertModel()
    scan: ScanModel = ScanModel()
    slurm: SlurmModel = SlurmModel()
    channels: list[Channel] = [names.DEFAULT_CHANNEL]
    keep: int = Field(default=5, ge=1, description="How many releases prune leaves.")
    max_age: Duration | None = Field(
        default=None, description="Rebuild without a changed input after this time."
    )
    track: TrackModel | None = None
    test_on: list[Annotated[str, Field(pattern=r"^-\S+$")]] | None = Field(
        default=None,
        description="Options of srun for a node that runs `test`; left out: this host.",
        examples=[["--partition=gpu", "--gpus=1"]],
    )


class ImageModel(ImageSettings):
    """One image; without a Dockerfile the base is mirrored unchanged."""

    base: ReferenceText = Field(examples=["nvcr.io/nvidia/pytorch:24.01-py3"])
    dockerfile: str | None = Field(default=None, description="From the folder of images.yaml.")
    context: str | None = Field(
        default=None, description="The build's folder; the Dockerfile's own if left out."
    )
    build_args: dict[ArgumentName, str] = {}
    secrets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")], SecretModel] = {}
    target: str | None = Field(default=None, description="The stage of the Dockerfile that is the result.")
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
            given = [k for k in ("context", "build_args", "secrets", "target") if k in self.model_fields_set]
            if given:
                raise ValueError(f"{given[0]} needs a dockerfile: without one the base is mirrored unchanged")
        return self


class NotifyModel(Model):
    """Whom to tell: exactly one of sns, webhook_env and command."""

    sns: str | None = Field(default=None, pattern=r"^arn:", description="ARN of an SNS topic.")
    webhook_env: str | None = Field(
        default=None, description="Environment variable that holds the webhook's address."
    )
    command: list[str] | None = Field(
        default=None, min_length=1, description="Gets the event as JSON on stdin."
    )
    on: list[Literal["published", "blocked", "failed", "base-moved"]] = Field(
        default=["published", "blocked", "failed", "base-moved"], min_length=1
    )

    @model_validator(mode="after")
    def _one(self) -> NotifyModel:
        if sum(value is not None for value in (self.sns, self.webhook_env, self.command)) != 1:
            raise ValueError("give exactly one of sns, webhook_env and command")
        return self


class ImagesFile(Model):
    """images.yaml of sqshpipe."""

    version: Literal[1]
    registry: RegistryModel | None = None
    store: StoreModel | None = None
    cache: str | None = Field(default=None, description="Packs and blobs kept between runs.")
    scratch: str | None = Field(default=None, description="Local disk for one run's work.")
    limits: LimitsModel = LimitsModel()
    notify: list[NotifyModel] = []
    defaults: ImageSettings = ImageSettings()
    images: dict[ImageName, ImageModel] = Field(min_length=1)


DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The JSON schema of images.yaml, for editors."""
    schema = ImagesFile.model_json_schema()
    return {"$schema": DIALECT, **schema, "title": "sqshpipe images.yaml"}
