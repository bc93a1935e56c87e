"""The image configuration of image-spec's config.md. Docker's container.image.v1 has the same fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pipeline.errors import FormatError
from pipeline.oci import strict_json
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import MAX_LAYERS
from pipeline.oci.platform import Platform

MAX_SIZE = 8 << 20


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How a container of the image starts. `diff_ids`: digests of its unpacked layers, lowest first."""

    raw: bytes = field(repr=False)
    digest: Digest
    platform: Platform
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=_nothing, hash=False)
    user: str = ""
    diff_ids: tuple[Digest, ...] = ()
    created: str | None = None


def parse_config(raw: bytes) -> ImageConfig:
    """Parse the bytes of an image's config blob. Raises FormatError, also for an artifact's config.

    Volumes come sorted. `digest` is computed from `raw`: compare it with the descriptor's.
    """
    digest = Digest.of(raw)
    what = f"image config {digest}"
    value = strict_json.parse_object(raw, max_size=MAX_SIZE, what=what)
    strict_json.check_case(value, ("architecture", "os", "config", "rootfs"), what)
    rootfs = strict_json.mapping(value, "rootfs", what)
    if not strict_json.text(value, "os", what) or rootfs.get("type") != "layers":
        raise FormatError(f"{what} is not the config of a container image", hint="is it another artifact?")
    strict_json.check_case(rootfs, ("type", "diff_ids"), what)
    run = strict_json.mapping(value, "config", what)
    strict_json.check_case(run, ("Env", "Entrypoint", "Cmd", "WorkingDir", "Volumes", "Labels", "User"), what)
    diff_ids = strict_json.texts(rootfs, "diff_ids", what)
    if len(diff_ids) > MAX_LAYERS:
        raise FormatError(f"{what} lists {len(diff_ids)} layers, more than the {MAX_LAYERS} that are allowed")
    config = ImageConfig(
        raw=raw,
        digest=digest,
        platform=Platform(
            os=strict_json.text(value, "os", what),
            architecture=strict_json.text(value, "architecture", what),
            variant=strict_json.text(value, "variant", what),
        ),
        env=strict_json.texts(run, "Env", what),
        entrypoint=strict_json.texts(run, "Entrypoint", what),
        cmd=strict_json.texts(run, "Cmd", what),
        working_dir=strict_json.text(run, "WorkingDir", what),
        volumes=tuple(sorted(strict_json.mapping(run, "Volumes", what))),
        labels=MappingProxyType(strict_json.text_mapping(run, "Labels", what)),
        user=strict_json.text(run, "User", what),
        diff_ids=tuple(Digest.parse(text) for text in diff_ids),
        created=strict_json.text(value, "created", what) or None,
    )
    _check_no_nul(config, what)
    return config


def _check_no_nul(config: ImageConfig, what: str) -> None:
    """No string that ends up in a path, an argument or the environment can hold a NUL."""
    words = (*config.env, *config.entrypoint, *config.cmd, config.working_dir, *config.volumes)
    if any("\0" in word for word in words):
        raise FormatError(f"{what} holds a NUL character in its environment, command or paths")
