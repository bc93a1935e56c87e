"""The first stage: the base by digest, and the fingerprint of what is built on it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.types import ImageSpec
from pipeline.errors import RegistryError
from pipeline.image import inputs
from pipeline.image.inputs import BuildInputs
from pipeline.image.pin import BaseImage, pin
from pipeline.release.run import Run
from pipeline.system.log import log
from pipeline.text import short

# AWS's documents use these as examples; they belong to nobody.
EXAMPLE_ACCOUNTS = frozenset({"123456789012", "111122223333", "000000000000"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """An image with its base pinned: what decides whether anything has to run.

    `inputs` is None for an entry without a Dockerfile, which is mirrored as it is.
    """

    base: BaseImage
    inputs: BuildInputs | None


def pin_base(run: Run, spec: ImageSpec) -> Pinned:
    """Pin the base and fingerprint what is built on it. Raises RegistryError, ConfigError.

    Warns first when images.yaml still has an example account: whatever fails next, that has to be edited too.
    """
    ecr = run.config.registry.ecr
    if ecr is not None and ecr.account in EXAMPLE_ACCOUNTS:
        log.warning(
            f"{run.config.path} has placeholders: write your own registry (ecr: account and region, or url) "
            "and store (root) there, or give --registry and --store",
            account=ecr.account,
        )
    with run.progress.stage("pin"):
        base = pin(spec.base, spec.platform, run.lock, run.clients)
        run.progress.result(_sentence(base))
        return Pinned(base=base, inputs=None if spec.mirrored else inputs.gather(spec, base.digest))


def verify_handoff(run: Run, spec: ImageSpec, reference: str) -> None:
    """Raise RegistryError unless the registry's image for `spec` is `reference` (repository@digest).

    What one machine built and another publishes is handed over by digest: the sources that both have must
    lead to that image, and it must be there.
    """
    pinned = pin_base(run, spec)
    repository = run.config.registry.repository(spec.name)
    identifier = f"key-{pinned.inputs.key}" if pinned.inputs else str(pinned.base.digest)
    found = run.clients(repository.registry).head(repository.repository, identifier)
    there = str(repository.with_digest(found.digest)) if found else "nothing"
    if there != reference:
        raise RegistryError(
            f"{spec.name} was handed over as {reference}, but for these sources there is {there}",
            hint="the sources are not those that were built, or the image was replaced: run the build again",
        )


def _sentence(base: BaseImage) -> str:
    how = "locked" if base.locked else "not locked, what the tag stands for now"
    moved = f"; the tag has moved to {short(base.moved_to)}, see sqshpipe lock" if base.moved_to else ""
    return f"{base.reference} is {short(base.digest)}, {how}{moved}"
