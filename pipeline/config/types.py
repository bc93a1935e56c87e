"""The configuration as values: frozen, complete, with defaults and overrides applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pipeline.config.ecr_hosts import EcrHost
from pipeline.config.names import DEFAULT_CHANNEL, suggest
from pipeline.errors import ConfigError
from pipeline.oci.entry import DEFAULT_LIMITS, Limits
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference

ConverterName = Literal["auto", "enroot", "mksquashfs", "native"]
CompressorName = Literal["zstd", "gzip", "lz4"]
ScannerName = Literal["auto", "none", "ecr", "trivy"]
Severity = Literal["low", "medium", "high", "critical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EcrSettings:
    """An account's registry; ``prefix`` is put before each repository, without slashes at its ends.

    The rest are settings of its repositories: `image.repository` compares and applies them.
    """

    account: str
    region: str
    prefix: str = ""
    immutable: bool = True
    scanning: Literal["basic", "enhanced", "off"] = "basic"
    kms_key: str | None = None
    untagged_days: int = 14
    signing_profile: str | None = None
    fips: bool = False  # as the host name in `url` says
    dual_stack: bool = False

    @property
    def host(self) -> str:
        return str(
            EcrHost(account=self.account, region=self.region, fips=self.fips, dual_stack=self.dual_stack)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """Where images are pushed: ``url`` is ``host[:port][/path]`` without a scheme, or ``ecr`` is set."""

    url: str | None = None
    ecr: EcrSettings | None = None
    plain_http: bool = False

    @property
    def given(self) -> bool:
        """Whether images.yaml, a variable or an option names a registry."""
        return self.url is not None or self.ecr is not None

    @property
    def base(self) -> str:
        """``host[:port][/path]`` in which each image has a repository; ConfigError when none is given."""
        if self.ecr is not None:
            return "/".join(filter(None, (self.ecr.host, self.ecr.prefix)))
        if self.url is None:
            raise ConfigError(
                "no registry is given",
                hint="set registry: {url: HOST/PATH} in images.yaml, SQSHPIPE_REGISTRY, or --registry",
            )
        return self.url

    @property
    def host(self) -> str:
        """``host[:port]``; ConfigError when no registry is given."""
        return self.base.split("/", 1)[0]

    def repository(self, image: str) -> Reference:
        """The repository of ``image``, without tag and digest; ConfigError when no registry is given."""
        parsed = Reference.parse(f"{self.base}/{image}")
        return Reference(registry=parsed.registry, repository=parsed.repository, tag=None, digest=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """The shared folder of releases; ``group`` is the group that its files get, if any."""

    configured: Path | None
    group: str | None = None
    stripe: tuple[int, int] | None = None
    """Lustre: (number of targets, bytes of a piece)."""
    grace: timedelta = timedelta(days=30)
    delete_after: timedelta = timedelta(days=14)
    trust_synced: bool = False
    """Whether layers and whole files are taken from releases that `sync` brought."""
    s3: str | None = None
    """The bucket that `sync` copies this store to; with `trust_synced` layers are taken from there too."""
    require_signature: str | None = None
    """Path of a PEM file with public keys, or ``awskms:KEY-ID``: what they did not sign does not resolve."""

    @property
    def root(self) -> Path:
        """The store's folder; ConfigError when none is given."""
        if self.configured is None:
            raise ConfigError(
                "no store is given",
                hint="set store: {root: DIR} in images.yaml, SQSHPIPE_STORE, or --store",
            )
        return self.configured


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """How the .sqsh is made; ``block_size`` is in bytes, a power of two from 4 KiB to 1 MiB.

    ``zstd_level`` counts for zstd alone: gzip and lz4 are written as mksquashfs writes them by itself.
    ``early`` lets ``native`` pack layers while build and scan run; it does not change the file.
    """

    converter: ConverterName = "auto"
    compressor: CompressorName = "zstd"
    zstd_level: int = 3
    block_size: int = 131072
    keep_owners: bool = False
    keep_xattrs: bool = False
    early: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class VexPolicy:
    """OpenVEX documents that count, each statement for ``max_age``: ``files``, and with ``attached`` those
    that refer to the image in its registry.
    """

    files: tuple[Path, ...] = ()
    attached: bool = False
    max_age: timedelta = timedelta(days=90)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPolicy:
    """When a scan blocks a release.

    ``fail_on`` is the lowest severity that blocks, None for never; ``new_since_base`` counts only what the
    base did not bring; findings in ``ignore_packages`` (shell patterns) never do; ``vex`` says which VEX
    statements count; ``published`` says what
    becomes of a release that no longer passes; ``max_age`` is how old a verdict may be before it is asked
    for again.
    """

    scanner: ScannerName = "auto"
    fail_on: Severity | None = "high"
    new_since_base: bool = False
    fixable_only: bool = False
    waivers: Path | None = None
    vex: VexPolicy = VexPolicy()
    ignore_packages: tuple[str, ...] = ()
    published: Literal["report", "yank"] = "report"
    max_age: timedelta = timedelta(days=1)
    timeout: timedelta = timedelta(minutes=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSource:
    """Where a BuildKit secret comes from: exactly one of an environment variable's name and a file."""

    env: str | None = None
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TagPattern:
    """Which tags are newer versions of the base (``pattern``, such as ``YY.MM-py3``): use or only report
    them.
    """

    pattern: str
    policy: Literal["newest", "notify"] = "notify"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """Resources of an image's job when Slurm runs it; ``memory`` in sbatch's form (32G)."""

    partition: str | None = None
    account: str | None = None
    time: timedelta = timedelta(hours=2)
    cpus: int = 4
    memory: str | None = None
    constraint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """Where events go: one of ``sns`` (topic ARN), ``webhook_env`` (variable with the URL), ``command``."""

    sns: str | None = None
    webhook_env: str | None = None
    command: tuple[str, ...] | None = None
    on: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """One entry of images.yaml with defaults applied; without a Dockerfile the base is mirrored unchanged."""

    name: str
    base: Reference
    platform: Platform
    dockerfile: Path | None = None
    context: Path | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, SecretSource] = field(default_factory=dict)
    target: str | None = None
    compression: Literal["zstd"] | None = None  # of the layers that are built; None: as the engine does
    convert: ConvertOptions = field(default_factory=ConvertOptions)
    scan: ScanPolicy = field(default_factory=ScanPolicy)
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    channels: tuple[str, ...] = (DEFAULT_CHANNEL,)
    keep: int = 5
    max_age: timedelta | None = None
    test: tuple[str, ...] = ()
    test_on: tuple[str, ...] | None = None  # options of srun; None: here
    track: TagPattern | None = None

    @property
    def mirrored(self) -> bool:
        """True when there is nothing to build: the base goes to the registry as it is."""
        return self.dockerfile is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """images.yaml. ``cache`` keeps packs and blobs between runs, ``scratch`` is for one run's work,
    ``limits`` say what no image may exceed.
    """

    path: Path
    registry: RegistrySettings
    store: StoreSettings
    images: Mapping[str, ImageSpec]
    cache: Path
    scratch: Path
    limits: Limits = DEFAULT_LIMITS
    notify: tuple[Notify, ...] = ()

    @property
    def lock_path(self) -> Path:
        """images.lock beside images.yaml (for NAME.yaml: NAME.lock)."""
        return self.path.with_suffix(".lock")

    def image(self, name: str) -> ImageSpec:
        """The image called ``name``. Raises ConfigError for an unknown name, with the most similar name."""
        spec = self.images.get(name)
        if spec is None:
            raise ConfigError(f"{self.path} has no image {name!r}", hint=suggest(name, self.images))
        return spec

    def select(self, names: Iterable[str]) -> tuple[ImageSpec, ...]:
        """The named images in the given order; all for no name. Raises ConfigError for an unknown one."""
        wanted = list(dict.fromkeys(names))
        return tuple(self.image(name) for name in wanted) if wanted else tuple(self.images.values())
