"""The stages of the path with their progress: each calls the code of its topic and reports its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.attest.attest import attest
from pipeline.config.names import Version
from pipeline.config.types import ImageSpec
from pipeline.convert.convert import CONVERTER_VERSIONS, SquashfsFile, choose_converter, convert, convert_key
from pipeline.convert.verify import VerifiedSquashfs, verify
from pipeline.docker.engine import Engine
from pipeline.errors import ConfigError, ToolError
from pipeline.image.build import BuiltImage, build
from pipeline.image.inputs import scan_policy
from pipeline.image.mirror import mirror
from pipeline.image.push import PushedImage, adopt, push, tag_version
from pipeline.image.repository import prepare
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.registry.images import image_manifest
from pipeline.registry.source import RegistrySource
from pipeline.release import start_profile
from pipeline.release.pinned import Pinned
from pipeline.release.publish import publish, publish_again
from pipeline.release.run import Run, Stage
from pipeline.release.smoke_test import Record, smoke_test
from pipeline.scan.gate import ScanReport, scan
from pipeline.scan.judge import Judge, chosen
from pipeline.store.record import Release
from pipeline.store.sharing import is_own
from pipeline.store.store import Store
from pipeline.system.scratch import scratch_folder
from pipeline.text import short

if TYPE_CHECKING:
    from pipeline.convert.early import EarlyPacking
    from pipeline.convert.from_bucket import BucketReleases
    from pipeline.convert.from_store import StoredLayers


def require_scanner(run: Run, spec: ImageSpec) -> None:
    """Raise ConfigError when nothing can scan the image: better before a build of minutes than after it."""
    chosen(spec.scan, run.config.registry.repository(spec.name))


def build_only(run: Run, spec: ImageSpec, version: Version, pinned: Pinned) -> BuiltImage:
    """The image in the engine, not pushed. Raises ConfigError for an entry without a Dockerfile."""
    with Engine.connect() as engine:
        return _built(run, spec, version, pinned, engine)


def in_registry(
    run: Run, spec: ImageSpec, version: Version, pinned: Pinned, early: EarlyPacking | None = None
) -> PushedImage:
    """The image in our registry by digest: mirrored, found under its build key, or built and pushed now.

    `early` begins to pack the base's layers while the build runs. A built layer waits for the push: only
    then is its digest in the registry known.
    """
    repository = run.config.registry.repository(spec.name)
    client = run.clients(repository.registry)
    prepare(run.config.registry, repository)
    if pinned.inputs is None:
        with run.progress.stage("mirror") as task:
            mirrored = mirror(pinned.base, repository, run.clients(spec.base.registry), client, task=task)
            run.progress.result(f"{mirrored.reference}")
        return mirrored
    key = pinned.inputs.key
    adopted = adopt(repository, key, pinned.base, client)
    if adopted is not None:
        run.progress.skip("build", f"{repository} has key-{short(key)}")
        return adopted
    with _engine_for(spec, repository) as engine:
        if early is not None:
            base = pinned.base
            early.begin(lambda: _source(run, base.reference, base.digest), behind=True)
        built = _built(run, spec, version, pinned, engine)
        with run.progress.stage("push") as task:
            credentials = run.clients.credentials
            pushed = push(built, repository, engine, client, credentials=credentials, task=task)
            run.progress.result(str(pushed.reference))
    return pushed


def _engine_for(spec: ImageSpec, repository: Reference) -> Engine:
    """The engine of this machine; ToolError says where else the image can be pushed from."""
    try:
        return Engine.connect()
    except ToolError as error:
        raise ToolError(
            f"{repository} has no image of these sources, and none can be built here: {error.headline}",
            hint=f"push from a machine that has one: sqshpipe release {spec.name} --until push; {error.hint}",
        ) from error


def _built(run: Run, spec: ImageSpec, version: Version, pinned: Pinned, engine: Engine) -> BuiltImage:
    if pinned.inputs is None:
        raise ConfigError(f"{spec.name} has no dockerfile: its base is mirrored, there is nothing to build")
    key, base = pinned.inputs.key, pinned.base
    over = _source(run, base.reference, base.digest).manifest().layers if spec.compression else ()
    with run.progress.stage("build") as task:
        built = build(
            spec,
            base,
            key=key,
            version=version,
            revision=run.revision,
            engine=engine,
            # A new period of max_age exists for what a Dockerfile fetches: no step from the engine's cache.
            fresh=pinned.inputs.period is not None,
            base_layers=[layer.digest for layer in over],
            credentials=run.clients.credentials,
            scratch=run.config.scratch,
            task=task,
        )
        run.progress.result(f"key-{short(key)}")
    return built


def scanned(run: Run, spec: ImageSpec, pushed: PushedImage) -> ScanReport:
    """The verdict on the pushed digest; ScanRejected when the gate does not pass."""
    with run.progress.stage("scan"):
        judge = Judge(client_for=run.clients, credentials=run.clients.credentials)
        report = scan(pushed, spec.scan, image=spec.name, config=run.config, judge=judge)
        run.progress.result(report.sentence)
    return report


def bucket(run: Run, until: Stage, store: Store | None) -> AbstractContextManager[BucketReleases | None]:
    """The releases in the store's copy in S3; None where images.yaml names none or no conversion follows."""
    if run.config.store.s3 is None or not until.reaches(Stage.CONVERT):
        return nullcontext()
    from pipeline.plan.known import copy_in_s3

    return copy_in_s3(run.config, store)


