"""The path from a Dockerfile to a published .sqsh: stage after stage, each taking what the last returned.

It begins with what `pipeline.wanted` has pinned. What is done already is found and said, such as an image
that the registry has under its build key; a run that died goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.bases import Clients
from pipeline.config.types import Config, ImageSpec
from pipeline.errors import ConfigError, PublishError
from pipeline.inputs import scan_policy
from pipeline.oci.manifest import Manifest
from pipeline.progress import Story
from pipeline.stages.attest import attest
from pipeline.stages.build import BuiltImage, build
from pipeline.stages.convert import CONVERTER_VERSIONS, convert, convert_key
from pipeline.stages.mirror import mirror
from pipeline.stages.publish import publish, publish_again
from pipeline.stages.push import PushedImage, adopt, push, tag_version
from pipeline.stages.repository import prepare
from pipeline.stages.scan import ScanReport, chosen, mirrored_base, scan
from pipeline.stages.try_image import try_image
from pipeline.stages.verify import VerifiedSquashfs, verify
from pipeline.store.record import Release
from pipeline.store.store import Store
from pipeline.tools.docker import Engine
from pipeline.tools.registry import RegistrySource
from pipeline.wanted import Pinned


def release(
    spec: ImageSpec,
    version: str,
    pinned: Pinned,
    store: Store,
    *,
    config: Config,
    clients: Clients,
    story: Story,
    revision: str | None = None,
) -> Release:
    """Take ``spec`` through all stages and publish it as ``version``. Raises each stage's own errors."""
    chosen(spec.scan, config.registry.repository(spec.name))  # no scanner: better said now than after a build
    pushed = in_registry(
        spec, version, pinned, config=config, clients=clients, story=story, revision=revision
    )
    report = scanned(spec, pushed, config=config, clients=clients, story=story)
    run = _Publication(spec, version, report, provenance(spec, pinned, revision), config, clients, story)
    same = same_file(spec, report, store)
    made = run.converted(store) if same is None else run.taken_over(same, store)
    attested(made, store, clients=clients, story=story)
    return made


def attested(made: Release, store: Store, *, clients: Clients, story: Story) -> None:
    """Put beside the release where it comes from, what is in it, and a signature."""
    with story.stage("attest"):
        found = attest(made, store, client_for=clients, credentials=clients.credentials)
        story.result(found.sentence)


def same_file(spec: ImageSpec, report: ScanReport, store: Store) -> Release | None:
    """A release whose file was made from this very image with these options: converting gives nothing new.

    ``auto`` accepts whatever converter made it, as it does for a version that is published already.
    """
    digest, wanted = report.image.digest, spec.convert.converter
    names = CONVERTER_VERSIONS if wanted == "auto" else (wanted,)
    keys = [convert_key(digest, spec.convert, name) for name in names]
    return store.made_from(str(digest), keys, str(spec.platform))


@dataclass(frozen=True, slots=True)
class _Publication:
    """The last part of the path: from an image that passed the scan to a release."""

    spec: ImageSpec
    version: str
    report: ScanReport
    provenance: Mapping[str, Any]
    config: Config
    clients: Clients
    story: Story

    def converted(self, store: Store) -> Release:
        """Convert, verify, test and publish."""
        pushed = self.report.image
        store.make_room(pushed.size)  # a .sqsh is about as large as the compressed layers
        with store.staging() as staged:
            verified = verified_file(
                self.spec,
                self.report,
                output=staged,
                name=f"{self.spec.name}:{self.version}",
                config=self.config,
                clients=self.clients,
                story=self.story,
            )
            with self.story.stage("publish") as meter:
                self._tag()
                made = publish(
                    verified,
                    store=store,
                    image=self.spec.name,
                    version=self.version,
                    platform=str(self.spec.platform),
                    source=pushed,
                    scan=self.report.record(),
                    provenance=self.provenance,
                    meter=meter,
                )
                self.story.result(f"{made.name}, {made.public_path}")
        return made

    def taken_over(self, same: Release, store: Store) -> Release:
        """Publish the file of another release, which is the same."""
        self.story.skip("convert", f"{same.name} is the same image with the same options: its file is taken")
        self.story.skip("verify", "its bytes are compared with their digest while they are published")
        tested(self.spec, same.path, f"{self.spec.name}:{self.version}", self.story)
        with self.story.stage("publish") as meter:
            self._tag()
            made = publish_again(
                same,
                store=store,
                image=self.spec.name,
                version=self.version,
                source=self.report.image,
                scan=self.report.record(),
                provenance=self.provenance,
                meter=meter,
            )
            self.story.result(f"{made.name}, {made.public_path}")
        return made

    def _tag(self) -> None:
        pushed = self.report.image
        tag_version(pushed, self.version, self.clients(pushed.repository.registry))


