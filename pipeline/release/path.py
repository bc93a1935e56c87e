"""The path from a Dockerfile to a published .sqsh, on one screen.

`release`, `release --until STAGE` and `ci check` are this one function. What is done already is found and
skipped; a run that died resumes where it stopped. Engine, scanners and converters are imported when there is
something to make: most runs find everything done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config.names import Version
from pipeline.config.types import ImageSpec
from pipeline.plan.current import published
from pipeline.release.pinned import Pinned, pin_base
from pipeline.release.run import Run, Stage
from pipeline.store.record import Release

if TYPE_CHECKING:
    from pipeline.convert.verify import VerifiedSquashfs
    from pipeline.image.build import BuiltImage
    from pipeline.image.push import PushedImage
    from pipeline.scan.gate import ScanReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What the stages that ran returned; None for those that did not run or had nothing to do."""

    pinned: Pinned
    built: BuiltImage | None = None
    pushed: PushedImage | None = None
    report: ScanReport | None = None
    verified: VerifiedSquashfs | None = None
    release: Release | None = None


def release(
    run: Run,
    spec: ImageSpec,
    version: Version,
    *,
    until: Stage = Stage.PUBLISH,
    on_pushed: Callable[[PushedImage], None] = lambda _: None,
) -> Reached:
    """Take `spec` along the path as `version`, up to and including the stage `until`.

    With another stage than publish the store is not touched: the file is made, verified and tested in
    scratch. `on_pushed` is called with the image before the gate can reject it. Raises each stage's own
    errors; ConfigError before any work when nothing can scan the image, PublishError when the version is
    published with other content.
    """
    store = run.store() if until is Stage.PUBLISH else None
    if store:
        store.require()  # before the registry is asked
    pinned = pin_base(run, spec)
    if until is Stage.PIN:
        return Reached(pinned=pinned)
    done = published(spec, version, pinned.base.digest, pinned.inputs, store) if store else None

    if store and done:
        run.progress.skip("publish", f"{done.name} is published and nothing changed")
        done = store.publish(done, done.path, channels=spec.channels)  # what a killed run left undone
        if store.is_attested(done):
            return Reached(pinned=pinned, release=done)

    from pipeline.release import stages

    if store and done:
        stages.attested(run, done, store)
        return Reached(pinned=pinned, release=done)
    if until.reaches(Stage.SCAN):
        stages.require_scanner(run, spec)
    if until is Stage.BUILD:
        return Reached(pinned=pinned, built=stages.build_only(run, spec, version, pinned))
    with (
        stages.bucket(run, until, store) as copy,
        stages.early_packs(run, spec, until, store, copy) as early,
    ):
        pushed = stages.in_registry(run, spec, version, pinned, early)
        on_pushed(pushed)
        if until is Stage.PUSH:
            return Reached(pinned=pinned, pushed=pushed)
        if until is Stage.SCAN:
            return Reached(pinned=pinned, pushed=pushed, report=stages.scanned(run, spec, pushed))
        stages.pack_early(run, spec, pushed, store, early)
        report = stages.scanned(run, spec, pushed)
        if store is None:
            verified = stages.try_file(run, spec, version, report, until, early, copy)
            return Reached(pinned=pinned, pushed=pushed, report=report, verified=verified)
        same = stages.same_file(run, spec, report.image, store)
        if same is None:
            made = stages.publish_new(run, spec, version, pinned, report, store, early, copy)
        else:
            made = stages.publish_same(run, spec, version, pinned, report, store, same)
    stages.attested(run, made, store)
    return Reached(pinned=pinned, pushed=pushed, report=report, release=made)
