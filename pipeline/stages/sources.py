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
from pipeline.oci.manifest import Index, Manifest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.oci.source import ImageSource
from pipeline.progress import SILENT, Meter
from pipeline.stages.scratch import scratch_folder
from pipeline.tools.registry import RegistryClient, RegistrySource

HINT = "write docker://HOST/NAME:TAG, oci:FOLDER[:TAG], docker-archive:FILE or docker-daemon:NAME"
_MAX_NESTING = 3  # an index in an index in an index


@contextlib.contextmanager
def opened_source(
    text: str,
    platform: Platform,
    *,
    scratch: Path,
    client_for: Callable[[str], RegistryClient] = RegistryClient,
    meter: Meter = SILENT,
) -> Iterator[ImageSource]:
    """The image that ``text`` names, for ``platform``, until the end of the with statement.

    An image of a daemon is saved into a folder in ``scratch`` first. Raises ConfigError for what is no source
    or is made for another platform, RegistryError, ToolError, FormatError.
    """
    kind, colon, rest = text.partition(":")
    if not colon or not rest:
        raise ConfigError(f"{text[:200]!r} is not a source of an image", hint=HINT)
    if kind == "docker":
        if not rest.startswith("//"):
            raise ConfigError(
                f"{text[:200]!r} is not a source of an image", hint="write docker://HOST/NAME:TAG"
            )
        yield _checked(open_registry(Reference.parse(rest[2:]), platform, client_for), platform)
    elif kind == "oci":
        from pipeline.oci.layout import open_layout, parse_location

        folder, tag = parse_location(rest)
        yield _checked(open_layout(folder, tag, platform=platform), platform)
    elif kind == "docker-archive":
        from pipeline.oci.archive import open_archive

        file, name = _file_and_name(rest)
        yield _checked(open_archive(file, name, platform=platform), platform)
    elif kind == "docker-daemon":
        with _saved(rest, platform, scratch, meter) as archive:
            yield _checked(archive, platform)
    else:
        raise ConfigError(f"{kind[:40]!r} is not a kind of source", hint=HINT)


def open_registry(
    reference: Reference, platform: Platform, client_for: Callable[[str], RegistryClient]
) -> RegistrySource:
    """The image of ``reference`` for ``platform``, out of an index if there is one."""
    client = client_for(reference.registry)
    found: Manifest | Index = client.get_manifest(reference.repository, reference.identifier)
    for _ in range(_MAX_NESTING):
        if isinstance(found, Manifest):
            return RegistrySource(client, reference.repository, found)
        found = client.get_manifest(reference.repository, str(found.select(platform).digest))
    raise ConfigError(f"{reference} is an index of indexes, nested too deep")


def _file_and_name(text: str) -> tuple[Path, str | None]:
    """``FILE[:NAME]``; NAME says which image of several is meant."""
    file, colon, name = text.partition(":")
    if not colon or Path(text).exists():
        return Path(text), None
    return Path(file), name


@contextlib.contextmanager
def _saved(name: str, platform: Platform, scratch: Path, meter: Meter) -> Iterator[ImageSource]:
    """An image of the Docker Engine, saved into scratch for as long as it is read."""
    from pipeline.oci.archive import open_archive
    from pipeline.tools.docker import Engine

    with scratch_folder(scratch) as folder:
        file = folder / "image.tar"
        with Engine.connect() as engine:
            engine.save(name, file, meter)
        yield open_archive(file, platform=platform)


def _checked(source: ImageSource, platform: Platform) -> ImageSource:
    """``source``, when its config says that it is for ``platform``."""
    found = source.config().platform
    if not platform.matches(found):
        raise ConfigError(
            f"{source.name} is made for {found}, not for {platform}", hint=f"give --platform {found}"
        )
    return source