def in_registry(
    spec: ImageSpec,
    version: str,
    pinned: Pinned,
    *,
    config: Config,
    clients: Clients,
    story: Story,
    revision: str | None = None,
) -> PushedImage:
    """The image in our registry by digest: mirrored, found under its build key, or built and pushed now."""
    repository = config.registry.repository(spec.name)
    client = clients(repository.registry)
    prepare(config.registry, repository)
    if pinned.build_inputs is None:
        with story.stage("mirror") as meter:
            mirrored = mirror(pinned.base, repository, clients(spec.base.registry), client, meter=meter)
            story.result(f"{mirrored.reference}")
        return mirrored
    key = pinned.build_inputs.key
    adopted = adopt(repository, key, pinned.base, client)
    if adopted is not None:
        story.skip("build", f"{repository} has key-{key[:12]}")
        return adopted
    with Engine.connect() as engine:
        built = build_with(
            engine, spec, version, pinned, config=config, clients=clients, story=story, revision=revision
        )
        with story.stage("push") as meter:
            pushed = push(built, repository, engine, client, credentials=clients.credentials, meter=meter)
            story.result(str(pushed.reference))
    return pushed


def build_with(
    engine: Engine,
    spec: ImageSpec,
    version: str,
    pinned: Pinned,
    *,
    config: Config,
    clients: Clients,
    story: Story,
    revision: str | None = None,
) -> BuiltImage:
    """The image in `engine`, not pushed. Raises ConfigError for an entry without a Dockerfile."""
    if pinned.build_inputs is None:
        raise ConfigError(f"{spec.name} has no dockerfile: its base is mirrored, there is nothing to build")
    key = pinned.build_inputs.key
    with story.stage("build") as meter:
        built = build(
            spec,
            pinned.base,
            key=key,
            version=version,
            revision=revision,
            engine=engine,
            # A new period of max_age is there for what a Dockerfile fetches: no step from the engine's cache.
            fresh=pinned.build_inputs.period is not None,
            credentials=clients.credentials,
            scratch=config.scratch,
            meter=meter,
        )
        story.result(f"key-{key[:12]}")
    return built


def scanned(
    spec: ImageSpec, pushed: PushedImage, *, config: Config, clients: Clients, story: Story
) -> ScanReport:
    """The verdict on the pushed digest; ScanRejected when the gate does not pass."""
    with story.stage("scan"):
        report = scan(
            pushed,
            spec.scan,
            image=spec.name,
            client_for=clients,
            credentials=clients.credentials,
            base_in=mirrored_base(config, spec),
        )
        story.result(report.sentence)
    return report


def verified_file(
    spec: ImageSpec,
    report: ScanReport,
    *,
    output: Path,
    name: str,
    config: Config,
    clients: Clients,
    story: Story,
) -> VerifiedSquashfs:
    """The .sqsh at ``output``: converted, read back and compared, tried with the image's own tests."""
    with story.stage("convert") as meter:
        file = convert(
            source_of(report, clients),
            spec.convert,
            output=output,
            scratch=config.scratch,
            cache=config.cache,
            limits=config.limits,
            staged=True,
            meter=meter,
        )
        story.result(f"{file.converter.name}, sha256:{file.sha256[:12]}")
    with story.stage("verify") as meter:
        verified = verify(file, meter=meter)
        story.result(f"{len(file.tree)} entries read back, as in the image")
    tested(spec, output, name, story)
    return verified


def tested(spec: ImageSpec, file: Path, name: str, story: Story) -> None:
    """Run the image's own tests, if it has any, inside a .sqsh. Raises VerificationError when one fails."""
    if spec.test:
        with story.stage("test") as meter:
            tried = try_image(file, spec.test, name=name, slurm_options=spec.test_on, meter=meter)
            story.result(f"{len(tried)} of {len(spec.test)} commands passed")


def source_of(report: ScanReport, clients: Clients) -> RegistrySource:
    """Where the converter reads the layers: the registry, by the digest that was scanned."""
    image = report.image
    client = clients(image.repository.registry)
    manifest = client.get_manifest(image.repository.repository, str(image.digest))
    if not isinstance(manifest, Manifest):
        raise PublishError(f"{image.reference} is an index, not the image of one platform")
    return RegistrySource(client, image.repository.repository, manifest)


def provenance(spec: ImageSpec, pinned: Pinned, revision: str | None) -> dict[str, Any]:
    """What the record says of how the release came to be."""
    built: Mapping[str, Any] = pinned.build_inputs.record() if pinned.build_inputs else {}
    return {
        "sqshpipe": __version__,
        "revision": revision,
        "inputs": dict(built),
        "scan_policy": scan_policy(spec.scan),
    }
