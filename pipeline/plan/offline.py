"""Checks of images.yaml, its Dockerfiles and images.lock that need no registry and no store."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.lock import Lock
from pipeline.config.types import Config, ImageSpec
from pipeline.errors import SqshpipeError
from pipeline.image.dockerfile import pin_base
from pipeline.image.dockerignore import Ignore
from pipeline.image.inputs import dockerfile_text, read_dockerfile
from pipeline.oci.digest import Digest

_ANY = Digest(algorithm="sha256", hex="0" * 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """`invalid`: what no build could use; `stale`: sentences on how images.lock differs from images.yaml."""

    invalid: tuple[SqshpipeError, ...]
    stale: tuple[str, ...]


def check(config: Config, specs: tuple[ImageSpec, ...], lock: Lock) -> Checked:
    """Read each Dockerfile and .dockerignore as a build would, and compare images.lock with all bases.

    A base may be missing in the lock when images.yaml itself makes it: its first release adds it.
    """
    invalid, stale = [], []
    for spec in specs:
        held = lock.get(spec.base, spec.platform)
        if held is None and spec.base.digest is None and not _is_ours(config, spec):
            stale.append(f"{spec.name}: {spec.base} for {spec.platform} is not locked")
        if spec.dockerfile is None or spec.context is None:
            continue
        try:
            pin_base(
                dockerfile_text(read_dockerfile(spec.dockerfile), spec.dockerfile),
                spec.base.with_digest(held.digest if held else spec.base.digest or _ANY),
                spec.build_args,
                name=str(spec.dockerfile),
                platform=spec.platform,
                target=spec.target,
            )
            Ignore.of(spec.dockerfile, spec.context)
        except SqshpipeError as error:
            invalid.append(error)
    wanted = {(str(spec.base), str(spec.platform)) for spec in config.images.values()}
    unused = sorted(set(lock.bases) - wanted)
    stale += [f"{name} for {platform} is locked, and no image has it as base" for name, platform in unused]
    return Checked(invalid=tuple(invalid), stale=tuple(stale))


def _is_ours(config: Config, spec: ImageSpec) -> bool:
    if not config.registry.given:
        return False
    made = [config.registry.repository(name) for name in config.images if name != spec.name]
    return any((one.registry, one.repository) == (spec.base.registry, spec.base.repository) for one in made)
