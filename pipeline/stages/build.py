"""Build: from a Dockerfile on a pinned base to an image in the Docker Engine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

import structlog
from docker.utils.build import create_archive

from pipeline.config.types import ImageSpec
from pipeline.errors import ConfigError, ToolError
from pipeline.inputs import context_paths, gather
from pipeline.oci.digest import Digest
from pipeline.progress import SILENT, Meter
from pipeline.stages.dockerfile import BASE_ARGUMENT, pin_base
from pipeline.stages.pin import BaseImage
from pipeline.stages.scratch import Need, default_scratch, require_space, scratch_folder
from pipeline.tools import buildkit
from pipeline.tools.credentials import CredentialsProvider, credentials_for
from pipeline.tools.disk import FULL, cannot_write
from pipeline.tools.docker import BuildOrder, Engine
from pipeline.tools.docker_config import docker_config

log = structlog.get_logger()

_CLASSIC_DOCKERFILE = ".sqshpipe.Dockerfile"
_BLOCK = 512  # bytes, of a tar


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image in the engine, not yet pushed. `config_digest` is None where the engine does not tell it."""

    image: str
    local_id: str
    config_digest: Digest | None
    key: str
    base: BaseImage


def build_key(spec: ImageSpec, base: BaseImage) -> str:
    """What decides that a build is unnecessary: a sha256 in hex over all that goes into it.

    Labels (version, time, revision) are left out: another version of the same input is the same image.
    Raises ConfigError for a file that cannot be read.
    """
    return gather(spec, base.digest).key


def build(
    spec: ImageSpec,
    base: BaseImage,
    *,
    key: str,
    version: str,
    revision: str | None,
    engine: Engine,
    fresh: bool = False,
    credentials: CredentialsProvider = credentials_for,
    scratch: Path | None = None,
    meter: Meter = SILENT,
) -> BuiltImage:
    """Build `spec` on `base` with BuildKit where a command line offers it, else with the engine's classic
    builder.

    `fresh` takes no step from the engine's cache, so that package updates inside a Dockerfile arrive.
    `scratch` is where to work, None for the usual place. Raises ConfigError when the Dockerfile is missing,
    does not build on the base, or wants secrets that cannot be given; ToolError when a step fails, with its
    last lines, and for a full disk, ours or the engine's.
    """
    order = _order(spec, base, key, version=version, revision=revision, engine=engine, fresh=fresh)
    frontend = buildkit.find_frontend(engine)
    if frontend is None and order.secrets:
        raise ConfigError(
            f"{spec.name} has build secrets, and only BuildKit can give them to a build",
            hint="install buildx (Debian and Ubuntu: docker-buildx; else https://github.com/docker/buildx)",
        )
    config_digest: Digest | None = None
    with (
        docker_config({host: credentials(host) for host in order.registries}) as config,
        scratch_folder(scratch or default_scratch()) as folder,
    ):
        if frontend is not None:
            log.debug("building with BuildKit", frontend=frontend.version)
            work = folder / "build"
            work.mkdir()
            config_digest = buildkit.build(
                frontend, order, engine, docker_config=config, folder=work, meter=meter
            )
        else:
            log.debug("building with the engine's classic builder")
            with _classic_context(order, folder) as tar:
                engine.build(tar, _CLASSIC_DOCKERFILE, order, docker_config=config, meter=meter)
    found = engine.image(order.tag)
    if found is None:
        raise ToolError(f"{spec.name} was built, but the Docker Engine does not have {order.tag}")
    return BuiltImage(
        image=spec.name,
        local_id=found.local_id,
        config_digest=config_digest or found.config_digest,
        key=key,
        base=base,
    )