def early_packs(
    run: Run, spec: ImageSpec, until: Stage, store: Store | None, copy: BucketReleases | None
) -> AbstractContextManager[EarlyPacking | None]:
    """What packs layers in the background, while build and scan run; None when that is useless.

    That is where no conversion follows, where another converter than ``native`` is meant, or where
    images.yaml says ``early: false``. Leaving the context, as a rejection does, ends what is not done.
    """
    wanted = until.reaches(Stage.CONVERT) and spec.convert.early
    if not wanted or choose_converter(spec.convert) != "native":
        return nullcontext()
    from pipeline.convert.early import early_packing

    return early_packing(
        spec.convert,
        cache=run.config.cache,
        limits=run.config.limits,
        stored=lambda: _stored(run, store, copy),
    )


def pack_early(
    run: Run, spec: ImageSpec, pushed: PushedImage, store: Store | None, early: EarlyPacking | None
) -> None:
    """Begin to pack the layers of `pushed`, unless the store has the file already."""
    if early is not None and (store is None or same_file(run, spec, pushed, store) is None):
        early.begin(lambda: _source(run, pushed.repository, pushed.digest))


def try_file(
    run: Run,
    spec: ImageSpec,
    version: Version,
    report: ScanReport,
    until: Stage,
    early: EarlyPacking | None,
    copy: BucketReleases | None,
) -> VerifiedSquashfs | None:
    """Convert, verify and test in scratch, up to `until`; the file is removed again."""
    with scratch_folder(run.config.scratch) as folder:
        output = folder / f"{spec.name}.sqsh"
        file = _converted(run, spec, report, output, early, None, copy)
        verified = _verified(run, file) if until.reaches(Stage.VERIFY) else None
        if until.reaches(Stage.TEST):
            tested(run, spec, output, f"{spec.name}:{version}", None)
    return verified


def same_file(run: Run, spec: ImageSpec, pushed: PushedImage, store: Store) -> Release | None:
    """A release whose file was made from this very image with these options: converting gives nothing new.

    `auto` accepts whatever converter made it, as it does for a version that is published already.
    """
    digest, converter = pushed.digest, spec.convert.converter
    names = CONVERTER_VERSIONS if converter == "auto" else (converter,)
    keys = [convert_key(digest, spec.convert, name) for name in names]
    synced = run.config.store.trust_synced
    return store.made_from(str(digest), keys, str(spec.platform), synced=synced)


def publish_new(
    run: Run,
    spec: ImageSpec,
    version: Version,
    pinned: Pinned,
    report: ScanReport,
    store: Store,
    early: EarlyPacking | None,
    copy: BucketReleases | None,
) -> Release:
    """Convert, verify and test in the store's staging folder, then publish."""
    store.make_room(report.image.size)  # a .sqsh is about as large as the compressed layers
    with store.staging() as staged:
        verified = _verified(run, _converted(run, spec, report, staged, early, store, copy))
        make = partial(publish, verified, platform=str(spec.platform))
        return _tested_and_published(
            run, spec, version, pinned, report, store, staged, verified.file.sha256, make
        )


def publish_same(
    run: Run,
    spec: ImageSpec,
    version: Version,
    pinned: Pinned,
    report: ScanReport,
    store: Store,
    same: Release,
) -> Release:
    """Publish the file of another release, made from the same image with the same options."""
    run.progress.skip("convert", f"{same.name} is the same image with the same options: its file is taken")
    run.progress.skip("verify", "its bytes are compared with their digest while they are published")
    make = partial(publish_again, same)
    return _tested_and_published(run, spec, version, pinned, report, store, same.path, same.sha256, make)


