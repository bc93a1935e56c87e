"""Build: from a Dockerfile on a pinned base to an image in the Docker Engine."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from pipeline.config import folders
from pipeline.config.names import Version
from pipeline.config.types import ImageSpec
from pipeline.docker import buildkit
from pipeline.docker.config import docker_config
from pipeline.docker.engine import BuildRequest, Engine
from pipeline.errors import ConfigError, ToolError
from pipeline.image.context import members, size_of
from pipeline.image.dockerfile import BASE_ARGUMENT, pin_base
from pipeline.image.dockerignore import Ignore
from pipeline.image.inputs import BuildInputs, dockerfile_text, gather, read_dockerfile
from pipeline.image.pin import BaseImage
from pipeline.oci.digest import Digest
from pipeline.progress import NO_TASK, Task
from pipeline.registry.credentials import CredentialsProvider, credentials_for
from pipeline.system.disk import cannot_write
from pipeline.system.log import log
from pipeline.system.scratch import SpaceRequirement, require_space, scratch_folder
from pipeline.text import utc

_CLASSIC_DOCKERFILE = ".sqshpipe.Dockerfile"
_CLASSIC_IGNORE = f"{_CLASSIC_DOCKERFILE}\n.dockerignore\n"
_USER_IGNORE = ".dockerignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image in the engine, not yet pushed. `config_digest` is None where the engine does not report it."""

    image: str
    local_id: str
    config_digest: Digest | None
    key: str
    base: BaseImage


def build_key(spec: ImageSpec, base: BaseImage) -> str:
    """The key of a build: a sha256 in hex over all its inputs. A build with a known key is not run again.

    Labels (version, time, revision) are not part of it: another version with these inputs is the same image.
    Raises ConfigError for a file that cannot be read.
    """
    return gather(spec, base.digest).key


def build(
    spec: ImageSpec,
    base: BaseImage,
    *,
    key: str,
    version: Version,
    revision: str | None,
    engine: Engine,
    fresh: bool = False,
    base_layers: Collection[Digest] = (),
    credentials: CredentialsProvider = credentials_for,
    scratch: Path | None = None,
    task: Task = NO_TASK,
) -> BuiltImage:
    """Build `spec` on `base` with BuildKit where a command line has it, else with the classic builder.

    `fresh` takes no step from the engine's cache, so that package updates inside a Dockerfile arrive.
    `base_layers` are the digests of the base's layers, which matter to an image with a compression only.
    `scratch` is where to work, None for the usual place. Raises ConfigError when the Dockerfile is missing,
    does not build on the base, or wants secrets that cannot be given; ToolError when the engine cannot
    compress as the image wants, when a step fails, with its last lines, and for a full disk, ours or the
    engine's.
    """
    dockerfile, context = _paths(spec)
    frontend = buildkit.find_frontend(engine)
    if frontend is None and spec.secrets:
        raise ConfigError(
            f"{spec.name} has build secrets, and only BuildKit can give them to a build",
            hint="install buildx (Debian and Ubuntu: docker-buildx; else https://github.com/docker/buildx)",
        )
    if spec.compression is not None:
        buildkit.require_zstd(frontend, engine, spec.name)
    with scratch_folder(scratch or folders.scratch_from(os.environ)) as folder:
        copy = _copied(spec, base, key, dockerfile, context, folder, classic=frontend is None)
        order = _order(spec, base, key, copy, version=version, revision=revision, engine=engine, fresh=fresh)
        if spec.compression is not None:
            order = replace(order, zstd_over=frozenset(base_layers))
        config_digest: Digest | None = None
        with docker_config({host: credentials(host) for host in order.registries}) as config:
            if frontend is not None:
                log.debug("building with BuildKit", frontend=frontend.version)
                work = folder / "build"
                work.mkdir()
                config_digest = buildkit.build(
                    frontend, order, engine, docker_config=config, folder=work, task=task
                )
            else:
                log.debug("building with the engine's classic builder")
                with _classic_context(order, folder) as tar:
                    engine.build(tar, _CLASSIC_DOCKERFILE, order, docker_config=config, task=task)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """What is built: a copy of the context that no one else changes, and the Dockerfile's text."""

    context: Path
    dockerfile: str


