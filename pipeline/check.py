"""Try an image without publishing it: what a pull request gets, and what a build runner hands over.

The same stages as a release, up to where they stop; nothing reaches the store or a version's tag.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.bases import Clients
from pipeline.config.types import Config, ImageSpec
from pipeline.errors import RegistryError
from pipeline.lock import Lock
from pipeline.progress import Story
from pipeline.release import in_registry, source_of
from pipeline.stages.convert import convert
from pipeline.stages.push import PushedImage
from pipeline.stages.scan import ScanReport, scan
from pipeline.stages.scratch import scratch_folder
from pipeline.stages.verify import verify
from pipeline.wanted import pin_base


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """How far an image got: pushed by digest, scanned, and the .sqsh's size in bytes (0: not made)."""

    pushed: PushedImage
    report: ScanReport
    size: int


def try_out(
    spec: ImageSpec,
    version: str,
    *,
    config: Config,
    lock: Lock,
    clients: Clients,
    story: Story,
    pushed: Callable[[PushedImage], None],
    revision: str | None = None,
    until_scan: bool = False,
) -> Tried:
    """Build or adopt ``spec``, scan it, and unless ``until_scan`` convert and verify it on scratch.

    ``pushed`` hears of the image before the scan can refuse it. Raises each stage's own errors.
    """
    pinned = pin_base(spec, lock=lock, clients=clients, story=story)
    image = in_registry(spec, version, pinned, config=config, clients=clients, story=story, revision=revision)
    pushed(image)
    with story.stage("scan"):
        report = scan(image, spec.scan, image=spec.name, client_for=clients, credentials=clients.credentials)
        story.result(report.sentence)
    if until_scan:
        return Tried(pushed=image, report=report, size=0)
    with scratch_folder(config.scratch) as folder:
        with story.stage("convert") as meter:
            file = convert(
                source_of(report, clients),
                spec.convert,
                output=folder / f"{spec.name}.sqsh",
                scratch=config.scratch,
                cache=config.cache,
                meter=meter,
            )
            story.result(f"{file.converter.name}, sha256:{file.sha256[:12]}")
        with story.stage("verify") as meter:
            verify(file, meter=meter)
            story.result(f"{len(file.tree)} entries read back, as in the image")
        return Tried(pushed=image, report=report, size=file.size)


def refuse_other(
    spec: ImageSpec, reference: str, *, config: Config, lock: Lock, clients: Clients, story: Story
) -> None:
    """Raise RegistryError unless the registry's image for ``spec`` is ``reference`` (repository@digest).

    What one machine built and another publishes is handed over by digest: the sources that both have must
    lead to that image, and it must be there.
    """
    pinned = pin_base(spec, lock=lock, clients=clients, story=story)
    repository = config.registry.repository(spec.name)
    inputs = pinned.build_inputs
    wanted = f"key-{inputs.key}" if inputs else str(pinned.base.digest)
    found = clients(repository.registry).head(repository.repository, wanted)
    there = str(repository.with_digest(found.digest)) if found else "nothing"
    if there != reference:
        raise RegistryError(
            f"{spec.name} was handed over as {reference}, but for these sources there is {there}",
            hint="the sources are not those that were built, or the image was replaced: run the build again",
        )