def _tested_and_published(
    run: Run,
    spec: ImageSpec,
    version: Version,
    pinned: Pinned,
    report: ScanReport,
    store: Store,
    file: Path,
    sha256: str,
    make: Callable[..., Release],
) -> Release:
    """Test `file`, publish it by `make`, and put the profile of its start beside the release."""
    with scratch_folder(run.config.scratch) as recorded:
        tested(run, spec, file, f"{spec.name}:{version}", Record(folder=recorded, sha256=sha256))
        with run.progress.stage("publish") as task:
            _tag_version(run, version, report)
            made = make(
                store=store,
                image=spec.name,
                version=version,
                source=report.image,
                scan=report.record(),
                provenance=provenance(run, spec, pinned),
                channels=spec.channels,
                task=task,
            )
            run.progress.result(f"{made.name}, {made.public_path}")
        _profiled(run, made, store, recorded)
    return made


def attested(run: Run, made: Release, store: Store) -> None:
    """Put provenance, SBOM and signature beside the release, unless `sync` brought it."""
    if not is_own(store.layout, made):  # a provenance from here would say that this machine made it
        run.progress.skip("attest", f"{made.name} was brought by store sync: attest it where it was made")
        return
    with run.progress.stage("attest"):
        found = attest(made, store, client_for=run.clients, credentials=run.clients.credentials)
        run.progress.result(found.sentence)


def _converted(
    run: Run,
    spec: ImageSpec,
    report: ScanReport,
    output: Path,
    early: EarlyPacking | None,
    store: Store | None,
    copy: BucketReleases | None,
) -> SquashfsFile:
    with run.progress.stage("convert") as task, _stored(run, store, copy) as stored:
        if early is not None:
            early.finish(task)
        file = convert(
            _source(run, report.image.repository, report.image.digest),
            spec.convert,
            output=output,
            scratch=run.config.scratch,
            cache=run.config.cache,
            limits=run.config.limits,
            staged=store is not None,
            task=task,
            stored=stored,
        )
        run.progress.result(f"{file.converter.name}, sha256:{short(file.sha256)}")
    return file


def _stored(
    run: Run, store: Store | None, copy: BucketReleases | None
) -> AbstractContextManager[StoredLayers | None]:
    """The releases from which layers are taken: those of the store, and of its copy in S3."""
    if store is None and copy is None:
        return nullcontext()
    from pipeline.convert.from_store import StoredLayers

    return StoredLayers(store, synced=run.config.store.trust_synced, copy=copy)


def _verified(run: Run, file: SquashfsFile) -> VerifiedSquashfs:
    with run.progress.stage("verify") as task:
        verified = verify(file, task=task)
        run.progress.result(f"{len(file.tree)} entries read back, as in the image")
    return verified


def _profiled(run: Run, made: Release, store: Store, recorded: Path) -> None:
    """The start-up profile of what the tests recorded, or that of the version before, if there is one."""
    sentence = start_profile.attach(made, store, recorded)
    if sentence:
        with run.progress.stage("profile"):
            run.progress.result(sentence)


def tested(run: Run, spec: ImageSpec, file: Path, name: str, record: Record | None) -> None:
    """Run the image's own tests, if it has any, inside a .sqsh. Raises VerificationError when one fails."""
    if spec.test:
        with run.progress.stage("test") as task:
            passed = smoke_test(
                file, spec.test, name=name, slurm_options=spec.test_on, task=task, record=record
            )
            run.progress.result(f"{len(passed)} of {len(spec.test)} commands passed")


def _source(run: Run, repository: Reference, digest: Digest) -> RegistrySource:
    """Where layers are read: a registry, by the digest that is scanned, or that of the base."""
    client = run.clients(repository.registry)
    manifest = image_manifest(client, repository.with_tag(None).with_digest(digest), None)
    return RegistrySource(client, repository.repository, manifest)


def _tag_version(run: Run, version: Version, report: ScanReport) -> None:
    tag_version(report.image, version, run.clients(report.image.repository.registry))


def provenance(run: Run, spec: ImageSpec, pinned: Pinned) -> dict[str, Any]:
    """The part of the record about how the release was made."""
    built: Mapping[str, Any] = pinned.inputs.record() if pinned.inputs else {}
    return {
        "sqshpipe": __version__,
        "revision": run.revision,
        "inputs": dict(built),
        "scan_policy": scan_policy(spec.scan),
    }