def _copied(
    spec: ImageSpec,
    base: BaseImage,
    key: str,
    dockerfile: Path,
    context: Path,
    folder: Path,
    *,
    classic: bool,
) -> _Copy:
    """Copy the context into `folder`, and see that it is what `key` was computed from.

    Raises ConfigError when a file has changed since.
    """
    size, names = size_of(context, Ignore.of(dockerfile, context))
    copies = 2 if classic else 1  # the classic builder takes a tar of it
    require_space(
        [
            SpaceRequirement(
                folder=folder, size=size * copies, files=names, purpose="a copy of the build's context"
            )
        ]
    )
    # BuildKit compares a context with the last one from a folder of this name, and believes that a file of
    # the same size and time has the same content. A new name leaves it nothing to compare with.
    copy = folder / f"context-{uuid.uuid4().hex}"
    inputs = gather(replace(spec, context=context), base.digest, copy_to=copy)
    raw = read_dockerfile(dockerfile)
    text = dockerfile_text(raw, dockerfile)
    if not _is_key(key, inputs) or hashlib.sha256(raw).hexdigest() != inputs.dockerfile:
        raise ConfigError(
            f"{spec.name}: {dockerfile} or files in {context} changed after the build was planned",
            hint="run the same command again",
        )
    return _Copy(context=copy, dockerfile=text)


def _is_key(key: str, inputs: BuildInputs) -> bool:
    """Whether `key` is of these inputs; a period of max_age may have ended since it was computed."""
    if inputs.key == key:
        return True
    return inputs.period is not None and replace(inputs, period=inputs.period - 1).key == key


def _order(
    spec: ImageSpec,
    base: BaseImage,
    key: str,
    copy: _Copy,
    *,
    version: Version,
    revision: str | None,
    engine: Engine,
    fresh: bool,
) -> BuildRequest:
    dockerfile, _ = _paths(spec)
    pinned_base = base.reference.with_digest(base.digest)
    pinned = pin_base(
        copy.dockerfile,
        pinned_base,
        spec.build_args,
        name=str(dockerfile),
        platform=spec.platform,
        build_platform=engine.platform,
        target=spec.target,
    )
    for other in pinned.others:
        log.warning("not pinned, since it is not the base in images.yaml", image=other, file=str(dockerfile))
    arguments = dict(spec.build_args)
    if pinned.takes_base:
        arguments.setdefault(BASE_ARGUMENT, str(base.pinned))
    return BuildRequest(
        tag=f"sqshpipe/{spec.name}:{key[:16]}",
        context=copy.context,
        path=dockerfile,
        registries=tuple(dict.fromkeys((base.reference.registry, *pinned.registries))),
        dockerfile=pinned.text,
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


def labels(spec: ImageSpec, base: BaseImage, *, version: Version, revision: str | None) -> dict[str, str]:
    """The labels of OCI image-spec, annotations.md. SOURCE_DATE_EPOCH, in seconds, replaces the present time.

    Raises ConfigError when that is set to something else.
    """
    now = _now(os.environ.get("SOURCE_DATE_EPOCH", ""))
    prefix = "org.opencontainers.image"
    found = {
        f"{prefix}.title": spec.name,
        f"{prefix}.version": version,
        f"{prefix}.created": utc(now),
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
        raise ConfigError(f"SOURCE_DATE_EPOCH is {epoch[:40]!r}, which is not a time in seconds") from error


@contextmanager
def _classic_context(order: BuildRequest, folder: Path) -> Iterator[IO[bytes]]:
    """The context as a tar in `folder`, with the pinned Dockerfile under a name that no COPY sees.

    The builder takes both names that are ours out of the context. A .dockerignore of the user goes with them.
    """
    file = folder / "context.tar"
    try:
        with tarfile.open(file, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
            for path, source in members(order.context, Ignore(patterns=())):
                if path not in (_CLASSIC_DOCKERFILE, _USER_IGNORE):
                    tar.add(source, path, recursive=False, filter=_without_owner)
            for name, text in ((_CLASSIC_DOCKERFILE, order.dockerfile), (_USER_IGNORE, _CLASSIC_IGNORE)):
                member = tarfile.TarInfo(name)
                content = text.encode()
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    except OSError as error:
        raise cannot_write(error, file) from error
    with file.open("rb") as stream:
        yield stream


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


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
