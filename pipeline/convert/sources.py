"""Where an image comes from, in the words that skopeo users know.

docker://HOST/REPOSITORY[:TAG][@DIGEST]   a registry
oci:FOLDER[:TAG]                          an OCI image layout
docker-archive:FILE                       what docker save wrote
docker-daemon:NAME[:TAG]                  an image in the Docker Engine
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference, plain_name
from pipeline.oci.source import ImageSource
from pipeline.progress import NO_TASK, Task
from pipeline.registry.client import RegistryClient
from pipeline.registry.images import image_manifest
from pipeline.registry.source import RegistrySource
from pipeline.system.scratch import scratch_folder

_KINDS = ("docker", "docker-daemon", "dockerd", "podman", "containers-storage")
HINT = "write docker://HOST/NAME:TAG, oci:FOLDER[:TAG], docker-archive:FILE or docker-daemon:NAME"


@contextlib.contextmanager
def opened_source(
    text: str,
    platform: Platform,
    *,
    scratch: Path,
    client_for: Callable[[str], RegistryClient] = RegistryClient,
    task: Task = NO_TASK,
) -> Iterator[ImageSource]:
    """The image that ``text`` names, for ``platform``, until the end of the with statement.

    An image of a daemon is saved into a folder in ``scratch`` first. Raises ConfigError for what is not a
    source or is made for another platform, RegistryError, ToolError, FormatError.
    """
    kind, _, rest = text.partition(":")
    reference = _registry_name(text)
    if reference is not None:
        yield _checked(open_registry(reference, platform, client_for), platform)
    elif kind == "oci" and rest and not rest.startswith("//"):
        from pipeline.oci.layout import open_layout, parse_location

        folder, tag = parse_location(rest)
        yield _checked(open_layout(folder, tag, platform=platform), platform)
    elif kind == "docker-archive" and rest and not rest.startswith("//"):
        from pipeline.oci.archive import open_archive

        file, name = _file_and_name(rest)
        yield _checked(open_archive(file, name, platform=platform), platform)
    elif kind == "docker-daemon" and rest and not rest.startswith("//"):
        with _saved(rest, platform, scratch, task) as archive:
            yield _checked(archive, platform)
    else:
        raise ConfigError(f"{text[:200]!r} is not a source of an image", hint=what_to_write(text))


def _registry_name(text: str) -> Reference | None:
    """The reference after ``docker://``; None for another kind of source."""
    if not text.startswith("docker://") or "#" in text:
        return None
    return Reference.parse(text.removeprefix("docker://"))


def what_to_write(text: str) -> str:
    """The right way to write what ``text`` seems to mean: enroot's words, a path, a name alone."""
    kind, _, rest = text.partition(":")
    path = rest.removeprefix("//")
    there = _there(text)
    if there == "folder" or (kind == "oci" and path):
        return f"write oci:{text if there else path}"
    if there == "file" or (kind == "docker-archive" and path):
        return f"write docker-archive:{text if there else path}"
    name = plain_name(text if "://" in text or kind not in _KINDS else rest)
    if not name or text.startswith(("/", ".")):
        return HINT
    if kind in ("dockerd", "docker-daemon"):
        return f"write docker-daemon:{name}"
    if kind in ("podman", "containers-storage"):
        return f"podman save -o FILE {name}, then write docker-archive:FILE"
    if kind == "docker" or "://" in text or "#" in text:
        return f"write docker://{name}"
    return f"for an image in a registry write docker://{name}"


def _there(text: str) -> str:
    """``folder`` or ``file``, whatever has this path; empty for nothing and for what is not a path."""
    try:
        return "folder" if Path(text).is_dir() else "file" if Path(text).is_file() else ""
    except (OSError, ValueError):
        return ""


def open_registry(
    reference: Reference, platform: Platform, client_for: Callable[[str], RegistryClient]
) -> RegistrySource:
    """The image of ``reference`` for ``platform``, out of an index if there is one."""
    client = client_for(reference.registry)
    return RegistrySource(client, reference.repository, image_manifest(client, reference, platform))


def _file_and_name(text: str) -> tuple[Path, str | None]:
    """``FILE[:NAME]``; NAME says which image of several is meant."""
    file, colon, name = text.partition(":")
    if not colon or Path(text).exists():
        return Path(text), None
    return Path(file), name


@contextlib.contextmanager
def _saved(name: str, platform: Platform, scratch: Path, task: Task) -> Iterator[ImageSource]:
    """An image of the Docker Engine, saved into scratch for as long as it is read."""
    from pipeline.docker.engine import Engine
    from pipeline.oci.archive import open_archive

    with scratch_folder(scratch) as folder:
        file = folder / "image.tar"
        with Engine.connect() as engine:
            engine.save(name, file, task)
        yield open_archive(file, platform=platform)


def _checked(source: ImageSource, platform: Platform) -> ImageSource:
    """``source``, when its config says that it is for ``platform``."""
    found = source.config().platform
    if not platform.matches(found):
        raise ConfigError(
            f"{source.name} is made for {found}, not for {platform}", hint=f"give --platform {found}"
        )
    return source