def _order(
    spec: ImageSpec,
    base: BaseImage,
    key: str,
    *,
    version: str,
    revision: str | None,
    engine: Engine,
    fresh: bool,
) -> BuildOrder:
    dockerfile, context = _paths(spec)
    pinned_base = base.reference.with_digest(base.digest)
    pinned = pin_base(_read(dockerfile), pinned_base, spec.build_args, name=str(dockerfile))
    for other in pinned.others:
        log.warning("not pinned, since it is not the base in images.yaml", image=other, file=str(dockerfile))
    arguments = dict(spec.build_args)
    if pinned.takes_base:
        arguments.setdefault(BASE_ARGUMENT, str(base.pinned))
    own_ignores = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    return BuildOrder(
        tag=f"sqshpipe/{spec.name}:{key[:16]}",
        context=context,
        path=dockerfile,
        registries=tuple(dict.fromkeys((base.reference.registry, *pinned.registries))),
        dockerfile=pinned.text,
        dockerignore=_read(own_ignores) if own_ignores.is_file() else None,
        build_args=arguments,
        labels=labels(spec, base, version=version, revision=revision),
        secrets={
            name: buildkit.secret_source(name, source.env, source.file)
            for name, source in spec.secrets.items()
        },
        target=spec.target,
        platform=None if spec.platform.matches(engine.platform) else str(spec.platform),
        network=engine.default_network(),
        no_cache=fresh,
    )


def labels(spec: ImageSpec, base: BaseImage, *, version: str, revision: str | None) -> dict[str, str]:
    """The labels of OCI image-spec, annotations.md. SOURCE_DATE_EPOCH, in seconds, stands for the time.

    Raises ConfigError when that is set to something else.
    """
    now = _now(os.environ.get("SOURCE_DATE_EPOCH", ""))
    prefix = "org.opencontainers.image"
    found = {
        f"{prefix}.title": spec.name,
        f"{prefix}.version": version,
        f"{prefix}.created": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        f"{prefix}.base.name": str(base.reference.with_digest(None)),
        f"{prefix}.base.digest": str(base.digest),
    }
    return found | ({f"{prefix}.revision": revision} if revision else {})


def _now(epoch: str) -> datetime:
    if not epoch:
        return datetime.now(timezone.utc)
    try:
        return datetime.fromtimestamp(int(epoch), timezone.utc)
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(f"SOURCE_DATE_EPOCH is {epoch[:40]!r}, which is no time in seconds") from error


@contextmanager
def _classic_context(order: BuildOrder, folder: Path) -> Iterator[IO[bytes]]:
    """The context as a tar in `folder`, with the pinned Dockerfile under a name that no COPY sees."""
    ignored = f"{_CLASSIC_DOCKERFILE}\n.dockerignore\n"
    file = folder / "context.tar"
    try:
        paths = context_paths(order.path, order.context)
        size = sum(_in_tar(order.context / path) for path in paths) + len(order.dockerfile.encode())
        require_space([Need(folder=folder, size=size, purpose="the build's context")])
        with file.open("w+b") as tar:
            create_archive(
                str(order.context),
                files=[path for path in paths if path != ".dockerignore"],
                fileobj=tar,
                extra_files=[(_CLASSIC_DOCKERFILE, order.dockerfile), (".dockerignore", ignored)],
            )
            tar.flush()
    except OSError as error:
        full = error if error.errno in FULL else error.__cause__  # docker-py raises its own for a file
        if isinstance(full, OSError) and full.errno in FULL:
            raise cannot_write(full, file) from error
        raise ConfigError(f"the build's folder {order.context} cannot be read: {error}") from error
    with file.open("rb") as tar:
        yield tar


def _in_tar(path: Path) -> int:
    """Bytes that a member of the context takes in a tar: a header and whole blocks of content."""
    found = path.lstat()
    return _BLOCK + (-(-found.st_size // _BLOCK) * _BLOCK if stat.S_ISREG(found.st_mode) else 0)


def _paths(spec: ImageSpec) -> tuple[Path, Path]:
    """The Dockerfile and the build's folder."""
    if spec.dockerfile is None:
        raise ConfigError(
            f"{spec.name} has no dockerfile: there is nothing to build", hint="mirror its base instead"
        )
    context = spec.context or spec.dockerfile.parent
    if not context.is_dir():
        raise ConfigError(f"{spec.name}: the build's folder {context} is not there")
    return spec.dockerfile, context


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}", hint="images.yaml names it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
